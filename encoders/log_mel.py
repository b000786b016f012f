"""Log-mel spectrograms on one fixed scale, not normalised by clip: loudness stays visible."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from sottovoce.frames import Frames

SAMPLE_RATE = 16_000  # Hz
MELS = 80
WINDOW, HOP, FFT = 400, 160, 512  # samples: 25 ms, 10 ms, and the window padded to a power of two
STACK = 4  # mel frames in a stacked frame of 40 ms
FLOOR = 1e-10  # power; the noise of 16 bits lies just above
CENTRE, SCALE = -4.0, 2.0  # of log10 power: speech at usual levels comes out near mean 0 and variance 1
SILENCE = -3.0  # what digital silence, at the floor, becomes: (log10(FLOOR) - CENTRE) / SCALE


@torch.no_grad()
def log_mel(waveform: Tensor, lengths: Tensor) -> Frames:
    """Map (batch, samples) at 16 kHz in [-1, 1] to (batch, mel frames, 80) in float32, ceil(samples / 160) a clip.

    Kang et al. (2024), section II-B: 80 mel bins of Hann windows of 25 ms, every 10 ms. Each window is centred on its
    10 ms, and reaches into digital silence at both ends of the clip. The value is (log10(power) + 4) / 2, the same for
    every clip and bin, so that 20 dB more are always 1 more. Normalising by a clip's own mean, or to its loudest value
    as Whisper does, would hide how loudly it was spoken. Errors as in `check_waveforms`.
    """
    check_waveforms(waveform, lengths)
    lengths = lengths.to(waveform.device)
    counts = (lengths + HOP - 1) // HOP
    samples = Frames(waveform.float(), lengths).zero_padding().x
    before = (WINDOW - HOP) // 2
    needed = (int(counts.max()) - 1) * HOP + WINDOW
    samples = F.pad(samples, (before, needed - before - samples.shape[1]))  # what is cut off is padding
    with torch.autocast(waveform.device.type, enabled=False):
        windows = samples.unfold(1, WINDOW, HOP) * torch.hann_window(WINDOW, device=samples.device)
        mel = torch.fft.rfft(windows, FFT).abs().square() @ filters().to(samples.device)
    return Frames((mel.clamp(min=FLOOR).log10() - CENTRE) / SCALE, counts).zero_padding()


def stack(mel: Frames) -> Frames:
    """Concatenate every four frames of (batch, mel frames, bins): (batch, stacked frames, 4 * bins).

    A tail of up to three frames is dropped; a clip of fewer than four frames is filled up with silence.
    """
    x = F.pad(mel.x, (0, 0, 0, max(0, STACK - mel.x.shape[1])))
    x = x.masked_fill(~Frames(x, mel.lengths).mask()[..., None], SILENCE)
    x = x[:, : x.shape[1] // STACK * STACK].reshape(len(x), -1, STACK * x.shape[2])
    return Frames(x, (mel.lengths // STACK).clamp(min=1)).zero_padding()


def check_waveforms(waveform: Tensor, lengths: Tensor) -> None:
    """Refuse shapes that do not fit, and a length that is not in 1 to samples, by a `ValueError` that names the row."""
    if waveform.dim() != 2 or not waveform.is_floating_point() or lengths.shape != waveform.shape[:1]:
        raise ValueError(
            f"expected floating-point waveform (batch, samples) and lengths (batch,), got {waveform.dtype} "
            f"{tuple(waveform.shape)} and {tuple(lengths.shape)}"
        )
    for row, length in enumerate(lengths.tolist()):
        if not 1 <= length <= waveform.shape[1]:
            raise ValueError(f"row {row} has a length of {length} samples; expected 1 to {waveform.shape[1]}")


@cache
def filters() -> Tensor:
    """(frequencies, mels): Slaney's triangles, each with unit area."""
    import librosa

    return torch.from_numpy(librosa.filters.mel(sr=SAMPLE_RATE, n_fft=FFT, n_mels=MELS)).mT.contiguous()
