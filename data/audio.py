"""Clips as the rest of the house wants them: one channel, one sample rate, and never an unusable one in silence."""

import math
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from sottovoce.errors import AudioError

MIN_SECONDS = 0.1  # a shorter clip holds no word
MAX_SECONDS = 3600.0  # a longer one is a recording to cut, or a header that lies
MIN_RMS = 1e-4  # -80 dBFS, three steps of 16 bits: quieter is silence
MAX_PEAK = 2.0  # lossy codecs overshoot full scale a little; beyond this the samples were never scaled to [-1, 1]
MAX_CLIPPED = 0.01  # share of samples at full scale, above which clipping is named
_FULL_SCALE = 32767 / 32768  # the largest positive sample of 16 bits
_BLOCK = 1 << 16  # samples of all channels that are decoded together
MAX_FRAMES = 3600 * 48000  # samples a channel, 0.7 GB decoded: a small file of silence may claim any number of them
MAX_CHANNELS = 64
MAX_BYTES = 1 << 30  # of a clip in an archive
_PLACE = re.compile(r"(.+\.tar):(\d{1,15})\+(\d{1,12})")
_CUT_SHORT = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)  # WAV, AIFF, AU
_STREAMED = 0x7FFF0000  # bytes; writers to a pipe claim about 2 or 4 GiB, for want of the true size


class Place(NamedTuple):
    """A clip within an archive: some bytes of a tar, as `sottovoce shards` packs it."""

    archive: Path
    offset: int  # bytes
    size: int  # bytes


def place_of(path: Path) -> Place | None:
    """Where a path such as `recording.000000.tar:512+45044` (offset and size in bytes) leads; None for a plain file."""
    found = _PLACE.fullmatch(str(path))
    return Place(Path(found[1]), int(found[2]), int(found[3])) if found else None


class Header(NamedTuple):
    """What a file says about itself."""

    frames: int  # samples of each channel
    sample_rate: int  # Hz
    channels: int
    subtype: str  # such as PCM_24

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


@dataclass(frozen=True)
class AudioReport:
    """What one clip is like; `problem` makes it unusable, `warning` is only to be named."""

    path: Path
    seconds: float = 0.0
    sample_rate: int = 0  # Hz; 0 where the header cannot be read
    channels: int = 0
    subtype: str = ""
    peak: float = 0.0  # largest absolute sample of any channel, 1 is full scale
    rms: float = 0.0  # of the mean of the channels
    clipped_share: float = 0.0  # of the samples of all channels
    problem: str | None = None
    warning: str | None = None


def load_audio(path: Path, sample_rate: int = 16000, *, max_seconds: float = MAX_SECONDS) -> NDArray[np.float32]:
    """Decode a clip: (samples,), the mean of its channels, resampled (soxr HQ) to `sample_rate` Hz.

    Full scale is 1. Nothing is scaled or cut, so a lossy codec or the resampling of a clipped clip may overshoot it.

    Raises:
        AudioError: the clip is unreadable, damaged, empty, shorter than `MIN_SECONDS`, longer than `max_seconds`,
            silent (RMS below `MIN_RMS`), not finite, or not scaled to [-1, 1].
    """
    report, samples = _decode(Path(path), max_seconds)
    if report.problem:
        raise AudioError(f"{path}: {report.problem}")
    if report.sample_rate == sample_rate:
        return samples
    resampled: NDArray[np.float32] = soxr.resample(samples, report.sample_rate, sample_rate, quality="HQ")
    return resampled


def inspect_audio(path: Path, *, max_seconds: float = MAX_SECONDS) -> AudioReport:
    """Decode a clip and report on it; what `load_audio` would refuse has a `problem`. Raises nothing."""
    return _decode(Path(path), max_seconds)[0]


