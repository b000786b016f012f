"""Claims that processes on one disk share: each piece of work is one process's at a time, freed when that one dies."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = ".claims"
_HERE = 0  # byte that whoever works in the folder holds, together with others
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class NoClaimsError(Exception):
    """This system or this disk has no locks on bytes of a file; says which."""


class Claims:
    """Claims on pieces of work, by name: locks on single bytes of `folder/.claims`, which stays empty.

    Of one process, no two may be open on one folder at a time: closing one would free what the other holds.

    Raises:
        NoClaimsError: there are no such locks here.
    """

    def __init__(self, folder: Path) -> None:
        if fcntl is None:
            raise NoClaimsError("this system has no locks on bytes of files")
        folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = (folder / FILE).open("a+b")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _HERE)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._file.close()
            raise NoClaimsError(f"the disk of {folder} has no locks on bytes of files") from None

    def take(self, name: str) -> bool:
        """Claim a piece of work; False: another process has it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(name))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def give_back(self, name: str) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _byte(name))

    def close(self) -> None:
        """Give back all."""
        self._file.close()


def is_worked_on(folder: Path) -> bool:
    """Whether another process has claims open on a folder."""
    if fcntl is None or not (folder / FILE).is_file():
        return False
    with (folder / FILE).open("r+b") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _HERE)
        except OSError as error:
            return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


@contextmanager
def alone(stream: FileIO, *, wait: bool = True) -> Iterator[bool]:
    """Hold a whole open file, which has no buffer, against others that do so; False: another has it, without `wait`.

    Where there are no such locks, it is not held; see `Claims`, which tells so before anything is written.
    """
    if fcntl is None:
        yield True
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            yield False
            return
    try:
        yield True
    finally:
        fcntl.flock(stream, fcntl.LOCK_UN)


def _byte(name: str) -> int:
    return 1 + int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:7], "big")
