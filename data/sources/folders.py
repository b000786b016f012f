"""Audiofolders of Hugging Face: clips with metadata.csv or metadata.jsonl beside them, or in a folder a class."""

import os
from collections.abc import Iterator
from pathlib import Path

from sottovoce.data.corpora.files import AUDIO, Tree
from sottovoce.data.corpora.report import Report
from sottovoce.data.sources.rows import SIDES, Choice, Row, side
from sottovoce.data.sources.tables import read_csv, read_json
from sottovoce.errors import MissingError

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.tsv")
SUFFIXES = (*AUDIO, ".webm", ".aac", ".amr", ".wma", ".aiff")
CLASS = "label"  # the column that a folder's name is, as Hugging Face calls it
_SPLITS = {"train", "validation", "test", *SIDES}


def read_audiofolder(source: Path, choice: Choice, report: Report) -> Iterator[Row]:
    """Rows of each metadata file; where there is none, a row a clip, whose `label` is the folder that it lies in.

    Folders called train, validation (dev, val, ...) and test are splits.

    Raises:
        MissingError: there is no clip in the folder.
    """
    named = set[str]()
    tables = sorted(file for name in METADATA for file in source.rglob(name))
    for table in tables:
        split = _split(table.parent, source)
        for row in (read_json if table.suffix == ".jsonl" else read_csv)(table, choice, report):
            row.place = f"{table.parent.relative_to(source) / row.place}"
            row.folder, row.split = table.parent, row.split or split
            named |= {os.path.abspath(table.parent / value) for value in row.values.values() if isinstance(value, str)}
            yield row
    files = Tree(source, SUFFIXES).files
    if tables:
        for file in files:
            if os.path.abspath(file) not in named:
                report.add("extra", str(file.relative_to(source)))
        return
    if not files:
        raise MissingError(f"{source}: there is no audio in this folder", code="empty", where=source)
    for file in files:
        inside = file.relative_to(source)
        classes = [part for part in inside.parts[:-1] if part.lower() not in _SPLITS]
        values = {"audio": os.path.abspath(file), **({CLASS: classes[-1]} if classes else {})}
        yield Row(inside.as_posix(), values, _split(file.parent, source))


def _split(folder: Path, source: Path) -> str:
    names = [part for part in folder.relative_to(source).parts if part.lower() in _SPLITS]
    return side(names[0]) if names else ""
