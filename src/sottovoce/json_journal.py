"""A journal: JSON Lines that several processes append to and read on in, whatever killed processes left torn."""

import json
import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import Any

from sottovoce.byte_claims import alone
from sottovoce.io import storage_errors


class Journal:
    """Lines of one file, each a JSON value; a line that cannot be read was torn, and counts as none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read, self._inode = 0, 0  # bytes that have been read, and of which file

    def append(self, lines: Iterable[Any]) -> None:
        """Add lines, whole or not at all but for a kill; `StorageError` where they cannot be written."""
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileIO(self.path, "a+") as stream, alone(stream):
                end = stream.seek(0, os.SEEK_END)
                if end and os.pread(stream.fileno(), 1, end - 1) != b"\n":
                    text = b"\n" + text  # behind a line that a killed process left torn
                try:
                    write_all(stream, text)
                except OSError:
                    os.ftruncate(stream.fileno(), end)
                    raise

    def news(self) -> tuple[bool, list[Any]]:
        """Lines since the last call; and whether they are all there are, because the file is another by now."""
        try:
            stream = self.path.open("rb")
        except FileNotFoundError:
            anew, self._read, self._inode = self._inode != 0, 0, 0
            return anew, []
        with stream:
            found = os.fstat(stream.fileno())
            anew = found.st_ino != self._inode or found.st_size < self._read
            if anew:
                self._read, self._inode = 0, found.st_ino
            stream.seek(self._read)
            text = stream.read()
        text = text[: text.rfind(b"\n") + 1]
        self._read += len(text)
        return anew, [value for line in text.splitlines() if (value := _value(line)) is not None]


def write_all(stream: FileIO, content: bytes) -> None:
    """Write all of some bytes to a file without a buffer, which may take less than all at a time."""
    rest = memoryview(content)
    while rest:
        rest = rest[stream.write(rest) :]


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
