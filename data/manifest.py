"""Manifests, JSONL files of utterances: every line is checked, and every fault named, before anything trains."""

import codecs
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, NoReturn

from sottovoce.data.clip_reference import file_of
from sottovoce.data.manifest_schema import LineReader, kind_of
from sottovoce.data.skipped import LineFault, listed, summary
from sottovoce.data.sources.kinds import foreign_kind, told_kind
from sottovoce.data.utterance import Turn, Utterance
from sottovoce.errors import AudioError, ManifestError, SottovoceError, brief

__all__ = ["Manifest", "Turn", "Utterance", "line_fault", "listed", "read_lines", "read_manifest", "refuse"]

LONGEST_LINE = 1 << 22  # bytes; a dialogue of a whole day takes less, and a file without line breaks is no manifest


def line_fault(path: Path, line: int, record: object, problem: SottovoceError) -> LineFault:
    """What is wrong with a line (from 1) of a manifest, as `file:line: id: problem`."""
    name = record.get("id") if isinstance(record, dict) else None
    known = brief(name, 100) if name and isinstance(name, str) else ""
    return LineFault.of_line(f"{path}:{line}", known, brief(problem), problem.code)


def refuse(head: str, faults: Sequence[SottovoceError]) -> NoReturn:
    """Raise one ManifestError for several faults, which it lists below its head; what many lines have, once."""
    told = listed(summary(faults))
    raise ManifestError(f"{head}\n{told}", code=faults[0].code, where=faults[0].where, faults=faults)


@dataclass(frozen=True)
class Manifest:
    """The utterances of the lines that can be used, and what is wrong with the others."""

    utterances: list[Utterance]
    faults: list[ManifestError]
    notes: list[str] = field(default_factory=list)  # what is to be known of lines that are used


def read_manifest(
    path: Path,
    *,
    choices: Mapping[str, Sequence[str]],
    policy: Literal["error", "skip"] = "error",
    root: Path | None = None,
    allow: Sequence[Path] = (),
) -> Manifest:
    """Read and check a manifest: every line, every key, and the header of every clip. `docs/manifest.md` is the schema.

    Keys that are not known are passed over and noted.

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
    reader = LineReader(choices, Root(path.parent if root is None else Path(root), allow))
    utterances: list[Utterance] = []
    faults: list[ManifestError] = []
    for line, record in read_lines(path):
        utterance, problems = reader.read(line, record)
        faults += [line_fault(path, line, record, problem) for problem in problems]
        utterances += [replace(utterance, place=f"{path}:{line}")] if utterance else []
    if not utterances and not faults:
        raise no_utterance(path)
    if faults and (policy == "error" or not utterances):
        lines = len({fault.where for fault in faults})
        plural = "" if len(faults) == 1 else "s"
        refuse(f"{path}: {len(faults)} fault{plural} in {lines} of {lines + len(utterances)} lines", faults)
    return Manifest(utterances, faults, [f"{path}: {note}" for note in reader.notes()])


def check_copy(source: Path, out: Path, root: Path | None) -> None:
    """Raises ManifestError where a changed copy of a manifest cannot stand at `out`."""
    if out.resolve() == source.resolve():
        problem = f"{out}: the copy would replace its source; give it another name"
    elif root is None and out.resolve().parent != source.resolve().parent:
        problem = f"{out}: audio paths are relative to {source.parent}; write the copy there"
    else:
        return
    raise ManifestError(problem, code="conflict", where=out)


def no_utterance(path: Path) -> ManifestError:
    problem = f"{path}: the manifest holds no utterance; write one JSON object a line"
    return ManifestError(problem, code="empty", where=path)


def open_manifest(path: Path) -> BufferedReader:
    """The file, for reading. Raises ManifestError where it cannot be opened, is of another kind, or is in UTF-16."""
    if kind := foreign_kind(path):
        raise ManifestError.at(path, "mismatch", told_kind(path, kind))
    try:
        stream = path.open("rb")
    except OSError as error:
        reason = f"{path}: the manifest cannot be read: {error.strerror}"
        raise ManifestError(reason, code="not-found", where=path) from None
    begin = stream.peek(4)[:4]
    if begin[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in begin:
        stream.close()
        told = f"it is in UTF-16, and a manifest is in UTF-8: iconv -f UTF-16 -t UTF-8 {path.name} > utf8.jsonl"
        raise ManifestError.at(path, "damaged", told)
    return stream


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | ManifestError]]:
    """Number (from 1) and JSON object of every line that is not blank; a broken line's fault in place of its object."""
    with open_manifest(path) as stream:
        for number, raw in enumerate(iter(lambda: stream.readline(LONGEST_LINE + 1), b""), 1):
            if len(raw) > LONGEST_LINE:
                while raw and not raw.endswith(b"\n"):
                    raw = stream.readline(LONGEST_LINE)
                yield number, ManifestError(f"broken line: it is longer than {LONGEST_LINE} bytes", code="damaged")
            elif without_bom(raw).strip():
                yield number, parse_line(raw)


def without_bom(raw: bytes) -> bytes:
    """A line without the byte order mark that some editors begin a file with; joined files have several."""
    return raw.removeprefix(codecs.BOM_UTF8)


def parse_line(raw: bytes) -> dict[str, Any] | ManifestError:
    """The JSON object of a line, or what is wrong with it."""
    try:
        record = json.loads(without_bom(raw).decode("utf-8"), object_pairs_hook=_without_twins)
        if b"\\u" in raw:  # JSON can escape halves of characters, which no text has
            json.dumps(record, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        return ManifestError(f"broken line, not JSON in UTF-8: {error}", code="damaged")
    if isinstance(record, dict):
        return record
    return ManifestError(f"broken line: a JSON object is needed, not {kind_of(record)}", code="damaged")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {counts.most_common(1)[0][0]!r} stands there twice")
    return record


class Root:
    """Where a manifest's relative paths start, and what no path of it may lead out of, by `..`, by `/` or by a link.

    A manifest is data that somebody may have been handed, with links beside it; which of this machine's files it may
    name is for the user to say, by `allow`: further folders that a path may lead to.
    """

    def __init__(self, folder: Path, allow: Sequence[Path] = ()) -> None:
        self.folder = folder
        self._start = os.path.abspath(folder)
        self._within = [os.path.realpath(allowed) for allowed in (folder, *allow)]

    def file(self, given: str) -> Path:
        """The absolute path of a file that a manifest calls `given`; it need not exist.

        Raises:
            AudioError: it is, or its link leads, outside of all that is allowed. The message begins with `given`.
        """
        named = os.path.abspath(os.path.join(self._start, given))
        file = str(file_of(Path(named)))
        try:
            real = os.path.realpath(file)
        except ValueError:  # a NUL in it
            raise AudioError(f"{given!r}: no file can have this name", code="bad-value") from None
        if not any(os.path.commonpath([folder, real]) == folder for folder in self._within):
            where = "is" if real == file else f"leads to {real}, which is"
            raise AudioError(
                f"{given} {where} outside of {self.folder}; move the clip there, give a `root` that holds it, or name "
                "its folder under `allow`",
                code="unsafe",
            )
        return Path(named)
