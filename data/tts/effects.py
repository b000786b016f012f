"""What can be done to a synthetic voice after it has spoken: quality, level, ends; and how high it speaks."""

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.float32]
Quality: TypeAlias = Literal["plain", "bright", "breathy", "rough"]

_F0_RANGE = (50.0, 600.0)  # Hz
_FRAME = 0.05  # seconds: over two periods of the lowest pitch


def trim(audio: Audio) -> Audio:
    """Cut the silence that a synthesizer leaves at both ends of (samples,), keeping 600 samples."""
    loud = np.flatnonzero(np.abs(audio) > 0.01 * np.abs(audio).max())
    if not len(loud):
        return audio
    return audio[max(0, loud[0] - 600) : loud[-1] + 600]


def voice_quality(audio: Audio, quality: Quality, noise: np.random.Generator, sample_rate: int) -> Audio:
    """A voice (samples,) made bright, breathy and trembling, or rough; its level changes too."""
    from scipy import signal  # takes a second, which nobody who speaks no such voice need wait for

    sound: NDArray[np.floating[Any]] = audio / (np.abs(audio).max() + 1e-9)
    seconds = np.arange(len(sound)) / sample_rate
    if quality == "bright":  # everything above 1.5 kHz some 9 dB up
        high = signal.sosfilt(signal.butter(2, 1500, "high", fs=sample_rate, output="sos"), sound)
        sound = sound + noise.uniform(1.6, 2.2) * high
    elif quality == "breathy":  # muffled and trembling, too
        envelope = signal.sosfilt(signal.butter(1, 20, fs=sample_rate, output="sos"), np.abs(sound))
        soft = signal.sosfilt(signal.butter(1, 900, fs=sample_rate, output="sos"), sound)
        breath = noise.standard_normal(len(sound)) * envelope * noise.uniform(0.2, 0.3)
        tremble = 1 - noise.uniform(0.35, 0.5) * (1 + np.sin(2 * np.pi * noise.uniform(4.5, 6) * seconds)) / 2
        sound = (soft + breath) * tremble
    elif quality == "rough":  # overdriven, with a growl
        growl = 1 - noise.uniform(0.4, 0.55) * (1 + np.sin(2 * np.pi * noise.uniform(55, 70) * seconds)) / 2
        sound = np.tanh(sound * noise.uniform(5, 8)) * growl
    return sound.astype(np.float32)


def set_level(audio: Audio, rms: float) -> Audio:
    """Scale (samples,) to an RMS of `rms`, full scale being 1; what goes beyond full scale is clipped."""
    audio = audio * (rms / (np.sqrt(np.mean(audio**2)) + 1e-9))
    return np.clip(audio, -1, 1).astype(np.float32)


def median_f0(audio: Audio, sample_rate: int) -> float:
    """F0 in Hz of a clean synthetic voice (samples,): the median over voiced frames, by autocorrelation; 0 for none.

    For voices in quiet only, and in milliseconds; `labels.measure` is the careful way.
    """
    size, shortest, longest = int(_FRAME * sample_rate), *(int(sample_rate / hertz) for hertz in _F0_RANGE[::-1])
    found = []
    for start in range(0, len(audio) - size, size // 2):
        frame = audio[start : start + size].astype(np.float64)
        frame = frame - frame.mean()
        spectrum = np.abs(np.fft.rfft(frame, 2 * size)) ** 2
        likeness = np.fft.irfft(spectrum)[: longest + 1]
        likeness = likeness / (likeness[0] + 1e-12) * size / (size - np.arange(longest + 1))
        peak = float(likeness[shortest:].max())
        if peak > 0.6 and np.abs(frame).max() > 0.05 * np.abs(audio).max():
            # The first lag that is nearly as good: twice the period fits as well, and is an octave too low.
            near = np.flatnonzero(likeness[shortest:] > 0.9 * peak)[0] + shortest
            while near < longest and likeness[near + 1] > likeness[near]:
                near += 1
            found.append(sample_rate / near)
    return float(np.median(found)) if found else 0.0
