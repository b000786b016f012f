"""The order of a stage over very many utterances: arrays in place of objects, one epoch at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sottovoce.data.batch_sampler import Rows
from sottovoce.errors import ManifestError

_POOL = 100  # batches, of all ranks together, that are sorted by length together


@dataclass
class LazyBatchSampler:
    """Batches of all epochs of a stage, as `BatchSampler` has them, from a million utterances as from a thousand.

    An epoch is a random order, cut into pools; within a pool, clips of like length share a batch, and the batches are
    shuffled. Every rank computes the same order and takes its share of each batch. Of an epoch's order 4 bytes an
    utterance stay in memory.

    Args:
        seconds: (utterances,) length of each.
        weights: (utterances,) how often an epoch sees each; a fraction is drawn anew each epoch.
        batch_size: utterances a batch and rank, at most: batches are as even as they can be.
        epochs: of the stage.
        seed: of the order.
        rank: of this process, of `ranks`.
        ranks: processes.
        start: batches to leave out at the beginning, because a killed run has done them.
        most: batches after which the stage is over, though epochs are left; None: all of them.

    Raises:
        ManifestError: an epoch has fewer utterances than there are processes.
    """

    seconds: NDArray[np.float32]
    weights: NDArray[np.float64]
    batch_size: int
    epochs: int
    seed: int
    rank: int = 0
    ranks: int = 1
    start: int = 0
    most: int | None = None

    def __post_init__(self) -> None:
        fractions = bool((self.weights % 1).any())  # without, all epochs are of one size, and there may be very many
        rows = [int(self._copies(epoch).sum()) for epoch in range(self.epochs if fractions else 1)]
        rows = rows if fractions else rows * self.epochs
        self.lengths = [-(-count // (self.batch_size * self.ranks)) for count in rows]
        least = min(count // max(length, 1) for count, length in zip(rows, self.lengths, strict=True))
        if least < self.ranks:
            raise ManifestError(
                f"{len(self.weights)} utterances are too few for {self.ranks} processes and batches of "
                f"{self.batch_size}: give a source of the recipe more weight (data.train)"
            )

    def __len__(self) -> int:
        """Batches of the whole stage, whatever `start` is."""
        return sum(self.lengths) if self.most is None else min(self.most, sum(self.lengths))

    def __iter__(self) -> Iterator[Rows]:
        return islice(self._all(), max(0, len(self) - self.start))

    def _all(self) -> Iterator[Rows]:
        skip = self.start
        for epoch, length in enumerate(self.lengths):
            if skip < length:
                for rows in self._epoch(epoch, skip):
                    yield Rows(epoch, rows[self.rank :: self.ranks].tolist())
            skip = max(0, skip - length)

    def _epoch(self, epoch: int, skip: int) -> Iterator[NDArray[np.int32]]:
        """The batches of all ranks together, after the first `skip`."""
        copies = self._copies(epoch)
        order = np.repeat(np.arange(len(copies), dtype=np.int32), copies)
        np.random.default_rng([self.seed, epoch, 1]).shuffle(order)
        length = self.lengths[epoch]
        for first in range(skip - skip % _POOL, length, _POOL):
            edges = np.arange(first, min(first + _POOL, length) + 1) * len(order) // length
            pool = order[edges[0] : edges[-1]]
            pool = pool[np.argsort(self.seconds[pool], kind="stable")]
            batches = np.split(pool, edges[1:-1] - edges[0])
            mixed = np.random.default_rng([self.seed, epoch, 2, first]).permutation(len(batches))
            yield from (batches[i] for i in mixed[max(0, skip - first) :])

    def _copies(self, epoch: int) -> NDArray[np.int64]:
        whole = np.floor(self.weights).astype(np.int64)
        rest = self.weights - whole
        if rest.any():
            whole += np.random.default_rng([self.seed, epoch, 0]).random(len(whole)) < rest
        return whole
