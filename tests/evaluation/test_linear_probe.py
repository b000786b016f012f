"""A probe finds what is there, finds nothing where nothing is, and never knows a speaker again."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.model_selection import KFold, cross_val_score  # type: ignore[import-untyped]
from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]
from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]
from tests.helpers.errors import refused

from sottovoce.errors import Code
from sottovoce.evaluation.linear_probe import STRENGTHS, probe

CLASSES = ("angry", "happy", "sad")
SPEAKERS, EACH = 8, 12  # so many rows a speaker
Data = tuple[NDArray[np.float64], list[str], list[str]]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A probe that did not converge, or a fold that scikit-learn doubts, would say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def data(strength: float, seed: int = 0, dim: int = 6) -> Data:
    """Every speaker says every class; classes shift the features by `strength`, speakers by as much again."""
    random = np.random.default_rng(seed)
    labels = [CLASSES[i % 3] for i in range(SPEAKERS * EACH)]
    speakers = [f"s{i // EACH}" for i in range(SPEAKERS * EACH)]
    centres = {name: random.normal(size=dim) * 2 for name in (*CLASSES, *speakers)}
    shift = np.stack([strength * centres[a] + centres[b] for a, b in zip(labels, speakers, strict=True)])
    return random.normal(size=shift.shape) + shift, labels, speakers


def on(speakers: list[str], *names: str) -> list[bool]:
    return [speaker in names for speaker in speakers]


@pytest.mark.parametrize("split", [True, False])
def test_what_is_there_is_found(split: bool) -> None:
    features, labels, speakers = data(8)
    result = probe(features, labels, speakers, held_out=on(speakers, "s1", "s4") if split else None, folds=4)
    for score in (result.accuracy, result.balanced_accuracy):
        assert score.value > 0.95 and score.low <= score.value <= score.high
        assert score.baseline == pytest.approx(1 / 3, abs=1e-6)
        assert score.n == len(result.predictions) == (2 * EACH if split else len(labels))
    assert len(result.strengths) == (1 if split else 4) and set(result.strengths) <= set(STRENGTHS)
    assert max(result.strengths) <= 0.1  # where many find all, the strictest is taken


def test_every_tested_row_is_told_once_and_in_order() -> None:
    features, labels, speakers = data(1)
    held_out = on(speakers, "s2", "s5")
    for mask in (held_out, None):
        result = probe(features, labels, speakers, held_out=mask, folds=3)
        rows = [int(prediction.id) for prediction in result.predictions]
        assert rows == [i for i in range(len(labels)) if mask is None or mask[i]]
        for row, prediction in zip(rows, result.predictions, strict=True):
            assert (prediction.label, prediction.speaker) == (labels[row], speakers[row])
            assert prediction.predicted == prediction.response and prediction.predicted in CLASSES
        hits = np.mean([p.label == p.predicted for p in result.predictions])
        assert result.accuracy.value == pytest.approx(hits, abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shuffled_labels_are_chance(seed: int) -> None:
    features, labels, speakers = data(8)
    shuffled = np.random.default_rng(seed).permutation(labels).tolist()
    score = probe(features, shuffled, speakers, folds=2, seed=seed).balanced_accuracy
    assert score.low <= 1 / 3 <= score.high


def test_features_that_know_the_speaker_alone_are_worth_nothing() -> None:
    """Each speaker has one label, as of gender: who knows the speaker again knows the label."""
    speakers = [f"s{i // EACH}" for i in range(SPEAKERS * EACH)]
    labels = [("female", "male")[i // EACH % 2] for i in range(SPEAKERS * EACH)]
    known = np.eye(SPEAKERS)[[i // EACH for i in range(SPEAKERS * EACH)]]
    leaky = make_pipeline(StandardScaler(), LogisticRegression())
    assert cross_val_score(leaky, known, labels, cv=KFold(4, shuffle=True, random_state=0)).min() == 1
    for held_out in (on(speakers, "s0", "s1"), None):
        result = probe(known, labels, speakers, held_out=held_out, folds=4)
        assert result.accuracy.value <= 0.5 and result.balanced_accuracy.value <= 0.5


def test_speakers_alone_do_not_choose_the_penalty() -> None:
    """Inside the training side, too, a speaker is never validated by a probe that has heard it."""
    random = np.random.default_rng(0)
    labels = [CLASSES[i % 3] for i in range(SPEAKERS * EACH)]
    speakers = [f"s{i // EACH}" for i in range(SPEAKERS * EACH)]
    # what a label sounds like with one speaker says nothing of the others: it can be learnt by heart only
    habits = random.normal(size=(SPEAKERS, 3, 40)) * 4
    x = np.stack([habits[i // EACH, i % 3] for i in range(len(labels))]) + 0.1 * random.normal(size=(len(labels), 40))
    result = probe(x, labels, speakers, held_out=on(speakers, "s0"))
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=max(STRENGTHS), max_iter=1000))
    by_heart = cross_val_score(plain, x, labels, cv=KFold(4, shuffle=True, random_state=0)).mean()
    assert by_heart > 0.95  # folds that ignore speakers would have praised a loose penalty
    assert result.strengths[0] < 1e-2


def test_the_test_side_has_no_say_in_training() -> None:
    features, labels, speakers = data(0.6)
    held_out = np.asarray(on(speakers, "s0", "s3"))
    first = probe(features, labels, speakers, held_out=held_out)
    changed, others = features.copy(), np.flatnonzero(held_out)[10:]
    changed[others] = 1000 - 50 * changed[others]
    relabelled = [CLASSES[0] if i in others else label for i, label in enumerate(labels)]
    second = probe(changed, relabelled, speakers, held_out=held_out)
    assert second.strengths == first.strengths
    told = [[p.predicted for p in result.predictions[:10]] for result in (first, second)]
    assert told[0] == told[1]
    assert second.accuracy != first.accuracy


def test_the_unit_of_a_feature_does_not_matter() -> None:
    features, labels, speakers = data(0.6)
    units = np.array([1e3, 1e-3, 1, 10, 0.1, 1e2])
    held_out = on(speakers, "s0", "s1", "s2")
    plain, scaled = (probe(x, labels, speakers, held_out=held_out) for x in (features, features * units + 5))
    assert plain == scaled


def test_one_seed_gives_one_result() -> None:
    features, labels, speakers = data(0.4)
    results = [probe(features, labels, speakers, folds=2, seed=seed) for seed in (0, 1, 2, 2)]
    assert results[2] == results[3]
    assert len({result.predictions for result in results}) > 1


def test_a_rare_class_is_no_obstacle() -> None:
    """Fewer rows than folds, and not with every speaker."""
    features, labels, speakers = data(8)
    rare = ["rare" if i in (0, EACH, 5 * EACH) else label for i, label in enumerate(labels)]
    result = probe(features, rare, speakers, folds=5)
    assert {p.label for p in result.predictions} == {*CLASSES, "rare"}
    assert result.balanced_accuracy.baseline == 0.25


X, LABELS, WHO = data(1)
SPLIT = on(WHO, "s0", "s1")
PAIR = ["s0" if i < EACH else "s1" for i in range(len(WHO))]
TRIO = ["s0" if speaker == "s0" else "s1" if speaker < "s5" else "s2" for speaker in WHO]


@pytest.mark.parametrize(
    ("changes", "code", "where"),
    [
        ({"held_out": [*[False] * 3, *SPLIT[3:]]}, "conflict", "the given split"),  # a speaker on both sides
        ({"labels": ["odd", *LABELS[1:]], "held_out": SPLIT}, "mismatch", "the given split"),  # tested, not trained
        ({"labels": ["odd" if w == "s6" else label for label, w in zip(LABELS, WHO, strict=True)]}, "mismatch", "of 5"),
        ({"labels": ["sad"] * len(WHO)}, "empty", "labels"),
        ({"labels": [a if held else "sad" for a, held in zip(LABELS, SPLIT, strict=True)], "held_out": SPLIT},
         "mismatch", "the given split"),
        ({"held_out": [True] * len(WHO)}, "empty", "the given split"),
        ({"held_out": [False] * len(WHO)}, "empty", "the given split"),
        ({"folds": 1}, "bad-value", "folds"),
        ({"folds": SPEAKERS + 1}, "bad-value", "folds"),
        ({"speakers": PAIR, "held_out": on(PAIR, "s1")}, "empty", "the given split"),  # nobody to choose by
        ({"labels": ["female" if w == "s0" else "male" for w in WHO], "speakers": TRIO, "held_out": on(TRIO, "s2")},
         "empty", "the given split"),
        ({"labels": LABELS[1:]}, "mismatch", ""),
        ({"features": X[:, 0]}, "mismatch", ""),
        ({"held_out": [0, 1] * 48}, "bad-value", "held_out"),
        ({"speakers": [*WHO[:7], None, *WHO[8:]]}, "bad-value", "speakers"),
        ({"features": np.where(np.arange(6) == 2, np.nan, X)}, "nonfinite", "0"),
    ],
)  # fmt: skip
def test_what_cannot_be_probed_is_refused(changes: dict[str, Any], code: Code, where: str) -> None:
    with refused(code, where):
        probe(**{"features": X, "labels": LABELS, "speakers": WHO, **changes})
