"""Q-Former: learned queries that attend to all frames of a clip, for comparison."""

from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from sottovoce.adapters import ADAPTERS, Adapter, init_small
from sottovoce.config_model import Count, Share
from sottovoce.errors import ConfigError
from sottovoce.frames import Frames


class QueryingTransformer(nn.Module):
    """BLIP-2's Q-Former, as transformers has it, with its queries: (batch, frames, d_audio) to (batch, queries, width).

    Li et al. (BLIP-2, 2023), section 3.1: queries attend to one another, and in every second layer to the frames, which
    are normalised before.

    Args:
        d_audio: dim of the frames.
        queries: how many.
        width: of queries and layers.
        heads: of each attention; must divide `width`.
        layers: of the Transformer.
        feedforward: width of its feed-forward parts.
        dropout: in training only.

    Raises:
        ConfigError: `heads` does not divide `width`.
    """

    def __init__(
        self, d_audio: int, queries: int, width: int, heads: int, layers: int, feedforward: int, dropout: float
    ) -> None:
        from transformers import Blip2QFormerConfig, Blip2QFormerModel  # late: a second or more

        super().__init__()
        if width % heads:
            raise ConfigError.at("adapter.heads", "bad-value", f"{heads} does not divide width={width}")
        config = Blip2QFormerConfig(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=feedforward,
            hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, cross_attention_frequency=2,
            encoder_hidden_size=d_audio,
        )  # fmt: skip
        self.queries = nn.Parameter(torch.randn(1, queries, width) * config.initializer_range)
        self.norm = nn.LayerNorm(d_audio)
        make: Any = Blip2QFormerModel
        self.transformer = make(config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`mask` (batch, frames) is True for real frames; a row without any comes out as anything finite."""
        seen = mask | ~mask.any(1, keepdim=True)  # attention to nothing is not a number
        queries = self.queries.expand(x.shape[0], -1, -1)
        heard = self.norm(x.masked_fill(~mask[..., None], 0.0))
        out = self.transformer(query_embeds=queries, encoder_hidden_states=heard, encoder_attention_mask=seen)
        return cast(Tensor, out.last_hidden_state)


@ADAPTERS.register("qformer")
class QFormer(Adapter):
    """E = Linear(QFormer(frames)), always `tokens` embeddings.

    Li et al. (BLIP-2, 2023), section 3.1, on speech frames: 32 queries of width 768; two layers as in SALMONN (Tang et
    al., ICLR 2024), where BLIP-2 has the twelve of BERT.

    Args:
        tokens: how many queries, and so embeddings of an utterance, however long.
        width: of queries and layers.
        heads: attention heads; must divide `width`.
        layers: Transformer layers; every second one, from the first, attends to the frames.
        feedforward: width of the feed-forward parts.
        dropout: in training only.

    Raises:
        ConfigError: `heads` does not divide `width`.
    """

    def __init__(
        self, d_audio: int, d_llm: int, *, tokens: Annotated[int, Field(ge=1, le=10_000)] = 32, width: Count = 768,
        heads: Count = 12, layers: Annotated[int, Field(ge=1, le=1000)] = 2, feedforward: Count = 3072,
        dropout: Share = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokens = tokens
        self.qformer = QueryingTransformer(d_audio, tokens, width, heads, layers, feedforward, dropout)
        self.project = init_small(nn.Linear(width, d_llm))

    def output_length(self, frames: int) -> int:
        return self.tokens

    def forward(self, frames: Frames) -> Frames:
        """Map (batch, frames, d_audio) to (batch, tokens, d_llm)."""
        x = self.project(self.qformer(frames.x, frames.mask()))
        return Frames(x, torch.full_like(frames.lengths, self.tokens))
