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
from sottovoce.evaluation.bootstrap import bootstrap, by_speaker, mean_of_ratios, ratio, resample
from sottovoce.evaluation.metrics import (
    accuracy,
    balanced_accuracy,
    error_rate,
    hallucination_rate,
    mean_measure,
    word_error_rate,
)
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
    rows = [heard("Um, uh.", "something"), heard("cat", "cat")]
    score = word_error_rate(rows)
    assert (score.value, score.n, score.baseline) == (0, 1, None)
    assert score.notes == "1 of 2 references are empty after normalising and were dropped"
    with refused("empty"):
        word_error_rate(rows[:1])


def test_what_is_said_where_nothing_is_said_is_inserted() -> None:
    """Clips without speech: 2 words are inserted into 4 of the references, on one of two clips."""
    rows = [heard("a big cat", "a big cat", 0), heard("cat", "dog", 1), heard("", "well well", 2), heard("", "Um.", 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a resample may hold clips without speech alone
        score = word_error_rate(rows)
    assert (score.value, score.n) == (0.75, 4)
    assert score.notes == "2 of 4 references say nothing: 2 words said there are insertions"
    assert score.low >= 0 and score.high < float("inf")
    assert hallucination_rate(rows)[:1] + hallucination_rate(rows)[3:4] == (0.5, 2)
    with refused("empty"):
        word_error_rate(rows[2:])


def rate(name: str, *pairs: tuple[str, str]) -> float:
    return error_rate(name)([heard(*pair, row) for row, pair in enumerate(pairs)]).value


@pytest.mark.parametrize(
    ("target", "response", "errors", "words"),
    [
        ("यह दिन अच्छा है", "यह दान अच्छा है", 1, 4),  # a vowel sign: day, gift
        ("es geht um geld", "es geht geld", 1, 4),  # no filler
        ("das ist schon", "Das ist schön.", 1, 3),
        ("tengo un año", "tengo un ano", 1, 3),
        ("мой", "мои", 1, 1),
        ("がっこう", "かっこう", 1, 1),
        ("كَتَبَ", "كُتِبَ", 1, 1),
        ("má mà mả mã", "ma ma ma ma", 4, 4),
        ("Don't [noise] go (laughs)!", "don't go", 0, 3),
        ("cafe\u0301", "caf\u00e9", 0, 1),  # two spellings of one text
        ("می\u200cخواهم", "میخواهم", 0, 1),  # a joiner that nobody sees
    ],
)
def test_the_basic_normalizer_keeps_the_marks_of_letters(target: str, response: str, errors: int, words: int) -> None:
    assert rate("wer/basic", (target, response)) == pytest.approx(errors / words, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "target", "response", "errors", "units"),
    [
        ("cer/basic", "今天天气很好", "今天天气很号", 1, 6),
        ("cer/basic", "今天天气很好", "今天 天气，很好。", 0, 6),
        ("cer/basic", "안녕하세요", "안녕 하세요", 0, 5),
        ("cer/basic", "दिन", "दान", 1, 3),  # code points
        ("cer/basic", "น้ำ", "นำ", 1, 3),
        ("cer/none", "你好。", "你好", 1, 3),
        ("cer/english", "The cat.", "the cut", 1, 6),
        ("mer/basic", "我想买一个 iPhone 手机", "我想买一个iPhone手机", 0, 8),
        ("mer/basic", "我想买一个 iPhone 手机", "我想买一个 my phone 手鸡", 3, 8),
        ("mer/basic", "오늘 meeting 있어요", "오늘 meeting 없어요", 1, 3),  # Korean has spaces
        ("mer/basic", "วันนี้ดี", "วันนี้ดี", 0, 8),
        ("mer/none", "你好 World", "你好 world", 1, 3),
        ("wer/none", "The cat.", "the cat", 2, 2),
    ],
)
def test_characters_and_words_are_counted_by_hand(
    name: str, target: str, response: str, errors: int, units: int
) -> None:
    measure = error_rate(name).measure([heard(target, response)])
    assert measure.rows.tolist() == [[errors, units]]
    assert jiwer.cer("".join(target.split()), "".join(response.split())) >= 0  # the pair is one that jiwer reads


def test_the_word_error_rate_by_another_name_is_the_same() -> None:
    rows = [heard(*pair, row) for row, pair in enumerate(noisy_pairs(40))]
    assert error_rate("wer") is word_error_rate
    assert error_rate("wer/english")(rows) == word_error_rate(rows)


@pytest.mark.parametrize(
    ("name", "target", "told"),
    [
        ("wer", "यह दिन अच्छा है", ["normalizer: basic"]),
        ("wer", "das ist schön", ["normalizer: basic"]),
        ("wer", "今天天气很好", ["normalizer: basic", "metric: cer"]),
        ("wer/basic", "今天天气很好", ["metric: cer"]),
        ("wer/basic", "यह दिन अच्छा है", []),
        ("cer/basic", "今天天气很好", []),
        ("wer", "the café is closed", []),
    ],
)
def test_a_choice_that_looks_wrong_for_the_text_is_noted(name: str, target: str, told: list[str]) -> None:
    rows = [heard(target, target, row) for row in range(3)]
    plain = [heard("a cat sat down", "a cat sat down", row) for row in range(3, 20)] if "café" in target else []
    notes = error_rate(name)([*rows[:1], *plain] if plain else rows).notes
    assert [part for part in ("normalizer: basic", "metric: cer") if part in notes] == told


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


def test_rows_of_one_speaker_are_drawn_together() -> None:
    """Two speakers, one all right and one all wrong: a resample is 0, 1/2 or 1, whatever the number of rows."""
    hits, speakers = [1.0] * 50 + [0.0] * 50, ["ann"] * 50 + ["bob"] * 50
    score = mean_measure(hits, speakers=speakers).score()
    assert score[:4] == (0.5, 0, 1, 100) and score.speakers == 2
    alone = mean_measure(hits).score()
    assert 0.39 < alone.low < 0.5 < alone.high < 0.61 and alone.speakers == 0


def test_sums_of_speakers_by_hand() -> None:
    """A row without a speaker stands alone; the order is that of first rows."""
    rows = np.array([[1.0, 2], [3, 1], [5, 4], [7, 1]])
    sums, speakers = by_speaker(rows, ["b", None, "a", "b"])
    assert sums.tolist() == [[8, 3], [3, 1], [5, 4]] and speakers == 2
    for unknown in ([], [None] * 4, ["a"] * 4, [None, None, None, "a"]):
        same, count = by_speaker(rows, unknown)
        assert same is rows and count == 0  # nothing to draw over
    every, count = by_speaker(rows, list("abcd"))
    assert np.array_equal(every, rows) and count == 4  # one row each: as without speakers


def test_every_metric_draws_speakers() -> None:
    spoken = [replace(row, speaker=f"s{i % 3}") for i, row in enumerate(guesses(60))]
    words = [replace(heard(*pair, i), speaker=f"s{i % 3}") for i, pair in enumerate(noisy_pairs(30))]
    due = {"ann": "a b c", "bob": "d e f"}
    pa = [
        replace(labelled("ann", None, i), response="a b", rivals=due, awareness=1, speaker=f"s{i % 3}")
        for i in range(6)
    ]
    for metric, rows in (
        (accuracy, spoken), (balanced_accuracy, spoken), (word_error_rate, words), (error_rate("cer/basic"), words),
        (emotion_fit, pa), *((metric, words) for metric in ROUGE.values()), *((m, pa) for m in AWARENESS.values()),
    ):  # fmt: skip
        assert metric(rows).speakers == 3, metric
        assert metric(rows).value == metric([replace(row, speaker=None) for row in rows]).value


def test_the_cluster_bootstrap_agrees_with_plain_loops() -> None:
    """Speakers drawn with the same draws, each with all of its rows."""
    draw = np.random.default_rng(5)
    who, hits = draw.integers(8, size=100), draw.random(100) < 0.7
    who[:8] = np.arange(8)  # in order of their first rows
    counts = resample(8, lambda counts: counts @ 10.0 ** np.arange(8))  # which speakers each resample has drawn
    shares = []
    for digits in counts.astype(np.int64):
        times = [int(digits) // 10**speaker % 10 for speaker in range(8)]
        rows = [hit for speaker, n in enumerate(times) for hit in list(hits[who == speaker]) * n]
        shares.append(np.mean(rows))
    score = mean_measure(hits.tolist(), speakers=[f"s{number}" for number in who]).score()
    assert (score.low, score.high) == pytest.approx(np.quantile(shares, [0.025, 0.975]), abs=1e-6)


def test_the_bootstrap_refuses_no_rows() -> None:
    with refused("empty"):
        bootstrap(np.zeros((0, 2)), ratio)


def test_parts_of_the_test_side_are_scored_apart() -> None:
    responses = (("we found it", "clean"), ("we lost it", "other"), ("we found it", None))
    rows = [replace(heard("we found it", text, i), source=source) for i, (text, source) in enumerate(responses)]
    scores = {record.task: (record.value, record.n) for record in score_all("x", rows)}
    assert scores == {"asr (clean)": (0, 1), "asr (other)": (0.333333, 1), "asr": (0, 1)}
