"""Metrics of predictions: error rates and accuracies, each with a bootstrap interval."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Literal, NamedTuple

import jiwer
import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import SottovoceError
from sottovoce.evaluation.bootstrap import Array, bootstrap, by_speaker, mean_of_ratios, ratio
from sottovoce.evaluation.normalizers import NORMALIZERS, UNITS, doubts, rate_of

Codes = NDArray[np.intp]
SLOTS = ("both", "paralinguistic", "linguistic", "text")  # the paper's choices, in the order of reports
DECIMALS = 6  # of every score; torchmetrics divides in float32, so that further digits would be noise


@dataclass(frozen=True)
class Prediction:
    """One answer of a system to one utterance under one choice of slots.

    `rivals` are, of dialogue, the LLM's own replies to the same words for every emotion; of paired data, the answer due
    to each value of `category`, the attribute that the right answer hangs on, of which `label` is the speaker's.
    """

    id: str
    task: str  # asr, dialogue, or the name of an attribute
    slots: str  # both, text (in place of speech), or the one slot of the recipe that took speech
    instruction: str
    response: str
    target: str
    label: str | None = None  # attribute tasks: the true label; dialogue: the speaker's true emotion
    predicted: str | None = None  # attribute tasks: the label found in the response, None where none was found
    speaker: str | None = None
    rivals: dict[str, str] | None = None
    category: str | None = None
    topic: str | None = None  # paired data: what is spoken of; `<group>/<topic>` where a group is scored apart
    judge: str | None = None  # who labelled the reply; None where the rule is to (`sottovoce.evaluation.awareness`)
    awareness: int | None = None  # that judge's label, -1, 0 or 1; None where it could not judge
    source: str | None = None  # the part of the test side, where the recipe names one that is scored apart
    unscored: bool = False  # there is no reference to hold it against
    metric: str | None = None  # asr: its error rate, such as `cer/basic`; None: `wer`, by the English normalizer
    audio: str | None = None  # its clip: an absolute path, or relative to the run's folder where it lies in that
    text: str | None = None  # its transcript, where that is known
    values: dict[str, float] | None = None  # by the recipe's own metrics

    @property
    def title(self) -> str:
        """What its scores are reported under: the task, and the part of the test side in brackets."""
        return f"{self.task} ({self.source})" if self.source else self.task


class Score(NamedTuple):
    """A score and its 95 % interval, `low` to `high`; `n` is the rows it was measured on.

    Values are shares (1 is 100 %). `baseline` is what a guess that hears nothing would get, None where there is none.
    The interval is over `speakers`, or over rows where that is 0.
    """

    value: float
    low: float
    high: float
    n: int
    baseline: float | None
    notes: str
    speakers: int = 0


class Measure(NamedTuple):
    """A score before its bootstrap: the contributions of each row of the test set, and the statistic of their sums.

    `rows` is (rows, columns), in the order of the predictions that count, and `statistic` as in `bootstrap`; `speakers`
    has who speaks in each of them, where that is known.
    """

    value: float
    rows: Array
    statistic: Callable[[Array], Array]
    baseline: float | None
    notes: str
    speakers: Sequence[str | None] = ()

    def score(self) -> Score:
        """With its interval."""
        drawn, speakers = by_speaker(self.rows, self.speakers)
        ends = bootstrap(drawn, self.statistic)
        value, low, high = (round(number, DECIMALS) for number in (self.value, *ends))
        baseline = None if self.baseline is None else round(self.baseline, DECIMALS)
        return Score(value, low, high, len(self.rows), baseline, self.notes, speakers)


class Metric:
    """A function from predictions to a score; its `measure` gives the contributions for paired comparisons.

    All of them raise a SottovoceError where there are no predictions, or one lacks what is measured.
    """

    __name__: str

    def __init__(self, measure: Callable[[Sequence[Prediction]], Measure]) -> None:
        self.measure = measure
        update_wrapper(self, measure)

    def __call__(self, predictions: Sequence[Prediction]) -> Score:
        return self.measure(predictions).score()


@Metric
def word_error_rate(predictions: Sequence[Prediction]) -> Measure:
    """Errors over reference words, both summed over the corpus, after Whisper's English normalizer on both sides.

    Not clipped: insertions can bring it over 1. A reference that is empty says that nothing is said: what a response
    says there is inserted. Others in which the normalizer leaves nothing (fillers, noise marks) are dropped; the notes
    count both. It is an error if no reference has a word.
    """
    return _error_rate("wer", predictions)


def error_rate(name: str) -> Metric:
    """The `word_error_rate`, or that of another unit or normalizer, such as `cer/basic`.

    cer counts characters (code points without white space), mer characters of scripts without spaces and words of
    others, which is the mixed error rate of code-switched speech.
    """
    if name == "wer":
        return word_error_rate
    measure = partial(_error_rate, name)
    update_wrapper(measure, error_rate)
    return Metric(measure)


def _error_rate(name: str, predictions: Sequence[Prediction]) -> Measure:
    require(predictions, name)
    rate, normalizer = rate_of(name)
    (what, units), normalize = UNITS[rate], NORMALIZERS[normalizer]
    pairs = [(units(normalize(p.target)), units(normalize(p.response))) for p in predictions]
    kept = [i for i, (p, pair) in enumerate(zip(predictions, pairs, strict=True)) if pair[0] or is_silent(p)]
    spoken = [pairs[i] for i in kept if pairs[i][0]]
    if not spoken:
        message = f"{name}: none of {len(pairs)} references has a word left after normalizing"
        raise SottovoceError(message, code="empty")
    references, responses = ([" ".join(pair[side]) for pair in spoken] for side in (0, 1))
    measured = jiwer.process_words(references, responses)
    counted = iter(sum(map(_errors, row)) for row in measured.alignments)
    words = [len(pairs[i][0]) for i in kept]
    errors = [next(counted) if pairs[i][0] else len(pairs[i][1]) for i in kept]
    notes = doubts(name, [p.target for p in predictions if p.target.strip()])
    if dropped := len(pairs) - len(kept):
        notes.append(f"{dropped} of {len(pairs)} references are empty after normalising and were dropped")
    if silent := len(kept) - len(spoken):
        inserted = sum(count for count, length in zip(errors, words, strict=True) if not length)
        notes.append(f"{silent} of {len(pairs)} references say nothing: {inserted} {what} said there are insertions")
    speakers = [predictions[i].speaker for i in kept]
    return Measure(sum(errors) / sum(words), _columns(errors, words), ratio, None, "; ".join(notes), speakers)


@Metric
def hallucination_rate(predictions: Sequence[Prediction]) -> Measure:
    """Share of the clips without speech, whose reference is empty, on which a response says something."""
    rows = [p for p in predictions if is_silent(p)]
    require(rows, "hallucination_rate")
    said = [bool(NORMALIZERS[rate_of(p.metric or "wer")[1]](p.response).strip()) for p in rows]
    return mean_measure(said, speakers=[p.speaker for p in rows])


def is_silent(prediction: Prediction) -> bool:
    """Whether its reference says that nothing is said."""
    return not prediction.target.strip()


@Metric
def accuracy(predictions: Sequence[Prediction]) -> Measure:
    """Share of right labels: the paper's weighted accuracy (WA). A response that names no label is wrong.

    Wang et al. (ICME 2025), section IV. The baseline always answers the most frequent label.
    """
    predicted, truth, classes = _classes(predictions, "accuracy")
    value = _torchmetrics_accuracy(predicted, truth, classes, "micro")
    majority = Counter(truth.tolist()).most_common(1)[0][1] / len(truth)
    rows = _columns(predicted == truth, np.ones(len(truth)))
    return Measure(float(value), rows, ratio, majority, _unparsed(predictions), [p.speaker for p in predictions])


@Metric
def balanced_accuracy(predictions: Sequence[Prediction]) -> Measure:
    """Mean over the classes present in the truth of the share of each that was named rightly (macro recall).

    A response that names no label, or one that no utterance has, is wrong, and adds no class to the mean. The
    baseline is one over the number of classes.
    """
    predicted, truth, classes = _classes(predictions, "balanced_accuracy")
    # torchmetrics' own macro mean would count the class of wrong answers, as a class whose recall is 0
    recalls = _torchmetrics_accuracy(predicted, truth, classes, "none")[:classes]
    occurrences = np.eye(classes)[truth]  # (rows, classes)
    hits = occurrences * (predicted == truth)[:, None]
    rows = np.hstack([hits, occurrences])
    speakers = [p.speaker for p in predictions]
    return Measure(float(recalls.mean()), rows, mean_of_ratios, 1 / classes, _unparsed(predictions), speakers)


def mean_measure(
    values: Sequence[float], baseline: float | None = None, notes: str = "", speakers: Sequence[str | None] = ()
) -> Measure:
    """The mean of a value of each row."""
    return Measure(float(np.mean(values)), _columns(values, np.ones(len(values))), ratio, baseline, notes, speakers)


def require(predictions: Sequence[Prediction], metric: str) -> None:
    """Refuse an empty test set."""
    if not predictions:
        raise SottovoceError(f"{metric}: there are no predictions to score; is the test set empty?", code="empty")


def _columns(*columns: Sequence[float] | NDArray[np.generic]) -> Array:
    return np.column_stack(columns).astype(np.float64)


def _torchmetrics_accuracy(
    predicted: Codes, truth: Codes, classes: int, average: Literal["micro", "none"]
) -> NDArray[np.float32]:
    """Accuracy (`micro`), or the recall of each class and of the class of all else (`none`)."""
    import torch
    from torchmetrics.functional.classification import multiclass_accuracy  # takes seconds to import

    pair = torch.from_numpy(predicted), torch.from_numpy(truth)
    return np.asarray(multiclass_accuracy(*pair, num_classes=classes + 1, average=average))


def _errors(chunk: jiwer.AlignmentChunk) -> int:
    if chunk.type == "equal":
        return 0
    # a substitution spans as many words on both sides; an insertion none of the reference, a deletion none of the other
    return int(max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx))


def _classes(predictions: Sequence[Prediction], metric: str) -> tuple[Codes, Codes, int]:
    """Predicted and true class of each row, both (rows,), and how many the truth has; one more is for all else."""
    require(predictions, metric)
    labels = [true_label(p, metric) for p in predictions]
    index: dict[str | None, int] = {label: i for i, label in enumerate(sorted(set(labels)))}
    predicted = [index.get(p.predicted, len(index)) for p in predictions]
    return np.asarray(predicted), np.asarray([index[label] for label in labels]), len(index)


def true_label(prediction: Prediction, metric: str) -> str:
    """The true label of a prediction; an error where it has none."""
    if prediction.label is None:
        message = f"{metric}: prediction {prediction.id!r} of task {prediction.task!r} has no true label; set `label`"
        raise SottovoceError(message, code="missing-key", where="label")
    return prediction.label


def _unparsed(predictions: Sequence[Prediction]) -> str:
    unparsed = sum(p.predicted is None for p in predictions)
    return f"{unparsed} of {len(predictions)} responses name no label and count as wrong" if unparsed else ""
