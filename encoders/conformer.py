"""The Conformer of SpeechEmotionLlama: a billion parameters that listen, twenty-five frames a second."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Wav2Vec2BertConfig
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import (
    Wav2Vec2BertConvolutionModule,
    Wav2Vec2BertEncoderLayer,
    Wav2Vec2BertSelfAttention,
)

from sottovoce.encoders import ENCODERS, log_mel
from sottovoce.encoders.base import Encoder, fingerprint, precision
from sottovoce.errors import ConfigError, MissingError
from sottovoce.frames import Frames
from sottovoce.paths import resolve

FILE = "conformer.safetensors"  # in a checkpoint's folder; its metadata `conformer` holds the numbers in JSON
_ROTARY_BASE = 10_000


class RotaryAttention(Wav2Vec2BertSelfAttention):
    """Self-attention that turns queries and keys by their place, so that a score depends on distance alone.

    Su et al. (2021), equation 16. The parent class turns its input before the projections, after which scores depend on
    absolute places, too.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        relative_position_embeddings: Any = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """(batch, frames, width) to the same; the mask is (batch, 1, 1, frames), True where a frame is real."""
        projected = self.linear_q(hidden_states), self.linear_k(hidden_states), self.linear_v(hidden_states)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in projected)
        cos, sin = relative_position_embeddings
        query, key = apply_rotary_pos_emb(query, key, cos.to(query.dtype), sin.to(query.dtype))
        dropped = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attention_mask, dropped)
        return self.linear_out(mixed.transpose(1, 2).flatten(2)), None


class CentredConvolution(Wav2Vec2BertConvolutionModule):
    """The convolution of Gulati et al. (2020), which sees as much after a frame as before; the parent looks back only.

    Like the parent, it has a layer norm where Gulati et al. have a batch norm: a clip must not depend on its batch.
    """

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
        """(batch, frames, width) to the same; the mask is (batch, frames), True where a frame is real."""
        half = self.depthwise_conv.kernel_size[0] // 2
        later = F.pad(hidden_states, (0, 0, 0, half)), F.pad(attention_mask, (0, half))  # masked, hence zeros
        shifted: Tensor = super().forward(*later)  # type: ignore[no-untyped-call]
        return shifted[:, half:]


class ConformerLayer(Wav2Vec2BertEncoderLayer):  # type: ignore[no-untyped-call]
    """Half a feed-forward, attention, convolution, half a feed-forward, layer norm (Gulati et al., 2020, section 2)."""

    def __init__(self, config: Wav2Vec2BertConfig) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]
        self.self_attn = RotaryAttention(config)  # type: ignore[no-untyped-call]
        self.conv_module = CentredConvolution(config)  # type: ignore[no-untyped-call]


