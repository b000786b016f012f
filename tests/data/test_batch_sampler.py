"""Batches of like length, in an order whose every tenth is like the epoch; resumable, and the same for all ranks."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.helpers.errors import refused

from sottovoce.data.batch_sampler import BatchSampler


def sampler(count: int = 1003, **changes: Any) -> BatchSampler:
    seconds = np.random.default_rng(0).uniform(1, 20, count).astype(np.float32)
    known = {"lengths": seconds, "weights": [1.0] * count, "batch_size": 4, "epochs": 2, "seed": 0}
    return BatchSampler(**{**known, **changes})


def read_aloud(count: int) -> NDArray[np.float64]:
    """Lengths as LibriSpeech has them: most at 12 to 17 s, with a tail down to 2."""
    rng = np.random.default_rng(1)
    return np.where(rng.random(count) < 0.7, rng.normal(14.2, 1.6, count), rng.uniform(2, 14, count)).clip(2, 17)


def short(count: int) -> NDArray[np.float64]:
    return np.random.default_rng(2).uniform(1, 5, count)


MIXTURES = {
    "two tasks": (read_aloud(10_000), short(10_000), 48),
    "two corpora": (read_aloud(16_000), short(4_000), 48),
    "a small corpus of like lengths": (read_aloud(28_500), read_aloud(1_500), 48),
    "small batches": (read_aloud(2_000), short(1_000), 8),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MIXTURES)
def test_each_tenth_of_an_epoch_is_like_the_whole(name: str, seed: int) -> None:
    """In mean length and in the share of the second part; and batches are padded by less than 4 %."""
    first, second, batch_size = MIXTURES[name]
    seconds, groups = np.concatenate([first, second]), np.repeat([0, 1], [len(first), len(second)])
    made = BatchSampler(seconds, [1.0] * len(seconds), batch_size, 2, seed, groups=groups)
    for epoch in range(2):
        batches = [rows.numbers for rows in made if rows.epoch == epoch]
        tenths = [np.concatenate(batches[i * len(batches) // 10 : (i + 1) * len(batches) // 10]) for i in range(10)]
        assert [seconds[rows].mean() for rows in tenths] == pytest.approx([seconds.mean()] * 10, rel=0.1)
        share = pytest.approx([groups.mean()] * 10, rel=0.1, abs=10 / len(batches))  # or one batch more or less
        assert [groups[rows].mean() for rows in tenths] == share
        assert sum(seconds[rows].max() * len(rows) for rows in batches) < 1.04 * seconds.sum()


@pytest.mark.parametrize("seed", range(3))
def test_each_tenth_of_a_small_epoch_has_its_share_of_what_is_drawn_anew(seed: int) -> None:
    """Tasks as in the quickstart, drawn by epoch: the rarest is 27 rows of a tenth, which chance alone varies by 5."""
    seconds, shares = np.random.default_rng(3).uniform(1, 5, 3000), np.array([5, 1, 2, 1, 1, 1]) / 11

    def drawn(epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([9, epoch]).choice(6, 3000, p=shares)

    made = BatchSampler(seconds, [1.0] * 3000, 16, 2, seed, groups=drawn)
    for epoch in range(2):
        batches = [rows.numbers for rows in made if rows.epoch == epoch]
        assert sorted(row for batch in batches for row in batch) == list(range(3000))
        assert {len(batch) for batch in batches} <= {15, 16}
        whole = np.bincount(drawn(epoch)) / 3000
        for part in np.array_split(np.arange(len(batches)), 10):
            rows = np.concatenate([batches[batch] for batch in part])
            np.testing.assert_allclose(np.bincount(drawn(epoch)[rows]) / len(rows), whole, rtol=0.1)
            assert seconds[rows].mean() == pytest.approx(seconds.mean(), rel=0.1)


@pytest.mark.parametrize(("count", "buckets"), [(40, 2), (400, 10), (4000, 100)])
def test_batches_are_full_and_hold_like_lengths(count: int, buckets: int) -> None:
    seconds = np.arange(count) / count
    batches = [rows.numbers for rows in sampler(count, lengths=seconds, epochs=1)]
    assert {len(rows) for rows in batches} == {4} and len(batches) == count // 4
    assert max(np.ptp(seconds[rows]) for rows in batches) < 1.2 / buckets


def test_epochs_and_seeds_differ_and_a_seed_does_not() -> None:
    orders = [[rows for e, rows, *_ in sampler(seed=seed) if e == epoch] for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert list(sampler()) == list(sampler())
    alike = [{frozenset(rows) for e, rows, *_ in sampler(lengths=[1.0] * 1003) if e == epoch} for epoch in range(2)]
    assert len(alike[0] & alike[1]) < 5  # rows of equal length, too, meet others in the next epoch


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_see_each_row_once_an_epoch_in_as_many_batches(ranks: int) -> None:
    parts = [list(sampler(rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert {len(part) for part in parts} == {len(sampler(ranks=ranks))} == {2 * -(-1003 // (4 * ranks))}
    assert all(1 <= len(rows) <= 4 for part in parts for _, rows, *_ in part)
    for epoch in range(2):
        seen = Counter(row for part in parts for e, rows, *_ in part if e == epoch for row in rows)
        assert seen == Counter(range(1003))


@pytest.mark.parametrize(("ranks", "batch"), [(2, 6), (3, 4), (4, 3)])
@pytest.mark.parametrize("count", [1003, 3])
def test_ranks_share_the_batches_of_one(ranks: int, batch: int, count: int) -> None:
    """Each row goes to one of them, in the same step as alone; who has none left gets one that does not count."""
    shares = [list(sampler(count, rank=rank, ranks=ranks, batch_size=batch)) for rank in range(ranks)]
    whole = list(sampler(count, batch_size=12))
    together = [
        (first.epoch, sorted(row for rows in (first, *others) if rows.counts for row in rows.numbers))
        for first, *others in zip(*shares, strict=True)
    ]
    assert together == [(rows.epoch, sorted(rows.numbers)) for rows in whole]
    for rank, share in enumerate(shares):
        assert all(1 <= len(rows.numbers) <= batch for rows in share)
        assert all(mine.counts == (rank < len(rows.numbers)) for mine, rows in zip(share, whole, strict=True))


@pytest.mark.parametrize("start", [0, 1, 99, 250, 251, 252, 499, 502, 600])
@pytest.mark.parametrize("most", [None, 260, 10**6])
def test_a_stage_goes_on_at_any_batch_and_ends_after_so_many(start: int, most: int | None) -> None:
    whole = list(sampler())[:most]
    resumed = sampler(start=start, max_steps=most)
    assert list(resumed) == whole[start:] and len(resumed) == len(whole) == (most if most == 260 else 502)
    assert list(resumed.global_steps()) == whole


def test_weights_repeat_and_thin_out() -> None:
    drawn = sampler(1000, weights=[2.0] * 100 + [0.25] * 900, epochs=8)
    rows = Counter(row for _, batch, *_ in drawn for row in batch)
    assert all(rows[row] == 16 for row in range(100)) and len(drawn) == len(list(drawn))
    assert 1600 < sum(rows[row] for row in range(100, 1000)) < 2000  # 1,800 expected


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_epoch_may_have_one_row_or_none(ranks: int) -> None:
    for rank in range(ranks):
        shared = {"rank": rank, "ranks": ranks}
        assert list(sampler(1, **shared)) == [(0, [0], rank == 0, None), (1, [0], rank == 0, None)]
        drawn = [epoch for epoch, *_ in sampler(1, weights=[0.5], epochs=20, **shared)]
        assert drawn == sorted(set(drawn)) and 0 < len(drawn) < 20
        with refused("empty", "data.train"):
            sampler(1, weights=[0.0], **shared)


@pytest.mark.parametrize(("ranks", "accumulate", "size"), [(1, 4, 1), (2, 2, 1), (1, 2, 2), (2, 1, 2)])
def test_a_step_is_the_same_in_whatever_shares_it_is_taken(ranks: int, accumulate: int, size: int) -> None:
    shared: dict[str, Any] = {"lengths": np.arange(1.0, 23.0), "weights": np.ones(22), "epochs": 2, "seed": 3}
    whole = [sorted(rows.numbers) for rows in BatchSampler(batch_size=4, **shared)]
    steps: list[list[int]] = [[] for _ in whole]
    for rank in range(ranks):
        taken = list(BatchSampler(batch_size=size, accumulate=accumulate, rank=rank, ranks=ranks, **shared))
        assert len(taken) == len(whole) * accumulate and all(len(rows.numbers) <= size for rows in taken)
        for number, rows in enumerate(taken):
            steps[number // accumulate] += rows.numbers if rows.counts else []
            assert not rows.counts or rows.step is None or set(rows.numbers) <= set(rows.step)
    assert [sorted(step) for step in steps] == whole