def check_audio(paths: Iterable[Path], workers: int = 4, *, max_seconds: float = MAX_SECONDS) -> list[AudioReport]:
    """Reports on many clips, decoded in `workers` threads, in the order of `paths`."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda path: inspect_audio(path, max_seconds=max_seconds), paths))


def read_header(path: Path, *, max_seconds: float = MAX_SECONDS) -> Header:
    """Read a clip's header alone, which tells whether a file is missing, empty, cut off, too short or too long.

    Raises:
        AudioError: it is one of those, or cannot be read at all; the message is the problem, without the path.
    """
    with _open(Path(path)) as file:
        return _header(file, max_seconds)


def _open(path: Path) -> soundfile.SoundFile:
    try:
        if place := place_of(path):
            return soundfile.SoundFile(BytesIO(_bytes_at(place)))
        if not path.is_file():
            raise AudioError("there is no such file")
        if path.stat().st_size == 0:
            raise AudioError("the file is empty (0 bytes)")
        return soundfile.SoundFile(path)
    except AudioError:
        raise
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        reason = getattr(error, "error_string", None) or str(error)
        raise AudioError(f"not readable as audio: {reason.strip().rstrip('.')}") from None


def _bytes_at(place: Place) -> bytes:
    if not place.archive.is_file():
        raise AudioError("there is no such archive")
    if place.size > MAX_BYTES:
        raise AudioError(f"too large: {place.size} bytes; at most {MAX_BYTES} are read from an archive")
    with place.archive.open("rb") as archive:
        archive.seek(place.offset)
        data = archive.read(place.size)
    if len(data) < place.size or not data:
        raise AudioError(f"damaged: {len(data)} of {place.size} bytes are in the archive")
    return data


def _header(file: soundfile.SoundFile, max_seconds: float) -> Header:
    header = Header(file.frames, file.samplerate, file.channels, file.subtype)
    if header.frames <= 0:
        raise AudioError("the file holds no samples")
    if header.seconds < MIN_SECONDS:
        raise AudioError(f"too short: {header.seconds:.3f} s, at least {MIN_SECONDS:g} s are needed")
    if header.seconds > max_seconds:
        raise AudioError(f"too long: its header claims {header.seconds:.0f} s, at most {max_seconds:g} s are read")
    if header.frames > MAX_FRAMES or header.channels > MAX_CHANNELS:
        raise AudioError(
            f"too large: its header claims {header.frames} samples at {header.sample_rate} Hz in {header.channels} "
            f"channels; at most {MAX_FRAMES} in {MAX_CHANNELS} are read"
        )
    # libsndfile reads a file that breaks off as if it were whole, and tells so in its log alone.
    if (cut := _CUT_SHORT.search(file.extra_info)) and int(cut[1]) < _STREAMED:
        raise AudioError(f"damaged: its header claims {cut[1]} bytes of samples, {cut[2]} are there")
    return header


def _decode(path: Path, max_seconds: float) -> tuple[AudioReport, NDArray[np.float32]]:
    report, nothing = AudioReport(path), np.zeros(0, np.float32)
    try:
        with _open(path) as file:
            report = replace(report, sample_rate=file.samplerate, channels=file.channels, subtype=file.subtype)
            report = replace(report, seconds=file.frames / file.samplerate)
            header = _header(file, max_seconds)
            return _measure(report, file, header)
    except AudioError as error:
        return replace(report, problem=str(error)), nothing
    except (soundfile.SoundFileError, OSError) as error:
        return replace(report, problem=f"damaged: it cannot be decoded to its end ({error})"), nothing


def _measure(report: AudioReport, file: soundfile.SoundFile, header: Header) -> tuple[AudioReport, NDArray[np.float32]]:
    peak, clipped, squares, mono = 0.0, 0, 0.0, []
    # In blocks, so that memory grows with what is there and not with what the header claims.
    for block in file.blocks(max(1, _BLOCK // header.channels), frames=header.frames, dtype="float32", always_2d=True):
        level = np.abs(block)
        peak, clipped = float(np.maximum(peak, level.max())), clipped + int((level >= _FULL_SCALE).sum())
        mono.append(block.mean(axis=1, dtype=np.float32))
        squares += float(np.square(mono[-1], dtype=np.float64).sum())
    samples = np.concatenate(mono) if mono else np.zeros(0, np.float32)
    if len(samples) < header.frames:
        read = len(samples) / header.sample_rate
        raise AudioError(f"damaged: the header claims {header.seconds:.2f} s, only {read:.2f} s can be read")
    rms = math.sqrt(squares / len(samples))
    report = replace(report, peak=peak, rms=rms, clipped_share=clipped / (header.frames * header.channels))
    problem = _problem(report)
    return replace(report, problem=problem, warning=None if problem else _warning(report)), samples


def _problem(report: AudioReport) -> str | None:
    if not np.isfinite(report.peak):
        return "it holds samples that are not finite (NaN or infinity)"
    if report.peak > MAX_PEAK:
        return f"not scaled to [-1, 1]: its samples reach {report.peak:g}"
    if report.rms < MIN_RMS:
        return f"silent: its RMS is {report.rms:.1e}, below {MIN_RMS:g} of full scale"
    return None


def _warning(report: AudioReport) -> str | None:
    if report.clipped_share > MAX_CLIPPED:
        return f"clipped: {report.clipped_share:.1%} of its samples are at full scale"
    return None
