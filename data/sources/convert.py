"""Conversion of a source into manifests, one a split, and a report of all that is in none."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from sottovoce.data.clip_reference import Part, file_of, split_part
from sottovoce.data.corpora.files import write_clip
from sottovoce.data.corpora.published import CLIPS, LINK, check_share, clip_seconds, held_out, link
from sottovoce.data.corpora.report import FILE, Report
from sottovoce.data.manifest_schema import is_written
from sottovoce.data.sources.columns import Columns
from sottovoce.data.sources.kinds import KINDS, kind_at
from sottovoce.data.sources.rows import Choice, Reader, Row, placed, side
from sottovoce.errors import ConfigError, MissingError, brief, nearest
from sottovoce.io import atomic_write

_READERS = {  # kind -> module and function
    "csv": "tables:read_csv", "json": "tables:read_json", "nemo": "tables:read_nemo", "messages": "chats:read_chats",
    "lhotse": "lhotse_manifests:read_lhotse", "kaldi": "kaldi:read_kaldi", "datasets": "hub_datasets:read_datasets",
    "audiofolder": "folders:read_audiofolder",
}  # fmt: skip
_MOST_SPLITS = 50
_SUFFIXES = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3", b"\xff\xfb": ".mp3"}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Request:
    """What is to be converted, and how."""

    source: str  # a file, a folder, or a dataset's name on the hub
    kind: str | None = None  # one of `KINDS`; None: found by looking
    split: str | None = None  # of a dataset
    subset: str | None = None  # of a dataset of the hub: its configuration
    columns: Mapping[str, str] = field(default_factory=dict)  # see `Columns`
    labels: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    root: str | None = None  # where relative paths of clips start
    split_column: str | None = None  # names each row's split; None: `split`, where there is such a column
    split_by: str | None = None  # key or column, such as `speaker`, whose values are on one side each
    validation: float = 0.0  # shares of its values
    test: float = 0.0
    seed: int = 0
    prefix: str = ""  # of ids


@dataclass
class _Line:
    """A line of a manifest to be."""

    place: str
    split: str
    record: dict[str, Any]  # without `audio`
    clip: Path | None  # None: a written turn
    spoken: dict[int, Path]  # audio of turns of its context, by their number


def convert(request: Request, out: Path) -> Report:
    """Write the manifests of a source into `out`, and `report.json` beside them.

    Clips stay where they are: paths lead through the link `source`, but for clips inside `out`. Audio that is inside
    the source, as bytes, is written to `out/clips`.

    Raises:
        ConfigError: the kind is unknown; no row has a column that is named; a share is wrong.
        MissingError: the source is not there, or no line can be made of it.
        ManifestError: the source cannot be read.
    """
    check_share("split", validation=request.validation, test=request.test)
    if request.split_by and not request.validation and not request.test:
        raise ConfigError.at("--split-by", "conflict", "say how much is held out: --validation 0.1 --test 0.1")
    if not request.split_by and (request.validation or request.test):
        raise ConfigError.at("--split-by", "missing-key", "say by what sides are made, such as --split-by speaker")
    source, kind = _found(request)
    out.mkdir(parents=True, exist_ok=True)
    report = Report(kind, source, out, asdict(request), {})
    columns = Columns(request.columns, request.labels, request.values)
    lines = list(_lines(request, source, kind, columns, report))
    columns.finish()
    report.notes.update(columns.notes)
    lines = _measured(lines, report)
    _name(lines, request.prefix, report)
    if request.split_by:
        lines = _split(lines, request, report)
    if not lines:
        told = f"no line can be made of {source}:\n{report}"
        raise MissingError(told, code="empty", where=source)
    _write(lines, out, report)
    report.write()
    return report


def _found(request: Request) -> tuple[Path, str]:
    """Where the source is, and its kind."""
    path = Path(request.source).expanduser()
    if request.kind is not None and request.kind not in KINDS:
        raise ConfigError.at("--format", "unknown-name", f"{request.kind!r}.{nearest(request.kind, KINDS)}")
    if path.exists():
        kind = request.kind or kind_at(path)
        if kind is None:
            told = f"neither a table nor a dataset nor a folder of audio; --format is one of {', '.join(KINDS)}"
            raise ConfigError.at(path, "bad-value", told)
        return path, kind
    if request.kind in (None, "datasets") and _HUB_NAME.fullmatch(request.source) and not path.suffix:
        return Path(request.source), "datasets"
    raise MissingError.at(path, "not-found", "there is no such file or folder")


def _lines(request: Request, source: Path, kind: str, columns: Columns, report: Report) -> Iterator[_Line]:
    module, _, name = _READERS[kind].partition(":")
    read = cast(Reader, getattr(import_module(f"sottovoce.data.sources.{module}"), name))
    root = Path(request.root).expanduser() if request.root else None
    beside = source if source.is_dir() else source.parent
    splits = set[str]()
    for number, row in enumerate(read(source, Choice(request.split, request.subset, root), report)):
        split = _split_of(row, request, report)
        if split is None:
            continue
        splits.add(split)
        if len(splits) > _MOST_SPLITS:
            raise ConfigError.at("--split-column", "bad-value", f"more than {_MOST_SPLITS} splits: another is meant")
        record = columns.record(row)
        given, folder = record.pop("audio", None), row.folder or beside
        part = Part(record.pop("channel", None), record.pop("start", 0.0), record.pop("end", None))
        if given is None and is_written(record):
            yield _Line(row.place, split, record, None, {})
            continue
        clip = _clip(given, report.out / CLIPS / split / f"{number:07d}", folder, root)
        if clip is None:
            report.add("no audio", f"{row.place}: {brief(given, 100)}")
            continue
        clip = Path(f"{clip}{part}")
        spoken = {}
        for turn, said in enumerate(record.get("context", [])):
            if isinstance(said, dict) and isinstance(said.get("audio"), str):
                spoken[turn] = placed(said["audio"], folder, root)
        yield _Line(row.place, split, record, clip, spoken)


def _split_of(row: Row, request: Request, report: Report) -> str | None:
    """The split that a row is of; None where its name can be no file's."""
    column = request.split_column or "split"
    said = row.values.pop(column, None) if request.split_column or isinstance(row.values.get(column), str) else None
    name = side(str(said)) if said is not None else row.split or "train"
    if re.fullmatch(r"\w[\w.-]{0,99}", name):
        return name
    report.add("split is no name", f"{row.place}: {brief(name, 100)}")
    return None