class Conformer(nn.Module):
    """Stacked log-mels (batch, frames, 320) -> linear -> Conformer layers -> (batch, frames, width)."""

    def __init__(self, layers: int, width: int, feedforward: int, heads: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.head_size = width // heads
        config = Wav2Vec2BertConfig(
            hidden_size=width, intermediate_size=feedforward, num_attention_heads=heads,
            conv_depthwise_kernel_size=kernel, position_embeddings_type=None, hidden_dropout=dropout,
            activation_dropout=dropout, attention_dropout=dropout, conformer_conv_dropout=dropout,
        )  # fmt: skip
        # no layer norm before: over one frame's bins, it would take away how loud the frame is
        self.project = nn.Linear(log_mel.MELS * log_mel.STACK, width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(ConformerLayer(config) for _ in range(layers))

    def forward(self, stacked: Frames) -> Iterator[Frames]:
        """The projected input, then the output of each layer, one after another: nobody has to keep them all."""
        real = stacked.real()
        x = self.dropout(self.project(stacked.x))
        yield log_mel.zeroed(Frames(x, stacked.lengths))
        places = rotary(x.shape[1], self.head_size, x.device)
        for layer in self.layers:
            x = layer(x, real[:, None, None, :], places, conv_attention_mask=real)
            yield log_mel.zeroed(Frames(x, stacked.lengths))


def rotary(frames: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every place's angles, each (1, frames, size): Su et al. (2021), section 3.2.2."""
    rates = _ROTARY_BASE ** (-torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)
    angles = torch.arange(frames, device=device)[:, None] * rates
    angles = torch.cat((angles, angles), -1)[None]
    return angles.cos(), angles.sin()


@ENCODERS.register("conformer")
class ConformerEncoder(Encoder):
    """80-bin log-mel -> four frames stacked -> rotary Conformer layers, 25 frames per second, each (dim,).

    Kang et al. (2024), section II-B; numbers and rotary attention: Llama team (2024), section 8.2. The defaults are
    theirs, 1.00 billion parameters. Its weights learn unless `requires_grad_(False)` forbids; it is born in eval mode,
    in which it computes in float32, autocast or not, since a fingerprint cannot tell in what it ran.

    Args:
        checkpoint: folder that `save` wrote; null: random weights, for an encoder that is yet to be trained.
        layers: how many.
        width: of the frames.
        feedforward: width of the two feed-forwards of a layer.
        heads: of attention.
        kernel: frames that the depthwise convolution sees; odd.
        dropout: share of values that training drops.

    Raises:
        ConfigError: a number is out of range, or is not the checkpoint's.
        MissingError: `checkpoint` is damaged, or no Conformer of ours; if it is missing, `load` says so.
    """

    def __init__(
        self, *, checkpoint: str | None = None, layers: int = 24, width: int = 1536, feedforward: int = 4096,
        heads: int = 24, kernel: int = 7, dropout: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.numbers = {"layers": layers, "width": width, "feedforward": feedforward, "heads": heads, "kernel": kernel}
        _check_numbers(self.numbers, dropout)
        self.file = None if checkpoint is None else resolve(checkpoint) / FILE
        if self.file is not None and self.file.is_file():  # a dry run needs none, and a bundle brings its own weights
            _check_same(self.numbers, self.file)
        self.dropout = dropout
        self.sample_rate, self.frame_rate, self.dim = log_mel.SAMPLE_RATE, 25.0, width
        self.network: Conformer | None = None

    def build(self) -> None:
        """Build the network without its weights, on the current device (`meta` costs nothing). Idempotent."""
        if self.network is None:
            self.network = Conformer(**self.numbers, dropout=self.dropout)
            self.eval()

    def load(self) -> None:
        """Build the network and give it its weights: the checkpoint's, or random ones of torch's generator. Idempotent.

        Raises:
            MissingError: the weights cannot be read or do not fit.
        """
        if self.loaded:
            return
        self.network = None  # one that was built on meta has no memory for random weights
        if self.file is None:
            self.build()
        else:
            self._read(self.file)
        self.loaded = True

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write weights, as `dtype`, and numbers to `folder`, whole or not at all; its path is then a `checkpoint`."""
        weights = {name: value.to(dtype).contiguous() for name, value in self._ready().state_dict().items()}
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{FILE}.tmp"
        save_file(weights, draft, metadata={"conformer": json.dumps(self.numbers)})
        os.replace(draft, folder / FILE)

    def fingerprint(self) -> str:
        """SHA-256 of the numbers and every tensor; reads all weights each time, so that a change shows.

        Raises:
            RuntimeError: the weights are not loaded.
        """
        return fingerprint(self._ready(), "conformer", self.numbers)

    def log_mel(self, waveform: Tensor, lengths: Tensor) -> Frames:
        """`encoders.log_mel.log_mel`: (batch, samples) to (batch, mel frames, 80), without gradient."""
        return log_mel.log_mel(waveform, lengths)

    def stack(self, mel: Frames) -> Frames:
        """`encoders.log_mel.stack`: (batch, mel frames, 80) to (batch, mel frames // 4, 320), at least one frame."""
        return log_mel.stack(mel)

    def hidden_states(self, stacked: Frames) -> list[Frames]:
        """The projected input and the output of each layer: `layers + 1` times (batch, frames, dim)."""
        with precision(self, stacked.x.device):
            return [Frames(x.float(), lengths) for x, lengths in self._ready()(stacked)]

    def contextualize(self, stacked: Frames) -> Frames:
        """The output of the last layer, (batch, frames, dim), for stacked log-mels (batch, frames, 320)."""
        with precision(self, stacked.x.device):
            for state in self._ready()(stacked):
                last = state
        return Frames(last.x.float(), last.lengths)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Frames:
        """Map (batch, samples) at 16 kHz in [-1, 1] to (batch, frames, dim): a frame for every 640 samples.

        The tail that fills no frame is dropped; a clip shorter than one frame is filled up with silence.

        Raises:
            RuntimeError: the weights are not loaded.
            ValueError: a clip is empty, or shapes do not fit; the message names the row.
        """
        self._ready()
        return self.contextualize(self.stack(self.log_mel(waveform, lengths)))

    def states(self, waveform: Tensor, lengths: Tensor) -> list[Frames]:
        """See `Encoder.states`."""
        return self.hidden_states(self.stack(self.log_mel(waveform, lengths)))

    def _read(self, file: Path) -> None:
        _, weights = _open(file)
        with torch.device("meta"):  # random numbers for a billion parameters would be drawn only to be thrown away
            self.build()
        try:
            self._built().load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise MissingError(f"{file}: the tensors do not fit the numbers {self.numbers}: {error}") from None

    def _built(self) -> Conformer:
        assert self.network is not None
        return self.network

    def _ready(self) -> Conformer:
        if self.loaded:
            return self._built()
        raise RuntimeError("the Conformer has no weights yet: call load() first")


def _check_numbers(numbers: dict[str, int], dropout: float) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"encoder.{name} is {value}; expected at least 1")
    width, heads, kernel = numbers["width"], numbers["heads"], numbers["kernel"]
    if width % (2 * heads):
        raise ConfigError(f"encoder.heads is {heads}: rotary heads need an even share of encoder.width={width}")
    if kernel % 2 == 0:
        raise ConfigError(f"encoder.kernel is {kernel}; expected an odd number, which has a middle")
    if not 0 <= dropout < 1:
        raise ConfigError(f"encoder.dropout is {dropout}; expected 0 <= dropout < 1")


def _check_same(numbers: dict[str, int], file: Path) -> None:
    """A checkpoint's numbers are not a matter of opinion, and a recipe should say what runs."""
    told, _ = _open(file, weights=False)
    other = [name for name in numbers if told.get(name) != numbers[name]]
    if other:
        wrong = ", ".join(f"encoder.{name} is {numbers[name]}" for name in other)
        right = " ".join(f"encoder.{name}={told.get(name)}" for name in other)
        raise ConfigError(f"{wrong}, but {file} was made with {right}")


def _open(file: Path, weights: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The numbers in a checkpoint, and its tensors unless they are not wanted; `MissingError` says what is wrong."""
    if not file.is_file():
        raise MissingError(
            f"encoder.checkpoint: there is no file {file.absolute()}. Point at a folder that `ConformerEncoder.save` "
            "wrote (encoder.checkpoint=/path/to/folder), or set encoder.checkpoint=null to begin with random weights"
        )
    try:
        with safe_open(file, "pt") as stream:
            told: dict[str, Any] = dict(json.loads(stream.metadata()["conformer"]))
            # a copy, since the tensors of a mapped file change when somebody writes over the file
            tensors = {name: stream.get_tensor(name).float().clone() for name in stream.keys()} if weights else {}
    except Exception as error:  # JSON and safetensors each have errors of their own
        raise MissingError(
            f"{file}: damaged, or no Conformer of ours ({type(error).__name__}: {error}). Expected safetensors with "
            "metadata `conformer` (JSON), as `ConformerEncoder.save` writes it"
        ) from error
    return told, tensors
