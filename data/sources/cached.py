"""Conversions that recipes ask for: made once, in a cache, and again when the source has changed."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from sottovoce.data.corpora.report import FILE
from sottovoce.data.sources.convert import Request, convert
from sottovoce.io import file_lock


def cached_manifests(request: Request, folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The manifests of a source by split, converted into `folder` where they are not there; and notes on what is left.

    Raises:
        SottovoceError: see `convert`.
    """
    digest = hashlib.sha256(json.dumps(asdict(request), sort_keys=True).encode())
    for state in _state(Path(request.source).expanduser()):
        digest.update(f"{state}\n".encode())
    home = folder / f"{Path(request.source).name.partition('.')[0]}-{digest.hexdigest()[:12]}"
    with file_lock(home):
        if not (home / FILE).is_file():
            convert(request, home)
        report = json.loads((home / FILE).read_text("utf-8"))
    lost = {kind: found["count"] for kind, found in report["problems"].items()}
    told = ", ".join(f"{kind}: {count:,}" for kind, count in lost.items())
    notes = [f"{request.source}: left out are {told} ({home / FILE} names them)"] if lost else []
    return {split: home / f"{split}.jsonl" for split in report["splits"]}, notes


def _state(source: Path) -> Iterator[tuple[object, ...]]:
    """What changes when a source does: names of all files, and size and time of those that are small enough to edit."""
    if source.is_file():
        found = source.stat()
        yield os.path.abspath(source), found.st_size, found.st_mtime_ns
    for here, folders, files in os.walk(source):
        folders.sort()
        for name in sorted(files):
            text = name.endswith((".csv", ".tsv", ".json", ".jsonl", ".gz", ".parquet", ".scp")) or "." not in name
            stat = os.stat(os.path.join(here, name)) if text else None
            yield here, name, stat and stat.st_size, stat and stat.st_mtime_ns
