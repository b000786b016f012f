"""Window-level Q-Former: a Q-Former on each stretch of frames, so that embeddings follow time; for comparison."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from sottovoce.adapters import ADAPTERS, Adapter, init_small
from sottovoce.adapters.qformer import QueryingTransformer
from sottovoce.config_model import Count, Share
from sottovoce.frames import Frames


@ADAPTERS.register("windowed_qformer")
class WindowedQFormer(Adapter):
    """E = Linear(QFormer(window)) for every window of frames, ceil(frames / window) * tokens embeddings.

    Tang et al. (SALMONN, ICLR 2024), section 3.1: windows of 17 frames (0.33 s at 50 frames a second), one query each,
    two layers. The last window may be shorter: its padding is masked.

    Args:
        window: frames of a window.
        tokens: how many queries, and so embeddings of a window.
        width: of queries and layers.
        heads: attention heads; must divide `width`.
        layers: Transformer layers; every second one, from the first, attends to the frames.
        feedforward: width of the feed-forward parts.
        dropout: in training only.

    Raises:
        ConfigError: `heads` does not divide `width`.
    """

    def __init__(
        self, d_audio: int, d_llm: int, *, window: Count = 17, tokens: Annotated[int, Field(ge=1, le=10_000)] = 1,
        width: Count = 768, heads: Count = 12, layers: Annotated[int, Field(ge=1, le=1000)] = 2,
        feedforward: Count = 3072, dropout: Share = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.window, self.tokens = window, tokens
        self.qformer = QueryingTransformer(d_audio, tokens, width, heads, layers, feedforward, dropout)
        self.project = init_small(nn.Linear(width, d_llm))

    def output_length(self, frames: int) -> int:
        return (frames + self.window - 1) // self.window * self.tokens

    def forward(self, frames: Frames) -> Frames:
        """Map (batch, frames, d_audio) to (batch, ceil(frames / window) * tokens, d_llm)."""
        batch, count, dim = frames.x.shape
        missing = (count + self.window - 1) // self.window * self.window - count
        x = F.pad(frames.x, (0, 0, 0, missing)).reshape(-1, self.window, dim)  # (batch * windows, window, d_audio)
        mask = F.pad(frames.mask(), (0, missing)).reshape(-1, self.window)
        x = self.project(self.qformer(x, mask)).reshape(batch, -1, self.project.out_features)
        return Frames(x, (frames.lengths + self.window - 1) // self.window * self.tokens)
