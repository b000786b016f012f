"""Length-bucketed batches for a stage, stratified so that every stretch of an epoch is like the whole."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sottovoce.errors import ManifestError

_BUCKET = 10  # batches; where there are few, a tenth of them and at least four
_PHASES, _STRIDE = 10, 7  # epochs whose buckets begin elsewhere; the stride goes through all of them
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

    With a `budget` a batch has as many rows as that pays for, padded: rows times the longest of the bucket; at least
    one. A step has that many for each of its `ranks * accumulate` batches, so that steps are the same however this
    product comes about. How many there are hangs on lengths and weights alone, and differs little between epochs.

    Raises:
        ManifestError: the weights leave no row in any epoch.
    """

    lengths: ArrayLike  # (rows,) in seconds or tokens, positive
    weights: ArrayLike  # (rows,) how often an epoch sees each
    batch_size: int | None  # rows a batch and rank, at most; None: as many as the budget pays for
    epochs: int  # of the stage
    seed: int  # of the order
    rank: int = 0  # of this process, of `ranks`
    ranks: int = 1  # processes
    start: int = 0  # steps to leave out at the beginning, because a killed run has done them
    groups: Callable[[int], ArrayLike] | ArrayLike | None = None  # (rows,) what is to be mixed evenly, or so by epoch
    max_steps: int | None = None  # after which the stage is over, though epochs are left
    accumulate: int = 1  # batches of a rank that make an optimizer step
    budget: float | None = None  # of a batch and rank that has no size, in the unit of `lengths`

    def __post_init__(self) -> None:
        if (self.batch_size is None) == (self.budget is None):
            raise ValueError("a batch needs either a size or a budget")
        self._lengths, self._weights = np.asarray(self.lengths, np.float32), np.asarray(self.weights, np.float64)
        fractions = bool((self._weights % 1).any())
        known = self.epochs if fractions else min(self.epochs, _PHASES)  # then they repeat, and may be very many
        found = [self._count_steps(epoch) for epoch in range(known)]
        self._counts = [found[epoch % known] for epoch in range(self.epochs)]  # steps of each epoch
        if not sum(self._counts):
            problem = f"{len(self._weights)} utterances and not one is drawn in {self.epochs} epochs"
            advice = "give a source of the recipe more weight (data.train)"
            raise ManifestError(f"{problem}: {advice}", code="empty", where="data.train")

    def __len__(self) -> int:
        """Batches of the whole stage, whatever `start` is."""
        return self.steps * self.accumulate

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole stage."""
        most = sum(self._counts)
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
        for epoch, length in enumerate(self._counts):
            if start < length:
                yield from (Rows(epoch, rows.tolist()) for rows in self._epoch(epoch)[start:])
            start = max(0, start - length)

    def _count_steps(self, epoch: int) -> int:
        copies = self._copies(epoch)
        if self.batch_size is not None:
            return -(-int(copies.sum()) // (self.batch_size * self._shares))
        return sum(self._paid_buckets(np.sort(np.repeat(self._lengths, copies)), epoch)[1])

    def _epoch(self, epoch: int) -> list[NDArray[np.int32]]:
        copies, rng = self._copies(epoch), np.random.default_rng([self.seed, epoch, 1])
        rows = np.repeat(np.arange(len(copies), dtype=np.int32), copies)
        rng.shuffle(rows)  # rows of equal length, too, meet others in each epoch
        rows = rows[np.argsort(self._lengths[rows], kind="stable")]
        shift = rng.random()
        buckets: list[NDArray[np.int32]] = []
        places: list[NDArray[np.float64]] = []  # of a bucket's batches, from 0 to 1
        if self.batch_size is None:
            borders, sizes = self._paid_buckets(self._lengths[rows], epoch)
        else:
            borders, sizes = self._even_buckets(len(rows), self._counts[epoch], rng)
        for number, (size, (first, last)) in enumerate(zip(sizes, pairwise(borders), strict=True)):
            buckets.append(rng.permutation(rows[first:last]))
            places.append((rng.permutation(size) + (number * _GOLDEN + shift) % 1) / size)
        order = np.argsort(np.concatenate(places), kind="stable")
        if self.groups is not None:
            groups = np.asarray(self.groups(epoch) if callable(self.groups) else self.groups)
            return _dealt(buckets, np.repeat(np.arange(len(sizes)), sizes)[order], groups)
        batches = [bucket[number::size] for bucket, size in zip(buckets, sizes, strict=True) for number in range(size)]
        return [batches[batch] for batch in order]

    @property
    def _shares(self) -> int:
        """Batches of a step, of all ranks."""
        return self.ranks * self.accumulate

    @staticmethod
    def _even_buckets(rows: int, count: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Borders of buckets among so many rows, and the batches of each, where all batches have as many rows."""
        full = _full(count)
        sizes = [full] * (count // full)
        sizes.insert(int(rng.integers(len(sizes) + 1)), count % full)  # borders differ from epoch to epoch, too
        return [border * rows // count for border in accumulate(sizes, initial=0)], sizes

    def _paid_buckets(self, lengths: NDArray[np.float32], epoch: int) -> tuple[list[int], list[int]]:
        """The same where all batches of a bucket have as many rows as their share of a step pays for; from the longest.

        `lengths` are sorted. The first bucket is smaller by epoch, so that borders differ; what is left at the end
        of the shortest joins the bucket before it, rather than being a few steps unlike the others.
        """
        assert self.budget is not None
        full = _full(int(lengths.sum(dtype=np.float64) / (self.budget * self._shares)))  # of about as many steps
        batches = max(1, full * (_PHASES - epoch * _STRIDE % _PHASES) // _PHASES)
        borders, sizes = [len(lengths)], list[int]()
        while last := borders[-1]:
            step = self._shares * max(1, int(self.budget // float(lengths[last - 1])))
            first = last - step * batches
            first = 0 if first < step * full // 2 else first
            borders.append(first)
            sizes.append(-(-(last - first) // step))
            batches = full
        return borders[::-1], sizes[::-1]

    def _copies(self, epoch: int) -> NDArray[np.int64]:
        """(rows,) how often the epoch sees each."""
        whole = np.floor(self._weights).astype(np.int64)
        rest = self._weights - whole
        if rest.any():
            whole += np.random.default_rng([self.seed, epoch, 0]).random(len(whole)) < rest
        return whole


def _full(count: int) -> int:
    """Batches of a bucket, of about so many in an epoch."""
    return min(_BUCKET, max(4, count // 10))


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
