"""The order of a whole stage: utterances of like length together, the same for a seed, resumable at any batch."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lhotse import CutSet, MonoCut
from lhotse.dataset import DynamicBucketingSampler

from sottovoce.errors import ManifestError


class Rows(NamedTuple):
    """Numbers of utterances, in an epoch. Where there are fewer than processes, some get one that does not count."""

    epoch: int
    numbers: list[int]
    counts: bool = True


@dataclass
class BatchSampler:
    """Batches of all epochs of a stage, one after another.

    Each epoch goes `weight` times through each utterance (a fraction is drawn anew each epoch), in buckets of like
    length, shuffled by Lhotse. The order is that of the batches of all ranks together; each takes every `ranks`-th
    row of each. So two processes with batches of 4 train on what one does with batches of 8, in the same steps.

    Args:
        seconds: length of each utterance.
        weights: how often an epoch sees each utterance.
        batch_size: utterances a batch and rank.
        epochs: of the stage.
        seed: of the order.
        rank: of this process, of `ranks`.
        ranks: processes.
        start: batches to leave out at the beginning, because a killed run has done them.

    Attributes:
        order: every batch of the stage and all ranks together, whatever `start` is.

    Raises:
        ManifestError: the weights leave no utterance in any epoch.
    """

    seconds: Sequence[float]
    weights: Sequence[float]
    batch_size: int
    epochs: int
    seed: int
    rank: int = 0
    ranks: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        self.order = [rows for epoch in range(self.epochs) for rows in self._epoch(epoch)]
        if not self.order:
            raise ManifestError(
                f"{len(self.weights)} utterances and not one is drawn in {self.epochs} epochs: give a source of the "
                "recipe more weight (data.train)"
            )

    def __len__(self) -> int:
        """Batches of the whole stage, whatever `start` is."""
        return len(self.order)

    def __iter__(self) -> Iterator[Rows]:
        for whole in self.order[self.start :]:
            share = whole.numbers[self.rank :: self.ranks]
            yield Rows(whole.epoch, share or whole.numbers[:1], bool(share))

    def _epoch(self, epoch: int) -> Iterator[Rows]:
        cuts = CutSet.from_cuts(
            MonoCut(id=f"{row}-{copy}", start=0.0, duration=self.seconds[row], channel=0)
            for row, weight in enumerate(self.weights)
            for copy in range(self._copies(row, weight, epoch))
        )
        bounds: list[float] | None = [] if len(cuts) < 2 else None  # Lhotse finds none among fewer than two lengths
        sampler = DynamicBucketingSampler(
            cuts, max_cuts=self.batch_size * self.ranks, num_buckets=self._buckets(len(cuts)), duration_bins=bounds,
            shuffle=True, seed=self.seed + epoch, rank=0, world_size=1, drop_last=False,
        )  # fmt: skip
        for cuts in sampler:
            yield Rows(epoch, [int(cut.id.split("-")[0]) for cut in cuts])

    def _copies(self, row: int, weight: float, epoch: int) -> int:
        whole = int(weight)
        return whole + (random.Random(f"{self.seed}/{epoch}/{row}").random() < weight - whole)

    def _buckets(self, cuts: int) -> int:
        """As many buckets as leave some four batches in each; Lhotse wants at least two."""
        return max(2, min(20, cuts // (self.batch_size * self.ranks * 4)))
