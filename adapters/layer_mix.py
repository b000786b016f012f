"""What a slot hears of an encoder's layers: one as it is, or several by learned weights."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Adam moves a number by about the learning rate a step, whatever its gradient: slow for one that stands alone
PACE = 10.0


class LayerMix(nn.Module):
    """Frames of one layer, or the sum of several, weighted by a softmax over learned numbers.

    Yang et al. (SUPERB, Interspeech 2021): one number a layer, the same for all frames and dims, beginning equal. With
    `normalize` every layer first has mean 0 and variance 1 over the dims of each frame, as s3prl's `normalize` does.

    Args:
        columns: where the layers stand, counted from 0 in units of `dim`, in the frames that are given.
        dim: of each layer.
        normalize: see above.
    """

    def __init__(self, columns: Sequence[int], dim: int, *, normalize: bool = False) -> None:
        super().__init__()
        self.dim, self.normalize = dim, normalize
        first, last = min(columns), max(columns)
        # a slice copies nothing
        self._picked = slice(first, last + 1) if last - first < len(columns) else list(columns)
        self.logits = nn.Parameter(torch.zeros(len(columns))) if len(columns) > 1 else None

    def weights(self) -> Tensor:
        """(layers,), which add up to 1."""
        return torch.ones(1) if self.logits is None else torch.softmax(PACE * self.logits.float(), 0)

    def forward(self, x: Tensor) -> Tensor:
        """Map layers side by side, (batch, frames, layers * dim), to (batch, frames, dim)."""
        layers: Tensor = x.reshape(*x.shape[:-1], -1, self.dim)[..., self._picked, :]  # (batch, frames, layers, dim)
        if self.normalize:
            layers = F.layer_norm(layers, (self.dim,))
        if self.logits is None:
            return layers[..., 0, :]
        return torch.einsum("l,...ld->...d", self.weights().to(x.dtype), layers)