def _clip(given: Any, target: Path, beside: Path, root: Path | None) -> Path | None:
    """The path of a clip; what is inside the source is written to `target`. None where there is no audio."""
    if isinstance(given, str | Path) and str(given).strip():
        return placed(str(given), beside, root)
    if not isinstance(given, dict):
        return None
    if isinstance(data := given.get("bytes"), bytes) and data:
        suffix = next((s for magic, s in _SUFFIXES.items() if data.startswith(magic)), "")
        file = target.with_suffix(suffix or Path(str(given.get("path") or "")).suffix[:8] or ".audio")
        atomic_write(Path(os.path.abspath(file)), data)
        return Path(os.path.abspath(file))
    if given.get("array") is not None and given.get("sampling_rate"):
        import numpy as np

        file = Path(os.path.abspath(target.with_suffix(".flac")))
        samples = np.atleast_2d(np.asarray(given["array"], np.float32))
        write_clip(file, samples.T if samples.shape[0] < samples.shape[1] else samples, int(given["sampling_rate"]))
        return file
    return placed(given["path"], beside, root) if isinstance(given.get("path"), str) else None


def _measured(lines: Sequence[_Line], report: Report) -> list[_Line]:
    """The lines all of whose clips are whole, with their `seconds`; the others go into the report."""
    clips = list(dict.fromkeys(c for line in lines for c in (line.clip, *line.spoken.values()) if c is not None))
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        lengths = dict(zip(clips, pool.map(clip_seconds, clips), strict=True))
    kept = []
    for line in lines:
        wrong = [c for c in (line.clip, *line.spoken.values()) if c is not None and isinstance(lengths[c], str)]
        for clip in wrong[:1]:
            kind = "damaged" if file_of(clip).exists() else "missing"
            report.add(kind, f"{line.place}: {clip}{f': {lengths[clip]}' if kind == 'damaged' else ''}")
        if not wrong:
            if line.clip is not None:
                line.record["seconds"] = round(float(lengths[line.clip]), 4)
            kept.append(line)
    return kept


