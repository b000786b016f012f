"""Linear probe of speech features, always tested on speakers that it was not trained on."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import SottovoceError
from sottovoce.evaluation.metrics import Prediction, Score, accuracy, balanced_accuracy

if TYPE_CHECKING:  # takes seconds to import
    from sklearn.model_selection import GridSearchCV

Features = NDArray[np.floating[Any]]
Names = NDArray[np.str_]
Rows = NDArray[np.intp]

STRENGTHS = tuple(10.0**power for power in range(-5, 3))  # C, what the data weigh against the penalty; strictest first
INNER_FOLDS = 5  # at most, of the training speakers, to choose a strength by
_ITERATIONS = 10_000  # far more than a standardised probe needs


@dataclass(frozen=True)
class ProbeResult:
    """Scores, predictions and penalties of a probe."""

    accuracy: Score
    balanced_accuracy: Score
    predictions: tuple[Prediction, ...]  # one a tested row, in the order of the rows; `id` is the row's number
    strengths: tuple[float, ...]  # scikit-learn's C as chosen on the training side, one for each fold
    validation: tuple[float, ...]  # accuracy of that strength in cross-validation on the training side, of each fold


def probe(
    features: Features,
    labels: Sequence[str],
    speakers: Sequence[str],
    *,
    held_out: Sequence[bool] | NDArray[np.bool_] | None = None,
    folds: int = 5,
    strengths: Sequence[float] = STRENGTHS,
    inner_folds: int = INNER_FOLDS,
    seed: int = 0,
) -> ProbeResult:
    """Multinomial logistic regression on standardised features, tested on held-out speakers.

    SpeechEmotionLlama, section V-C, which leaves penalty and standardisation open. Means, deviations and the weight
    of the L2 penalty come from the training side alone; the weight by cross-validated accuracy over its speakers,
    the strictest of equals. Intervals come from resampled utterances, as everywhere, and so speak of other
    utterances of these speakers more than of other speakers.

    Args:
        features: (rows, dim), such as the mean over time of an utterance's speech tokens in one layer.
        labels: (rows,), what to find.
        speakers: (rows,), who spoke.
        held_out: (rows,), true where a row is to be tested and not trained on. Without it, every row is tested once:
            each of `folds` (see `folds_by_speaker`) by a probe of the others.
        folds: how many, where `held_out` is not given.
        strengths: scikit-learn's C to choose from, strictest first.
        inner_folds: of the training speakers, to choose by; fewer where there are fewer.
        seed: of the folds.

    Raises:
        SottovoceError: lengths differ, or numbers are not finite; there are fewer than two classes, or one is tested
            that was not trained; a speaker is on both sides; there are too few speakers to choose or to test by.
    """
    truth, who = _names("labels", labels), _names("speakers", speakers)
    x = _checked(np.asarray(features), truth, who)
    tested: dict[int, str] = {}
    chosen, validation = [], []
    for name, train, test in _sides(truth, who, held_out, folds, seed):
        _require_fair(name, truth, who, train, test)
        search = _search(name, truth[train], who[train], strengths, inner_folds, seed).fit(x[train], truth[train])
        chosen.append(float(search.best_params_["logisticregression__C"]))
        validation.append(float(search.best_score_))
        tested |= zip(test.tolist(), search.predict(x[test]).tolist(), strict=True)
    predictions = tuple(
        Prediction(str(row), "probe", "", "", tested[row], str(truth[row]), str(truth[row]), tested[row], str(who[row]))
        for row in sorted(tested)
    )
    rest = predictions, tuple(chosen), tuple(validation)
    return ProbeResult(accuracy(predictions), balanced_accuracy(predictions), *rest)


def _names(what: str, values: Sequence[str]) -> Names:
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise SottovoceError(f"probe: {what} has {value!r} in row {row}, no text", code="bad-value", where=what)
    return np.asarray(values, dtype=np.str_)


def _checked(x: Features, truth: Names, who: Names) -> Features:
    if x.ndim != 2 or not len(x) == len(truth) == len(who):
        message = f"probe: features {x.shape}, {len(truth)} labels and {len(who)} speakers do not fit"
        raise SottovoceError(message, code="mismatch")
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        raise SottovoceError(f"probe: the features of row {row} are not finite", code="nonfinite", where=row)
    if len(np.unique(truth)) < 2:
        raise SottovoceError("probe: needs at least two classes to tell apart", code="empty", where="labels")
    return x.astype(np.float64)


def _sides(
    truth: Names, who: Names, held_out: Sequence[bool] | NDArray[np.bool_] | None, folds: int, seed: int
) -> Iterator[tuple[str, Rows, Rows]]:
    """Name, training rows and test rows of each fold."""
    if held_out is not None:
        mask = np.asarray(held_out)
        if mask.shape != truth.shape or mask.dtype != np.bool_:
            raise SottovoceError(f"probe: held_out is no {len(truth)} booleans", code="bad-value", where="held_out")
        yield "the given split", np.flatnonzero(~mask), np.flatnonzero(mask)
        return
    most = most_folds(truth, who)
    if not 2 <= folds <= most:
        message = f"probe: {folds} folds of {len(np.unique(who))} speakers; give 2 to {most}, see `most_folds`"
        raise SottovoceError(message, code="bad-value", where="folds")
    for i, (train, test) in enumerate(folds_by_speaker(truth, who, folds, seed), 1):
        yield f"fold {i} of {folds}", train, test


def _require_fair(name: str, truth: Names, who: Names, train: Rows, test: Rows) -> None:
    """Refuse an empty side, a speaker on both sides, and a class that is tested and not trained."""
    if not len(train) or not len(test):
        raise SottovoceError(f"probe: {name} has no rows to train on, or none to test", code="empty", where=name)
    if len(both := np.intersect1d(who[train], who[test])):
        message = f"probe: {name} has {len(both)} speakers on both sides ({_some(both)})"
        raise SottovoceError(f"{message}; hold out all rows of one or none", code="conflict", where=name)
    if len(unheard := np.setdiff1d(truth[test], truth[train])):
        message = f"probe: {name} tests classes that its training side lacks: {_some(unheard)}; hold out other speakers"
        raise SottovoceError(message, code="mismatch", where=name)


def _search(name: str, truth: Names, who: Names, strengths: Sequence[float], most: int, seed: int) -> "GridSearchCV":
    """Grid search, yet to be fitted, of the penalty by cross-validation over the training speakers."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = min(most, most_folds(truth, who))
    inner = folds_by_speaker(truth, who, folds, seed) if folds > 1 else []
    telling = [(train, test) for train, test in inner if len(np.unique(truth[train])) > 1]
    if not telling:
        message = f"probe: {name}: no training speaker can be left out to choose the penalty by"
        raise SottovoceError(f"{message}; it needs two of every class", code="empty", where=name)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))
    grid = {"logisticregression__C": list(strengths)}
    return GridSearchCV(model, grid, scoring="accuracy", cv=telling, error_score="raise")


def folds_by_speaker(truth: Names, who: Names, folds: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Training and test rows of folds of speakers, stratified by label as far as speakers allow."""
    from sklearn.model_selection import StratifiedGroupKFold

    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # a class with fewer rows than folds is missing from some test sides, which does no harm
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        return list(split.split(truth[:, None], truth, who))


def most_folds(truth: Names, who: Names) -> int:
    """Most folds possible: each has a speaker, and scikit-learn refuses more than the rows of the largest class."""
    return min(len(np.unique(who)), int(np.unique(truth, return_counts=True)[1].max()))


def _some(names: Names, most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
