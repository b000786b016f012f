"""Scores against independent references: jiwer, scikit-learn, scipy, and an LCS written out."""

import random
import re
import warnings
from collections.abc import Callable

import jiwer
import numpy as np
import pytest
import sklearn.metrics  # type: ignore[import-untyped]
from tests.helpers.errors import refused
from whisper.normalizers import EnglishTextNormalizer

from sottovoce.errors import SottovoceError
from sottovoce.evaluation import Prediction, Score
from sottovoce.evaluation.bootstrap import bootstrap, mean_of_ratios, ratio
from sottovoce.evaluation.metrics import accuracy, balanced_accuracy, emotion_fit, rouge_l, word_error_rate

WORDS = "the cat sat on a warm mat and saw two small birds fly over an old grey barn".split()
EMOTIONS = ("angry", "happy", "neutral", "sad")


def heard(target: str, response: str, row: int = 0) -> Prediction:
    return Prediction(f"u{row}", "asr", "both", "repeat", response, target)


def labelled(label: str, predicted: str | None, row: int = 0) -> Prediction:
    return Prediction(f"u{row}", "emotion", "both", "how?", f"{predicted}", label, label, predicted)


def replied(response: str, label: str | None, rivals: dict[str, str] | None) -> Prediction:
    return Prediction("u1", "dialogue", "both", "", response, "", label, rivals=rivals)


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


def test_wer_is_of_the_corpus_and_not_a_mean_of_rows() -> None:
    score = word_error_rate([heard("yes", "no"), heard("one big dog ran to the barn now and then", "")])
    assert score.value == 1.0
    score = word_error_rate(
        [heard("yes", "no"), heard("a dog ran to that old barn again today", "a dog ran to that old barn again today")]
    )
    assert score.value == pytest.approx(0.1)
    assert score.low == 0 and score.high == 1


def test_wer_reads_as_whisper_does() -> None:
    assert (
        word_error_rate([heard("Mr. Smith won't pay $20, um", "mister smith will not pay twenty dollars")]).value == 0
    )
    assert word_error_rate([heard("The colour.", "the color")]).value == 0


def test_wer_counts_each_kind_of_error_and_is_not_clipped() -> None:
    kinds = [("cat dog", "cat bird"), ("cat dog", "cat"), ("cat", "cat dog bird"), ("cat", "")]
    score = word_error_rate([heard(*pair, row=i) for i, pair in enumerate(kinds)])
    assert score.value == pytest.approx(5 / 6, abs=1e-6)
    assert word_error_rate([heard("yes", "well maybe not")]).value == 3
    for reference, response in kinds:  # the rows' contributions are what the interval is drawn from
        single = word_error_rate([heard(reference, response)])
        assert single.low == single.high == single.value


def test_wer_drops_and_counts_references_without_words() -> None:
    rows = [heard("Um, uh.", "something"), heard("cat", "cat"), heard("", "")]
    score = word_error_rate(rows)
    assert (score.value, score.n, score.baseline) == (0, 1, None)
    assert score.notes == "2 of 3 references are empty after normalising and were dropped"
    with pytest.raises(SottovoceError, match="none of 1 references has a word"):
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


def plain_rouge_l(response: str, target: str) -> float:
    a, b = (re.findall("[a-z0-9]+", text.lower()) for text in (response, target))
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    common = int(table[-1, -1])
    return 2 * common / (len(a) + len(b)) if common else 0.0


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    pairs = [*noisy_pairs(30), ("Two birds.", ""), ("one. two\nthree", "THREE two")]
    expected = np.mean([plain_rouge_l(response, target) for target, response in pairs])
    assert rouge_l([heard(*pair) for pair in pairs]).value == pytest.approx(expected, abs=1e-6)


def test_rouge_l_says_where_it_cannot_read() -> None:
    score = rouge_l([heard("你好", "你好"), heard("Two birds", "two birds")])
    assert (score.value, score.baseline) == (0.5, None)
    assert score.notes == "1 of 2 targets have no word in a-z or 0-9 and score 0"


RIVALS = {"happy": "how lovely that you saw birds", "sad": "so sorry that you saw birds", "angry": "calm down please"}


