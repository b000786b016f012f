"""TL-TR: a classifier over all layers and frames of a frozen encoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sottovoce.errors import ConfigError
from sottovoce.frames import Frames


class TLTR(nn.Module):
    """Time- and layer-wise Transformer: attention over time, then over layers, then a linear classifier.

    Gong et al. (Whisper-AT, Interspeech 2023), TL-TR; Kang et al. (2024), section IV-B, put it on a frozen Conformer to
    recognise emotion. A block over time, shared by all layers, and the mean over time give each layer one vector; a
    block over layers and the mean over layers give the clip one. Both are Whisper's residual attention blocks, norms
    first, without positions and dropout. Whisper's own module cannot mask padding; PyTorch's layer computes the same.

    Args:
        dim: of the encoder's states.
        layers: of the encoder.
        classes: how many.
        pool: frames whose mean is one step in time; a tail of fewer is a step, too.
        width: of the blocks; null: `dim`. Whisper-AT has both: the narrow form (512) begins with a layer norm and a
            linear map. Kang et al. do not say which they took.
        time_heads: of the block over time.
        layer_heads: of the block over layers.

    Raises:
        ConfigError: a number is below 1, or the heads do not divide the width.
    """

    def __init__(
        self, dim: int, layers: int, classes: int, *, pool: int = 20, width: int | None = None, time_heads: int = 1,
        layer_heads: int = 8,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dims: dict[str, int | None] = {
            "dim": dim, "layers": layers, "classes": classes, "pool": pool, "width": width, "time_heads": time_heads,
            "layer_heads": layer_heads,
        }  # fmt: skip
        for name, value in self.dims.items():
            if value is not None and value < 1:
                raise ConfigError.at(f"TLTR.{name}", "bad-value", f"expected at least 1, got {value}")
        self.dim, self.layers, self.classes, self.pool = dim, layers, classes, pool
        inner = width or dim
        for name, heads in (("time_heads", time_heads), ("layer_heads", layer_heads)):
            if inner % heads:
                raise ConfigError.at(f"TLTR.{name}", "bad-value", f"{heads} does not divide the width of {inner}")
        self.narrow = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, inner)) if width else nn.Identity()
        self.over_time, self.over_layers = _block(inner, time_heads), _block(inner, layer_heads)
        self.head = nn.Sequential(nn.LayerNorm(inner), nn.Linear(inner, classes))

    def forward(self, states: list[Frames]) -> Tensor:
        """Map an encoder's states, each (batch, frames, dim), to logits (batch, classes)."""
        return self.classify(self.pooled(states))

    def pooled(self, states: list[Frames]) -> Frames:
        """The states, mean-pooled over time: (batch, steps, layers, dim), a `pool`th of their size.

        `states` has one a layer, each (batch, frames, dim), or the first layer's input before them; else `ValueError`.
        """
        if len(states) not in (self.layers, self.layers + 1) or any(x.shape[-1] != self.dim for x, _ in states):
            raise ValueError(
                f"expected the states of {self.layers} layers, each (batch, frames, {self.dim}), with or without the "
                f"first layer's input; got {len(states)}: {[tuple(x.shape) for x, _ in states]}"
            )
        pooled = [mean_pool(state, self.pool) for state in states[-self.layers :]]
        return Frames(torch.stack([x for x, _ in pooled], dim=2), pooled[0].lengths)

    def classify(self, pooled: Frames) -> Tensor:
        """Map (batch, steps, layers, dim) to logits (batch, classes)."""
        x = self.narrow(pooled.x).transpose(1, 2)  # (batch, layers, steps, width)
        padding = ~pooled.mask().repeat_interleave(x.shape[1], dim=0)  # (batch * layers, steps)
        steps = self.over_time(x.flatten(0, 1), src_key_padding_mask=padding)
        total = steps.masked_fill(padding[..., None], 0.0).sum(1)  # (batch * layers, width)
        layers = total.reshape(*x.shape[:2], -1) / pooled.lengths[:, None, None]  # (batch, layers, width)
        logits: Tensor = self.head(self.over_layers(layers).mean(1))
        return logits


def mean_pool(frames: Frames, factor: int) -> Frames:
    """Means of every `factor` real frames: (batch, frames, dim) to (batch, ceil(frames / factor), dim)."""
    x = frames.zero_padding().x
    x = F.pad(x, (0, 0, 0, -x.shape[1] % factor))
    x = x.reshape(len(x), -1, factor, x.shape[2]).sum(2)
    before = torch.arange(x.shape[1], device=x.device) * factor
    counts = (frames.lengths[:, None] - before).clamp(1, factor)  # (batch, steps); 1 where all is padding
    return Frames(x / counts[..., None], -(-frames.lengths // factor))


def _block(width: int, heads: int) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
