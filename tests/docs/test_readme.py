"""What README and docs show works as it stands there."""

import re
from pathlib import Path
from textwrap import dedent

import torch

from sottovoce.adapters import Adapter
from sottovoce.cli.recipe_schema import reference
from sottovoce.config import recipe as recipes
from sottovoce.frames import Frames

ROOT = Path(__file__).parents[2]


def block(begins: str) -> str:
    """The indented block of the README whose first line begins so."""
    text = (ROOT / "README.md").read_text("utf-8")
    found = re.search(rf"(?m)^    {re.escape(begins)}.*\n(?:(?:    .*)?\n)*", text)
    assert found, begins
    return dedent(found[0])


def test_the_page_of_keys_is_the_schema() -> None:
    """`python -m sottovoce.cli.recipe_schema > docs/recipe.md` writes it anew."""
    assert (ROOT / "docs/recipe.md").read_text("utf-8") == reference()


def test_the_recipe_loads(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(block("name: mine"))
    assert list(recipes.load(file).stages) == ["joint", "disentangle", "holistic"]


def test_the_adapter_adapts() -> None:
    code = block("import torch").partition("[project.entry-points")[0]
    there: dict[str, type[Adapter]] = {}
    exec(code, there)  # our own README
    adapter = there["Prosody"](6, 4, width=8)  # type: ignore[call-arg]
    x = torch.randn(2, 5, 6)
    both = adapter(Frames(x, torch.tensor([5, 3])))
    alone = adapter(Frames(x[1:, :3], torch.tensor([3])))
    assert both.x.shape == (2, 1, 4) and both.lengths.tolist() == [1, 1]
    torch.testing.assert_close(both.x[1], alone.x[0])
