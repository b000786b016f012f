"""Systems side by side on the same utterances: scores, and differences with paired intervals.

A paired bootstrap draws utterances and takes both systems' contributions of each draw, so that what makes an utterance
hard for both cancels out. Efron and Tibshirani (1993), chapter 13; Koehn (EMNLP 2004) for paired resampling in NLP.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from sottovoce.errors import SottovoceError
from sottovoce.evaluation.bootstrap import Array, bootstrap
from sottovoce.evaluation.metrics import DECIMALS, Measure

Seeds = Mapping[int, Measure]  # one score of a system: each seed's


class Key(NamedTuple):
    """Which score: as in a record."""

    task: str
    metric: str
    slots: str


@dataclass(frozen=True)
class Estimate:
    """A score of a system, or the difference of two, over its seeds.

    Args:
        value: the mean over seeds.
        low: of the 95 % interval over utterances; every draw of utterances is scored for all seeds.
        high: of the same.
        n: utterances.
        each: seed -> its own value, in their order; of a difference, of seeds that both systems have.
    """

    value: float
    low: float
    high: float
    n: int
    each: Mapping[int, float]

    @property
    def is_clear(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def estimate(seeds: Seeds) -> Estimate:
    """A system's score.

    Raises:
        SottovoceError: there is no seed, or they are not of the same number of utterances.
    """
    rows, statistic = _together(seeds)
    each = {seed: round(measure.value, DECIMALS) for seed, measure in sorted(seeds.items())}
    return _estimate(float(np.mean([m.value for m in seeds.values()])), rows, statistic, each)


def difference(ours: Seeds, theirs: Seeds) -> Estimate:
    """How much higher our score is than theirs, with a paired interval.

    The same utterances are drawn for both, and for all seeds. It is exactly 0, with no width, where both said the same.

    Raises:
        SottovoceError: a system has no seed, or they are not of the same number of utterances.
    """
    (our_rows, our_score), (their_rows, their_score) = _together(ours), _together(theirs)
    if len(our_rows) != len(their_rows):
        raise SottovoceError(f"a paired difference needs the same utterances: {len(our_rows)} and {len(their_rows)}")
    width = our_rows.shape[1]

    def statistic(sums: Array) -> Array:
        return our_score(sums[:, :width]) - their_score(sums[:, width:])

    value = float(np.mean([m.value for m in ours.values()]) - np.mean([m.value for m in theirs.values()]))
    both = sorted(set(ours) & set(theirs))
    each = {seed: round(ours[seed].value - theirs[seed].value, DECIMALS) for seed in both}
    return _estimate(value, np.hstack([our_rows, their_rows]), statistic, each)


def differences(scores: Mapping[str, Seeds]) -> dict[tuple[str, str], Estimate]:
    """Every system less every other: (system, other) -> difference."""
    found = {}
    for ours, theirs in combinations(scores, 2):
        gap = found[ours, theirs] = difference(scores[ours], scores[theirs])
        turned = {seed: 0.0 - value for seed, value in gap.each.items()}
        found[theirs, ours] = Estimate(0.0 - gap.value, 0.0 - gap.high, 0.0 - gap.low, gap.n, turned)
    return found


def _together(seeds: Seeds) -> tuple[Array, Callable[[Array], Array]]:
    """All seeds' contributions beside one another, (utterances, seeds x columns), and the mean of their scores."""
    measures = [seeds[seed] for seed in sorted(seeds)]
    if not measures or len({measure.rows.shape for measure in measures}) > 1:
        found = [measure.rows.shape for measure in measures]
        raise SottovoceError(f"seeds of a system must be scored on the same utterances; found (rows, columns) {found}")
    width = measures[0].rows.shape[1]

    def statistic(sums: Array) -> Array:
        parts = [m.statistic(sums[:, i * width : (i + 1) * width]) for i, m in enumerate(measures)]
        mean: Array = np.mean(parts, axis=0)
        return mean

    return np.hstack([measure.rows for measure in measures]), statistic


def _estimate(value: float, rows: Array, statistic: Callable[[Array], Array], each: Mapping[int, float]) -> Estimate:
    low, high = bootstrap(rows, statistic)
    value, low, high = (round(number, DECIMALS) + 0.0 for number in (value, low, high))  # no -0
    return Estimate(value, low, high, len(rows), each)
