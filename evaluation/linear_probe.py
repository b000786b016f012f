"""What a linear map can read from speech features of speakers that it has never heard."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sottovoce.errors import SottovoceError
from sottovoce.evaluation.metrics import Prediction, Score, accuracy, balanced_accuracy

Features = NDArray[np.floating[Any]]
Names = NDArray[np.str_]
Rows = NDArray[np.intp]

STRENGTHS = tuple(10.0**power for power in range(-5, 3))  # C, what the data weigh against the penalty; strictest first
INNER_FOLDS = 5  # at most, of the training speakers, to choose a strength by
_ITERATIONS = 10_000  # far more than a standardised probe needs


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found on speakers that it had not heard.

    Args:
        accuracy: share of right labels; the baseline always answers the most frequent label.
        balanced_accuracy: mean over the classes of the share of each that was found; the baseline is one over classes.
        predictions: one a tested row, in the order of the rows; `id` is the row's number.
        strengths: scikit-learn's C as chosen on the training side, one for each fold.
    """

    accuracy: Score
    balanced_accuracy: Score
    predictions: tuple[Prediction, ...]
    strengths: tuple[float, ...]


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
    """Multinomial logistic regression on standardised features, always tested on speakers that it was not trained on.

    SpeechEmotionLlama, section V-C, which leaves penalty and standardisation open. Means, deviations and the weight
    of the L2 penalty come from the training side alone; the weight by cross-validated accuracy over its speakers,
    the strictest of equals. Intervals come from resampled utterances, as everywhere, and so speak of other
    utterances of these speakers more than of other speakers.

    Args:
        features: (rows, dim), such as the mean over time of an utterance's speech tokens in one layer.
        labels: (rows,), what to find.
        speakers: (rows,), who spoke.
        held_out: (rows,), true where a row is to be tested and not trained on. Without it, every row is tested once:
            the speakers are dealt to folds, alike in their labels as far as speakers allow, and each fold is tested
            by a probe of the others.
        folds: how many, where `held_out` is not given.
        strengths: scikit-learn's C to choose from, strictest first.
        inner_folds: of the training speakers, to choose by; fewer where there are fewer.
        seed: of the folds; one seed gives one result.

    Raises:
        SottovoceError: lengths differ, or numbers are not finite; there are fewer than two classes, or one is tested
            that was not trained; a speaker is on both sides; there are too few speakers to choose or to test by.
    """
    truth, who = _names("labels", labels), _names("speakers", speakers)
    x = _checked(np.asarray(features), truth, who)
    tested: dict[int, str] = {}
    chosen = []
    for name, train, test in _sides(truth, who, held_out, folds, seed):
        _require_fair(name, truth, who, train, test)
        search = _search(name, truth[train], who[train], strengths, inner_folds, seed).fit(x[train], truth[train])
        chosen.append(float(search.best_params_["logisticregression__C"]))
        tested |= zip(test.tolist(), search.predict(x[test]).tolist(), strict=True)
    predictions = tuple(_prediction(row, str(truth[row]), tested[row], str(who[row])) for row in sorted(tested))
    return ProbeResult(accuracy(predictions), balanced_accuracy(predictions), predictions, tuple(chosen))


def _names(what: str, values: Sequence[str]) -> Names:
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise SottovoceError(f"probe: {what} has {value!r} in row {row}; expected text, so leave out such rows")
    return np.asarray(values, dtype=np.str_)


def _checked(x: Features, truth: Names, who: Names) -> Features:
    if x.ndim != 2 or not len(x) == len(truth) == len(who):
        raise SottovoceError(
            f"probe: expected features (rows, dim) with a label and a speaker for each row, got features "
            f"{x.shape}, {len(truth)} labels and {len(who)} speakers"
        )
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        raise SottovoceError(f"probe: the features of row {row} are not finite; look at how they were computed")
    if len(classes := np.unique(truth)) < 2:
        raise SottovoceError(f"probe: needs at least two classes to tell apart, found {', '.join(classes) or 'none'}")
    return x.astype(np.float64)


def _sides(
    truth: Names, who: Names, held_out: Sequence[bool] | NDArray[np.bool_] | None, folds: int, seed: int
) -> Iterator[tuple[str, Rows, Rows]]:
    """What a pair of sides is called, and the rows of its training and its test side."""
    if held_out is not None:
        mask = np.asarray(held_out)
        if mask.shape != truth.shape or mask.dtype != np.bool_:
            raise SottovoceError(f"probe: held_out must be {len(truth)} booleans, got {mask.dtype} {mask.shape}")
        yield "the given split", np.flatnonzero(~mask), np.flatnonzero(mask)
        return
    most = most_folds(truth, who)
    if not 2 <= folds <= most:
        raise SottovoceError(
            f"probe: {folds} folds of {len(np.unique(who))} speakers; `folds` is 2 to the number of speakers, and no "
            f"more than the rows of the largest class, here {most}"
        )
    for i, (train, test) in enumerate(folds_by_speaker(truth, who, folds, seed), 1):
        yield f"fold {i} of {folds}", train, test


def _require_fair(name: str, truth: Names, who: Names, train: Rows, test: Rows) -> None:
    """Both sides hold something, no speaker is on both, and nothing is asked that could not be learnt."""
    if not len(train) or not len(test):
        raise SottovoceError(f"probe: {name} has {len(train)} rows to train on and {len(test)} to test; needs both")
    if len(both := np.intersect1d(who[train], who[test])):
        raise SottovoceError(
            f"probe: {name} has {len(both)} speakers on both sides ({_some(both)}): a probe could know them by their "
            "voice; hold out all rows of a speaker or none"
        )
    if len(unheard := np.setdiff1d(truth[test], truth[train])):
        raise SottovoceError(
            f"probe: {name} tests classes that its training side lacks: {_some(unheard)}; leave them out, hold out "
            "other speakers, or take another seed or number of folds"
        )


def _search(name: str, truth: Names, who: Names, strengths: Sequence[float], most: int, seed: int) -> GridSearchCV:
    """A probe of the training side that is yet to be fitted, and chooses its penalty by unheard speakers there."""
    folds = min(most, most_folds(truth, who))
    inner = folds_by_speaker(truth, who, folds, seed) if folds > 1 else []
    telling = [(train, test) for train, test in inner if len(np.unique(truth[train])) > 1]
    if not telling:
        raise SottovoceError(
            f"probe: the training side of {name} has {len(np.unique(who))} speakers, of which none can be left out "
            "to choose the penalty by; train on at least two speakers of every class"
        )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))
    grid = {"logisticregression__C": list(strengths)}
    return GridSearchCV(model, grid, scoring="accuracy", cv=telling, error_score="raise")


def folds_by_speaker(truth: Names, who: Names, folds: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Rows to train on and to test: speakers are dealt to folds, alike in their labels as far as they allow."""
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # a class with fewer rows than folds is missing from some test sides, which does no harm
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        return list(split.split(truth[:, None], truth, who))


def most_folds(truth: Names, who: Names) -> int:
    """Every fold has a speaker; and scikit-learn refuses to spread classes that all have fewer rows than folds."""
    return min(len(np.unique(who)), int(np.unique(truth, return_counts=True)[1].max()))


def _prediction(row: int, label: str, predicted: str, speaker: str) -> Prediction:
    return Prediction(str(row), "probe", "", "", predicted, label, label, predicted, speaker)


def _some(names: Names, most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
