"""The paralinguistic adapter (how it was said): a Transformer layer, then pooling to a fixed number of embeddings."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from sottovoce.adapters import ADAPTERS, Adapter, init_small
from sottovoce.config_model import Count, Share
from sottovoce.errors import ConfigError
from sottovoce.frames import Frames


@ADAPTERS.register("pooled_soft_prompt")
class PooledSoftPrompt(Adapter):
    """E = Linear(Pool(Transformer(frames))), always `tokens` embeddings.

    Wang et al. (ICME 2025), section III-A, equation 4, and IV-C. The paper leaves the width of the feed-forward part
    and the place of the layer norms open: PyTorch's default width (2048), and norms before each part, are taken.

    Args:
        tokens: how many embeddings describe one utterance, however long.
        heads: attention heads; must divide `d_audio`.
        layers: Transformer layers; 0 leaves pooling alone, which has less to overfit.
        feedforward: width of the feed-forward part.
        dropout: in the Transformer layer, in training only.

    Raises:
        ConfigError: `heads` does not divide `d_audio`.
    """

    def __init__(
        self, d_audio: int, d_llm: int, *, tokens: Annotated[int, Field(ge=1, le=10_000)] = 10, heads: Count = 8,
        layers: Annotated[int, Field(ge=0, le=1000)] = 1, feedforward: Count = 2048, dropout: Share = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        if d_audio % heads:
            why = f"{heads} does not divide the encoder's dim of {d_audio}"
            raise ConfigError.at("adapter.heads", "bad-value", why)
        self.tokens = tokens
        self.transformer = nn.ModuleList(
            nn.TransformerEncoderLayer(d_audio, heads, feedforward, dropout, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.project = init_small(nn.Linear(d_audio, d_llm))

    def output_length(self, frames: int) -> int:
        return self.tokens

    def forward(self, frames: Frames) -> Frames:
        """Map (batch, frames, d_audio) to (batch, tokens, d_llm)."""
        x, padding = frames.x, ~frames.mask()
        for layer in self.transformer:
            x = layer(x, src_key_padding_mask=padding)
        pooled = masked_adaptive_mean(Frames(x, frames.lengths), self.tokens)
        return Frames(self.project(pooled), torch.full_like(frames.lengths, self.tokens))


def masked_adaptive_mean(frames: Frames, bins: int) -> Tensor:
    """Adaptive average pooling over the real frames of each row: (batch, frames, dim) to (batch, bins, dim).

    Bin i of a row with n frames is the mean of frames floor(i n / bins) to ceil((i + 1) n / bins), as in
    `torch.nn.AdaptiveAvgPool1d`, but with each row's own n; a row shorter than `bins` repeats frames.
    """
    n = frames.lengths[:, None]  # (batch, 1)
    edge = torch.arange(bins + 1, device=n.device)
    start, stop = edge[:-1] * n // bins, (edge[1:] * n + bins - 1) // bins  # (batch, bins)
    frame = torch.arange(frames.x.shape[1], device=n.device)
    inside = (frame >= start[..., None]) & (frame < stop[..., None])  # (batch, bins, frames)
    weight = inside.to(frames.x.dtype) / (stop - start).clamp(min=1)[..., None].to(frames.x.dtype)
    return weight @ frames.x
