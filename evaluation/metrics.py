"""What the model said, held against what was true."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, update_wrapper
from typing import NamedTuple, cast

import jiwer
import numpy as np
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text.rouge import ROUGEScore

from sottovoce.errors import SottovoceError, nearest
from sottovoce.evaluation.bootstrap import Array, bootstrap, mean_of_ratios, ratio

SLOTS = ("both", "paralinguistic", "linguistic", "text")  # the paper's choices, in the order of reports
DECIMALS = 6  # of every score; torchmetrics divides in float32, so that further digits would be noise


@dataclass(frozen=True)
class Prediction:
    """One answer of a system under one choice of slots.

    Args:
        id: of the utterance.
        task: asr, dialogue, or the name of an attribute.
        slots: both, text (in place of speech), or the one slot of the recipe that took speech.
        instruction: what the model was asked.
        response: what it said.
        target: the reference text.
        label: attribute tasks: the true label; dialogue: the speaker's true emotion.
        predicted: attribute tasks: the label found in the response, None where none was found.
        speaker: who spoke.
        rivals: dialogue: the LLM's own reply to the same words for every emotion; of paired data, the answer that is
            due to each value of the attribute that the right answer hangs on, of which `label` is the speaker's.
        category: paired data: that attribute.
        topic: paired data: what is spoken of; `<group>/<topic>` where a group of topics is scored apart.
        judge: who labelled the reply; None where the rule is to (`sottovoce.evaluation.awareness`).
        awareness: that judge's label, -1, 0 or 1; None where it could not judge.
        source: the part of the test side that it belongs to, where the recipe names one that is scored apart.
    """

    id: str
    task: str
    slots: str
    instruction: str
    response: str
    target: str
    label: str | None = None
    predicted: str | None = None
    speaker: str | None = None
    rivals: dict[str, str] | None = None
    category: str | None = None
    topic: str | None = None
    judge: str | None = None
    awareness: int | None = None
    source: str | None = None

    @property
    def title(self) -> str:
        """What its scores are reported under: the task, and the part of the test side in brackets."""
        return f"{self.task} ({self.source})" if self.source else self.task


class Score(NamedTuple):
    """A number and how far to trust it: `low` to `high` is its 95 % interval, `n` the rows it was measured on.

    Values are shares (1 is 100 %). `baseline` is what a guess that hears nothing would get, None where there is none.
    """

    value: float
    low: float
    high: float
    n: int
    baseline: float | None
    notes: str


class Measure(NamedTuple):
    """A score before its interval: what each row of the test set contributes, and what is made of the sums.

    `rows` is (rows, columns), in the order of the predictions that count, and `statistic` as in `bootstrap`.
    """

    value: float
    rows: Array
    statistic: Callable[[Array], Array]
    baseline: float | None
    notes: str

    def score(self) -> Score:
        """With its interval."""
        ends = bootstrap(self.rows, self.statistic)
        value, low, high = (round(number, DECIMALS) for number in (self.value, *ends))
        baseline = None if self.baseline is None else round(self.baseline, DECIMALS)
        return Score(value, low, high, len(self.rows), baseline, self.notes)


class Metric:
    """Scores predictions; `measure` gives what each of them contributes, by which two systems are held together."""

    __name__: str

    def __init__(self, measure: Callable[[Sequence[Prediction]], Measure]) -> None:
        self.measure = measure
        update_wrapper(self, measure)

    def __call__(self, predictions: Sequence[Prediction]) -> Score:
        return self.measure(predictions).score()


@Metric
def word_error_rate(predictions: Sequence[Prediction]) -> Measure:
    """Errors over reference words, both summed over the corpus, after Whisper's English normaliser on both sides.

    Radford et al. (2022), appendix C, for the normaliser. Not clipped: insertions can bring it over 1. References
    in which the normaliser leaves no word (fillers, noise marks) are dropped and counted in the notes.

    Raises:
        SottovoceError: there are no predictions, or no reference has a word.
    """
    _require(predictions, "word_error_rate")
    normalize = _english_normalizer()
    pairs = [(normalize(p.target), normalize(p.response)) for p in predictions]
    spoken = [pair for pair in pairs if pair[0]]
    if not spoken:
        raise SottovoceError(f"word_error_rate: none of {len(pairs)} references has a word left after normalising")
    measured = jiwer.process_words([reference for reference, _ in spoken], [response for _, response in spoken])
    errors = [sum(map(_errors, row)) for row in measured.alignments]
    words = [len(row) for row in measured.references]
    dropped = len(pairs) - len(spoken)
    notes = f"{dropped} of {len(pairs)} references are empty after normalising and were dropped" if dropped else ""
    return Measure(measured.wer, _columns(errors, words), ratio, None, notes)


@Metric
def accuracy(predictions: Sequence[Prediction]) -> Measure:
    """Share of right labels: the paper's weighted accuracy (WA). A response that names no label is wrong.

    Wang et al. (ICME 2025), section IV. The baseline always answers the most frequent label.

    Raises:
        SottovoceError: there are no predictions, or one has no true label.
    """
    predicted, truth, classes = _classes(predictions, "accuracy")
    value = MulticlassAccuracy(classes + 1, average="micro")(predicted, truth)
    hits = (predicted == truth).tolist()
    majority = Counter(truth.tolist()).most_common(1)[0][1] / len(truth)
    return Measure(float(value), _columns(hits, [1] * len(hits)), ratio, majority, _unparsed(predictions))


@Metric
def balanced_accuracy(predictions: Sequence[Prediction]) -> Measure:
    """Mean over the classes present in the truth of the share of each that was named rightly (macro recall).

    A response that names no label, or one that no utterance has, is wrong, and adds no class to the mean. The
    baseline is one over the number of classes.

    Raises:
        SottovoceError: there are no predictions, or one has no true label.
    """
    predicted, truth, classes = _classes(predictions, "balanced_accuracy")
    # torchmetrics' own macro mean would count the class of wrong answers, as a class whose recall is 0
    recalls = MulticlassAccuracy(classes + 1, average="none")(predicted, truth)[:classes]
    occurrences = torch.nn.functional.one_hot(truth, classes)  # (rows, classes)
    hits = occurrences * (predicted == truth)[:, None]
    rows = torch.cat([hits, occurrences], dim=1).double().numpy()
    return Measure(float(recalls.mean()), rows, mean_of_ratios, 1 / classes, _unparsed(predictions))


@Metric
def rouge_l(predictions: Sequence[Prediction]) -> Measure:
    """Mean F of the longest common subsequence of words of response and target, between 0 and 1.

    Lin (2004). Words are runs of a-z and 0-9 in lower case, as in the reference implementation: texts in other
    scripts have none and score 0, which the notes count.

    Raises:
        SottovoceError: there are no predictions.
    """
    _require(predictions, "rouge_l")
    similarity = rouge_l_of_each([p.response for p in predictions], [p.target for p in predictions])
    wordless = sum(not any(c.isascii() and c.isalnum() for c in p.target) for p in predictions)
    notes = f"{wordless} of {len(predictions)} targets have no word in a-z or 0-9 and score 0" if wordless else ""
    return mean_measure(similarity, notes=notes)


@Metric
def emotion_fit(predictions: Sequence[Prediction]) -> Measure:
    """Share of replies that fit the speaker's emotion, by a rule that really reads the reply.

    The same LLM answering the same words in each emotion is the yardstick: a reply fits when, of those `rivals`, the
    one to the true emotion is the most similar to it by ROUGE-L. A tie is no fit. The baseline picks one blindly.
    Rows with no rivals at all cannot be judged: they are left out and counted in the notes.

    Raises:
        SottovoceError: no prediction has rivals, or one that has lacks its true emotion or has but one rival.
    """
    _require(predictions, "emotion_fit")
    judged = [p for p in predictions if p.rivals]
    if not judged:
        raise SottovoceError(f"emotion_fit: none of {len(predictions)} predictions has `rivals` to hold it against")
    rivals = [_rivals(p) for p in judged]
    responses = [p.response for p, replies in zip(judged, rivals, strict=True) for _ in replies]
    similarity = iter(rouge_l_of_each(responses, [reply for replies in rivals for reply in replies.values()]))
    fits = []
    for prediction, replies in zip(judged, rivals, strict=True):
        near = {emotion: next(similarity) for emotion in replies}
        fits.append(all(near[str(prediction.label)] > near[e] for e in near if e != prediction.label))
    blind = float(np.mean([1 / len(replies) for replies in rivals]))
    unjudged = len(predictions) - len(judged)
    notes = f"{unjudged} of {len(predictions)} replies have no rivals and were left out of the fit" if unjudged else ""
    return mean_measure(fits, blind, notes)


def _require(predictions: Sequence[Prediction], metric: str) -> None:
    if not predictions:
        raise SottovoceError(f"{metric}: there are no predictions to score; is the test set empty?")


def mean_measure(values: Sequence[float], baseline: float | None = None, notes: str = "") -> Measure:
    """The mean of one number a row."""
    return Measure(float(np.mean(values)), _columns(values, [1] * len(values)), ratio, baseline, notes)


def _columns(*columns: Sequence[float]) -> Array:
    return np.column_stack(columns).astype(np.float64)


@cache  # its spelling table takes half a second to read
def _english_normalizer() -> Callable[[str], str]:
    from whisper.normalizers import EnglishTextNormalizer

    normalizer: Callable[[str], str] = EnglishTextNormalizer()
    return normalizer


def _errors(chunk: jiwer.AlignmentChunk) -> int:
    if chunk.type == "equal":
        return 0
    # a substitution spans as many words on both sides; an insertion none of the reference, a deletion none of the other
    return int(max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx))


def _classes(predictions: Sequence[Prediction], metric: str) -> tuple[Tensor, Tensor, int]:
    """Predicted and true class of each row, both (rows,), and how many the truth has; one more is for all else."""
    _require(predictions, metric)
    labels = [p.label for p in predictions if p.label is not None]
    if len(labels) < len(predictions):
        unlabelled = next(p for p in predictions if p.label is None)
        raise SottovoceError(
            f"{metric}: prediction {unlabelled.id!r} of task {unlabelled.task!r} has no true label; set `label`"
        )
    index: dict[str | None, int] = {label: i for i, label in enumerate(sorted(set(labels)))}
    predicted = [index.get(p.predicted, len(index)) for p in predictions]
    return torch.tensor(predicted), torch.tensor([index[label] for label in labels]), len(index)


def _unparsed(predictions: Sequence[Prediction]) -> str:
    unparsed = sum(p.predicted is None for p in predictions)
    return f"{unparsed} of {len(predictions)} responses name no label and count as wrong" if unparsed else ""


def rouge_l_of_each(responses: list[str], references: list[str]) -> list[float]:
    """ROUGE-L F of each pair."""
    rouge = ROUGEScore(rouge_keys="rougeL")  # of ROUGE's forms, only Lsum would need a sentence splitter
    rouge.update(responses, references)
    return [float(f) for f in cast(list[Tensor], rouge.rougeL_fmeasure)]  # its state: one F a pair, before the mean


def _rivals(prediction: Prediction) -> dict[str, str]:
    where, rivals = f"emotion_fit: prediction {prediction.id!r}", prediction.rivals or {}
    if len(rivals) < 2:
        raise SottovoceError(f"{where} needs `rivals`, a reply for each of at least two emotions; it has {len(rivals)}")
    if prediction.label is None:
        raise SottovoceError(f"{where} has no true emotion; set `label`")
    if prediction.label not in rivals:
        raise SottovoceError(f"{where}: no rival is called {prediction.label!r}.{nearest(prediction.label, rivals)}")
    return rivals
