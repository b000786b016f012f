"""Batches by a budget: within it in every share of a step, each row once an epoch, tenths alike, resumable."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.data.test_batch_sampler import MIXTURES

from sottovoce.data.batch_sampler import BatchSampler, Rows


def book_lengths(count: int) -> NDArray[np.float32]:
    """As in LibriSpeech's dev-clean: log-normal, of 7 s on average, from 1.5 to 33."""
    drawn = np.exp(np.random.default_rng(4).normal(np.log(7.2) - 0.21, 0.65, 2 * count))
    return drawn[(drawn > 1.5) & (drawn < 33)][:count].astype(np.float32)


LENGTHS = book_lengths(2000)


def sampler(budget: float = 120.0, **changes: Any) -> BatchSampler:
    known = {"lengths": LENGTHS, "weights": np.ones(len(LENGTHS)), "batch_size": None, "epochs": 3, "seed": 0}
    return BatchSampler(**{**known, "budget": budget, **changes})


def padded(rows: list[int], lengths: NDArray[Any] = LENGTHS) -> float:
    return len(rows) * float(lengths[rows].max())


@pytest.mark.parametrize(("ranks", "together"), [(1, 1), (1, 4), (2, 2), (4, 1), (2, 3)])
@pytest.mark.parametrize("budget", [20.0, 61.5, 240.0])
def test_every_batch_of_every_rank_keeps_to_the_budget(ranks: int, together: int, budget: float) -> None:
    """Or is one row, which may be longer; and few have room for more rows than they have."""
    batches = [rows for rank in range(ranks) for rows in sampler(budget, ranks=ranks, rank=rank, accumulate=together)]
    assert all(len(rows.numbers) == 1 or padded(rows.numbers) <= budget for rows in batches)
    assert len(batches) == ranks * len(sampler(budget, ranks=ranks, accumulate=together))
    for epoch in range(3):
        seen = Counter(row for rows in batches if rows.epoch == epoch and rows.counts for row in rows.numbers)
        assert seen == Counter(range(len(LENGTHS)))
    if ranks * together == 1:  # else they are few, and unlike
        least = LENGTHS.sum() * 3 / budget  # batches, were there neither padding nor rounding
        assert len(batches) < (1.4 if budget == 20 else 1.2) * least


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MIXTURES)
def test_each_tenth_of_an_epoch_is_like_the_whole(name: str, seed: int) -> None:
    """In mean length, in the share of the second part and in rows; work is even, and little of it padding."""
    first, second, size = MIXTURES[name]
    lengths, groups = np.concatenate([first, second]), np.repeat([0, 1], [len(first), len(second)])
    budget = size * lengths.mean()
    made = BatchSampler(lengths, np.ones(len(lengths)), None, 2, seed, groups=groups, budget=budget)
    for epoch in range(2):
        steps = [rows.numbers for rows in made if rows.epoch == epoch]
        tenths = [np.concatenate(steps[i * len(steps) // 10 : (i + 1) * len(steps) // 10]) for i in range(10)]
        assert [lengths[rows].mean() for rows in tenths] == pytest.approx([lengths.mean()] * 10, rel=0.1)
        share = pytest.approx([groups.mean()] * 10, rel=0.1, abs=10 * max(map(len, steps)) / len(lengths))
        assert [groups[rows].mean() for rows in tenths] == share
        work = np.array([padded(rows, lengths) for rows in steps])
        assert work.sum() < 1.06 * lengths.sum()
        assert work.std() < 0.12 * work.mean()


@pytest.mark.parametrize("seed", range(3))
def test_each_tenth_has_its_share_of_what_is_drawn_anew(seed: int) -> None:
    shares = np.array([5, 1, 2, 1, 1, 1]) / 11

    def drawn(epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([9, epoch]).choice(6, len(LENGTHS), p=shares)

    made = sampler(60.0, seed=seed, groups=drawn)
    for epoch in range(3):
        steps = [rows.numbers for rows in made if rows.epoch == epoch]
        assert sorted(row for rows in steps for row in rows) == list(range(len(LENGTHS)))
        whole = np.bincount(drawn(epoch)) / len(LENGTHS)
        for part in np.array_split(np.arange(len(steps)), 10):
            rows = np.concatenate([steps[step] for step in part])
            np.testing.assert_allclose(np.bincount(drawn(epoch)[rows]) / len(rows), whole, rtol=0.15, atol=0.01)
            assert LENGTHS[rows].mean() == pytest.approx(LENGTHS.mean(), rel=0.1)


@pytest.mark.parametrize("groups", [None, np.arange(len(LENGTHS)) % 3])
def test_steps_are_the_same_in_whatever_shares_they_are_taken(groups: Any) -> None:
    """One process that adds up four batches, two that add up two, and four: the same rows in the same steps."""
    whole = [sorted(rows.numbers) for rows in sampler(30.0, accumulate=4, groups=groups).global_steps()]
    assert len(whole) < 1.5 * 3 * LENGTHS.sum() / (4 * 30.0)  # which pays for as many
    for ranks in (1, 2, 4):
        together = 4 // ranks
        taken: list[list[int]] = [[] for _ in whole]
        for rank in range(ranks):
            mine = list(sampler(30.0, ranks=ranks, rank=rank, accumulate=together, groups=groups))
            assert len(mine) == together * len(whole)
            for number, rows in enumerate(mine):
                taken[number // together] += rows.numbers if rows.counts else []
        assert [sorted(rows) for rows in taken] == whole


def test_a_stage_goes_on_at_any_step() -> None:
    whole = list(sampler(200.0, groups=np.arange(len(LENGTHS)) % 2))
    for start in (0, 1, 2, len(whole) // 3 - 1, len(whole) // 3, len(whole) // 3 + 1, len(whole) - 1, len(whole)):
        again = sampler(200.0, groups=np.arange(len(LENGTHS)) % 2, start=start)
        assert list(again) == whole[start:] and len(again) == len(whole)
    assert list(sampler(200.0, max_steps=40, start=10)) == list(sampler(200.0))[10:40]


@pytest.mark.parametrize("weights", [np.ones(300), np.arange(300) % 3 + 1.0, np.linspace(0, 2.3, 300)])
def test_steps_are_known_before_any_is_laid_out(weights: NDArray[np.float64]) -> None:
    """Of many epochs, too, whose buckets begin elsewhere; rows come as often as they weigh."""
    made = sampler(40.0, lengths=LENGTHS[:300], weights=weights, epochs=23)
    assert len(list(made)) == len(made) == made.steps
    seen = Counter(row for rows in made for row in rows.numbers)
    assert all(abs(seen[row] - 23 * weight) < 15 for row, weight in enumerate(weights))
    first, second = ([set(rows.numbers) for rows in made if rows.epoch == epoch] for epoch in (0, 1))
    assert len([rows for rows in first if rows in second and len(rows) > 1]) < len(first) / 4


def test_one_row_may_be_longer_than_the_budget() -> None:
    few = {"lengths": [1.0, 50.0, 2.0], "weights": np.ones(3), "epochs": 1}
    assert sorted(sorted(rows.numbers) for rows in sampler(4.0, **few)) == [[0], [1], [2]]  # one bucket
    alone = {"lengths": [3.0], "weights": np.ones(1), "epochs": 1}
    shared = [list(sampler(2.0, **alone, ranks=2, rank=rank)) for rank in range(2)]
    assert shared == [[Rows(0, [0], True)], [Rows(0, [0], False)]]


def test_a_batch_has_one_measure() -> None:
    for both in ({"batch_size": 4, "budget": 10.0}, {"batch_size": None, "budget": None}):
        with pytest.raises(ValueError):
            BatchSampler(LENGTHS, np.ones(len(LENGTHS)), epochs=1, seed=0, **both)  # type: ignore[arg-type]


def test_work_of_a_step_varies_less_than_with_a_number_of_rows() -> None:
    """Of as many rows on average; see docs/training.md."""
    spread = []
    for order in (sampler(16 * 7.0), sampler(batch_size=16, budget=None)):  # type: ignore[arg-type]
        work = np.array([padded(rows.numbers) for rows in order.global_steps()])
        spread.append(work.std() / work.mean())
    assert spread[0] < 0.15 * spread[1]
