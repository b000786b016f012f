"""The adapter of SpeechEmotionLlama: a strided convolution and a rotary Transformer layer, 12.5 embeddings a second."""

import torch
from torch import nn

from sottovoce.adapters import ADAPTERS, Adapter, init_small
from sottovoce.config_model import Count, Share
from sottovoce.errors import ConfigError
from sottovoce.frames import Frames


@ADAPTERS.register("emotion_aligned")
class EmotionAligned(Adapter):
    """E = Linear(Transformer(Convolution(frames))), ceil(frames / stride) embeddings.

    Kang et al. (2024), section II-B; kernel, stride and widths: Llama team (2024), section 8.2. Of the Conformer's 25
    frames per second, `stride=2` leaves the LLM 12.5 embeddings. The papers say "rotary Transformer layer" and "100M
    parameters" and leave the rest open: Llama's own layer is taken (RMS norms first, SwiGLU, rotary base 10,000), in
    which every position attends to every other. It comes to 102 million; 24 heads have the size of the LLM's, 128.

    Args:
        width: of the Transformer layer.
        feedforward: width of its feed-forward part.
        heads: of its attention; each gets an even share of `width`.
        kernel: frames that the convolution sees; odd.
        stride: how many frames become one embedding.
        dropout: of what enters the Transformer layer, and of its attention weights; in training only.

    Raises:
        ConfigError: two numbers do not fit each other, or `kernel` is even.
    """

    def __init__(
        self, d_audio: int, d_llm: int, *, width: Count = 3072, feedforward: Count = 4096, heads: Count = 24,
        kernel: Count = 3, stride: Count = 2, dropout: Share = 0.1,
    ) -> None:  # fmt: skip
        from transformers import LlamaConfig  # late: a second or more, and only this adapter needs it
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

        super().__init__()
        if width % (2 * heads):
            why = f"{heads}: rotary heads need an even share of width={width}"
            raise ConfigError.at("adapter.heads", "bad-value", why)
        if kernel % 2 == 0:
            why = f"expected an odd number, which has a middle; got {kernel}"
            raise ConfigError.at("adapter.kernel", "bad-value", why)
        if kernel < stride:
            why = f"{kernel} is below stride={stride}: it would skip frames"
            raise ConfigError.at("adapter.kernel", "bad-value", why)
        config = LlamaConfig(
            hidden_size=width, intermediate_size=feedforward, num_attention_heads=heads, num_key_value_heads=heads,
            attention_dropout=dropout, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        )  # fmt: skip
        config._attn_implementation = "sdpa"
        self.stride = stride
        self.convolve = nn.Conv1d(d_audio, width, kernel, stride, padding=kernel // 2)
        self.dropout = nn.Dropout(dropout)
        self.rotary = LlamaRotaryEmbedding(config)
        self.transformer = LlamaDecoderLayer(config, layer_idx=0)
        self.project = init_small(nn.Linear(width, d_llm))

    def output_length(self, frames: int) -> int:
        return (frames + self.stride - 1) // self.stride

    def forward(self, frames: Frames) -> Frames:
        """Map (batch, frames, d_audio) to (batch, ceil(frames / stride), d_llm)."""
        x = frames.zero_padding().x  # the convolution sees beyond a row's last frame
        x = self.convolve(x.transpose(1, 2)).transpose(1, 2)  # (batch, tokens, width)
        tokens = Frames(x, (frames.lengths + self.stride - 1) // self.stride)
        rotary = self.rotary(x, torch.arange(x.shape[1], device=x.device)[None])
        mask = tokens.mask()[:, None, None, :]  # without a mask the layer would attend causally
        x = self.transformer(self.dropout(x), attention_mask=mask, position_embeddings=rotary)
        return Frames(self.project(x), tokens.lengths)