@pytest.mark.parametrize(
    ("response", "label", "fits"),
    [
        ("How lovely, you saw birds!", "happy", 1),
        ("How lovely, you saw birds!", "sad", 0),
        ("that you saw birds", "happy", 0),  # as near to happy as to sad
        ("nothing of the kind", "angry", 0),  # as far from all
        ("", "sad", 0),
        ("please calm down", "angry", 1),
    ],
)
def test_a_reply_fits_the_emotion_whose_rival_is_nearest(response: str, label: str, fits: int) -> None:
    for rivals in (RIVALS, dict(reversed(RIVALS.items()))):
        score = emotion_fit([replied(response, label, rivals)])
        assert (score.value, score.n) == (fits, 1)
        assert score.baseline == pytest.approx(1 / 3, abs=1e-6)


def test_replies_that_cannot_be_judged_are_left_out_and_counted() -> None:
    rows = [replied("calm down", "angry", RIVALS), replied("calm down", "angry", None)]
    score = emotion_fit(rows)
    assert (score.value, score.n) == (1, 1)
    assert score.notes == "1 of 2 replies have no rivals and were left out of the fit"
    with pytest.raises(SottovoceError, match="none of 1 predictions has `rivals`"):
        emotion_fit(rows[1:])


def test_each_reply_meets_its_own_rivals() -> None:
    pair = {"happy": "great news", "sad": "bad news"}
    rows = [
        replied("so sorry you saw birds", "sad", RIVALS),
        replied("bad news", "happy", pair),
        replied("great news", "happy", pair),
    ]
    score = emotion_fit(rows)
    assert score.value == pytest.approx(2 / 3, abs=1e-6)
    assert score.baseline == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (replied("x", "happy", {"happy": "x"}), "it has 1"),
        (replied("x", None, RIVALS), "'u1' has no true emotion"),
        (replied("x", "hapy", RIVALS), "no rival is called 'hapy'. Did you mean 'happy'"),
    ],
)
def test_a_dialogue_that_cannot_be_judged_is_an_error(row: Prediction, message: str) -> None:
    with pytest.raises(SottovoceError, match=message):
        emotion_fit([replied("x", "sad", RIVALS), row])


METRICS: list[tuple[Callable[[list[Prediction]], Score], Prediction, Prediction, float]] = [
    (word_error_rate, heard("cat", "cat"), heard("cat", "dog"), 0),
    (accuracy, labelled("low", "low"), labelled("low", "high"), 1),
    (balanced_accuracy, labelled("low", "low"), labelled("low", None), 1),
    (rouge_l, heard("cat", "cat"), heard("cat", "dog"), 1),
    (emotion_fit, replied("calm down", "angry", RIVALS), replied("calm down", "sad", RIVALS), 1),
]


@pytest.mark.parametrize(("metric", "right", "wrong", "best"), METRICS)
@pytest.mark.parametrize("rows", [1, 20])
def test_constant_rows_have_no_width(
    metric: Callable[[list[Prediction]], Score], right: Prediction, wrong: Prediction, best: float, rows: int
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        perfect, worst = metric([right] * rows), metric([wrong] * rows)
    assert perfect.low == perfect.value == perfect.high == best
    assert worst.low == worst.value == worst.high == 1 - best
    assert perfect.n == rows


@pytest.mark.parametrize(("metric", "right", "wrong", "best"), METRICS)
def test_intervals_hold_the_value_shrink_and_repeat(
    metric: Callable[[list[Prediction]], Score], right: Prediction, wrong: Prediction, best: float
) -> None:
    few, many = metric([right] * 15 + [wrong] * 5), metric([right] * 150 + [wrong] * 50)
    for score in (few, many):
        assert score.low < score.value < score.high
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert metric([right] * 15 + [wrong] * 5) == few


@pytest.mark.parametrize("metric", [word_error_rate, accuracy, balanced_accuracy, rouge_l, emotion_fit])
def test_nothing_to_score_is_an_error(metric: Callable[[list[Prediction]], Score]) -> None:
    with pytest.raises(ValueError, match=f"{metric.__name__}: there are no predictions"):
        metric([])


@pytest.mark.parametrize("metric", [accuracy, balanced_accuracy])
def test_a_row_without_its_truth_is_an_error(metric: Callable[[list[Prediction]], Score]) -> None:
    with pytest.raises(SottovoceError, match="prediction 'u0' of task 'asr' has no true label"):
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


def test_the_bootstrap_refuses_no_rows() -> None:
    with refused("empty"):
        bootstrap(np.zeros((0, 2)), ratio)
