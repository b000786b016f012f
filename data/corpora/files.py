"""Files of a downloaded corpus: search, tables and texts, and clips that are cut out of it."""

import csv
import io
import os
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import soundfile
from numpy.typing import NDArray

from sottovoce.errors import ManifestError, MissingError
from sottovoce.io import atomic_open

AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".sph")


class Tree:
    """The audio of a folder, links included, by any tail of a path: annotations name files by folders of their own."""

    def __init__(self, folder: Path, suffixes: tuple[str, ...] = AUDIO) -> None:
        self.files = sorted(_walk(folder, suffixes))
        self._by_tail: dict[tuple[str, ...], list[Path]] = {}  # the name without its extension, and with its folder's
        for file in self.files:
            self._by_tail.setdefault((file.stem,), []).append(file)
            self._by_tail.setdefault((file.parent.name, file.stem), []).append(file)

    def find(self, named: str) -> Path | None:
        """The file whose path ends most like `named`, whatever its extension; None for none, or several alike."""
        parts = Path(named.replace("\\", "/")).parts
        if not parts:
            return None
        stem = Path(parts[-1]).stem
        files = self._by_tail.get((*parts[-2:-1], stem)) or self._by_tail.get((stem,), [])
        shared = [_shared(file.parent.parts, parts[:-1]) for file in files]
        best = [file for file, score in zip(files, shared, strict=True) if score == max(shared)]
        exact = [file for file in best if file.name == parts[-1]] or best
        return exact[0] if len(exact) == 1 else None


def _walk(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link back to where we are
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in files if name.lower().endswith(suffixes) and name[0] != ".")


def _shared(mine: tuple[str, ...], named: tuple[str, ...]) -> int:
    pairs = zip(reversed(mine), reversed(named), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def read_text(file: Path) -> str:
    """A text in UTF-8, or else in Windows' Latin, as some annotations are; raises MissingError where there is none."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise MissingError(f"{file} cannot be read: {error.strerror}", where=file) from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


def read_table(file: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Rows of a CSV file by column.

    Raises:
        MissingError: there is no such file.
        ManifestError: a column is not there.
    """
    rows = csv.DictReader(io.StringIO(read_text(file), newline=""))
    absent = [name for name in columns if name not in (rows.fieldnames or [])]
    if absent:
        problem = f"{file}: no column {', '.join(absent)}; found {', '.join(rows.fieldnames or ['none'])}"
        raise ManifestError(problem, code="missing-key", where=file)
    return [{key: value or "" for key, value in row.items() if key} for row in rows]


def find_file(folder: Path, name: str) -> Path:
    """The file called `name` that lies least deep; raises MissingError where there is none."""
    found = min(folder.rglob(name), key=lambda file: (len(file.parts), file), default=None)
    if found is None:
        problem = f"there is no {name} in {folder} or below it; docs/corpora.md shows the layout"
        raise MissingError(problem, where=folder)
    return found


def write_clip(file: Path, samples: NDArray[Any], sample_rate: int) -> None:
    """Write (samples,) as 16-bit FLAC that appears whole or not at all."""
    with atomic_open(file) as stream:
        soundfile.write(stream, samples, sample_rate, format="FLAC", subtype="PCM_16")
