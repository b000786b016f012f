"""Clips as models want them: one channel, one sample rate, and never an unusable one without a word."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from sottovoce.data.audio_decoder import MAX_SECONDS, MIN_SECONDS, open_audio
from sottovoce.errors import AudioError

MIN_RMS = 1e-4  # -80 dBFS, three steps of 16 bits: quieter is silence
MAX_PEAK = 2.0  # lossy codecs overshoot full scale a little; beyond this the samples were never scaled to [-1, 1]
MAX_CANCELLED = 0.1  # of the RMS that unrelated channels would have when averaged (-20 dB): below, they cancel
MAX_CLIPPED = 0.01  # share of samples at full scale, above which clipping is named
_FULL_SCALE = 32767 / 32768  # the largest positive sample of 16 bits


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
    problem: AudioError | None = None
    warning: str | None = None


class SilentError(AudioError):
    """A clip on which nothing is to be heard, which is right where nothing is said."""


def load_audio(
    path: Path, sample_rate: int = 16000, *, max_seconds: float = MAX_SECONDS, silent: bool = False
) -> NDArray[np.float32]:
    """Decode a clip: (samples,), the mean of its channels, resampled (soxr HQ) to `sample_rate` Hz.

    Its path may name a part of a recording, see `clip_reference`. Full scale is 1. Nothing is scaled or cut, so a lossy
    codec or the resampling of a clipped clip may overshoot it.

    Raises:
        AudioError: the clip is unreadable, damaged, empty, shorter than `MIN_SECONDS`, longer than `max_seconds`,
            silent (RMS below `MIN_RMS`; with `silent` it may be), of channels that cancel each other, not finite, or
            not scaled to [-1, 1].
    """
    report, samples = _decode(Path(path), max_seconds)
    return _resampled(report, samples, sample_rate, silent)


def checked_samples(samples: NDArray[np.float32], rate: int, sample_rate: int = 16000) -> NDArray[np.float32]:
    """Samples of a clip in memory, (samples,) at `rate` Hz with full scale 1, as `load_audio` gives those of a file.

    Raises:
        AudioError: see `load_audio`; the place is `audio`.
    """
    report = AudioReport(Path("audio"), sample_rate=rate, channels=1)
    problem = None if rate > 0 else AudioError(f"its sample rate is {rate} Hz", code="bad-value")
    if problem is None and len(samples) < MIN_SECONDS * rate:
        told = f"it has {len(samples)} samples at {rate} Hz; at least {MIN_SECONDS:g} s are needed"
        problem = AudioError(told, code="empty" if not len(samples) else "bad-value")
    if problem is not None:
        raise AudioError.at("audio", problem.code, problem)
    return _resampled(*_measure(report, [samples[:, None].astype(np.float32)]), sample_rate)


def _resampled(
    report: AudioReport, samples: NDArray[np.float32], sample_rate: int, silent: bool = False
) -> NDArray[np.float32]:
    if report.problem and not (silent and isinstance(report.problem, SilentError)):
        raise AudioError.at(report.path, report.problem.code, report.problem)
    if report.sample_rate == sample_rate:
        return samples
    resampled: NDArray[np.float32] = soxr.resample(samples, report.sample_rate, sample_rate, quality="HQ")
    return resampled


def inspect_audio(path: Path, *, max_seconds: float = MAX_SECONDS) -> AudioReport:
    """Decode a clip and report on it; what `load_audio` would refuse has a `problem`. Raises nothing."""
    return _decode(Path(path), max_seconds)[0]


def _decode(path: Path, max_seconds: float) -> tuple[AudioReport, NDArray[np.float32]]:
    report = AudioReport(path)
    try:
        with open_audio(path, max_seconds) as stream:
            header = stream.header
            report = replace(report, sample_rate=header.sample_rate, channels=header.channels, subtype=header.subtype)
            return _measure(report, stream.blocks())
    except AudioError as error:
        return replace(report, problem=error), np.zeros(0, np.float32)


def _measure(report: AudioReport, blocks: Iterable[NDArray[np.float32]]) -> tuple[AudioReport, NDArray[np.float32]]:
    peak, clipped, squares, mono = 0.0, 0, 0.0, []
    channels = report.channels
    of_each = np.zeros(channels)
    for block in blocks:
        level = np.abs(block)
        peak, clipped = float(np.maximum(peak, level.max())), clipped + int((level >= _FULL_SCALE).sum())
        mono.append(block.mean(axis=1, dtype=np.float32))
        squares += float(np.square(mono[-1], dtype=np.float64).sum())
        if channels > 1:
            with np.errstate(invalid="ignore"):  # NaN is told below
                of_each += np.square(block, dtype=np.float64).sum(axis=0)
    samples = np.concatenate(mono)
    report = replace(
        report, seconds=len(samples) / report.sample_rate, peak=peak, rms=math.sqrt(squares / len(samples)),
        clipped_share=clipped / (len(samples) * channels),
    )  # fmt: skip
    loudest = math.sqrt(of_each.max() / len(samples)) if np.isfinite(peak) else 0.0
    if not np.isfinite(peak):
        problem = AudioError("it holds samples that are not finite (NaN or infinity)", code="nonfinite")
    elif peak > MAX_PEAK:
        problem = AudioError(f"not scaled to [-1, 1]: its samples reach {peak:g}", code="bad-value")
    elif loudest >= MIN_RMS and squares < MAX_CANCELLED**2 * of_each.sum() / channels**2:
        told = f"its channels cancel each other: their mean has an RMS of {report.rms:.1e}, one alone of {loudest:.1e}"
        problem = AudioError(f"{told}; choose one, such as `channel: 0` of a manifest's line", code="bad-value")
    elif report.rms < MIN_RMS:
        problem = SilentError(f"silent: its RMS is {report.rms:.1e}, below {MIN_RMS:g} of full scale", code="bad-value")
    elif report.clipped_share > MAX_CLIPPED:
        warning = f"clipped: {report.clipped_share:.1%} of its samples are at full scale"
        return replace(report, warning=warning), samples
    else:
        return report, samples
    return replace(report, problem=problem), samples
