"""Scores against independent references: jiwer, scikit-learn, scipy, and numbers by hand."""

import random
import warnings
from collections.abc import Callable
from dataclasses import replace

import jiwer
import numpy as np
import pytest
import sklearn.metrics  # type: ignore[import-untyped]
from tests.helpers.errors import refused
from whisper.normalizers import EnglishTextNormalizer

from sottovoce.evaluation import Prediction, Score, score_all
from sottovoce.evaluation.awareness import AWARENESS, emotion_fit
from sottovoce.evaluation.bootstrap import bootstrap, mean_of_ratios, ratio
from sottovoce.evaluation.metrics import accuracy, balanced_accuracy, word_error_rate
from sottovoce.evaluation.text_similarity import ROUGE, rouge_l

WORDS = "the cat sat on a warm mat and saw two small birds fly over an old grey barn".split()
EMOTIONS = ("angry", "happy", "neutral", "sad")


def heard(target: str, response: str, row: int = 0) -> Prediction:
    return Prediction(f"u{row}", "asr", "both", "repeat", response, target)


def labelled(label: str, predicted: str | None, row: int = 0) -> Prediction:
    return Prediction(f"u{row}", "emotion", "both", "how?", f"{predicted}", label, label, predicted)


def noisy_pairs(rows: int) -> list[tuple[str, str]]:
    """Sentences of very different lengths, with words dropped, doubled and replaced."""
    draw = random.Random(1)
    pairs = []
    for _ in range(rows):
        words = draw.choices(WORDS, k=draw.choice([1, 3, 20]))
        noisy = [w for word in words for w in draw.choice([[word]] * 6 + [[], [word, word], ["nothing"]])]
        pairs.append((" ".join(words).capitalize() + ".", " ".join(noisy) + "!"))
    return pairs


def guesses(rows: int, classes: tuple[str, ...] = EMOTIONS) -> list[Prediction]:
    """Unequal classes, some responses without a label, some with a label that no utterance has."""
    draw = random.Random(2)
    truth = [*classes, *draw.choices(classes, weights=range(1, len(classes) + 1), k=rows - len(classes))]
    said = [draw.choice([label, label, label, draw.choice(classes), None, "bored"]) for label in truth]
    return [labelled(label, found, i) for i, (label, found) in enumerate(zip(truth, said, strict=True))]


def test_wer_is_jiwers_on_normalised_text() -> None:
    pairs, normal = noisy_pairs(40), EnglishTextNormalizer()
    expected = jiwer.wer([normal(t) for t, _ in pairs], [normal(r) for _, r in pairs])
    assert 0.1 < expected < 0.9
    assert word_error_rate([heard(*pair) for pair in pairs]).value == pytest.approx(expected, abs=1e-6)


WHOLE = "a dog ran to that old barn again today"


@pytest.mark.parametrize(
    ("pairs", "errors", "words"),
    [
        ([("yes", "no"), ("one big dog ran to the barn now and then", "")], 11, 11),
        ([("yes", "no"), (WHOLE, WHOLE)], 1, 10),  # of the corpus, and no mean of rows
        ([("Mr. Smith won't pay $20, um", "mister smith will not pay twenty dollars")], 0, 1),  # as Whisper reads
        ([("The colour.", "the color")], 0, 1),
        ([("cat dog", "cat bird")], 1, 2),
        ([("cat dog", "cat")], 1, 2),
        ([("cat", "cat dog bird")], 2, 1),  # not clipped
        ([("cat", "")], 1, 1),
        ([("yes", "well maybe not")], 3, 1),
        ([("cat dog", "cat bird"), ("cat dog", "cat"), ("cat", "cat dog bird"), ("cat", "")], 5, 6),
    ],
)
def test_wer_is_errors_over_words_of_the_corpus(pairs: list[tuple[str, str]], errors: int, words: int) -> None:
    measure = word_error_rate.measure([heard(*pair) for pair in pairs])
    assert measure.value == pytest.approx(errors / words)
    assert ratio(measure.rows.sum(0, keepdims=True))[0] == pytest.approx(errors / words)  # the interval is of the same


def test_wer_drops_and_counts_references_without_words() -> None:
    rows = [heard("Um, uh.", "something"), heard("cat", "cat"), heard("", "")]
    score = word_error_rate(rows)
    assert (score.value, score.n, score.baseline) == (0, 1, None)
    assert score.notes == "2 of 3 references are empty after normalising and were dropped"
    with refused("empty"):
        word_error_rate(rows[:1])


