"""`sottovoce predict`: answers of a bundle to files, folders and manifests, as a table."""

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from sottovoce.data.audio_decoder import read_header
from sottovoce.data.corpora.files import AUDIO, Tree
from sottovoce.data.manifest import Root, line_fault, read_lines
from sottovoce.data.manifest_schema import PART_KEYS, LineReader, is_written
from sottovoce.data.sources.kinds import foreign_kind, told_kind
from sottovoce.data.tasks import AttributeTask
from sottovoce.errors import AudioError, ConfigError, ManifestError, MissingError, SottovoceError, brief
from sottovoce.io import atomic_write
from sottovoce.serving.audio_input import audio_file
from sottovoce.serving.model import BATCH_SIZE, MAX_NEW_TOKENS, Model, load
from sottovoce.serving.questions import chosen_slots, question

SUFFIXES = (*AUDIO, ".aac", ".aif", ".aiff", ".amr", ".ape", ".au", ".caf", ".mka", ".oga", ".webm", ".wma", ".wv")
FORMATS = (".csv", ".jsonl", ".json")
TABULAR = (".csv", ".tsv", ".json", ".jsonl", ".gz", ".parquet")  # of inputs, where no audio is meant


@dataclass
class Row:
    """A clip and what was answered; or why it could not be."""

    file: Path
    id: str | None = None  # of a manifest's line
    seconds: float = 0.0
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)  # task or question -> answer, label, probabilities
    error: str | None = None


def predict(
    bundle: str, inputs: Sequence[str], task: Sequence[str] = (), ask: str | None = None, slots: str = "both",
    probabilities: bool = False, out: str | None = None, batch_size: int = BATCH_SIZE,
    max_new_tokens: int = MAX_NEW_TOKENS, overrides: Sequence[str] = (),
) -> None:  # fmt: skip
    """The command: a row for each clip and task, in the order of the inputs, as CSV, JSONL or JSON by `out`'s name.

    A clip that cannot be read is a row with its error. Without `out` the table is printed, as CSV.

    Raises:
        AudioError: some clips could not be answered; the table has been written before that.
        ConfigError: no such task or slot, or `out` has another ending.
        MissingError: an input is not there, or holds no audio.
    """
    if out is not None and Path(out).suffix.lower() not in FORMATS:
        raise ConfigError.at("--out", "bad-value", f"{out}: a name that ends in {', '.join(FORMATS)}")
    if batch_size < 1 or max_new_tokens < 1:
        raise ConfigError.at("--batch-size", "bad-value", "--batch-size and --max-new-tokens are at least 1")
    given = [word for word in inputs if re.match(r"[\w.]+=", word) and not Path(word).exists()]
    inputs, overrides = [name for name in inputs if name not in given], [*given, *overrides]
    absent = [name for name in inputs if not Path(name).expanduser().exists() and not _is_part(name)]
    if absent:
        raise MissingError(f"{absent[0]}: there is no such file or folder", where=absent[0])
    for table in inputs:
        if Path(table).suffix.lower() in TABULAR and (kind := foreign_kind(Path(table).expanduser())):
            raise ManifestError.at(table, "mismatch", told_kind(Path(table), kind))
    model = load(bundle, overrides=overrides)
    chosen = chosen_slots([name for name in slots.split(",") if name], model.slots, "--slots")
    asked: list[tuple[str | None, str | None]] = [(name, None) for name in task] or [(None, ask)]
    if ask is not None and task:
        raise ConfigError.at("--ask", "conflict", "a task has its own wording: give --task, or --ask")
    for name, own in asked:  # before any clip is read
        known = question(model.recipe, name, own, "--task").task
        if probabilities and not isinstance(known, AttributeTask):
            raise ConfigError.at("--probabilities", "conflict", f"{name or own or 'a reply'} is no choice among labels")
    rows = [row for name in inputs for row in _rows(Path(name).expanduser())]
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        answer_rows(model, rows, asked, chosen, probabilities, batch_size, max_new_tokens, progress)
    text = TABLES[Path(out).suffix.lower() if out else ".csv"](list(_flat(rows)))
    if out:
        atomic_write(Path(out), text)
        print(f"answers  {out}", file=sys.stderr)
    else:
        print(text, end="")
    if bad := [row for row in rows if row.error]:
        told = f"{len(bad)} of {len(rows)} clips could not be answered, see `error`: {brief(bad[0].error, 200)}"
        raise AudioError(told, code="damaged", where=bad[0].file)


