"""Clip references: a path may lead into an archive, and to one channel or some seconds of a recording.

`calls.tar:512+45044` is a member of a tar (offset and size in bytes); `call.wav#channel=1&t=3.5,8` is the second
channel from second 3.5 to second 8, `t=3.5` to the end, as in Media Fragments URI 1.0 (W3C 2012, section 4.2).
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sottovoce.errors import AudioError

MAX_RECORDING = 86400.0  # seconds, of which a clip is a part
MAX_BYTES = 1 << 30  # of a clip that is read as a whole: one in an archive, an MP3, an Ogg file
_MEMBER = re.compile(r"(.+\.tar):(\d{1,15})\+(\d{1,12})", re.DOTALL)
_SECONDS = r"(\d{1,6}(?:\.\d{1,6})?)"
_PART = re.compile(
    rf"(.+)#(?=.)(?:channel=(\d{{1,3}}))?(?:(?:(?<=\d)&)?t=(?=[\d,]){_SECONDS}?(?:,{_SECONDS})?)?", re.DOTALL
)


class TarMember(NamedTuple):
    """A clip within an archive: some bytes of a tar, as `sottovoce shards` packs it."""

    archive: Path
    offset: int  # bytes
    size: int  # bytes


class Part(NamedTuple):
    """What of a recording a clip is."""

    channel: int | None = None  # from 0; None: the mean of all
    start: float = 0.0  # seconds
    end: float | None = None  # seconds; None: that of the recording

    def __str__(self) -> str:
        """The suffix of a path; empty for all of it."""
        end = "" if self.end is None else f",{_number(self.end)}"
        time = f"t={_number(self.start)}{end}" if self.start or end else ""
        channel = "" if self.channel is None else f"channel={self.channel}"
        return f"#{channel}{'&' if channel and time else ''}{time}" if channel or time else ""

    def overlaps(self, other: "Part") -> bool:
        """Whether a moment of one channel is in both."""
        apart = None not in (self.channel, other.channel) and self.channel != other.channel
        begin, end = max(self.start, other.start), min(self.end or math.inf, other.end or math.inf)
        return not apart and begin < end


def split_part(path: Path) -> tuple[Path, Part]:
    """The recording that a path leads to, and what of it."""
    match = _PART.fullmatch(name) if "#" in (name := str(path)) else None
    if not match:
        return path, Part()
    channel, start, end = match[2], match[3], match[4]
    return Path(match[1]), Part(int(channel) if channel else None, float(start or 0), float(end) if end else None)


class Recordings:
    """Recordings, and which parts of them some clips are."""

    def __init__(self, clips: Iterable[Path]) -> None:
        self._parts: dict[Path, list[Part]] = {}
        for clip in clips:
            recording, part = split_part(clip)
            self._parts.setdefault(recording, []).append(part)

    def shared(self, clips: Iterable[Path]) -> list[Path]:
        """Those of other clips that sound, in part at least, in one of these."""
        return [clip for clip in clips if self._has(*split_part(clip))]

    def _has(self, recording: Path, part: Part) -> bool:
        return any(part.overlaps(other) for other in self._parts.get(recording, ()))


def tar_member(path: Path) -> TarMember | None:
    """Where a path such as `recording.000000.tar:512+45044` (offset and size in bytes) leads; None for a plain file."""
    match = _MEMBER.fullmatch(str(split_part(path)[0])) if ".tar:" in str(path) else None
    return TarMember(Path(match[1]), int(match[2]), int(match[3])) if match else None


def file_of(path: Path) -> Path:
    """The file that is opened to read a clip."""
    member = tar_member(path)
    return member.archive if member else split_part(path)[0]


def read_bytes(path: Path) -> bytes:
    """The bytes of a recording, of a file or in an archive.

    Raises:
        AudioError: there are none, fewer than its place says, or more than `MAX_BYTES`.
    """
    member, file = tar_member(path), file_of(path)
    offset, size = member[1:] if member else (0, file.stat().st_size if file.is_file() else 0)
    if not file.is_file():
        raise AudioError(f"there is no such {'archive' if member else 'file'}", code="not-found", where=path)
    if size > MAX_BYTES:
        raise AudioError(f"too large: {size} bytes; at most {MAX_BYTES} are read", code="unsafe", where=path)
    with file.open("rb") as stream:
        stream.seek(offset)
        data = stream.read(size)
    if len(data) < size or not data:
        raise AudioError(f"damaged: {len(data)} of {size} bytes are there", code="damaged", where=path)
    return data


def _number(seconds: float) -> str:
    """To the microsecond, which is less than a sample."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")
