"""The Conformer encoder of SpeechEmotionLlama: log-mel in, 25 frames a second, a billion parameters."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Wav2Vec2BertConfig
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import (
    Wav2Vec2BertConvolutionModule,
    Wav2Vec2BertEncoderLayer,
    Wav2Vec2BertSelfAttention,
)

from sottovoce.config_model import Count, Share
from sottovoce.encoders import ENCODERS, log_mel
from sottovoce.encoders.base import Encoder, fingerprint, float32_in_eval
from sottovoce.encoders.layer_taps import side_by_side
from sottovoce.errors import ConfigError, MissingError, first_line
from sottovoce.frames import Frames
from sottovoce.paths import resolve
from sottovoce.tensor_files import read_metadata, read_tensors, write_tensors

FILE = "conformer.safetensors"  # in a checkpoint's folder; its metadata `conformer` holds the sizes in JSON
_ROTARY_BASE = 10_000


class RotaryAttention(Wav2Vec2BertSelfAttention):
    """Self-attention with rotary position embeddings: scores depend on relative positions alone.

    Su et al. (2021), equation 16. The parent class rotates its input before the projections, after which scores depend
    on absolute positions, too.
    """

    def forward(
        self, hidden_states: Tensor, attention_mask: Any = None, relative_position_embeddings: Any = None, **_: Any
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
    """The convolution module of Gulati et al. (2020), centred on each frame, unlike the parent's, which is causal.

    Both have a layer norm where Gulati et al. have a batch norm: a clip must not depend on its batch.
    """

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
        """(batch, frames, width) to the same; the mask is (batch, frames), True where a frame is real."""
        half = self.depthwise_conv.kernel_size[0] // 2
        padded = F.pad(hidden_states, (0, 0, 0, half)), F.pad(attention_mask, (0, half))  # masked, hence zeros
        shifted: Tensor = super().forward(*padded)  # type: ignore[no-untyped-call]
        return shifted[:, half:]


class ConformerLayer(Wav2Vec2BertEncoderLayer):  # type: ignore[no-untyped-call]
    """A Conformer block with rotary attention and centred convolution (Gulati et al., 2020, section 2)."""

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
        """Yield the projected input, then the output of each layer, so that nobody has to keep them all."""
        mask = stacked.mask()
        x = self.dropout(self.project(stacked.x))
        yield Frames(x, stacked.lengths).zero_padding()
        cos_sin = rotary(x.shape[1], self.head_size, x.device)
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :], cos_sin, conv_attention_mask=mask)
            yield Frames(x, stacked.lengths).zero_padding()


def rotary(frames: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each (1, frames, size): Su et al. (2021), section 3.2.2."""
    rates = _ROTARY_BASE ** (-torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)
    angles = torch.arange(frames, device=device)[:, None] * rates
    angles = torch.cat((angles, angles), -1)[None]
    return angles.cos(), angles.sin()


