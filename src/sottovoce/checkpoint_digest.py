"""Checkpoints with a SHA-256 of themselves in the zip archive's comment, so that a changed bit anywhere is detected."""

import hashlib
import os
import struct
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import torch

_PREFIX = b"sha256:"
_LENGTH = len(_PREFIX) + hashlib.sha256().digest_size * 2


class _HashingStream:
    """A binary stream that computes the SHA-256 of all that is written to it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.digest = stream, hashlib.sha256()

    def write(self, part: bytes) -> int:
        self.digest.update(part)
        return self.stream.write(part)

    def flush(self) -> None:
        self.stream.flush()


def save(content: dict[str, Any], stream: IO[bytes]) -> None:
    """Write what `torch.load` reads: a zip archive, whose comment is the SHA-256 of the archive without a comment."""
    hashing = _HashingStream(stream)
    torch.save(content, cast(IO[bytes], hashing))  # PyTorch asks no more of a stream
    comment = _PREFIX + hashing.digest.hexdigest().encode()
    stream.seek(-2, os.SEEK_END)  # the length of the comment, which ends an archive that has none
    stream.write(struct.pack("<H", len(comment)) + comment)


def check(path: Path) -> None:
    """Compare the whole file with its digest, else with the archive's CRC-32: PyTorch looks at neither.

    It is a ValueError to have changed, a BadZipFile to be no archive.
    """
    with path.open("rb") as stream:
        body = stream.seek(0, os.SEEK_END) - _LENGTH - 2
        stream.seek(max(body, 0))
        if struct.pack("<H", _LENGTH) + _PREFIX == (end := stream.read())[: 2 + len(_PREFIX)]:
            if _sha256(stream, body) != end[2 + len(_PREFIX) :].decode("ascii", "replace"):
                raise ValueError("it has changed since it was written")
            return
    with zipfile.ZipFile(path) as archive:
        if archive.comment:
            raise ValueError("its digest is broken")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} is wrong")


def _sha256(stream: IO[bytes], length: int) -> str:
    """The digest of the first `length` bytes, and of the comment's length as it was: 0."""
    digest = hashlib.sha256()
    stream.seek(0)
    while part := stream.read(min(1 << 20, length)):
        digest.update(part)
        length -= len(part)
    digest.update(b"\0\0")
    return digest.hexdigest()
