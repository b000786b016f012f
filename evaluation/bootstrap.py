"""How far to trust a score: the bootstrap asks what other test sets of this size might have said."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import SottovoceError

Array = NDArray[np.float64]

_KEPT = 2000  # rows, whose draws (16 MB) are kept


class Interval(NamedTuple):
    """The ends of an interval, in the unit of the score."""

    low: float
    high: float


def bootstrap(
    rows: Array, statistic: Callable[[Array], Array], *, level: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of a score that is a function of column sums.

    Corpus WER, accuracies and means all are, so that a resample costs one product of its row counts with `rows` and
    never rescores a text. Efron and Tibshirani (1993), chapter 13. Rows are drawn as if independent: utterances of
    one speaker are not, so the interval speaks of other sentences, less of other speakers. Where all rows agree it
    has no width, which is the method's limit and no proof.

    Args:
        rows: (rows, columns), what each row of the test set contributes.
        statistic: maps sums of contributions (resamples, columns) to scores (resamples,).
        level: the share of resampled scores inside the interval.
        n_resamples: how many test sets are drawn.
        seed: of the draws; one seed gives one interval.

    Raises:
        SottovoceError: `rows` is empty, or is not a table.
    """
    if rows.ndim != 2 or not len(rows):
        raise SottovoceError(f"bootstrap: expected (rows, columns) with at least one row, got shape {rows.shape}")
    known = len(rows) <= _KEPT  # a comparison asks for hundreds of intervals over the same few utterances
    draws = _kept_draws(len(rows), n_resamples, seed) if known else _draws(len(rows), n_resamples, seed)
    scores = statistic(draws @ rows if isinstance(draws, np.ndarray) else np.stack([draw @ rows for draw in draws]))
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _draws(n: int, n_resamples: int, seed: int) -> Iterator[Array]:
    """How often each of `n` rows is in each resample."""
    random = np.random.default_rng(seed)
    return (np.bincount(random.integers(n, size=n), minlength=n).astype(np.float64) for _ in range(n_resamples))


@lru_cache(maxsize=4)
def _kept_draws(n: int, n_resamples: int, seed: int) -> Array:
    """The same as a table, (resamples, rows)."""
    return np.stack(list(_draws(n, n_resamples, seed)))


def ratio(sums: Array) -> Array:
    """First column over second: (resamples, 2) to (resamples,). Means and error rates are ratios of sums."""
    quotient: Array = sums[:, 0] / sums[:, 1]
    return quotient


def mean_of_ratios(sums: Array) -> Array:
    """Mean over classes of hits over occurrences: (resamples, 2 * classes), hits first, to (resamples,).

    A class that a resample happens to miss has no recall there, and does not count in that resample's mean.
    """
    hits, occurrences = np.split(sums, 2, axis=1)
    recalls = hits / np.maximum(occurrences, 1)
    mean: Array = recalls.sum(axis=1) / (occurrences > 0).sum(axis=1)
    return mean