@ENCODERS.register("conformer")
class ConformerEncoder(Encoder):
    """80-bin log-mel -> four frames stacked -> rotary Conformer layers: 25 frames per second, each (dim,).

    Kang et al. (2024), section II-B; sizes and rotary attention: Llama team (2024), section 8.2. The defaults are
    theirs, 1.00 billion parameters. Its weights train unless `requires_grad_(False)` forbids. In eval mode it computes
    in float32, autocast or not.

    Args:
        checkpoint: folder that `save` wrote; null: random weights, for an encoder that is yet to be trained.
        layers: how many.
        width: of the frames.
        feedforward: width of the two feed-forwards of a layer.
        heads: of attention.
        kernel: frames that the depthwise convolution sees; odd.
        dropout: share of values that training drops.

    Raises:
        ConfigError: `heads` or `kernel` does not fit, or a number is not the checkpoint's.
        MissingError: `checkpoint` is damaged, or no Conformer of ours; if it is missing, `load` says so.
    """

    def __init__(
        self, *, checkpoint: str | None = None, layers: Count = 24, width: Count = 1536, feedforward: Count = 4096,
        heads: Count = 24, kernel: Count = 7, dropout: Share = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sizes = {"layers": layers, "width": width, "feedforward": feedforward, "heads": heads, "kernel": kernel}
        if width % (2 * heads):
            why = f"{heads}: rotary heads need an even share of encoder.width={width}"
            raise ConfigError.at("encoder.heads", "bad-value", why)
        if kernel % 2 == 0:
            why = f"expected an odd number, which has a middle; got {kernel}"
            raise ConfigError.at("encoder.kernel", "bad-value", why)
        self.file = None if checkpoint is None else resolve(checkpoint) / FILE
        if self.file is not None and self.file.is_file():  # a dry run needs none, and a bundle brings its own weights
            _check_same(self.sizes, self.file)
        self.dropout = dropout
        self.sample_rate, self.frame_rate, self.dim = log_mel.SAMPLE_RATE, 25.0, width
        self.depth = layers
        self.network: Conformer | None = None

    def build(self) -> None:
        if self.network is None:
            self.network = Conformer(**self.sizes, dropout=self.dropout)
            self.eval()

    def load(self) -> None:
        """Without a checkpoint, weights are drawn from torch's global generator."""
        if self.loaded:
            return
        self.network = None  # one that was built on meta has no memory for random weights
        if self.file is None:
            self.build()
        else:
            self._read(self.file)
        self.loaded = True

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write weights, as `dtype`, and sizes to `folder`; its path is then a `checkpoint`."""
        weights = {name: value.to(dtype) for name, value in self.loaded_network().state_dict().items()}
        write_tensors(folder / FILE, weights, {"conformer": json.dumps(self.sizes)})

    def fingerprint(self) -> str:
        return fingerprint(self.loaded_network(), "conformer", self.sizes)

    def layer_outputs(self, stacked: Frames) -> list[Frames]:
        """The projected input and the output of each layer: `layers + 1` times (batch, frames, dim)."""
        with float32_in_eval(self, stacked.x.device):
            return [Frames(x.float(), lengths) for x, lengths in self.loaded_network()(stacked)]

    def contextualize(self, stacked: Frames) -> Frames:
        """The output of the last layer, (batch, frames, dim), for stacked log-mels (batch, frames, 320)."""
        return self._layers(stacked, (self.depth,))

    def forward(self, waveform: Tensor, lengths: Tensor) -> Frames:
        """A frame for every 640 samples; a tail of fewer is dropped, a clip of fewer filled up with silence."""
        return self.contextualize(log_mel.stack(log_mel.log_mel(waveform, lengths)))

    def output_length(self, samples: int) -> int:
        return max(1, -(-samples // log_mel.HOP) // log_mel.STACK)

    def _read_layers(self, waveform: Tensor, lengths: Tensor, layers: Sequence[int]) -> Frames:
        return self._layers(log_mel.stack(log_mel.log_mel(waveform, lengths)), layers)

    def _layers(self, stacked: Frames, layers: Sequence[int]) -> Frames:
        """Some of `layer_outputs` side by side; none is computed above the highest."""
        with float32_in_eval(self, stacked.x.device):
            running = zip(range(max(layers) + 1), self.loaded_network()(stacked), strict=False)
            kept = {number: state.x.float() for number, state in running if number in layers}
        return Frames(side_by_side(kept, layers), stacked.lengths)

    def _read(self, file: Path) -> None:
        try:
            weights = read_tensors(file, dtype=torch.float32)
        except Exception as error:
            raise _unreadable(file, error) from error
        with torch.device("meta"):  # random numbers for a billion parameters would be drawn only to be thrown away
            self.build()
        try:
            self.load_state_dict({f"network.{name}": value for name, value in weights.items()}, assign=True)
        except RuntimeError as error:
            raise MissingError.at(file, "mismatch", f"the tensors do not fit {self.sizes}: {error}") from None


def _check_same(sizes: dict[str, int], file: Path) -> None:
    """A recipe must state the sizes of its checkpoint."""
    try:
        saved = dict(json.loads(read_metadata(file)["conformer"]))
    except Exception as error:
        raise _unreadable(file, error) from error
    other = [name for name in sizes if saved.get(name) != sizes[name]]
    if other:
        wrong, right = ([f"encoder.{name}={numbers.get(name)}" for name in other] for numbers in (sizes, saved))
        why = f"{' '.join(wrong)}, but {file} was made with {' '.join(right)}"
        raise ConfigError.at(f"encoder.{other[0]}", "mismatch", why)


def _unreadable(file: Path, error: Exception) -> MissingError:
    if not file.is_file():
        return MissingError(
            f"encoder.checkpoint: there is no file {file.absolute()}. Point at a folder that `ConformerEncoder.save` "
            "wrote (encoder.checkpoint=/path/to/folder), or set encoder.checkpoint=null to begin with random weights",
            where=file,
        )
    why = f"damaged, or no Conformer of ours ({type(error).__name__}: {first_line(error)}). Expected safetensors "
    return MissingError.at(
        file, "damaged", f"{why}with metadata `conformer` (JSON), as `ConformerEncoder.save` writes it"
    )