def answer_rows(
    model: Model, rows: Sequence[Row], asked: Sequence[tuple[str | None, str | None]], slots: Sequence[str],
    probabilities: bool, batch_size: int, max_new_tokens: int, progress: Progress,
) -> None:  # fmt: skip
    """Fill in the answers, in batches of like length; what cannot be read or answered gets its error."""
    most = model.recipe.data.max_seconds
    for row in rows:
        if row.error:  # of its line
            continue
        try:
            row.seconds = read_header(audio_file(row.file, most)).seconds
        except AudioError as error:
            row.error = str(error).removeprefix(f"{row.file}: ")
    usable = sorted((row for row in rows if not row.error), key=lambda row: row.seconds)
    starts = range(0, len(usable), batch_size)
    for start in progress.track(starts, description="answering"):
        part = usable[start : start + batch_size]
        try:
            _answer(model, part, asked, slots, probabilities, max_new_tokens)
        except torch.OutOfMemoryError as error:
            why = f"out of memory with {len(part)} clips at once: take fewer ({brief(error, 200)})"
            raise ConfigError.at("--batch-size", "bad-value", why) from None
        except SottovoceError:  # of one of them: which one?
            for row in part:
                try:
                    _answer(model, [row], asked, slots, probabilities, max_new_tokens)
                except SottovoceError as error:
                    row.error = str(error).removeprefix(f"{row.file}: ")


def _answer(
    model: Model, rows: Sequence[Row], asked: Sequence[tuple[str | None, str | None]], slots: Sequence[str],
    probabilities: bool, max_new_tokens: int,
) -> None:  # fmt: skip
    files = [row.file for row in rows]
    for task, ask in asked:
        answers = model(files, task, ask=ask, slots=slots, max_new_tokens=max_new_tokens, batch_size=len(files))
        shares = model.probabilities(files, task, slots=slots, batch_size=len(files)) if probabilities else []
        for at, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            row.answers[task or ask or ""] = {
                "answer": str(answer), "label": answer.label, "probabilities": shares[at] if shares else None,
            }  # fmt: skip


def _rows(path: Path) -> Iterator[Row]:
    """The clips of an input: a manifest's, a folder's, or the file itself."""
    if path.is_dir():
        files = Tree(path, SUFFIXES).files
        if not files:
            raise MissingError(f"{path}: no audio file is in this folder", where=path)
        yield from map(Row, files)
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        yield from _lines(path)
    else:
        yield Row(path)


def _lines(path: Path) -> list[Row]:
    """The clips of a manifest; of its lines no more is read than what says where a clip is, and its id."""
    reader, rows = LineReader({}, Root(path.parent, [Path("/")])), list[Row]()
    for line, record in read_lines(path):
        if isinstance(record, dict):
            if is_written(record):
                continue
            record = {key: value for key, value in record.items() if key in ("id", "audio", *PART_KEYS)}
        utterance, problems = reader.read(line, record)
        if utterance:
            rows.append(Row(utterance.clip, utterance.id))
        else:
            told = "; ".join(map(str, problems))
            rows.append(Row(Path(f"{path}:{line}"), error=str(line_fault(path, line, record, ManifestError(told)))))
    if not rows:
        raise ManifestError(f"{path}: no line has audio", code="empty", where=path)
    return rows


def _is_part(name: str) -> bool:
    """Whether a name may be that of a part of a recording, or of a file in an archive, which only reading tells."""
    return "#" in name or "?" in name


def _flat(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """A record for each clip and task; what has no value in any of them is left out."""
    named = any(row.id is not None for row in rows)
    failed = any(row.error for row in rows)
    found = [answer for row in rows for answer in row.answers.values()]
    keys = [key for key in ("label", "probabilities") if any(answer[key] is not None for answer in found)]
    for row in rows:
        record: dict[str, Any] = {"file": str(row.file), **({"id": row.id} if named else {})}
        error = {"error": row.error} if failed else {}
        if row.error:
            yield {**record, "task": None, "answer": None, **dict.fromkeys(keys), **error}
            continue
        for task, answer in row.answers.items():
            yield {**record, "task": task or None, "answer": answer["answer"], **{k: answer[k] for k in keys}, **error}


def _as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Columns `p(LABEL)` for probabilities."""
    flat = []
    for record in records:
        shares = record.get("probabilities") or {}
        plain = {key: value for key, value in record.items() if key not in ("probabilities", "error")}
        flat.append(plain | {f"p({label})": f"{share:.6f}" for label, share in shares.items()})
        flat[-1] |= {"error": record["error"]} if "error" in record else {}
    columns = list(dict.fromkeys(key for record in flat for key in record))
    columns = [key for key in columns if key != "error"] + ["error"] * ("error" in columns)
    target = io.StringIO()
    writer = csv.DictWriter(target, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return target.getvalue()


def _as_jsonl(records: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _as_json(records: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(records, ensure_ascii=False, indent=2) + "\n"


TABLES: dict[str, Callable[[Sequence[Mapping[str, Any]]], str]] = {
    ".csv": _as_csv, ".jsonl": _as_jsonl, ".json": _as_json,
}  # fmt: skip
