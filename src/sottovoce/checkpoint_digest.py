"""Checkpoints that carry a digest of themselves, so that a changed bit anywhere is seen."""

import hashlib
import os
import struct
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import torch

_SEAL = b"sha256:"
_LENGTH = len(_SEAL) + hashlib.sha256().digest_size * 2


class _Summed:
    """A stream that knows the SHA-256 of all that went through it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.digest = stream, hashlib.sha256()

    def write(self, part: bytes) -> int:
        self.digest.update(part)
        return self.stream.write(part)

    def flush(self) -> None:
        self.stream.flush()


def save(content: dict[str, Any], stream: IO[bytes]) -> None:
    """Write what `torch.load` reads: a zip archive, whose comment is the SHA-256 of the archive without a comment."""
    summed = _Summed(stream)
    torch.save(content, cast(IO[bytes], summed))  # of a stream it writes to, PyTorch wants no more
    seal = _SEAL + summed.digest.hexdigest().encode()
    stream.seek(-2, os.SEEK_END)  # the length of the comment, which ends an archive that has none
    stream.write(struct.pack("<H", len(seal)) + seal)


def check(path: Path) -> None:
    """Read the whole file once and hold it against its seal.

    PyTorch would take a changed weight for good: it does not look at the archive's own checksums (CRC-32). They are
    what a file without a seal is held against.

    Raises:
        ValueError: the file is not what was written.
        OSError: it cannot be read.
        zipfile.BadZipFile: it is no archive.
    """
    with path.open("rb") as stream:
        body = stream.seek(0, os.SEEK_END) - _LENGTH - 2
        stream.seek(max(body, 0))
        if struct.pack("<H", _LENGTH) + _SEAL == (end := stream.read())[: 2 + len(_SEAL)]:
            if _sum(stream, body) != end[2 + len(_SEAL) :].decode("ascii", "replace"):
                raise ValueError("it has changed since it was written")
            return
    with zipfile.ZipFile(path) as archive:
        if archive.comment:
            raise ValueError("its seal is broken")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} is wrong")


def _sum(stream: IO[bytes], length: int) -> str:
    """Of the first so many bytes, and the two that were no comment's length."""
    digest = hashlib.sha256()
    stream.seek(0)
    while part := stream.read(min(1 << 20, length)):
        digest.update(part)
        length -= len(part)
    digest.update(b"\0\0")
    return digest.hexdigest()
