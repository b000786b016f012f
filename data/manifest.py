"""Utterances on disk: one JSON object a line, every fault found and named before anything trains."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sottovoce.data.manifest_schema import LineReader, kind_of
from sottovoce.data.path_policy import Root
from sottovoce.data.utterance import Turn, Utterance
from sottovoce.errors import ManifestError, brief

__all__ = ["Fault", "Manifest", "Turn", "Utterance", "read_lines", "read_manifest"]

LONGEST_LINE = 1 << 22  # bytes; a dialogue of a whole day takes less, and a file without line breaks is no manifest
_SHOWN = 20  # faults that an error spells out


@dataclass(frozen=True)
class Fault:
    """What is wrong with one line; shown as `file:line: id: problem`."""

    path: Path
    line: int  # from 1
    id: str | None  # None where the line has none that can be read
    problem: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {f'{brief(self.id, 100)}: ' if self.id else ''}{brief(self.problem)}"


@dataclass(frozen=True)
class Manifest:
    """The lines that can be used, and what is wrong with the others."""

    utterances: list[Utterance]
    faults: list[Fault]


def read_manifest(
    path: Path,
    *,
    choices: Mapping[str, Sequence[str]],
    policy: Literal["error", "skip"] = "error",
    root: Path | None = None,
    allow: Sequence[Path] = (),
) -> Manifest:
    """Read and check a manifest: every line, every key, and the header of every clip. `docs/manifest.md` is the schema.

    Args:
        path: a JSONL file.
        choices: the attributes that lines may label, and the labels of each.
        policy: `error` refuses a manifest with any fault; `skip` leaves faulty lines out and returns their faults.
        root: the folder that audio paths are relative to and may not lead out of, by name or by a link; the
            manifest's own folder if absent.
        allow: further folders that they may lead to; "/" allows any.

    Raises:
        ManifestError: the file cannot be read or holds no utterance; or it has faults, all of them counted and the
            first 20 shown; or, with `skip`, no line is without one.
    """
    if policy not in ("error", "skip"):
        raise ValueError(f"policy is 'error' or 'skip', not {policy!r}")
    path = Path(path)
    reader = LineReader(choices, Root(path.parent if root is None else Path(root), allow))
    utterances, faults = [], []
    for line, record in read_lines(path):
        utterance, problems = reader.read(line, record)
        name = record.get("id") if isinstance(record, dict) else None
        faults += [Fault(path, line, name if isinstance(name, str) else None, problem) for problem in problems]
        utterances += [utterance] if utterance else []
    if not utterances and not faults:
        raise ManifestError(f"{path}: the manifest holds no utterance; write one JSON object a line")
    if faults and (policy == "error" or not utterances):
        raise ManifestError(_told(path, faults, len(utterances)))
    return Manifest(utterances, faults)


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Number (from 1) and JSON object of every line that is not blank; a broken line's fault in place of its object.

    Raises:
        ManifestError: the file cannot be opened.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ManifestError(f"{path}: the manifest cannot be read: {error.strerror}") from None
    with stream:
        number = 0
        while raw := stream.readline(LONGEST_LINE + 1):
            number += 1
            if len(raw) > LONGEST_LINE:
                while raw and not raw.endswith(b"\n"):
                    raw = stream.readline(LONGEST_LINE)
                yield number, f"broken line: it is longer than {LONGEST_LINE} bytes"
            elif raw.strip():
                yield number, parsed(raw)


def parsed(raw: bytes) -> dict[str, Any] | str:
    try:
        record = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_twins)
        if b"\\u" in raw:  # JSON can escape halves of characters, which no text has
            json.dumps(record, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        return f"broken line, not JSON in UTF-8: {error}"
    return record if isinstance(record, dict) else f"broken line: a JSON object is needed, not {kind_of(record)}"


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {counts.most_common(1)[0][0]!r} stands there twice")
    return record


def _told(path: Path, faults: Sequence[Fault], good: int) -> str:
    lines = len({fault.line for fault in faults})
    head = f"{path}: {len(faults)} fault{'s' * (len(faults) > 1)} in {lines} of {lines + good} lines"
    more = [f"... and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
    return "\n".join([head, *map(str, faults[:_SHOWN]), *more])
