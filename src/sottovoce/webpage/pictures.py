"""Pictures of the page, as PNG: the log-mel spectrogram of a clip, and the layers of the encoder that slots hear."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from sottovoce.encoders.log_mel import CENTRE, HOP, MELS, SAMPLE_RATE, SCALE, log_mel
from sottovoce.evaluation.reports.plots import canvas, layer_weights_picture

WIDTH, HEIGHT = 7.6, 2.3  # inches
RANGE = 80.0  # dB below the loudest that are drawn
TICKS = (125, 500, 1000, 2000, 4000, 8000)  # Hz


def decibels(samples: Tensor) -> Tensor:
    """The log-mel spectrogram of (samples,) at 16 kHz: (frames, 80), in dB of power."""
    mel = log_mel(samples[None], torch.tensor([len(samples)])).x[0]
    return 10 * (mel * SCALE + CENTRE)


def spectrogram(samples: Tensor) -> bytes:
    """Draw a clip, (samples,) at 16 kHz: seconds along, Hz of the mel scale up, as bright as loud."""
    import librosa

    levels = decibels(samples).numpy()
    hertz = librosa.mel_frequencies(MELS + 2, fmax=SAMPLE_RATE / 2)[1:-1]  # where the triangles stand
    loudest = float(levels.max())
    with TemporaryDirectory() as folder:
        file = Path(folder) / "spectrogram.png"
        with canvas(file, WIDTH, HEIGHT) as figure:
            axes = figure.subplots()
            shown = axes.imshow(
                levels.T, origin="lower", aspect="auto", cmap="magma", vmin=loudest - RANGE, vmax=loudest,
                extent=(0, len(levels) * HOP / SAMPLE_RATE, -0.5, MELS - 0.5), interpolation="nearest",
            )  # fmt: skip
            axes.set_yticks(np.interp(TICKS, hertz, np.arange(MELS)), [f"{tick:,}" for tick in TICKS])
            axes.set(xlabel="seconds", ylabel="Hz")
            figure.colorbar(shown, label="dB", pad=0.01)
        return file.read_bytes()


def layer_weights(weights: Mapping[str, Mapping[int, float]]) -> bytes:
    """Draw slot -> layer -> weight."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "layers.png"
        layer_weights_picture(weights, file)
        return file.read_bytes()
