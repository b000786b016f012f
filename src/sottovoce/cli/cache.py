"""`sottovoce cache`: what lies in a cache folder, how large it is, whose it is, and how to be rid of it."""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from sottovoce.byte_claims import is_worked_on
from sottovoce.cache_notes import SUFFIX, Note, note_file, read_note
from sottovoce.encoders.cache_formats import is_current
from sottovoce.errors import ConfigError, MissingError
from sottovoce.io import storage_errors

DAY = 86_400.0  # seconds
OLD = "encoder outputs as older versions kept them, which are read no more"
KINDS = {"features": "encoder outputs", "targets": "targets", "corpora": "corpus"}  # folder -> what is in it


@dataclass(frozen=True)
class Entry:
    """What is deleted as a whole: the outputs of one encoder, the targets of one LLM, or a corpus that was made."""

    path: Path
    kind: str
    files: int
    size: int  # bytes
    used: float  # when it was last written or a run began to use it, seconds since 1970
    note: Note


def command(folder: str, clean: bool, older: float | None, yes: bool) -> None:
    """Show what lies in a cache, or delete it: all, or what nobody has used for `older` days."""
    root = Path(folder)
    if not root.is_dir():
        why = "there is no such folder; recipes name it by data.cache"
        raise MissingError.at(folder, "not-found", why)
    now, found = time.time(), sorted(entries(root), key=lambda entry: -entry.size)
    chosen = [entry for entry in found if older is None or now - entry.used >= older * DAY]
    shown = Console(width=None if sys.stdout.isatty() else 10_000)  # a file has no width
    shown.print(_table(root, chosen if clean else found, now))
    if not clean:
        return
    kept = [entry for entry in chosen if _is_used_now(entry)]
    chosen = [entry for entry in chosen if entry not in kept]
    for entry in kept:
        print(f"kept {entry.path}: a run that is going on uses it")
    if chosen and _agreed(chosen, yes=yes):
        delete(root, chosen)
        print(f"deleted {_size(sum(entry.size for entry in chosen))}")


def entries(root: Path) -> Iterator[Entry]:
    """What lies in a cache."""
    for path in sorted(child for kind in KINDS for child in (root / kind).glob("*")):
        if path.name.startswith(".") or path.name.endswith(SUFFIX):
            continue
        note = read_note(path)
        stats = [file.stat() for file in _files(path)]
        used = max([stat.st_mtime for stat in stats] + list(note.runs.values()), default=path.stat().st_mtime)
        kind = OLD if path.parent.name == "features" and not is_current(path) else KINDS[path.parent.name]
        yield Entry(path, kind, len(stats), sum(stat.st_size for stat in stats), used, note)


def _files(path: Path) -> Iterator["os.DirEntry[str] | Path"]:
    if not path.is_dir():
        yield path
        return
    with os.scandir(path) as found:
        for file in found:
            if file.is_dir(follow_symlinks=False):
                yield from _files(Path(file.path))
            elif file.is_file(follow_symlinks=False):
                yield file


def delete(root: Path, chosen: Sequence[Entry]) -> None:
    """Delete entries; ConfigError where a command is filling the cache at this time."""
    lock, told = FileLock(root / ".lock"), "another process is filling it: wait until that is done"
    for entry in chosen:
        if is_worked_on(entry.path):
            raise ConfigError.at(entry.path, "conflict", told)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError.at(root, "conflict", told) from None
    try:
        for entry in chosen:
            with storage_errors(entry.path):
                shutil.rmtree(entry.path) if entry.path.is_dir() else entry.path.unlink(missing_ok=True)
                note_file(entry.path).unlink(missing_ok=True)
    finally:
        lock.release()


def _is_used_now(entry: Entry) -> bool:
    """Whether a process has one of its runs in hand."""
    for run in entry.note.runs:
        file = Path(run) / ".running"
        if file.is_file():
            lock = FileLock(file)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return True
            lock.release()
    return False


def _agreed(chosen: Sequence[Entry], *, yes: bool) -> bool:
    if yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError.at("--yes", "missing-key", "nobody can be asked here: --yes deletes without a question")
    asked = f"delete {len(chosen)} of these, {_size(sum(entry.size for entry in chosen))}? [y/N] "
    return input(asked).strip().lower() in ("y", "yes")


def _table(root: Path, found: Sequence[Entry], now: float) -> Table:
    number = Column("files", justify="right"), Column("size", justify="right"), Column("last used", justify="right")
    table = Table("what", "of", *number, "runs", "path", title=f"{root}", title_justify="left", show_footer=False)
    for entry in found:
        days = int((now - entry.used) / DAY)
        when = "today" if days < 1 else f"{days} days ago" if days > 1 else "yesterday"
        runs = "\n".join(_shown(run) for run in sorted(entry.note.runs, key=lambda run: -entry.note.runs[run]))
        cells = entry.kind, entry.note.of or "not known", f"{entry.files:,}", _size(entry.size), when, runs
        table.add_row(*(escape(cell) for cell in (*cells, str(entry.path.relative_to(root)))))
    total = _size(sum(entry.size for entry in found))
    table.add_row("all", "", f"{sum(entry.files for entry in found):,}", total, "", "", "")
    return table


def _shown(run: str) -> str:
    """A run's folder, from here; marked where it is gone."""
    path = Path(run)
    near = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return str(near) if path.is_dir() else f"{near} (gone)"


def _size(count: float) -> str:
    """Bytes in words, in powers of 1000, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
