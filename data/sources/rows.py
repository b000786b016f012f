"""Rows of a source: what each of its readers yields, whatever the format."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sottovoce.data.corpora.report import Report

SIDES = {
    "training": "train", "dev": "validation", "valid": "validation", "val": "validation", "eval": "validation",
    "testing": "test",
}  # fmt: skip


@dataclass
class Row:
    """A row before its columns are chosen.

    Audio is a path, or a dict as Hugging Face has it: `bytes` and `path`, or `array` and `sampling_rate`.
    """

    place: str  # `file:line`, or what else names it
    values: dict[str, Any]  # column -> value
    split: str = ""  # "": the source does not say
    folder: Path | None = None  # where its paths start; None: the folder of the source


@dataclass(frozen=True)
class Choice:
    """What of a source is read."""

    split: str | None = None  # of a dataset that has several
    subset: str | None = None  # of a dataset of the hub: its configuration
    root: Path | None = field(default=None)  # where relative paths start; None: beside the source, or here


class Reader(Protocol):
    """A function that reads one kind of source; rows that cannot be used it names in the report."""

    def __call__(self, source: Path, choice: Choice, report: Report) -> Iterator[Row]: ...


def side(name: str) -> str:
    """The name of a split, as recipes call it where it is one of theirs."""
    return SIDES.get(name.lower(), name)


def placed(given: str, beside: Path, root: Path | None) -> Path:
    """The absolute path of a clip: below `root`; or where there is none beside the source, else in this folder."""
    if root is not None:
        return Path(os.path.abspath(root / given))
    here = Path(os.path.abspath(beside / given))
    there = Path(os.path.abspath(given))
    return there if not here.exists() and there.exists() else here
