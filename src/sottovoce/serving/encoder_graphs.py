"""Encoders from samples to frames in operations that torch.export and ONNX know: their front ends without FFT."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sottovoce.adapters.base import stack_frames
from sottovoce.encoders import log_mel
from sottovoce.encoders.base import Encoder
from sottovoce.encoders.conformer import ConformerEncoder
from sottovoce.encoders.layer_taps import side_by_side
from sottovoce.encoders.whisper import SAMPLES_PER_FRAME, WhisperEncoder, encode_mels
from sottovoce.errors import ConfigError
from sottovoce.frames import Frames

_FFT, _HOP = 400, 160  # samples: Whisper's windows of 25 ms, every 10 ms


def encoder_graph(encoder: Encoder, kind: str, layers: Sequence[int]) -> tuple[nn.Module, int | None]:
    """An encoder's graph, and the most samples that it takes, if it has a window.

    The graph's `x` is (clips, samples) at the encoder's rate, `lengths` (clips,) in samples; its outputs are
    (clips, frames, layers * dim) and (clips,), of which frames a row's count.

    Raises:
        ConfigError: an encoder of this kind is no graph yet, or is not in float32.
    """
    if isinstance(encoder, ConformerEncoder):
        return ConformerGraph(encoder, layers), None
    if not isinstance(encoder, WhisperEncoder):
        why = f"{kind}: its front end is a program of its own, and no graph; encoders of type whisper and conformer are"
        raise ConfigError.at("encoder.type", "conflict", why)
    if encoder.dtype == "bfloat16":
        raise ConfigError.at("encoder.dtype", "conflict", "graphs are in float32: say encoder.dtype=float32")
    return WhisperGraph(encoder, layers), encoder.samples


class PowerSpectrum(nn.Module):
    """Windows (clips, windows, samples) to power (clips, windows, fft // 2 + 1) in float32.

    A product with sines in float64, which every runtime has, and which is nearer to the truth than an FFT in float32.
    """

    basis: Tensor

    def __init__(self, samples: int, fft: int) -> None:
        super().__init__()
        self.bins = fft // 2 + 1
        angle = 2 * math.pi / fft * torch.outer(torch.arange(samples), torch.arange(self.bins)).double()
        window = torch.hann_window(samples).double()[:, None]
        self.register_buffer("basis", torch.cat([angle.cos() * window, angle.sin() * window], 1), persistent=False)

    def forward(self, windows: Tensor) -> Tensor:
        parts = (windows.double() @ self.basis).square()
        return (parts[..., : self.bins] + parts[..., self.bins :]).float()


class WhisperGraph(nn.Module):
    """Whisper; all clips fill its window, and so do its frames."""

    mels: Tensor

    def __init__(self, encoder: WhisperEncoder, layers: Sequence[int]) -> None:
        from whisper.audio import mel_filters

        super().__init__()
        self.network, self.layers = encoder.loaded_network(), tuple(layers)
        self.samples, self.masked = encoder.samples, encoder.window == "longest"
        self.power = PowerSpectrum(_FFT, _FFT)
        self.register_buffer("mels", mel_filters("cpu", encoder.dims.n_mels), persistent=False)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = F.pad(Frames(x, lengths).zero_padding().x, (0, self.samples - x.shape[1]))
        x = F.pad(x[:, None], (_FFT // 2, _FFT // 2), mode="reflect")[:, 0]
        power = self.power(x.unfold(1, _FFT, _HOP)[:, :-1])  # (clips, mel frames, bins)
        mel = (power @ self.mels.T).clamp(min=1e-10).log10().transpose(1, 2)
        mel = (torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0
        counts = (lengths + SAMPLES_PER_FRAME - 1) // SAMPLES_PER_FRAME
        real = torch.arange(self.samples // SAMPLES_PER_FRAME, device=x.device) < counts[:, None]
        return encode_mels(self.network, mel, real if self.masked else None, self.layers), counts


class ConformerGraph(nn.Module):
    """The Conformer, of clips of any length; see `log_mel` for what is computed."""

    mels: Tensor

    def __init__(self, encoder: ConformerEncoder, layers: Sequence[int]) -> None:
        super().__init__()
        self.network, self.layers = encoder.loaded_network(), tuple(layers)
        self.power = PowerSpectrum(log_mel.WINDOW, log_mel.FFT)
        self.register_buffer("mels", log_mel.filters().clone(), persistent=False)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        counts = (lengths + log_mel.HOP - 1) // log_mel.HOP
        before = (log_mel.WINDOW - log_mel.HOP) // 2
        behind = log_mel.WINDOW + 2 * log_mel.STACK * log_mel.HOP  # so much is padding that no clip is too short
        samples = F.pad(Frames(x, lengths).zero_padding().x.float(), (before, behind))
        power = self.power(samples.unfold(1, log_mel.WINDOW, log_mel.HOP))
        mel = ((power @ self.mels).clamp(min=log_mel.FLOOR).log10() - log_mel.CENTRE) / log_mel.SCALE
        mel = mel.masked_fill(~Frames(mel, counts).mask()[..., None], log_mel.SILENCE)
        stacked = Frames(stack_frames(mel, log_mel.STACK), (counts // log_mel.STACK).clamp(min=1)).zero_padding()
        states = zip(range(max(self.layers) + 1), self.network(stacked), strict=False)
        kept = {number: state.x for number, state in states if number in self.layers}
        return side_by_side(kept, self.layers), stacked.lengths
