"""Documents name files, modules, commands and links that exist; lines are short; what is generated is up to date."""

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from sottovoce.cli.commands import COMMANDS

ROOT = Path(__file__).parents[2]
gen_map = SimpleNamespace(**runpy.run_path(str(ROOT / "docs/gen_map.py")))
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
MODULES = gen_map.modules()
FILES = {file.name for file in MODULES.values()}
WORDS = 26_400  # README, docs, findings: an hour and a half


def prose(text: str) -> Iterator[str]:
    """Lines outside of tables, code and comments."""
    fenced = False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        if not (fenced or "|" in line or line.startswith(("    ", "```", "<!--"))):
            yield line


def anchors(text: str) -> set[str]:
    """What links to headings of a page may say."""
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@PAGE
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text("utf-8")), target


@PAGE
def test_every_file_and_module_that_is_named_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    for name in re.findall(r"(?<![\w/${}.-])(?:[\w-]+/)+[\w-]+\.(?:py|ya?ml|ipynb|txt)\b", text):
        if name.split("/")[0] not in ("runs", "manifests"):
            assert any((ROOT / place / name).exists() for place in ("", "src/sottovoce", "conf")), name
    for name in re.findall(r"`([\w-]+\.py)`(?!\|)", text):
        assert name in FILES, name
    for name in re.findall(r"\b(?:python -m |from |import )?(sottovoce(?:\.\w+)+)", text):
        if name.partition(".")[2] in ("adapter", "encoder", "corpus"):  # entry point groups
            continue
        module = next(m for m in (name, name.rpartition(".")[0]) if m in MODULES)
        assert module == name or re.search(rf"\b{name.rpartition('.')[2]}\b", MODULES[module].read_text("utf-8")), name
    for name in re.findall(r"python -m (tests[\w.]*|lightning_modules\.\w+)", text):
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


@PAGE
def test_every_command_that_is_named_exists(page: Path) -> None:
    known = {command.name for command in COMMANDS}
    for line in re.findall(r"`sottovoce ([a-z]+)|^    (?:srun )?sottovoce ([a-z]+)", page.read_text("utf-8"), re.M):
        assert "".join(line) in known, line


@PAGE
def test_lines_are_short(page: Path) -> None:
    assert not [line for line in prose(page.read_text("utf-8")) if len(re.sub(r"\S*://\S+", "", line)) > 120]


def test_documents_are_short() -> None:
    words = {str(page.relative_to(ROOT)): len(page.read_text("utf-8").split()) for page in PAGES}
    assert sum(words.values()) < WORDS, words


def test_the_map_is_up_to_date() -> None:
    """`python docs/gen_map.py` writes it anew."""
    assert gen_map.page() == gen_map.PAGE.read_text("utf-8")
    assert gen_map.files() == gen_map.MAP.read_text("utf-8")


def test_map_and_reference_have_every_module() -> None:
    rooms = [path.resolve() for path in (ROOT / "src/sottovoce").iterdir() if path.is_dir()]
    files = {*(ROOT / "src/sottovoce").glob("*.py"), *(file for room in rooms for file in room.rglob("*.py"))}
    assert {file.resolve() for file in MODULES.values()} == {file.resolve() for file in files}
