"""Kinds of data that `sottovoce manifest` reads, known by looking at a file or folder."""

import codecs
import gzip
import json
import shlex
from pathlib import Path
from typing import Any

from sottovoce.errors import brief

KINDS = {  # name -> what a message calls it
    "csv": "a CSV or TSV table",
    "json": "a JSON table",
    "messages": "a JSON file of chats (`messages` or `conversations`)",
    "nemo": "a NeMo manifest",
    "lhotse": "a Lhotse manifest",
    "kaldi": "a Kaldi data directory",
    "datasets": "a dataset of Hugging Face `datasets`",
    "audiofolder": "a folder of audio files",
}
CUTS = ("MonoCut", "MultiCut", "MixedCut", "PaddingCut", "DataCut")
AUDIO_COLUMNS = (
    "audio", "file_name", "audio_filepath", "audio_path", "audio_file", "path", "file", "filename", "wav", "wav_path",
)  # fmt: skip
_AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".webm", ".aac", ".amr", ".wma", ".sph", ".aiff")
_HEAD = 1 << 20  # bytes that are looked at
_MANIFEST = {"id", "audio"}  # of a line of our own


def kind_at(path: Path) -> str | None:
    """The kind of a file or folder, one of `KINDS`; None where it is none of them."""
    try:
        return _of_folder(path) if path.is_dir() else _of_file(path) if path.is_file() else None
    except OSError:
        return None


def foreign_kind(path: Path) -> str | None:
    """The kind of what is no manifest of our own, though a recipe calls it one; None where it may be one."""
    kind = kind_at(path)
    if kind != "json":
        return kind
    first, whole = _first_object(_head(path))
    return None if first is None or (not whole and not _is_table(first)) else kind


def told_kind(path: Path, kind: str) -> str:
    """What a file is, and the command that makes manifests of it."""
    command = f"sottovoce manifest {shlex.quote(str(path))} --out FOLDER"
    return f"this is {KINDS[kind]}: `{brief(command, 500)}` writes manifests of ours from it (docs/data_formats.md)"


def _is_table(first: dict[str, Any]) -> bool:
    """Whether an object names audio as tables do, and not as manifests do."""
    return not _MANIFEST & first.keys() and any(name in first for name in AUDIO_COLUMNS)


def _of_folder(folder: Path) -> str | None:
    names = {file.name for file in folder.iterdir()}
    if "dataset_dict.json" in names or {"dataset_info.json", "state.json"} <= names:
        return "datasets"
    if "wav.scp" in names:
        return "kaldi"
    if any(is_lhotse_name(name) for name in names):
        return "lhotse"
    if any(True for pattern in ("*.parquet", "*/*.parquet") for _ in folder.glob(pattern)):
        return "datasets"
    return "audiofolder" if any(file.suffix.lower() in _AUDIO for file in folder.rglob("*")) else None


def is_lhotse_name(name: str) -> bool:
    """Whether a file is called as Lhotse's manifests are."""
    stem, _, suffix = name.partition(".jsonl")
    named = any(word in stem for word in ("cuts", "recordings", "supervisions"))
    return named and suffix in ("", ".gz") and name != stem


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        begin = stream.read(_HEAD)
    if begin[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as packed:
                return packed.read(_HEAD)
        except (OSError, EOFError):
            return b""
    return begin


def _of_file(path: Path) -> str | None:
    head = _head(path)
    if head[:4] == b"PAR1":
        return "datasets"
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "csv" if path.suffix.lower() in (".csv", ".tsv") else None
    if head.lstrip(codecs.BOM_UTF8 + b" \t\r\n")[:1] in (b"{", b"["):
        first, _ = _first_object(head)
        return None if first is None else _of_object(first)
    line = head.removeprefix(codecs.BOM_UTF8).split(b"\n", 1)[0].decode("utf-8", "replace").rstrip("\r")
    cells = [cell.strip(' "').lower() for cell in line.split(delimiter(line))]
    if path.suffix.lower() in (".csv", ".tsv") or (len(cells) > 1 and set(cells) & set(AUDIO_COLUMNS)):
        return "csv"
    return None


def delimiter(header: str) -> str:
    """What stands most often between the cells of a table's first line."""
    return max(",\t;|", key=header.count)


def _of_object(first: dict[str, Any]) -> str:
    if isinstance(first.get("messages"), list) or isinstance(first.get("conversations"), list):
        return "messages"
    if first.get("type") in CUTS or "sources" in first or {"recording_id", "duration"} <= first.keys():
        return "lhotse"
    return "nemo" if "audio_filepath" in first else "json"


def _first_object(head: bytes) -> tuple[dict[str, Any] | None, bool]:
    """The first JSON object of a file of one object a line, or of one list (then True)."""
    text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    whole = text.startswith("[")
    try:
        first, _ = json.JSONDecoder().raw_decode(text.lstrip("[ \t\r\n"))
    except (ValueError, RecursionError):
        return None, whole
    return (first, whole) if isinstance(first, dict) else (None, whole)
