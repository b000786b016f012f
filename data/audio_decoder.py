"""Decoder of audio files: every sample that is in a file and none that is not, whatever its header says."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from sottovoce.data.audio_file import open_streams
from sottovoce.data.clip_reference import MAX_RECORDING, Part, TarMember, file_of, read_bytes, split_part, tar_member
from sottovoce.errors import AudioError

__all__ = ["AudioStream", "Header", "TarMember", "open_audio", "read_bytes", "read_header", "tar_member"]

MIN_SECONDS = 0.1  # a shorter clip holds no word
MAX_SECONDS = 3600.0  # a longer one is a recording to cut, or a header that lies
MAX_FRAMES = 3600 * 48000  # samples a channel, 0.7 GB decoded: a small file of silence may claim any number of them
MAX_CHANNELS = 64
_ROUNDED = 0.01  # seconds by which the end of a part may lie beyond its recording: written to hundredths
_BLOCK = 1 << 16  # samples of all channels that are decoded together
_TAIL = 16  # samples: whether the last ones can be read tells whether a compressed file breaks off
_EXACT_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "NIST")  # where libsndfile seeks exactly
_EXACT_SUBTYPES = ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")


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

    A header that does not know the length (an MP3 without Xing or Info, a FLAC from a pipe) costs a decoding. Of a
    part of a recording (see `clip_reference`) the length is the part's.

    With `tail` the last samples are read, too: a compressed file may break off before them.

    Raises:
        AudioError: it is one of those, or cannot be read at all; the message is the problem, without the path.
    """
    try:
        return _header(Path(path), _state(Path(path)), max_seconds, tail)
    except AudioError as error:
        raise AudioError(str(error), code=error.code, where=path) from None


def _state(path: Path) -> tuple[int, int] | None:
    """Size and time of a clip's file; None without one."""
    try:
        found = file_of(path).stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=1 << 16)  # a run asks for a clip's header twice before the clip is decoded
def _header(path: Path, _file: tuple[int, int] | None, max_seconds: float, tail: bool) -> Header:
    with open_audio(path, max_seconds) as stream:
        if not stream.length_known:
            return stream.header._replace(frames=sum(map(len, stream.blocks())))
        if tail:
            stream.check_tail()
        return stream.header


@contextmanager
def open_audio(path: Path, max_seconds: float) -> Iterator["AudioStream"]:
    """Open a clip for one reading from its beginning; raises what `read_header` does."""
    with ExitStack() as stack:
        try:
            stream = AudioStream(*open_streams(path, stack), split_part(path)[1], max_seconds)
        except AudioError:
            raise
        except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
            reason = getattr(error, "error_string", None) or str(error)
            raise AudioError(f"not readable as audio: {reason.strip().rstrip('.')}", code="damaged") from None
        yield stream


class AudioStream:
    """An open clip: a part of a recording, or all of it.

    Args:
        files: the streams of the recording, one after another.
        claimed: its samples by their headers; 0: they do not say.
        length_known: whether they are to be believed; where not, `header` has 0 frames.
        part: what of it the clip is.
        max_seconds: the longest clip.

    Raises:
        AudioError: the header tells that the clip cannot be used.
    """

    def __init__(self, files: Sequence[Any], claimed: int, length_known: bool, part: Part, max_seconds: float) -> None:
        self.files, self.claimed, self.length_known, self.part = files, claimed, length_known, part
        self.max_seconds = max_seconds
        rate, channels = files[0].samplerate, files[0].channels
        if part.channel is not None and part.channel >= channels:
            problem = f"channel: it has {channels}, the first is 0, so that none is {part.channel}"
            raise AudioError(problem, code="bad-value")
        if max(part.start, part.end or 0) > MAX_RECORDING:
            raise AudioError(f"start and end: at most {MAX_RECORDING:g} s into a recording are read", code="bad-value")
        self._first, self._last = round(part.start * rate), None if part.end is None else round(part.end * rate)
        if length_known:
            self._last = self._checked_last(claimed, rate)
        frames = self._last - self._first if length_known and self._last is not None else 0
        self.header = Header(frames, rate, channels if part.channel is None else 1, files[0].subtype)
        if claimed and part == Part():
            self._check_length(claimed, so_far=not length_known)
        elif length_known:
            self._check_length(frames)
        elif channels > MAX_CHANNELS:
            self._check_length(1, so_far=True)

    def _checked_last(self, total: int, rate: int) -> int:
        """Where the part ends, in samples; raises AudioError where it is not within the recording."""
        last = total if self._last is None else self._last
        if last > total + _ROUNDED * rate:
            problem = f"end: {self.part.end:g} s is beyond the recording, which lasts {total / rate:.3f} s"
            raise AudioError(problem, code="bad-value")
        if self._first and self._first >= min(last, total):
            problem = f"start: {self.part.start:g} s is not before the end, which is at {min(last, total) / rate:.3f} s"
            raise AudioError(problem, code="bad-value")
        return min(last, total)

    def _check_length(self, frames: int, *, so_far: bool = False) -> None:
        rate, channels = self.header.sample_rate, self.files[0].channels
        claims = "its header claims" if self.claimed else "it has more than"
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
                few or too many, or without the part.
        """
        at, count, rate, channel = self._sought(), 0, self.header.sample_rate, self.part.channel
        for block in self._decoded():
            kept = block[max(0, self._first - at) : None if self._last is None else self._last - at]
            at, count = at + len(block), count + len(kept)
            if not self.length_known:
                self._check_length(max(1, count), so_far=True)
                if at > MAX_RECORDING * rate:
                    raise AudioError(f"too long: it has more than {MAX_RECORDING:g} s", code="bad-value")
            if len(kept):
                yield kept if channel is None else kept[:, channel : channel + 1]
            if self._last is not None and at >= self._last and (self.part.end is not None):
                break
        else:
            if at < self.claimed:
                claimed, read = self.claimed / rate, at / rate
                problem = f"damaged: the header claims {claimed:.2f} s, only {read:.2f} s can be read"
                raise AudioError(problem, code="damaged")
            self._checked_last(at, rate)
        if not self.length_known:
            self._check_length(count)

    def check_tail(self) -> None:
        """Raises AudioError where the last samples of a stream cannot be read."""
        for file in self.files:
            few = min(_TAIL, file.frames)
            with suppress(soundfile.SoundFileError, OSError):
                file.seek(file.frames - few)
                if len(file.read(few)) == few:
                    continue
            raise AudioError("damaged: it breaks off before the length that its header claims", code="damaged")

    def _sought(self) -> int:
        """Where reading begins, in samples: at the part where libsndfile seeks to the sample, else at the beginning."""
        file = self.files[0]
        exact = file.format in _EXACT_FORMATS and file.subtype in _EXACT_SUBTYPES
        if not (self._first and self.length_known and exact):
            return 0
        with suppress(soundfile.SoundFileError, OSError):
            return int(file.seek(self._first))
        raise AudioError(f"damaged: it cannot be read from {self.part.start:g} s on", code="damaged")

    def _decoded(self) -> Iterator[NDArray[np.float32]]:
        size = max(1, _BLOCK // self.files[0].channels)
        try:
            for file in self.files:
                while len(block := file.read(size, dtype="float32", always_2d=True)):
                    yield block
        except (soundfile.SoundFileError, OSError) as error:
            raise AudioError(f"damaged: it cannot be decoded to its end ({error})", code="damaged") from None
