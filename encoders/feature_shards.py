"""Shards: few large tar files of small members, appended by several processes and read by offset.

A shard is a plain tar (`tar -tf` lists it) of members named by key and checksum. `index.jsonl` says where each lies;
what it lacks, because a process was killed between the two writes or somebody deleted it, is found by scanning.
"""

import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from sottovoce.byte_claims import alone
from sottovoce.io import storage_errors
from sottovoce.json_journal import Journal, write_all

LARGEST = 4 << 30  # bytes, from which a shard takes no more
CLIPS = 2_000  # for which there is one shard more that is written at a time
INDEX = "index.jsonl"
_BLOCK = tarfile.BLOCKSIZE
_NAME = re.compile(r"([0-9A-Za-z_-]{3,64})\.([0-9a-f]{8})\.safetensors")


class Place(NamedTuple):
    """Where a member's bytes lie, and their CRC-32."""

    shard: int
    offset: int
    size: int
    crc: int

    @property
    def end(self) -> int:
        """Of the member with what fills its last block."""
        return self.offset + -(-self.size // _BLOCK) * _BLOCK


class Shards:
    """Members of all shards of a folder, by key; of two with one key, the one that was indexed last counts.

    Args:
        folder: made when the first member is written.
        writers: shards that are not full yet, among which processes that write at once choose.
    """

    def __init__(self, folder: Path, writers: int = 1) -> None:
        self.folder, self.writers, self.places = folder, writers, dict[str, Place]()
        self.notes: dict[str, Any] = {}  # of the index, by name
        self._index = Journal(folder / INDEX)
        self._ends: dict[int, int] = {}  # of what is indexed, by shard
        self._files: dict[int, int] = {}  # descriptors
        self._sizes: dict[int, int] = {}

    def __del__(self) -> None:
        self._close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # open files stay with their process

    def __contains__(self, key: str) -> bool:
        place = self.places.get(key)
        return place is not None and self._size(place) >= place.offset + place.size

    def path(self, shard: int) -> Path:
        return self.folder / f"{shard:06}.tar"

    def refresh(self) -> None:
        """Read on in the index."""
        anew, lines = self._index.news()
        if anew:
            self.places, self.notes, self._ends, self._sizes = {}, {}, {}, {}
            self._close()
        for line in lines:
            match line:
                case ["member", str(key), int(shard), int(offset), int(size), int(crc)]:
                    self._know(key, Place(shard, offset, size, crc))
                case ["note", str(name), note]:
                    self.notes[name] = note

    def note(self, notes: dict[str, Any]) -> None:
        """Write notes into the index, which others see when they refresh."""
        if notes:
            self._index.append(["note", name, note] for name, note in notes.items())
            self.notes |= notes

    def read(self, key: str) -> tuple[Path, bytes]:
        """The bytes of a member, and the shard that they are from.

        Raises:
            KeyError: there is none of this key.
            ValueError: they are not what was written; `args` are the reason and the shard.
        """
        if key not in self.places:
            self.refresh()
        place = self.places[key]
        try:
            if place.shard not in self._files:
                self._files[place.shard] = os.open(self.path(place.shard), os.O_RDONLY)
            content = os.pread(self._files[place.shard], place.size, place.offset)
        except FileNotFoundError:
            raise KeyError(key) from None
        if zlib.crc32(content) != place.crc:
            raise ValueError("its checksum is wrong", self.path(place.shard))
        return self.path(place.shard), content

    def append(self, members: Sequence[tuple[str, bytes]]) -> None:
        """Write members into a shard that nobody writes in at this time; `StorageError` where that cannot be."""
        if not members:
            return
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with self._writable() as (shard, stream), storage_errors(self.path(shard)):
            start = end = self._ends.get(shard, 0)
            places, parts = dict[str, Place](), list[bytes]()
            for key, content in members:
                header = tarfile.TarInfo(f"{key}.{zlib.crc32(content):08x}.safetensors")
                header.size = len(content)
                parts += [header.tobuf(tarfile.USTAR_FORMAT), content, bytes(-len(content) % _BLOCK)]
                places[key] = Place(shard, end + _BLOCK, len(content), zlib.crc32(content))
                end = places[key].end
            stream.seek(start)
            try:
                write_all(stream, b"".join(parts))
            except OSError:
                os.ftruncate(stream.fileno(), start)
                raise
            self._add(places)

    def recover(self) -> None:
        """Index what lies behind the end of the index, and drop what a killed process left torn."""
        self._sizes = {}
        self.refresh()
        for file in sorted(self.folder.glob("*.tar")):
            if file.stem.isdecimal() and file.stat().st_size > self._ends.get(int(file.stem), 0):
                with FileIO(file, "r+") as stream, alone(stream):
                    self._mend(int(file.stem), stream)

    @contextmanager
    def _writable(self) -> Iterator[tuple[int, FileIO]]:
        """One shard, held: the first that is not full and that nobody holds; or else the first of those, waited for."""
        self.refresh()
        numbers = range(max(self._ends, default=-1) + 1 + self.writers)
        choice = [shard for shard in numbers if self._takes_more(shard)][: self.writers]
        for shard, wait in [*((shard, False) for shard in choice), (choice[0], True)]:
            with ExitStack() as stack:
                with storage_errors(self.path(shard)):
                    stream = stack.enter_context(FileIO(os.open(self.path(shard), os.O_RDWR | os.O_CREAT, 0o666), "r+"))
                if stack.enter_context(alone(stream, wait=wait)):
                    self._mend(shard, stream)
                    yield shard, stream
                    return

    def _takes_more(self, shard: int) -> bool:
        end, path = self._ends.get(shard, 0), self.path(shard)
        size = path.stat().st_size if path.is_file() else 0
        return size >= end and end < LARGEST  # one that was cut off or deleted would give old places other contents

    def _mend(self, shard: int, stream: FileIO) -> None:
        """Bring index and shard together; the shard is held."""
        self.refresh()
        size, end = os.fstat(stream.fileno()).st_size, self._ends.get(shard, 0)
        found = dict(self._scan(shard, stream, end)) if size > end else {}
        self._add(found)
        if size > self._ends.get(shard, 0):
            os.ftruncate(stream.fileno(), self._ends.get(shard, 0))

    def _scan(self, shard: int, stream: FileIO, start: int) -> Iterator[tuple[str, Place]]:
        """Whole members from a byte on."""
        while True:
            stream.seek(start)
            try:
                header = tarfile.TarInfo.frombuf(stream.read(_BLOCK), "utf-8", "strict")
            except tarfile.HeaderError:
                return
            named = _NAME.fullmatch(header.name)
            content = stream.read(header.size) if named and header.size < LARGEST else b""
            if named is None or f"{zlib.crc32(content):08x}" != named[2]:
                return
            place = Place(shard, start + _BLOCK, header.size, int(named[2], 16))
            if place.end > os.fstat(stream.fileno()).st_size:
                return
            start = place.end
            yield named[1], place

    def _add(self, places: dict[str, Place]) -> None:
        if places:
            self._index.append(["member", key, *place] for key, place in places.items())
            for key, place in places.items():
                self._know(key, place)

    def _know(self, key: str, place: Place) -> None:
        self.places[key] = place
        self._ends[place.shard] = max(self._ends.get(place.shard, 0), place.end)

    def _size(self, place: Place) -> int:
        """Of the place's shard, as far as it is known to reach; 0 where it is gone."""
        if self._sizes.get(place.shard, 0) < place.offset + place.size:
            path = self.path(place.shard)
            self._sizes[place.shard] = path.stat().st_size if path.is_file() else 0
        return self._sizes[place.shard]

    def _close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}


def count_members(folder: Path) -> int:
    """How many members a folder's index names; 0 where there is none."""
    index = folder / INDEX
    return index.read_bytes().count(b'["member",') if index.is_file() else 0


def writers_for(clips: int) -> int:
    """How many shards are written at a time, so that files stay few: one for every 2,000 clips, 64 at most."""
    return min(64, max(1, clips // CLIPS))
