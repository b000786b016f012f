"""`sottovoce cache`: what lies there and whose it is, and what `--clean` deletes."""

import os
import time
from pathlib import Path

import pytest
from filelock import FileLock
from tests.helpers.errors import refused

from sottovoce.cache_notes import note_file, note_use, read_note
from sottovoce.cli.cache import KINDS, OLD, command, entries
from sottovoce.errors import ConfigError, MissingError

DAY = 86_400


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Outputs of an encoder that two runs have used, those of one that nobody knows any more, and targets."""
    root = tmp_path / "cache"
    for name, count in (("aaaa", 3), ("bbbb", 1)):
        folder = root / "features" / name / "00"
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{number}.safetensors").write_bytes(bytes(1000))
    (root / "targets").mkdir()
    (root / "targets" / "cccc.answers").write_bytes(bytes(500))
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        note_use(root / "features" / "aaaa", "whisper base.en, layer 6", tmp_path / run)
    note_use(root / "targets" / "cccc.answers", "Qwen/Qwen2.5-7B-Instruct", tmp_path / "gone")
    for file in root.rglob("*.safetensors"):
        os.utime(file, (time.time() - 40 * DAY,) * 2)
    return root


def names(root: Path) -> set[str]:
    return {entry.path.name for entry in entries(root)}


def test_what_lies_there(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {entry.path.name: entry for entry in entries(cache)}
    assert (found["aaaa"].files, found["aaaa"].size, found["bbbb"].note.of) == (3, 3000, "")
    assert set(found["aaaa"].note.runs) == {str(tmp_path / "one"), str(tmp_path / "two")}
    command(str(cache), clean=False, older=None, yes=False)
    told = capsys.readouterr().out
    for words in ("whisper base.en, layer 6", "Qwen/Qwen2.5-7B-Instruct", "3 kB", "40 days ago", "4.5 kB", "not known"):
        assert words in told
    assert f"{tmp_path / 'gone'} (gone)" in told and "…" not in told
    assert names(cache) == {"aaaa", "bbbb", "cccc.answers"}


def test_features_of_older_versions_are_told_apart(cache: Path) -> None:
    new = cache / "features" / "0123456789abcdef-int8"
    new.mkdir()
    (new / "000000.tar").write_bytes(bytes(700))
    kinds = {entry.path.name: entry.kind for entry in entries(cache)}
    assert kinds[new.name] == KINDS["features"] and kinds["aaaa"] == kinds["bbbb"] == OLD


def test_what_is_old_goes_and_what_was_used_lately_stays(cache: Path) -> None:
    """Use counts, and not when the files were written."""
    command(str(cache), clean=True, older=30, yes=True)
    assert names(cache) == {"aaaa", "cccc.answers"}
    command(str(cache), clean=True, older=None, yes=True)
    assert not names(cache) and not note_file(cache / "features" / "aaaa").exists()


def test_what_a_run_has_in_hand_stays(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(tmp_path / "two" / ".running"):
        command(str(cache), clean=True, older=None, yes=True)
    assert names(cache) == {"aaaa"} and "kept" in capsys.readouterr().out


def test_nothing_goes_without_a_word(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("missing-key", "--yes", ConfigError):
        command(str(cache), clean=True, older=None, yes=False)
    with FileLock(cache / ".lock"), refused("conflict", cache, ConfigError):
        command(str(cache), clean=True, older=None, yes=True)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    command(str(cache), clean=True, older=None, yes=False)
    assert len(names(cache)) == 3
    with refused("not-found", "nowhere", MissingError):
        command("nowhere", clean=False, older=None, yes=False)


def test_a_note_that_cannot_be_read_is_none(cache: Path) -> None:
    note_file(cache / "features" / "aaaa").write_text('{"of": 3')
    assert read_note(cache / "features" / "aaaa").of == ""
