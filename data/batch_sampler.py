"""Length-bucketed batches for a stage, stratified so that every stretch of an epoch is like the whole."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sottovoce.errors import ManifestError

_BUCKET = 10  # batches; where there are few, a tenth of them and at least four
_GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo 1 are spread evenly, however many are taken


class Rows(NamedTuple):
    """The rows of a batch, in an epoch. Where there are fewer rows than batches, some get one that does not count.

    `step` has all rows of this process in the optimizer step, where that adds up several batches.
    """

    epoch: int
    numbers: list[int]
    counts: bool = True
    step: list[int] | None = None


@dataclass
class BatchSampler:
    """Batches of all epochs of a stage, one after another.

    Steps are laid out for all ranks together, and their rows are dealt out to ranks and to the batches of a rank: two
    processes with batches of 4 train on what one does with batches of 8, or with twice 4, in the same steps.

    An epoch has each row `weight` times; a fraction is a chance, drawn anew each epoch. Sorted by length, it is cut
    into buckets of ten batches, which are spread evenly over the epoch. The rows of a bucket are dealt out among its
    batches at random, but with as many of each group as are due by then, so that each tenth of the epoch is like the
    whole, in lengths and in groups. Batches are as even in size as they can be.

    Raises:
        ManifestError: the weights leave no row in any epoch.
    """

    seconds: ArrayLike  # (rows,) lengths
    weights: ArrayLike  # (rows,) how often an epoch sees each
    batch_size: int  # rows a batch and rank, at most
    epochs: int  # of the stage
    seed: int  # of the order
    rank: int = 0  # of this process, of `ranks`
    ranks: int = 1  # processes
    start: int = 0  # steps to leave out at the beginning, because a killed run has done them
    groups: Callable[[int], ArrayLike] | ArrayLike | None = None  # (rows,) what is to be mixed evenly, or so by epoch
    max_steps: int | None = None  # after which the stage is over, though epochs are left
    accumulate: int = 1  # batches of a rank that make an optimizer step

    def __post_init__(self) -> None:
        self._seconds, self._weights = np.asarray(self.seconds, np.float32), np.asarray(self.weights, np.float64)
        fractions = bool((self._weights % 1).any())  # without, all epochs are of one size, and there may be very many
        rows = [int(self._copies(epoch).sum()) for epoch in range(self.epochs if fractions else 1)]
        step = self.batch_size * self.ranks * self.accumulate
        self._lengths = [-(-count // step) for count in rows]  # steps of each epoch
        self._lengths *= 1 if fractions else self.epochs
        if not sum(self._lengths):
            problem = f"{len(self._weights)} utterances and not one is drawn in {self.epochs} epochs"
            advice = "give a source of the recipe more weight (data.train)"
            raise ManifestError(f"{problem}: {advice}", code="empty", where="data.train")

    def __len__(self) -> int:
        """Batches of the whole stage, whatever `start` is."""
        return self.steps * self.accumulate

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole stage."""
        most = sum(self._lengths)
        return most if self.max_steps is None else min(self.max_steps, most)

    def __iter__(self) -> Iterator[Rows]:
        for epoch, numbers, *_ in self.global_steps(self.start):
            step = numbers[self.rank :: self.ranks]
            for batch in range(self.accumulate):
                share = step[batch :: self.accumulate]
                yield Rows(epoch, share or numbers[:1], bool(share), step if self.accumulate > 1 else None)

    def global_steps(self, start: int = 0) -> Iterator[Rows]:
        """Rows of all ranks together, of each step from the `start`-th of the stage on."""
        return islice(self._from(start), max(0, self.steps - start))

    def _from(self, start: int) -> Iterator[Rows]:
        for epoch, length in enumerate(self._lengths):
            if start < length:
                yield from (Rows(epoch, rows.tolist()) for rows in self._epoch(epoch)[start:])
            start = max(0, start - length)

    def _epoch(self, epoch: int) -> list[NDArray[np.int32]]:
        count, copies = self._lengths[epoch], self._copies(epoch)
        rng = np.random.default_rng([self.seed, epoch, 1])
        rows = np.repeat(np.arange(len(copies), dtype=np.int32), copies)
        rng.shuffle(rows)  # rows of equal length, too, meet others in each epoch
        rows = rows[np.argsort(self._seconds[rows], kind="stable")]
        shift = rng.random()
        buckets: list[NDArray[np.int32]] = []
        places: list[NDArray[np.float64]] = []  # of a bucket's batches, from 0 to 1
        full = min(_BUCKET, max(4, count // 10))
        sizes = [full] * (count // full)
        sizes.insert(int(rng.integers(len(sizes) + 1)), count % full)  # borders differ from epoch to epoch, too
        for number, (first, last) in enumerate(pairwise(accumulate(sizes, initial=0))):
            size = last - first
            buckets.append(rng.permutation(rows[first * len(rows) // count : last * len(rows) // count]))
            places.append((rng.permutation(size) + (number * _GOLDEN + shift) % 1) / size)
        order = np.argsort(np.concatenate(places), kind="stable")
        if self.groups is not None:
            groups = np.asarray(self.groups(epoch) if callable(self.groups) else self.groups)
            return _dealt(buckets, np.repeat(np.arange(len(sizes)), sizes)[order], groups)
        batches = [bucket[number::size] for bucket, size in zip(buckets, sizes, strict=True) for number in range(size)]
        return [batches[batch] for batch in order]

    def _copies(self, epoch: int) -> NDArray[np.int64]:
        """(rows,) how often the epoch sees each."""
        whole = np.floor(self._weights).astype(np.int64)
        rest = self._weights - whole
        if rest.any():
            whole += np.random.default_rng([self.seed, epoch, 0]).random(len(whole)) < rest
        return whole


def _dealt(
    buckets: Sequence[NDArray[np.int32]], owners: NDArray[np.int64], groups: NDArray[np.int64]
) -> list[NDArray[np.int32]]:
    """Batches, each of rows of one bucket, `owners` says which; what rounding denies a group, its next batch makes up.

    Each batch gets of each group what is left in its bucket, shared among the bucket's batches to come.
    """
    names, numbers = np.unique(groups[np.concatenate(buckets)], return_inverse=True)
    kinds = np.split(numbers, np.cumsum([len(bucket) for bucket in buckets])[:-1])  # of rows, from 0
    each = zip(buckets, kinds, strict=True)
    waiting = [[bucket[kind == group] for group in range(len(names))] for bucket, kind in each]
    left = np.array([[len(rows) for rows in each] for each in waiting])  # (buckets, groups)
    to_come = np.bincount(owners, minlength=len(buckets))
    owed = np.zeros(len(names))  # rows, by rounding so far
    batches = []
    for owner in owners:
        have = left[owner]
        size = -(-have.sum() // to_come[owner])
        due = have * (size / have.sum()) + owed
        count = np.minimum(np.maximum(np.floor(due), 0), have).astype(np.int64)
        while missing := np.sign(size - count.sum()):
            able = count < have if missing > 0 else count > 0
            count[np.where(able, missing * (due - count), -np.inf).argmax()] += missing
        owed = due - count
        ends = [len(rows) - n for rows, n in zip(waiting[owner], have, strict=True)]
        parts = zip(waiting[owner], ends, count, strict=True)
        batches.append(np.concatenate([rows[end : end + n] for rows, end, n in parts]))
        left[owner], to_come[owner] = have - count, to_come[owner] - 1
    return batches
