"""Decoder of what libsndfile does not open (MP4, WebM, WMA, AMR, AAC, WavPack, APE, ...), by PyAV, that is FFmpeg."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import AudioError

CONVERT = "ffmpeg -i {} -ac 1 -ar 16000 out.flac"
UNKNOWN_FRAMES = (1 << 63) - 1  # libsndfile's word for it
_MAGIC = {  # offset, bytes -> name, and the demuxer: no other may run, since some open further files
    (4, b"ftyp"): ("MP4 (m4a, mp4, mov, 3gp)", "mov"), (0, b"\x1aE\xdf\xa3"): ("WebM or Matroska", "matroska"),
    (0, b"0&\xb2u\x8ef\xcf\x11"): ("WMA (ASF)", "asf"), (0, b"#!AMR"): ("AMR", "amr"), (0, b"\xff\xf1"): ("AAC", "aac"),
    (0, b"\xff\xf9"): ("AAC", "aac"), (0, b"wvpk"): ("WavPack", "wv"), (0, b"MAC "): ("Monkey's Audio", "ape"),
    (0, b"RIFF"): ("WAV of a rare codec", "wav"), (28, b"Speex   "): ("Speex", "ogg"),
}  # fmt: skip
_LENGTHS = ("mov", "matroska", "asf", "wv", "ape", "wav")  # of the others FFmpeg guesses the length by the bit rate


def is_known(head: bytes) -> bool:
    """Whether a file that begins so is for PyAV."""
    return any(head[at : at + len(magic)] == magic for at, magic in _MAGIC)


@contextmanager
def open_av(data: bytes, path: Path) -> Iterator["AvFile"]:
    """Open the first audio stream of a file; messages name it by `path`.

    Raises:
        AudioError: PyAV is not installed, or does not read the file either; the message says how to convert it.
    """
    known, demuxer = next(value for (at, magic), value in _MAGIC.items() if data[at : at + len(magic)] == magic)
    try:
        import av
    except ImportError:
        way = f"install the extra (pip install 'sottovoce[formats]'), or {CONVERT.format(path.name)}"
        raise AudioError(f"{known} needs PyAV: {way}", code="unavailable") from None
    if demuxer == "wav" and 8 + int.from_bytes(data[4:8], "little") > len(data):
        raise AudioError("damaged: it breaks off before the length that its header claims", code="damaged")
    with _told(known):
        container = av.open(BytesIO(data), options={"format_whitelist": demuxer})
    with container:
        yield AvFile(container, known, demuxer in _LENGTHS)


@contextmanager
def _told(known: str) -> Iterator[None]:
    from av import FFmpegError

    try:
        yield
    except FFmpegError as error:
        raise AudioError(f"damaged: {known} that cannot be decoded: {error.strerror}", code="damaged") from None


class AvFile:
    """An open file with as much of soundfile.SoundFile as a decoder needs; its length shows when it is decoded."""

    frames, format, extra_info = UNKNOWN_FRAMES, "AV", ""

    def __init__(self, container: Any, known: str, says_length: bool) -> None:
        if not container.streams.audio:
            raise AudioError(f"{known} without a stream of audio", code="empty")
        self._known = known
        self._claimed = container.duration / 1e6 if says_length and container.duration else 0.0
        self._container, self._end = container, 0.0
        self._stream = container.streams.audio[0]
        self._blocks = self._decoded()
        with _told(known):  # rate and channels are the decoder's: HE-AAC doubles those of the header
            self._rest: NDArray[np.float32] | None = next(self._blocks, None)
        if self._rest is None:
            raise AudioError("the file holds no samples", code="empty")
        self.subtype = self._stream.codec_context.name

    def _decoded(self) -> Iterator[NDArray[np.float32]]:
        from av import AudioResampler

        resampler: Any = None
        for packet in self._container.demux():
            if packet.pts is not None and packet.time_base:
                self._end = max(self._end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            for frame in packet.decode() if packet.stream.index == self._stream.index else ():
                if resampler is None:
                    self.samplerate, self.channels = frame.sample_rate, frame.layout.nb_channels
                    resampler = AudioResampler("fltp", frame.layout, frame.sample_rate)
                for part in resampler.resample(frame):  # the format alone changes
                    yield part.to_ndarray().T
        if self._end < self._claimed - max(0.1, 0.01 * self._claimed):
            told = f"the header claims {self._claimed:.2f} s, only {self._end:.2f} s are there"
            raise AudioError(f"damaged: {told}", code="damaged")

    def read(self, frames: int, **_: Any) -> NDArray[np.float32]:
        """(samples, channels) float32: about so many; none at the end."""
        parts, count = [np.zeros((0, self.channels), np.float32)], 0
        with _told(self._known):
            while count < frames and self._rest is not None:
                parts.append(self._rest)
                count += len(self._rest)
                self._rest = next(self._blocks, None)
        return np.concatenate(parts)

    def close(self) -> None:
        """Nothing: `open_av` closes the container."""