def _name(lines: list[_Line], prefix: str, report: Report) -> None:
    """Give every line an id that no other has: its own, else its clip's name, with a number where that is taken."""
    taken = set[str]()
    for line in lines:
        own = line.record.get("id")
        stem = split_part(line.clip)[0].stem if line.clip else "text"
        name = unique = f"{prefix}{own or stem}"
        number = 1
        while unique in taken:
            number += 1
            unique = f"{name}-{number}"
        if own and unique != name:
            report.notes[f"ids that came twice have a number: {name} is {unique}, for one"] += 1
        taken.add(unique)
        line.record["id"] = unique


def _split(lines: Sequence[_Line], request: Request, report: Report) -> list[_Line]:
    """Sides by what must not be on two of them, such as speakers; lines that do not say it are left out."""
    kept, keys, by = [], [], str(request.split_by)
    for line in lines:
        extra, labels = line.record.get("extra", {}), line.record.get("labels", {})
        key = next((d[by] for d in (line.record, extra, labels) if d.get(by)), None)
        if key is None:
            report.add(f"no {request.split_by} to split by", f"{line.place}: {line.record['id']}")
        else:
            kept.append(line)
            keys.append(str(key))
    names = sorted(set(keys))
    test = held_out(names, request.test, request.seed)
    rest = [name for name in names if name not in test]
    share = min(1.0, request.validation * len(names) / max(1, len(rest)))
    validation = held_out(rest, share, request.seed)
    for line, key in zip(kept, keys, strict=True):
        line.split = "test" if key in test else "validation" if key in validation else "train"
    _note_absent_labels(kept, report)
    return kept


def _note_absent_labels(lines: Sequence[_Line], report: Report) -> None:
    """Labels that training has and a side that is scored lacks: few speakers do not show all."""
    found: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for line in lines:
        for attribute, label in line.record.get("labels", {}).items():
            found[attribute][line.split].add(label)
    for attribute, sides in found.items():
        for split in ("validation", "test"):
            if (missing := sides["train"] - sides[split]) and any(line.split == split for line in lines):
                told = (
                    f"{split} has nobody whose {attribute} is {', '.join(sorted(missing))}: try another --seed or share"
                )
                report.notes[told] += 1


def _write(lines: Sequence[_Line], out: Path, report: Report) -> None:
    home = Path(os.path.abspath(out))
    clips = [c for line in lines for c in (line.clip, *line.spoken.values()) if c is not None]
    outside = sorted({file_of(c).parent for c in clips if not file_of(c).is_relative_to(home)})
    common = Path(os.path.commonpath(outside)) if outside else None
    if common is not None:
        link(out / LINK, common)
        report.clips = common
    for split in sorted({line.split for line in lines}, key=_rank):
        report.split(split)
    texts: defaultdict[str, list[str]] = defaultdict(list)
    speakers: defaultdict[str, set[str]] = defaultdict(set)
    for line in lines:
        record = {key: value for key, value in line.record.items() if value not in (None, "", {}, [])}
        if line.clip is not None:
            first = {"id": record.pop("id"), "audio": _relative(line.clip, home, common)}
            record = {**first, "seconds": record.pop("seconds"), **record}
        for turn, clip in line.spoken.items():
            record["context"][turn] = {**record["context"][turn], "audio": _relative(clip, home, common)}
        texts[line.split].append(json.dumps(record, ensure_ascii=False) + "\n")
        speakers[line.split] |= {record["speaker"]} if "speaker" in record else set()
        report.split(line.split).hours += record.get("seconds", 0.0) / 3600
    for stale in sorted(_earlier(out) - texts.keys()):
        (out / f"{stale}.jsonl").unlink(missing_ok=True)
        report.notes[f"deleted: {stale}.jsonl of an earlier call, which this one does not make"] += 1
    for split, text in texts.items():
        written = report.split(split)
        written.lines, written.speakers = len(text), len(speakers[split])
        atomic_write(out / f"{split}.jsonl", "".join(text))


def _rank(split: str) -> tuple[int, str]:
    """Splits in their usual order, others behind them."""
    usual = ("train", "validation", "test")
    return (usual.index(split) if split in usual else len(usual)), split


def _relative(clip: Path, home: Path, common: Path | None) -> str:
    if clip.is_relative_to(home):
        return clip.relative_to(home).as_posix()
    assert common is not None
    return (Path(LINK) / clip.relative_to(common)).as_posix()


def _earlier(out: Path) -> set[str]:
    """Splits that an earlier call has written there."""
    try:
        return {str(name) for name in json.loads((out / FILE).read_text("utf-8"))["splits"] if "/" not in str(name)}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
