"""Files and folders written atomically (aside, synced, renamed), their digests, and a lock that processes share."""

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from filelock import FileLock

from sottovoce.errors import StorageError


@contextmanager
def atomic_open(path: Path, *, shared: bool = False, lasting: bool = True) -> Iterator[IO[bytes]]:
    """Open a file that appears, complete and on the disk itself, when the block ends without an error.

    Until then whatever stood under this name stays. A process that is killed leaves at most a hidden `.tmp` file, which
    the next one that writes the same file replaces.

    Args:
        path: the file; its folder is made.
        shared: several processes may write it at once, so that each needs a draft of its own.
        lasting: wait for the disk, unless the file can be made again, and readers can tell that it is damaged.

    Raises:
        StorageError: it cannot be written: the disk is full, a quota is used up, it may only be read.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp" if shared else f".{path.name}.tmp")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as stream:
                yield stream
                stream.flush()
                if lasting:
                    os.fsync(stream.fileno())
            draft.replace(path)
            if lasting:
                _sync(path.parent)
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)  # after the rename there is nothing; after an error or Ctrl-C there is


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder that appears, complete and on the disk itself, when the block ends; it replaces what is there."""
    draft = folder.with_name(f".{folder.name}.tmp")
    with storage_errors(folder):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            yield draft
            for file in draft.rglob("*"):
                _sync(file)
            _sync(draft)
            shutil.rmtree(folder, ignore_errors=True)
            draft.replace(folder)
            _sync(folder.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """A StorageError, in one line, for an OSError, for what torch.save makes of one, and for what safetensors does."""
    try:
        yield
    except Exception as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save raises the former
        if isinstance(cause, OSError):
            reason = cause.strerror or str(cause)
        elif number := re.search(r"\(os error (\d+)\)", str(error)):
            reason = os.strerror(int(number[1]))
        else:
            raise
        kept = "What was there before is untouched; make room, and the same command goes on"
        raise StorageError(f"{path} cannot be written: {reason}. {kept}", where=path) from None


def atomic_write(path: Path, content: str | bytes, *, shared: bool = False) -> None:
    """Write a file, text as UTF-8; see `atomic_open`."""
    with atomic_open(path, shared=shared) as stream:
        stream.write(content.encode("utf-8") if isinstance(content, str) else content)


def file_sha256(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def file_lock(folder: Path) -> Iterator[None]:
    """One process at a time, of all that see this folder; the system frees what a dead one held. Not to be nested."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


def _sync(path: Path) -> None:
    """Force a file or folder to the disk: a rename is kept over a power cut only when its folder is there, too."""
    with suppress(OSError):  # not every file system can do that
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
