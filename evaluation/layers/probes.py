"""Linear probes and the logit lens of every state of an LLM: from arrays to curves over its layers.

Three of the five layer-wise analyses of PE-FT (Resurfacing Paralinguistic Awareness in Large Audio Language Models,
2026, section 4), which leaves sizes, splits and penalties open; what is done here is said with each function.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import SottovoceError
from sottovoce.evaluation.bootstrap import mean_of_ratios, ratio
from sottovoce.evaluation.layers.split import Codes, Curve, Kind, codes_of, drawn, make_curve
from sottovoce.evaluation.linear_probe import folds_by_speaker, most_folds, probe
from sottovoce.evaluation.metrics import Prediction

States = NDArray[np.float32]  # (utterances, states, dim)
Names = NDArray[np.str_]
Array = NDArray[np.float64]

TOP = 3  # tokens of a layer among which the final one counts as found
# There are thousands of probes, and weak penalties are slow to converge.
KNOBS: dict[str, Any] = {"strengths": (1e-4, 1e-2, 1.0), "inner_folds": 2}
BALANCED = "balanced accuracy"
AGREEMENT = "share of utterances"


def attribute_probe(
    states: States, labels: Sequence[str], speakers: Sequence[str], *, folds: int = 5, seed: int = 0
) -> Curve:
    """Linear probe of each state for an attribute, tested on held-out speakers.

    Balanced accuracy by cross-validation over speakers (see `probe`, also for errors); intervals from resampled
    speakers, which are too narrow where there are few.

    Args:
        states: (utterances, states, dim), the mean over the speech positions.
        labels: (utterances,), such as `child`.
        speakers: (utterances,), who spoke.
        folds: of speakers; fewer where there are fewer speakers.
        seed: of folds and resamples.
    """
    folds = min(folds, most_folds(np.asarray(labels), np.asarray(speakers)))
    probes = [probe(x, labels, speakers, folds=folds, seed=seed, **KNOBS) for x in states.swapaxes(0, 1)]
    predictions = [each.predictions for each in probes]
    return _accuracy_curve("paralinguistic", predictions, [codes_of(speakers)], seed, f"{folds} folds of speakers.")


def intent_probe(
    states: States,
    intents: Sequence[str],
    speakers: Sequence[str],
    texts: Sequence[str],
    *,
    folds: int = 3,
    seed: int = 0,
) -> Curve:
    """Linear probe of each state for the intent, tested on held-out speakers and held-out texts.

    With speakers alone held out, a probe could know an intent by its sentences. So both are dealt to folds, and
    each cell of the grid (a fold of speakers, a fold of texts) is tested by a probe of the cells that share neither
    its row nor its column: folds squared probes a state. The texts of an intent are spread over the folds; an utterance
    whose intent no other fold has is not tested, and counted in the notes. Intervals from speakers and texts, both
    resampled. Arguments as in `attribute_probe`; `intents` says what each utterance is about or wants, `texts` its
    words. There are fewer folds where there are fewer texts or speakers.

    Raises:
        SottovoceError: there are fewer than two intents, or none that two texts express; see `probe` for others.
    """
    folds = min(folds, most_folds(np.asarray(intents), np.asarray(speakers)), _most_texts(intents, texts))
    what, who = np.asarray(intents), np.asarray(speakers)
    cells = list(_cells(what, who, np.asarray(texts), folds, seed))
    if not cells:
        message = "intent probe: no intent is left to test by other words and speakers; give more of both"
        raise SottovoceError(message, code="empty", where="intents")
    predictions = [_grid(x, what, who, cells, seed) for x in states.swapaxes(0, 1)]
    tested = np.concatenate([test for _, test in cells])
    notes = f"{folds} x {folds} folds: no speaker and no text of the test side was trained on."
    if untested := len(intents) - len(tested):
        notes += f" {untested} utterances not tested, as no other text has their intent."
    groups = [codes_of(who[tested].tolist()), codes_of(np.asarray(texts)[tested].tolist())]
    return _accuracy_curve("semantic", predictions, groups, seed, notes)


def _most_texts(intents: Sequence[str], texts: Sequence[str]) -> int:
    expressed = np.unique(np.stack([np.asarray(intents), np.asarray(texts)]), axis=1)[0]
    names, counts = np.unique(expressed, return_counts=True)
    if len(names) < 2 or (counts > 1).sum() < 2:
        message = f"intent probe: needs two intents in two texts each; of {len(names)}, {(counts > 1).sum()} have two"
        raise SottovoceError(message, code="empty", where="intents")
    return int(counts.max())


def _cells(intents: Names, speakers: Names, texts: Names, folds: int, seed: int) -> Iterator[tuple[Codes, Codes]]:
    """Rows to train on and rows to test, of every cell that can be tested."""
    by_speaker = np.zeros(len(intents), dtype=np.intp)
    for fold, (_, test) in enumerate(folds_by_speaker(intents, speakers, folds, seed)):
        by_speaker[test] = fold
    by_text = _text_folds(intents, texts, folds, seed)
    for row, column in np.ndindex(folds, folds):
        train = np.flatnonzero((by_speaker != row) & (by_text != column))
        tested = (by_speaker == row) & (by_text == column) & np.isin(intents, intents[train])
        if tested.any() and len(np.unique(intents[train])) > 1:
            yield train, np.flatnonzero(tested)


def _text_folds(intents: Names, texts: Names, folds: int, seed: int) -> Codes:
    """The fold of each row's text: the texts of an intent are dealt one after another, in an order drawn once."""
    names, first, inverse = np.unique(texts, return_index=True, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    order = shuffled[np.argsort(intents[first][shuffled], kind="stable")]
    folds_of = np.empty(len(names), dtype=np.intp)
    folds_of[order] = np.arange(len(names)) % folds
    return np.asarray(folds_of[inverse], dtype=np.intp)


def _grid(
    x: NDArray[np.float32], intents: Names, speakers: Names, cells: Sequence[tuple[Codes, Codes]], seed: int
) -> list[Prediction]:
    """Predictions of every cell's test rows, one cell after another."""
    predictions: list[Prediction] = []
    for train, test in cells:
        rows = np.concatenate([train, test])
        held_out = np.arange(len(rows)) >= len(train)
        names, who = intents[rows].tolist(), speakers[rows].tolist()
        predictions += probe(x[rows], names, who, held_out=held_out, seed=seed, **KNOBS).predictions
    return predictions


def lens_agreement(
    ranks: NDArray[np.int32], tokens: Sequence[int], texts: Sequence[str], *, vocabulary: int, seed: int = 0
) -> Curve:
    """Logit lens: share of utterances whose final first token is among the top 3 of a layer already.

    The logit lens (nostalgebraist, 2020): the final norm and output embeddings, applied to a layer's output at the
    last position. Intervals from resampled texts.

    `ranks` is (utterances, states), the place of the final top-1 token in each layer's order, 0 for the first. The
    notes say how many different `tokens` these are, since one for all is easy to agree on. `vocabulary` is how many
    there could have been, for chance.
    """
    hits = (ranks < TOP).astype(np.float64)
    rows = [np.stack([hit, np.ones_like(hit)], axis=1) for hit in hits.T]
    draws = _scores(ratio, drawn(seed, codes_of(texts)), rows)
    kinds = len(set(tokens))
    notes = f"Top {TOP}. The answers begin with {kinds} different token{'s' if kinds > 1 else ''}."
    chance = min(1.0, TOP / vocabulary)
    shares = hits.mean(axis=0).tolist()
    return make_curve("lens", shares, draws, chance=chance, unit=AGREEMENT, n=len(hits), notes=notes)


def _accuracy_curve(
    kind: Kind, predictions: Sequence[Sequence[Prediction]], groups: Sequence[Codes], seed: int, notes: str
) -> Curve:
    """Balanced accuracy of each state's predictions, which are in one order for all; `groups` are resampled."""
    truth = np.asarray([p.label for p in predictions[0]])
    classes = np.unique(truth)
    occurs = (truth[:, None] == classes).astype(np.float64)
    hits = [occurs * (truth == np.asarray([p.predicted for p in each]))[:, None] for each in predictions]
    rows = [np.concatenate([hit, occurs], axis=1) for hit in hits]
    values = [float(mean_of_ratios(part.sum(0, keepdims=True))[0]) for part in rows]
    draws = _scores(mean_of_ratios, drawn(seed, *groups), rows)
    return make_curve(kind, values, draws, chance=1 / len(classes), unit=BALANCED, n=len(truth), notes=notes)


def _scores(statistic: Callable[[Array], Array], weights: Array, rows: Sequence[Array]) -> Array:
    """Scores of each state's rows, (resamples, states), nan where a resample holds none; see `bootstrap`."""
    with np.errstate(invalid="ignore"):
        return np.stack([statistic(weights @ part) for part in rows], axis=1)
