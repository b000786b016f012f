"""Utterances on disk: one JSON object a line, every fault found and named before anything trains."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from undertone.data.manifest_line import LineReader, kind_of
from undertone.data.utterance import Turn, Utterance
from undertone.errors import ManifestError

__all__ = ["Fault", "Manifest", "Turn", "Utterance", "read_lines", "read_manifest"]

_SHOWN = 20  # faults that an error spells out


@dataclass(frozen=True)
class Fault:
    """What is wrong with one line; shown as `file:line: id: problem`."""

    path: Path
    line: int  # from 1
    id: str | None  # None where the line has none that can be read
    problem: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {f'{self.id}: ' if self.id else ''}{self.problem}"


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
) -> Manifest:
    """Read and check a manifest: every line, every key, and the header of every clip. `docs/manifest.md` is the schema.

    Args:
        path: a JSONL file.
        choices: the attributes that lines may label, and the labels of each.
        policy: `error` refuses a manifest with any fault; `skip` leaves faulty lines out and returns their faults.
        root: the folder that audio paths are relative to and may not leave, "/" to allow any; the manifest's own
            folder if absent.

    Raises:
        ManifestError: the file cannot be read or holds no utterance; or it has faults, all of them counted and the
            first 20 shown; or, with `skip`, no line is without one.
    """
    if policy not in ("error", "skip"):
        raise ValueError(f"policy is 'error' or 'skip', not {policy!r}")
    path = Path(path)
    reader = LineReader(path, choices, path.parent if root is None else Path(root))
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
        for number, raw in enumerate(stream, 1):
            if raw.strip():
                yield number, _parsed(raw)


def _parsed(raw: bytes) -> dict[str, Any] | str:
    try:
        record = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        return f"broken line, not JSON in UTF-8: {error}"
    return record if isinstance(record, dict) else f"broken line: a JSON object is needed, not {kind_of(record)}"


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the key {key!r} stands there twice")
    return dict(pairs)


def _told(path: Path, faults: Sequence[Fault], good: int) -> str:
    lines = len({fault.line for fault in faults})
    head = f"{path}: {len(faults)} fault{'s' * (len(faults) > 1)} in {lines} of {lines + good} lines"
    more = [f"... and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
    return "\n".join([head, *map(str, faults[:_SHOWN]), *more])
