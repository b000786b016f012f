"""Bootstrap intervals: what other test sets of this size might have scored."""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import SottovoceError

Array = NDArray[np.float64]

RESAMPLES = 1000
_BATCH = 100  # resamples that are scored at once: 2,400 rows take 2 MB


class Interval(NamedTuple):
    """The ends of an interval, in the unit of the score."""

    low: float
    high: float


def bootstrap(rows: Array, statistic: Callable[[Array], Array], seed: int = 0) -> Interval:
    """95 % percentile bootstrap interval of a score that is a function of column sums.

    Corpus WER, accuracies and means all are, so that a resample costs one product of its row counts with `rows` and
    never rescores a text. Efron and Tibshirani (1993), chapter 13. Rows are drawn as if independent: utterances of
    one speaker are not, so `by_speaker` comes first where speakers are known. Where all rows agree the interval has
    no width, which is the method's limit and no proof.

    `rows` is (rows, columns), what each row of the test set contributes; `statistic` maps sums of contributions
    (resamples, columns) to scores (resamples,).

    Raises:
        SottovoceError: `rows` is empty, or is not a table.
    """
    if rows.ndim != 2 or not len(rows):
        message = f"bootstrap: expected (rows, columns) with at least one row, got shape {rows.shape}"
        raise SottovoceError(message, code="empty")
    return percentile_interval(resample(len(rows), lambda counts: statistic(counts @ rows), seed))


def by_speaker(rows: Array, speakers: Sequence[str | None]) -> tuple[Array, int]:
    """Sums of rows that one speaker spoke, (groups, columns), and how many speakers there are.

    To draw these is the cluster bootstrap (Davison and Hinkley, 1997, section 3.8): a speaker comes with all utterances
    or none, and the interval speaks of other speakers. A row without a speaker stands alone. Where fewer than two are
    known, rows stay as they are, and the count is 0.
    """
    known = len({speaker for speaker in speakers if speaker is not None})
    if known < 2:
        return rows, 0
    numbers: dict[object, int] = {}
    keys = (i if speaker is None else speaker for i, speaker in enumerate(speakers))
    codes = [numbers.setdefault(key, len(numbers)) for key in keys]
    sums = np.zeros((len(numbers), rows.shape[1]))
    np.add.at(sums, codes, rows)
    return sums, known


def resample(n: int, score: Callable[[Array], Array], seed: int = 0) -> Array:
    """Bootstrap distribution of a score: (resamples,).

    `score` maps how often each of the `n` rows was drawn, (resamples, n), to scores (resamples,). The draws depend on
    `n` and `seed` alone: two scores of the same rows are resampled in pairs, and the difference of their distributions
    is that of a paired bootstrap.
    """
    if n == 1:  # which SciPy refuses, and which has one resample
        return score(np.ones((1, 1))).repeat(RESAMPLES)
    from scipy import stats

    def score_of(drawn: NDArray[np.int64], axis: int) -> Array:
        return score(np.stack([np.bincount(rows, minlength=n) for rows in drawn]).astype(np.float64))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # of SciPy's own interval, where a score is NaN
        found = stats.bootstrap(
            (np.arange(n),), score_of, vectorized=True, n_resamples=RESAMPLES, batch=_BATCH, method="percentile",
            rng=seed,
        )  # fmt: skip
    distribution: Array = found.bootstrap_distribution
    return distribution


def percentile_interval(distribution: Array) -> Interval:
    """The middle 95 % of a bootstrap distribution (resamples,); resamples without a score (NaN) do not count."""
    low, high = np.quantile(distribution[~np.isnan(distribution)], [0.025, 0.975])
    return Interval(float(low), float(high))


def ratio(sums: Array) -> Array:
    """First column over second: (resamples, 2) to (resamples,). Means and error rates are ratios of sums.

    NaN where the second is 0: a resample may hold clips without speech alone.
    """
    quotient: Array = np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] != 0)
    return quotient


def mean_of_ratios(sums: Array) -> Array:
    """Mean over classes of hits over occurrences: (resamples, 2 * classes), hits first, to (resamples,).

    A class that a resample happens to miss has no recall there, and does not count in that resample's mean.
    """
    hits, occurrences = np.split(sums, 2, axis=1)
    recalls = hits / np.maximum(occurrences, 1)
    mean: Array = recalls.sum(axis=1) / (occurrences > 0).sum(axis=1)
    return mean
