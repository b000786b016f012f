"""Report of a prepared corpus: how many lines a split has, and every file and row that is in none."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sottovoce.io import atomic_write

FILE = "report.json"  # beside the manifests; written last
_NAMED = 10  # of each kind, on the screen; the file has them all


@dataclass
class Written:
    """A split: its lines, what they amount to, and how many the whole corpus would give."""

    lines: int = 0
    hours: float = 0.0
    speakers: int = 0
    expected: int | None = None  # None: the corpus does not say

    def __str__(self) -> str:
        of = f" of {self.expected:,}" if self.expected is not None else ""
        who = f", {self.speakers:,} speakers" if self.speakers else ""
        return f"{self.lines:,}{of} lines, {self.hours:.2f} hours{who}"


@dataclass
class Report:
    """Counts and names; nothing that has a problem is in a manifest.

    `problems` has for each kind, such as `missing`, what it befell: files relative to the source, or rows of a table.
    """

    corpus: str
    source: Path  # the folder it was read from
    out: Path  # the folder of the manifests
    knobs: Mapping[str, Any]  # of the corpus, by which a later call knows whether its manifests are these
    expected: dict[str, int | None]  # split -> lines of the whole corpus; None where it does not say
    splits: dict[str, Written] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)  # what was done to lines that are there -> how often
    clips: Path | None = None  # the folder that a recipe must allow, where manifests of a user's own source lead to it

    def add(self, kind: str, what: str) -> None:
        """Name one file or row that cannot be used."""
        self.problems.setdefault(kind, []).append(what)

    def split(self, name: str) -> Written:
        """The split called `name`, which is new where it was not there."""
        return self.splits.setdefault(name, Written(expected=self.expected.get(name)))

    @property
    def manifests(self) -> dict[str, Path]:
        return {split: self.out / f"{split}.jsonl" for split in self.splits}

    def write(self) -> None:
        """Keep all of it as `report.json`."""
        page = {
            "corpus": self.corpus,
            "source": str(self.source),
            "knobs": dict(self.knobs),
            "splits": {name: vars(split) for name, split in self.splits.items()},
            "problems": {kind: {"count": len(names), "names": names} for kind, names in self.problems.items()},
            "notes": self.notes,
        }
        atomic_write(self.out / FILE, json.dumps(page, indent=1, ensure_ascii=False) + "\n")

    def __str__(self) -> str:
        lines = [f"{self.corpus}, from {self.source}"]
        lines += [f"  {self.out / f'{name}.jsonl'}: {split}" for name, split in self.splits.items()]
        lines += [f"  note: {what}: {count:,}" for what, count in self.notes.items()]
        for kind, names in self.problems.items():
            more = [f"    ... and {len(names) - _NAMED:,} more, all in {self.out / FILE}"] * (len(names) > _NAMED)
            lines += [f"  {kind}: {len(names):,}", *(f"    {name}" for name in names[:_NAMED]), *more]
        return "\n".join(lines)


def read_report(out: Path, knobs: Mapping[str, Any]) -> list[str]:
    """The splits that an earlier call with the same knobs has written; none where there was none."""
    try:
        page = json.loads((out / FILE).read_text("utf-8"))
        return list(page["splits"]) if page["knobs"] == dict(knobs) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
