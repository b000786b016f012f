"""Word probe: how well a linear map of pooled features tells what was said, of the texts of a test side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import SottovoceError

if TYPE_CHECKING:  # takes seconds to import
    from sklearn.model_selection import GridSearchCV

Array = NDArray[np.floating[Any]]
PENALTIES = tuple(10.0**power for power in range(-1, 6))  # scikit-learn's alpha of ridge regression
INNER_FOLDS = 3  # at most, of the training speakers, to choose a penalty by
CHANCE = 0.5


class WordsFound(NamedTuple):
    """Outcome of a word probe.

    `rank` is (tested,), the share of the other texts of the test side that are less like what was found than the true
    one: 1 is the best, 0.5 is chance. `validation` is R^2 in cross-validation over the training speakers.
    """

    rank: NDArray[np.float64]
    validation: float


def word_probe(
    features: Array, meanings: Array, texts: Sequence[str], speakers: Sequence[str], held_out: Sequence[bool]
) -> WordsFound:
    """Ridge regression of pooled features onto the mean word embedding of the transcript, tested by retrieval.

    A class probe makes no sense of transcripts, of which there are as many as utterances. What it finds is which words
    were said, and not their order. Features are standardised, and embeddings lose their mean, on the training side;
    likeness is the cosine.

    Args:
        features: (rows, dim), such as mean and deviation over time of an utterance's frames.
        meanings: (rows, dim of an embedding), the mean embedding of the words of each text.
        texts: (rows,), what was said.
        speakers: (rows,), who spoke.
        held_out: (rows,), true where a row is tested, and not trained on.

    Raises:
        SottovoceError: lengths differ, or numbers are not finite; a speaker is on both sides; the test side has fewer
            than two texts, or the training side fewer than three rows.
    """
    x, y = np.asarray(features, np.float64), np.asarray(meanings, np.float64)
    who, said, tested = np.asarray(speakers), np.asarray(texts), np.asarray(held_out, bool)
    if not len(x) == len(y) == len(who) == len(said) == len(tested):
        counts = [len(each) for each in (x, y, who, said, tested)]
        raise SottovoceError(f"word probe: features, embeddings ... of {counts} rows", code="mismatch")
    if not np.isfinite(x).all():
        raise SottovoceError("word probe: features are not finite", code="nonfinite", where="features")
    if np.intersect1d(who[tested], who[~tested]).size:
        raise SottovoceError("word probe: a speaker is on both sides", code="conflict", where="speakers")
    names, first, which = np.unique(said[tested], return_index=True, return_inverse=True)
    if len(names) < 2 or (~tested).sum() < 3:
        told = f"{len(names)} texts to tell apart, {(~tested).sum()} rows to learn from"
        raise SottovoceError(f"word probe: {told}", code="empty", where="texts")
    search = _search(who[~tested]).fit(x[~tested], y[~tested])
    centre = y[~tested].mean(0)
    found, known = _unit(search.predict(x[tested]) - centre), _unit(y[tested][first] - centre)
    likeness = found @ known.T  # (tested, texts)
    own = np.take_along_axis(likeness, which.reshape(-1, 1), 1)
    below = (likeness < own).sum(1) + ((likeness == own).sum(1) - 1) / 2
    return WordsFound(below / (len(names) - 1), float(search.best_score_))


def _search(speakers: NDArray[Any]) -> "GridSearchCV":
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = len(np.unique(speakers))
    folds = min(INNER_FOLDS, known)
    rows = np.arange(len(speakers))
    inner: Any = list(GroupKFold(folds).split(rows, groups=speakers)) if folds > 1 else min(INNER_FOLDS, len(rows))
    grid = {"ridge__alpha": list(PENALTIES)}
    return GridSearchCV(make_pipeline(StandardScaler(), Ridge()), grid, scoring="r2", cv=inner, error_score="raise")


def _unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1; those of zeros stay, to whom all texts are equal."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(x, length, out=np.zeros_like(x), where=length > 1e-12)
    return unit
