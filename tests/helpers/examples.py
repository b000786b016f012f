"""Examples of docs/data_formats.md: the files that it shows, made anew, and the commands on them."""

import re
import shlex
from pathlib import Path

import pytest
from tests.conftest import write_tone

PAGE = Path(__file__).parents[2] / "docs/data_formats.md"
_FILE = re.compile(r"(?m)^`([\w/.-]+)`[^\n]*:\n\n```\w*\n(.*?)^```", re.DOTALL)
_CODE = re.compile(r"(?ms)^```python\n(.*?)^```")
_COMMAND = re.compile(r"(?m)^    sottovoce (manifest .+)$")


def commands() -> dict[str, list[str]]:
    """Source -> the words of the command that converts it."""
    words = [shlex.split(line) for line in _COMMAND.findall(PAGE.read_text("utf-8"))]
    return {line[1]: line for line in words if line[1] not in ("SOURCE", "wavs")}


def write_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of the page, the clips that they name, of a second, and what its Python writes."""
    monkeypatch.chdir(folder)
    for number, name in enumerate(("a1.wav", "pets/train/a1.wav", "moods/test/happy/b1.wav", "kaldi/a1.wav")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_tone(folder / name, 1.0, 150 + 30 * number)
    text = PAGE.read_text("utf-8")
    for name, content in _FILE.findall(text):
        if not name.startswith("mine/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
    for code in _CODE.findall(text):
        exec(code, {})


def shown(name: str) -> str:
    """The content of a file as the page shows it."""
    return dict(_FILE.findall(PAGE.read_text("utf-8")))[name]
