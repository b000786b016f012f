"""Work that processes share is done by the first of them, and found done by the others."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


@contextmanager
def file_lock(folder: Path) -> Iterator[None]:
    """One process at a time, of all that see this folder, on whatever node; the system frees what a dead one held.

    Whoever has waited should look again what there is. Not to be nested for one folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield
