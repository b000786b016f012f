"""Speech as the LLM reads it, one embedding every 80 ms: a convolution shortens, a rotary layer looks around."""

import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from sottovoce.adapters import ADAPTERS, Adapter, init_small
from sottovoce.errors import ConfigError
from sottovoce.frames import Frames


@ADAPTERS.register("emotion_aligned")
class EmotionAligned(Adapter):
    """The adapter of SpeechEmotionLlama: E = Linear(Transformer(Convolution(frames))), ceil(n / stride) embeddings.

    Kang et al. (2024), section II-B; kernel, stride and widths: Llama team (2024), section 8.2. Of the Conformer's 25
    frames per second, `stride=2` leaves the LLM 12.5 embeddings. The papers say "rotary Transformer layer" and "100M
    parameters" and leave the rest open: Llama's own layer is taken (RMS norms first, SwiGLU, rotary base 10,000), in
    which every place attends to every other. It comes to 102 million; 24 heads have the size of the LLM's, 128.

    Args:
        d_audio: dim of the encoder's frames.
        d_llm: dim of the LLM's token embeddings.
        width: of the Transformer layer.
        feedforward: width of its feed-forward part.
        heads: of its attention; each gets an even share of `width`.
        kernel: frames that the convolution sees; odd.
        stride: how many frames become one embedding.
        dropout: of what enters the Transformer layer, and of its attention weights; in training only.
    """

    def __init__(
        self,
        d_audio: int,
        d_llm: int,
        *,
        width: int = 3072,
        feedforward: int = 4096,
        heads: int = 24,
        kernel: int = 3,
        stride: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _check({"width": width, "feedforward": feedforward, "heads": heads, "kernel": kernel, "stride": stride})
        config = LlamaConfig(
            hidden_size=width,
            intermediate_size=feedforward,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            attention_dropout=dropout,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        )
        config._attn_implementation = "sdpa"
        self.stride = stride
        self.convolve = nn.Conv1d(d_audio, width, kernel, stride, padding=kernel // 2)
        self.dropout = nn.Dropout(dropout)
        self.rotary = LlamaRotaryEmbedding(config)
        self.transformer = LlamaDecoderLayer(config, layer_idx=0)
        self.project = init_small(nn.Linear(width, d_llm))

    def forward(self, frames: Frames) -> Frames:
        """Map (batch, frames, d_audio) to (batch, ceil(frames / stride), d_llm)."""
        heard = frames.x.masked_fill(~frames.real()[..., None], 0.0)  # the convolution reaches past a row's last frame
        x = self.convolve(heard.transpose(1, 2)).transpose(1, 2)  # (batch, tokens, width)
        tokens = Frames(x, -(-frames.lengths // self.stride))
        places = self.rotary(x, torch.arange(x.shape[1], device=x.device)[None])
        everywhere = tokens.real()[:, None, None, :]  # a mask of our own, or the layer would look back only
        x = self.transformer(self.dropout(x), attention_mask=everywhere, position_embeddings=places)
        return Frames(self.project(x), tokens.lengths)


def _check(knobs: dict[str, int]) -> None:
    for knob, value in knobs.items():
        if value < 1:
            raise ConfigError(f"emotion_aligned: {knob} must be at least 1, got {value}")
    width, heads, kernel, stride = (knobs[knob] for knob in ("width", "heads", "kernel", "stride"))
    if width % (2 * heads):
        raise ConfigError(f"emotion_aligned: heads={heads}: rotary heads need an even share of width={width}")
    if kernel % 2 == 0:
        raise ConfigError(f"emotion_aligned: kernel must be odd, so that it has a middle; got {kernel}")
    if kernel < stride:
        raise ConfigError(f"emotion_aligned: kernel={kernel} is below stride={stride}: it would skip frames")
