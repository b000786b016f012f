"""Decoder of audio files: every sample that is in a file and none that is not, whatever its header says."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from sottovoce.errors import AudioError

MIN_SECONDS = 0.1  # a shorter clip holds no word
MAX_SECONDS = 3600.0  # a longer one is a recording to cut, or a header that lies
MAX_FRAMES = 3600 * 48000  # samples a channel, 0.7 GB decoded: a small file of silence may claim any number of them
MAX_CHANNELS = 64
MAX_BYTES = 1 << 30  # of a clip that is read as a whole: one in an archive, or an MP3 that does not say its length
_BLOCK = 1 << 16  # samples of all channels that are decoded together
_TAIL = 16  # samples: whether the last ones can be read tells whether a compressed file breaks off
_MEMBER = re.compile(r"(.+\.tar):(\d{1,15})\+(\d{1,12})")
_CUT_SHORT = re.compile(  # in libsndfile's log, of WAV, AIFF, AU, SVX, W64 and RF64
    r"^\s*(?:data|SSND|Data Size|BODY|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE
)
_STREAMED = 0x7FFF0000  # bytes; writers to a pipe claim about 2 or 4 GiB, for want of the true size
_LENGTH_TAG = re.compile(rb"(?:Xing|Info)\0\0\0([\0-\xff])|VBRI")  # in an MP3's first frame; bit 0: it has a length


class TarMember(NamedTuple):
    """A clip within an archive: some bytes of a tar, as `sottovoce shards` packs it."""

    archive: Path
    offset: int  # bytes
    size: int  # bytes


def tar_member(path: Path) -> TarMember | None:
    """Where a path such as `recording.000000.tar:512+45044` (offset and size in bytes) leads; None for a plain file."""
    match = _MEMBER.fullmatch(str(path))
    return TarMember(Path(match[1]), int(match[2]), int(match[3])) if match else None


def read_bytes(path: Path) -> bytes:
    """The bytes of a clip, of a file or in an archive; AudioError for none, fewer than its place says, or too many."""
    member = tar_member(path)
    file, offset, size = member or (path, 0, path.stat().st_size if path.is_file() else 0)
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


class Header(NamedTuple):
    """Format and length of a clip."""

    frames: int  # samples of each channel
    sample_rate: int  # Hz
    channels: int
    subtype: str  # such as PCM_24

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


def read_header(path: Path, *, max_seconds: float = MAX_SECONDS, tail: bool = False) -> Header:
    """Read a clip's header, which tells whether a file is missing, empty, cut off, too short or too long.

    A header that does not know the length (an MP3 without Xing or Info, a FLAC from a pipe) costs a decoding.

    With `tail` the last samples are read, too: a compressed file may break off before them.

    Raises:
        AudioError: it is one of those, or cannot be read at all; the message is the problem, without the path.
    """
    try:
        with open_audio(Path(path), max_seconds) as stream:
            if not stream.length_known:
                return stream.header._replace(frames=sum(map(len, stream.blocks())))
            if tail:
                stream.check_tail()
            return stream.header
    except AudioError as error:
        raise AudioError(str(error), code=error.code, where=path) from None


@contextmanager
def open_audio(path: Path, max_seconds: float) -> Iterator["AudioStream"]:
    """Open a clip for one reading from its beginning; raises what `read_header` does."""
    length_known = True
    try:
        member = tar_member(path)
        if not member and not path.is_file():
            raise AudioError("there is no such file", code="not-found")
        if not member and path.stat().st_size == 0:
            raise AudioError("the file is empty (0 bytes)", code="damaged")
        file = soundfile.SoundFile(BytesIO(read_bytes(path)) if member else path)
        if file.format == "MP3" and not _says_length(data := read_bytes(path)):
            file.close()
            length_known, file = False, soundfile.SoundFile(_LongerBytes(data))
    except AudioError:
        raise
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        reason = getattr(error, "error_string", None) or str(error)
        raise AudioError(f"not readable as audio: {reason.strip().rstrip('.')}", code="damaged") from None
    # soundfile seeks after each read, at which an MP3 loses what its frames borrow from each other, and reads no
    # further than the header says; not so with a file that cannot seek
    file.seekable = lambda: False
    length_known &= file.frames < 1 << 62  # libsndfile's word for an unknown length is 2^63 - 1
    header = Header(file.frames if length_known else 0, file.samplerate, file.channels, file.subtype)
    with file:
        stream = AudioStream(file, header, max_seconds, length_known)
        if length_known:
            stream.check_header()
        yield stream


@dataclass(frozen=True)
class AudioStream:
    """An open clip; without `length_known` its header has 0 frames."""

    file: Any
    header: Header
    max_seconds: float
    length_known: bool

    def check_header(self) -> None:
        """Raises AudioError where the header tells that the clip cannot be used."""
        self._check_length(self.header.frames)
        # libsndfile reads a file that breaks off as if it were whole, and tells so in its log alone
        if (cut := _CUT_SHORT.search(self.file.extra_info)) and int(cut[2]) < int(cut[1]) < _STREAMED:
            problem = f"damaged: its header claims {cut[1]} bytes of samples, {cut[2]} are there"
            raise AudioError(problem, code="damaged")

    def _check_length(self, frames: int, *, so_far: bool = False) -> None:
        _, rate, channels, _ = self.header
        claims = "its header claims" if self.length_known else "it has more than"
        if frames <= 0:
            raise AudioError("the file holds no samples", code="empty")
        if (seconds := frames / rate) < MIN_SECONDS and not so_far:
            problem = f"too short: {seconds:.3f} s, at least {MIN_SECONDS:g} s are needed"
            raise AudioError(problem, code="bad-value")
        if seconds > self.max_seconds:
            problem = f"too long: {claims} {seconds:.0f} s, at most {self.max_seconds:g} s are read"
            raise AudioError(problem, code="bad-value")
        if frames > MAX_FRAMES or channels > MAX_CHANNELS:
            problem = f"too large: {claims} {frames} samples at {rate} Hz in {channels} channels"
            raise AudioError(f"{problem}; at most {MAX_FRAMES} in {MAX_CHANNELS} are read", code="unsafe")

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Samples (frames, channels) until a read returns none, so that memory grows with what is there.

        Raises:
            AudioError: they are fewer than the header claims, or cannot be decoded; or, where it claims nothing, too
                few or too many.
        """
        count, size = 0, max(1, _BLOCK // self.header.channels)
        try:
            while len(block := self.file.read(size, dtype="float32", always_2d=True)):
                count += len(block)
                if not self.length_known:
                    self._check_length(count, so_far=True)
                yield block
        except (soundfile.SoundFileError, OSError) as error:
            raise AudioError(f"damaged: it cannot be decoded to its end ({error})", code="damaged") from None
        if not self.length_known:
            self._check_length(count)
        elif count < self.header.frames:
            read = count / self.header.sample_rate
            problem = f"damaged: the header claims {self.header.seconds:.2f} s, only {read:.2f} s can be read"
            raise AudioError(problem, code="damaged")

    def check_tail(self) -> None:
        """Raises AudioError where the last samples cannot be read."""
        few = min(_TAIL, self.header.frames)
        with suppress(soundfile.SoundFileError, OSError):
            self.file.seek(self.header.frames - few)
            if len(self.file.read(few)) == few:
                return
        raise AudioError("damaged: it breaks off before the length that its header claims", code="damaged")


class _LongerBytes(BytesIO):
    """Bytes that seem to be 64 times as many, with zeros behind the last one, for a decoder that guesses.

    Of an MP3 without a tag, libmpg123 guesses the length from the file's size and the first frame's bit rate, and
    libsndfile reads no further. Bit rates go from 8 to 320 kbit/s; reading still ends at the true end.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.true, self.seeming = len(data), 64 * len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return super().seek(self.seeming + offset) if whence == os.SEEK_END else super().seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:
        if self.tell() <= self.true:
            return super().readinto(buffer)
        buffer[:] = bytes(len(buffer))
        return len(buffer)


def _says_length(mp3: bytes) -> bool:
    """Whether the first frame of an MP3 holds a Xing, Info or VBRI tag, by which its length is exact."""
    start = 0
    while mp3[start : start + 3] == b"ID3":
        size = mp3[start + 6 : start + 10]  # seven bits a byte
        start += 10 + sum(byte << shift for byte, shift in zip(size, (21, 14, 7, 0), strict=False))
    tag = _LENGTH_TAG.search(mp3, start, start + 2048)
    return bool(tag and (tag[1] is None or tag[1][0] & 1))
