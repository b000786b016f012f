"""Manifests of any length, indexed once: each line is read and checked when it is drawn.

The index is where the lines are and how long their clips last, 20 bytes a line.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sottovoce.data.audio import SilentError, inspect_audio
from sottovoce.data.clip_reference import Recordings
from sottovoce.data.manifest import (
    LONGEST_LINE,
    Root,
    line_fault,
    no_utterance,
    open_manifest,
    parse_line,
    refuse,
    without_bom,
)
from sottovoce.data.manifest_schema import LineReader, is_written, seconds_to_say
from sottovoce.data.overrides import Overrides
from sottovoce.data.utterance import Utterance
from sottovoce.errors import ManifestError

_BLOCK = 1 << 25  # bytes that are looked through together
_SECONDS = re.compile(rb'"seconds"\s*:\s*([0-9.eE+-]+)')  # within a text the quotes would be escaped


class LazyManifest(Sequence[Utterance]):
    """The utterances of a manifest whose lines all say `seconds`, since batches hold clips of like length.

    Args:
        path: see `read_manifest`, as `choices`.
        root: where audio paths start, and what they may not lead out of.
        only: the tasks that its utterances may serve; None: any.
        apart: clips of other sides of the data, which no utterance may need.
        overrides: of tasks and captions, for its utterances.

    Attributes:
        seconds: (lines,) float32.

    Raises:
        ManifestError: the file cannot be read, holds no line, or lines do not say how long their clips last.
    """

    def __init__(
        self, path: Path, choices: Mapping[str, Sequence[str]], root: Root, only: Sequence[str] | None = None,
        apart: frozenset[Path] = frozenset(), overrides: Overrides | None = None,
    ) -> None:  # fmt: skip
        self.path, self.choices, self.root, self.apart = path, choices, root, Recordings(apart)
        self.only = None if only is None else tuple(only)
        self.overrides = overrides
        self._starts, self._numbers, self.seconds = _index(path)

    def __len__(self) -> int:
        return len(self.seconds)

    def __getitem__(self, row: int) -> Utterance:  # type: ignore[override]
        """Read and check one utterance; raises ManifestError as `file:line: id: problem` for line or clip."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        utterance, faults = self._read(row, LineReader(self.choices, self.root))
        if faults or utterance is None:
            raise ManifestError.of(faults)
        place = f"{self.path}:{int(self._numbers[row])}"
        return replace(utterance, only=self.only, overrides=self.overrides, place=place)

    def look_through(self, count: int) -> tuple[int, list[ManifestError], list[str]]:
        """So many lines, evenly spread, with the sound of their clips: how many are faulty, the faults, and notes."""
        reader, faulty, faults = LineReader(self.choices, self.root), 0, list[ManifestError]()
        rows = np.unique(np.linspace(0, len(self) - 1, count).astype(int))
        for row in rows:
            utterance, found = self._read(int(row), reader)
            for clip in utterance.clips if utterance else []:
                problem = inspect_audio(clip).problem
                if problem and not (utterance and utterance.text == "" and isinstance(problem, SilentError)):
                    place = f"{self.path}:{int(self._numbers[row])}"
                    found.append(ManifestError.at(place, problem.code, f"{clip}: {problem}"))
            faulty, faults = faulty + bool(found), faults + found
        return faulty, faults, [f"{self.path}: of {len(rows)} lines: {note}" for note in reader.notes()]

    def _read(self, row: int, reader: LineReader) -> tuple[Utterance | None, list[ManifestError]]:
        with self.path.open("rb") as stream:
            stream.seek(int(self._starts[row]))
            record = parse_line(stream.readline(LONGEST_LINE + 1))
        number = int(self._numbers[row])
        utterance, problems = reader.read(number, record)
        for clip in self.apart.shared(dict.fromkeys(utterance.clips if utterance else [])):
            problems.add(f"audio: {clip} is also in validation or test", "conflict")
        return utterance, [line_fault(self.path, number, record, problem) for problem in problems]


def _index(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Byte offset, number (from 1) and seconds of each line; blank lines are passed over."""
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
    faults: list[ManifestError] = []
    place, line = 0, 1
    with open_manifest(path) as stream:
        while block := stream.read(_BLOCK):
            block += stream.readline(LONGEST_LINE)
            begin, lengths = _of_block(block)
            for row in np.flatnonzero(~(lengths > 0) | np.isinf(lengths)):
                lengths[row], problem = _of_line(block[begin[row] :].split(b"\n", 1)[0])
                faults += [line_fault(path, line + int(row), None, problem)] if problem else []
            kept = ~np.isnan(lengths)
            parts.append((begin[kept] + place, np.flatnonzero(kept) + line, lengths[kept]))
            place, line = place + len(block), line + len(begin)
    if faults:
        refuse(f"{path}: {len(faults)} faults", faults)
    if not sum(len(seconds) for *_, seconds in parts):
        raise no_utterance(path)
    starts, numbers, lengths = map(np.concatenate, zip(*parts, strict=True))
    return starts, numbers, lengths


def _of_block(block: bytes) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Byte offsets of a block's lines, and their seconds; NaN where a line must be read in full."""
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + 1
    begin = np.concatenate([[0], ends[ends < len(block)]])
    matches = [(match.start(), match[1]) for match in _SECONDS.finditer(block)]
    rows = np.searchsorted(begin, np.array([at for at, _ in matches], np.int64), side="right") - 1
    counts = np.bincount(rows, minlength=len(begin))
    lengths = np.full(len(begin), np.nan, np.float32)
    lengths[rows] = [_number(text) for _, text in matches]
    lengths[counts != 1] = np.nan
    return begin, lengths


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _of_line(raw: bytes) -> tuple[float, ManifestError | None]:
    """The seconds of one line, read in full; NaN for a blank line, or with what is wrong with it."""
    if not without_bom(raw).strip():
        return math.nan, None
    record = parse_line(raw)
    if isinstance(record, ManifestError):
        return math.nan, record
    if is_written(record):
        return seconds_to_say(record["text"]), None
    seconds = record.get("seconds")
    start, end = record.get("start") or 0, record.get("end")
    if seconds is None and isinstance(start, int | float) and isinstance(end, int | float):
        seconds = end - start
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds < 1e9:
        return float(seconds), None
    found = json.dumps(seconds)[:50]
    problem = f"seconds: each line needs a positive number where data.validate is `lazy`, found {found}"
    return math.nan, ManifestError(problem, code="bad-value")
