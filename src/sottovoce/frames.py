"""The batch of vectors that crosses module borders: waveforms, features, encoder frames, embeddings."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Frames(NamedTuple):
    """A right-padded batch: `x` is (batch, frames, dim) or (batch, samples), `lengths` is (batch,), of real frames."""

    x: Tensor
    lengths: Tensor

    def mask(self) -> Tensor:
        """(batch, frames), True where a frame is not padding."""
        return torch.arange(self.x.shape[1], device=self.lengths.device) < self.lengths[:, None]

    def zero_padding(self) -> "Frames":
        """The same frames of (batch, frames) or (batch, frames, dim), with zeros in the padding."""
        mask = self.mask() if self.x.dim() == 2 else self.mask()[..., None]
        return Frames(self.x.masked_fill(~mask, 0.0), self.lengths)

    def rows(self) -> list[Tensor]:
        """Each row without its padding: a list of (frames, dim)."""
        return [row[:length] for row, length in zip(self.x, self.lengths.tolist(), strict=True)]

    def to(self, device: torch.device) -> "Frames":
        return Frames(self.x.to(device), self.lengths.to(device))

    @staticmethod
    def pad(rows: list[Tensor]) -> "Frames":
        """Rows of (frames, dim) or (samples,), padded with zeros to the longest."""
        return Frames(pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows]))