@pytest.mark.parametrize("classes", [EMOTIONS, ("female", "male")])
def test_accuracies_are_scikit_learns(classes: tuple[str, ...]) -> None:
    rows = guesses(60, classes)
    truth = [row.label for row in rows]
    said = [row.predicted or "none" for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # scikit-learn remarks on labels that the truth has not
        balanced = sklearn.metrics.balanced_accuracy_score(truth, said)
    assert accuracy(rows).value == pytest.approx(sklearn.metrics.accuracy_score(truth, said), abs=1e-6)
    assert balanced_accuracy(rows).value == pytest.approx(balanced, abs=1e-6)
    assert accuracy(rows).value != balanced_accuracy(rows).value
    for metric in (accuracy, balanced_accuracy):  # the interval is of the same score
        measure = metric.measure(rows)
        assert measure.statistic(measure.rows.sum(0, keepdims=True))[0] == pytest.approx(measure.value, abs=1e-6)


def test_a_response_without_a_label_is_wrong_and_counted() -> None:
    rows = [labelled("low", "low"), labelled("low", None), labelled("high", "high"), labelled("high", "high")]
    for metric, value in ((accuracy, 0.75), (balanced_accuracy, 0.75)):
        score = metric(rows)
        assert (score.value, score.notes) == (value, "1 of 4 responses name no label and count as wrong")
    assert accuracy(rows[2:]).notes == ""


def test_baselines_are_those_of_a_deaf_guess() -> None:
    rows = [labelled(label, label) for label in ["low", "low", "low", "high"]]
    assert (accuracy(rows).baseline, balanced_accuracy(rows).baseline) == (0.75, 0.5)
    always = [labelled(row.label or "", "low") for row in rows]
    assert (accuracy(always).value, balanced_accuracy(always).value) == (0.75, 0.5)


def test_an_answer_outside_the_truth_adds_no_class() -> None:
    rows = [labelled("low", "low"), labelled("high", "normal")]
    assert (balanced_accuracy(rows).value, balanced_accuracy(rows).baseline) == (0.5, 0.5)


METRICS: list[tuple[Callable[[list[Prediction]], Score], Prediction, Prediction, float]] = [
    (word_error_rate, heard("cat", "cat"), heard("cat", "dog"), 0),
    (accuracy, labelled("low", "low"), labelled("low", "high"), 1),
    (balanced_accuracy, labelled("low", "low"), labelled("low", None), 1),
    (rouge_l, heard("cat", "cat"), heard("cat", "dog"), 1),
]


@pytest.mark.parametrize(("metric", "right", "wrong", "best"), METRICS)
def test_intervals_hold_the_value_shrink_and_repeat(
    metric: Callable[[list[Prediction]], Score], right: Prediction, wrong: Prediction, best: float
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rows in (1, 20):  # where all agree there is no width
            assert metric([right] * rows)[:4] == (best, best, best, rows)
            assert metric([wrong] * rows)[:4] == (1 - best, 1 - best, 1 - best, rows)
    few, many = metric([right] * 15 + [wrong] * 5), metric([right] * 150 + [wrong] * 50)
    for score in (few, many):
        assert score.low < score.value < score.high
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert metric([right] * 15 + [wrong] * 5) == few


@pytest.mark.parametrize(
    "metric", [word_error_rate, accuracy, balanced_accuracy, emotion_fit, *ROUGE.values(), *AWARENESS.values()]
)
def test_nothing_to_score_is_an_error(metric: Callable[[list[Prediction]], Score]) -> None:
    with refused("empty"):
        metric([])


@pytest.mark.parametrize("metric", [accuracy, balanced_accuracy])
def test_a_row_without_its_truth_is_an_error(metric: Callable[[list[Prediction]], Score]) -> None:
    with refused("missing-key", "label"):
        metric([labelled("low", "low", 1), heard("cat", "cat")])


def test_the_bootstrap_agrees_with_plain_loops() -> None:
    """Ratio of sums, resampled row by row with the same draws; percentiles by hand: the 25th of 1,000 from each end."""
    rows = np.random.default_rng(3).exponential(size=(50, 2))
    draws, scores = np.random.default_rng(7), []
    for _ in range(1000):
        chosen = rows[draws.integers(50, size=50)]
        scores.append(chosen[:, 0].sum() / chosen[:, 1].sum())
    low, high = bootstrap(rows, ratio, seed=7)
    ordered = sorted(scores)
    assert ordered[24] <= low <= ordered[25] and ordered[974] <= high <= ordered[975]
    assert bootstrap(rows, ratio, seed=7) == (low, high) != bootstrap(rows, ratio)


def test_a_class_that_a_resample_misses_is_left_out_of_its_mean() -> None:
    sums = np.array([[2.0, 0.0, 4.0, 0.0], [2.0, 1.0, 4.0, 1.0]])
    assert mean_of_ratios(sums).tolist() == [0.5, 0.75]


def test_an_interval_holds_the_middle_95_percent() -> None:
    """Of a share of 1/2 in 400 rows, a resample's deviation is 1/40: the ends are 1.96 of them away."""
    low, high = bootstrap(np.array([[i % 2, 1.0] for i in range(400)]), ratio)
    assert (0.5 - low, high - 0.5) == pytest.approx((1.96 / 40, 1.96 / 40), rel=0.08)


def test_the_bootstrap_refuses_no_rows() -> None:
    with refused("empty"):
        bootstrap(np.zeros((0, 2)), ratio)


def test_parts_of_the_test_side_are_scored_apart() -> None:
    responses = (("we found it", "clean"), ("we lost it", "other"), ("we found it", None))
    rows = [replace(heard("we found it", text, i), source=source) for i, (text, source) in enumerate(responses)]
    scores = {record.task: (record.value, record.n) for record in score_all("x", rows)}
    assert scores == {"asr (clean)": (0, 1), "asr (other)": (0.333333, 1), "asr": (0, 1)}
