"""Golden files: what each shipped recipe resolves to. A change of one must be meant.

`python -m tests.config.test_golden` writes them anew.
"""

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from sottovoce.cli.main import main

ROOT = Path(__file__).parents[2]
GOLDEN, CONF = ROOT / "tests" / "golden", ROOT / "conf"
FILES = sorted(file.relative_to(GOLDEN) for file in GOLDEN.rglob("*.yaml"))


def command(file: Path) -> str:
    return "pretrain" if "best_rq" in file.stem else "paired" if "paired" in file.stem else "fit"


def resolved(file: Path) -> str:
    shown = io.StringIO()
    with redirect_stdout(shown):
        assert main([command(file), "--config", str(CONF / file), "--print-config"]) == 0
    return shown.getvalue()


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_recipe_resolves_to_its_golden_file(file: Path) -> None:
    assert resolved(file) == (GOLDEN / file).read_text("utf-8")


def test_every_whole_recipe_has_a_golden_file() -> None:
    """Parts that others extend (`_base.yaml`), analyses and tables, which are recipes of another kind, have none."""
    others = {file.relative_to(CONF) for file in CONF.rglob("*.yaml")} - set(FILES)
    assert not [file for file in others if file.stem[0] != "_" and not file.stem.startswith(("table", "analysis"))]


if __name__ == "__main__":
    for file in FILES:
        (GOLDEN / file).write_text(resolved(file), "utf-8")
