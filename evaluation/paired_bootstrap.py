"""Scores of systems over seeds, and their differences with paired bootstrap intervals.

A paired bootstrap draws utterances, or speakers where they are known, and takes both systems' contributions of each
draw, so that what makes an utterance hard for both cancels out. Efron and Tibshirani (1993), chapter 13;
Koehn (EMNLP 2004) for paired resampling in NLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sottovoce.errors import SottovoceError
from sottovoce.evaluation.bootstrap import Array, Interval, by_speaker, percentile_interval, resample
from sottovoce.evaluation.metrics import DECIMALS, Measure, Score

Seeds = Mapping[int, Measure]  # one score of a system: each seed's


class Key(NamedTuple):
    """Which score: as in a record."""

    task: str
    metric: str
    slots: str


@dataclass(frozen=True)
class Estimate:
    """A score of a system, or the difference of two, over its seeds."""

    mean: float
    distribution: Array  # of the mean, (resamples,): every resample is scored for all seeds
    n: int  # utterances
    seeds: Mapping[int, float]  # seed -> its own value; of a difference, of seeds that both systems have
    speakers: int = 0  # whom the interval is over; 0: utterances

    @property
    def value(self) -> float:
        return _rounded(self.mean)

    @cached_property
    def interval(self) -> Interval:
        """95 % interval, over speakers or utterances."""
        return Interval(*map(_rounded, percentile_interval(self.distribution)))

    @property
    def low(self) -> float:
        return self.interval.low

    @property
    def high(self) -> float:
        return self.interval.high

    @property
    def each(self) -> dict[int, float]:
        """Seed -> its own value, in their order."""
        return {seed: _rounded(self.seeds[seed]) for seed in sorted(self.seeds)}

    @property
    def is_significant(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0

    def __sub__(self, other: Estimate) -> Estimate:
        """How much higher this score is, with a paired interval: exactly 0, with no width, where both are the same."""
        if (self.n, self.speakers) != (other.n, other.speakers):
            mine, theirs = (f"{side.n} of {side.speakers} speakers" for side in (self, other))
            message = f"a paired difference needs the same utterances: {mine} and {theirs}"
            raise SottovoceError(message, code="mismatch")
        seeds = {seed: self.seeds[seed] - other.seeds[seed] for seed in self.seeds.keys() & other.seeds.keys()}
        gap = self.distribution - other.distribution
        return Estimate(self.mean - other.mean, gap, self.n, seeds, self.speakers)


def estimate(seeds: Seeds) -> Estimate:
    """A system's score: the mean of its seeds, one or more, all of them scored on the same draws of utterances."""
    measures = list(seeds.values())
    counts = sorted({len(measure.rows) for measure in measures})
    if len(counts) != 1:
        message = f"seeds of a system must be scored on the same utterances; found {counts} rows"
        raise SottovoceError(message, code="mismatch")
    values = {seed: measure.value for seed, measure in seeds.items()}
    drawn = [(m.statistic, *by_speaker(m.rows, m.speakers)) for m in measures]
    draws = resample(len(drawn[0][1]), lambda draw: np.mean([score(draw @ rows) for score, rows, _ in drawn], axis=0))
    return Estimate(float(np.mean(list(values.values()))), draws, counts[0], values, drawn[0][2])


def reported(seeds: Mapping[int, Score]) -> Estimate:
    """A score of which value and interval are known alone, the means of its seeds'; it cannot be paired."""
    scores = list(seeds.values())
    low, high = (float(np.mean([getattr(score, end) for score in scores])) for end in ("low", "high"))
    ends = np.repeat([low, high], 100)  # whose quantiles these are
    values = {seed: score.value for seed, score in seeds.items()}
    return Estimate(float(np.mean(list(values.values()))), ends, scores[0].n, values, scores[0].speakers)


def _rounded(number: float) -> float:
    return round(number, DECIMALS) + 0.0  # no -0
