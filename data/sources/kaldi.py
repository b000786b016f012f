"""Kaldi data directories: wav.scp, and by utterance or speaker text, utt2spk, segments, spk2gender and others."""

from collections.abc import Iterator
from pathlib import Path

from sottovoce.data.corpora.files import read_text
from sottovoce.data.corpora.report import Report
from sottovoce.data.sources.rows import Choice, Row, side
from sottovoce.errors import MissingError

_NOT_COLUMNS = ("spk", "dur", "num_frames", "uniq")  # of utt2spk, utt2dur, ...: read by themselves, or measured


def read_kaldi(source: Path, choice: Choice, report: Report) -> Iterator[Row]:
    """Rows of one data directory, or of each below the source; `utt2NAME` and `spk2NAME` are columns of that name.

    Commands in wav.scp are not run: they are named in the report, as are archives of Kaldi's own (`.ark`).

    Raises:
        MissingError: no utterance is left, since all recordings are commands.
    """
    folders = [source] if (source / "wav.scp").is_file() else sorted(file.parent for file in source.rglob("wav.scp"))
    for folder in folders:
        yield from _directory(folder, "" if folder == source else side(folder.name), report)


def _directory(folder: Path, split: str, report: Report) -> Iterator[Row]:
    recordings, commands = {}, 0
    for name, where in _table(folder / "wav.scp").items():
        if where.endswith("|") or where.startswith("|"):
            commands += 1
            report.add("command in wav.scp, which is not run: write its output to a file", name)
        elif ".ark:" in where or where.endswith(".ark"):
            report.add("archive of Kaldi's own, which is not read: write its clips to files", name)
        else:
            recordings[name] = where
    if commands and not recordings:
        told = "every recording is a command, and none is run: write their output to files (`wav-copy scp:wav.scp …`)"
        raise MissingError.at(folder / "wav.scp", "unsafe", told)
    texts, speakers = _table(folder / "text"), _table(folder / "utt2spk")
    of_utterance = _named(folder, "utt2")
    of_speaker = _named(folder, "spk2")
    parts = _table(folder / "segments") if (folder / "segments").is_file() else {name: "" for name in recordings}
    for name, part in parts.items():
        place = f"{folder.name}: {name}"
        recording, *times = part.split() if part else [name]
        values: dict[str, object] = {"id": name, "text": texts.get(name), "speaker": speakers.get(name)}
        try:
            start, end = (float(second) for second in times) if part else (None, None)
        except ValueError:
            report.add("malformed row", f"segments: {name}: a recording, a start and an end are needed")
            continue
        if recording not in recordings:
            report.add("recording is not in wav.scp" if part else "not in wav.scp", place)
            continue
        if part:
            values |= {"start": start, "end": end if end and end > 0 else None}  # -1: to the end of the recording
        values |= {key: table[name] for key, table in of_utterance.items() if name in table}
        speaker = speakers.get(name, "")
        values |= {key: table[speaker] for key, table in of_speaker.items() if speaker in table}
        yield Row(place, {"audio": recordings[recording], **values}, split, folder)


def _named(folder: Path, prefix: str) -> dict[str, dict[str, str]]:
    """Tables by the name of what they say, such as `gender` for spk2gender."""
    found = {file.name.removeprefix(prefix): file for file in sorted(folder.glob(f"{prefix}*")) if file.is_file()}
    return {name: _table(file) for name, file in found.items() if name.isidentifier() and name not in _NOT_COLUMNS}


def _table(file: Path) -> dict[str, str]:
    """First word of each line to the rest of it; empty where there is no such file."""
    if not file.is_file():
        return {}
    split = (line.strip().split(None, 1) for line in read_text(file).splitlines() if line.strip())
    return {words[0]: words[1].strip() if len(words) > 1 else "" for words in split}
