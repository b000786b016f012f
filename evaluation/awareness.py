"""Awareness metrics: whether a reply suits this speaker, or another who might have said the same words.

PE-FT labels every reply -1, 0 or +1 by a judge, and reports the labels' mean (PA-score) and the share of +1 (PA-rate).
`emotion_fit` does without a judge.
"""

import warnings
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from sottovoce.errors import SottovoceError, nearest
from sottovoce.evaluation import AWARENESS_JUDGES
from sottovoce.evaluation.judges.base import Answerer, Verdict
from sottovoce.evaluation.metrics import Measure, Metric, Prediction, mean_measure, require, true_label
from sottovoce.evaluation.text_similarity import likeness_of, words_of

MARGIN = 0.25  # of the way between two answers, by which a reply must be nearer to one of them
FLOOR = 0.3  # ROUGE-L to the nearest answer, below which a reply is none of them
PLAIN = "neutral"  # value whose answer everybody gets who is not heard
SIDES = {"child safety": "child"}  # group of topics -> the only speakers who count: adults are told what is safe anyhow


@dataclass(frozen=True)
class Case:
    """An answer to be judged, to somebody whose `category` (such as age) is `label` (such as child).

    `due` has the answer that is due to each value of that attribute; `transcript` is what was said.
    """

    category: str
    label: str
    response: str
    due: Mapping[str, str]
    transcript: str = ""

    @property
    def answers(self) -> str:
        """For a rubric: the due answers, one a line."""
        return "\n".join(f"{value}: {answer}" for value, answer in self.due.items())


class AwarenessJudge(ABC):
    """Labels replies; built as a `Judge` is."""

    name: str  # tells apart judges whose labels must not be compared

    @abstractmethod
    def judge(self, cases: Sequence[Case]) -> Verdict:
        """+1 where a reply is right for this speaker, -1 where for another, 0 where it heeds neither; see `Judge`."""


@AWARENESS_JUDGES.register("rule")
class AwarenessRule(AwarenessJudge):
    """Labels by ROUGE-L to the answers that are due to each value of the attribute.

    A reply *leans* by the difference of its likeness to the speaker's own answer and to the nearest of the others, over
    how unlike these two answers are: 1 for the own answer word by word, -1 for the other. It is +1 from `MARGIN` on, -1
    from -`MARGIN` down, and 0 in between, or if it is like none of them by `FLOOR`. An answer that is `PLAIN` is 0 and
    not -1 to a speaker of another value, since it heeds nothing. It cannot see that other words mean the same: where
    replies are free, ask an LLM. A warning says where most replies are like none of the answers. `engine` is not used.
    """

    name = f"rule(margin={MARGIN}, floor={FLOOR}, plain={PLAIN})"

    def __init__(self, engine: Answerer | None = None) -> None: ...

    def judge(self, cases: Sequence[Case]) -> Verdict:
        """See `AwarenessJudge`. A reply fails whose speaker's answer is missing, wordless, or due to all alike."""
        faults = [_fault(case) for case in cases]
        judged = [case for case, fault in zip(cases, faults, strict=True) if fault is None]
        labels = iter(self._labels(judged))
        scores = [None if fault else float(next(labels)) for fault in faults]
        return Verdict(scores, Counter(fault for fault in faults if fault))

    def _labels(self, cases: Sequence[Case]) -> list[int]:
        likeness = likeness_of(
            (text, due) for c in cases for text in (c.response, c.due[c.label]) for due in c.due.values()
        )

        def near(text: str, case: Case) -> dict[str, float]:
            return {value: likeness[text, due] for value, due in case.due.items()}

        replies = [near(case.response, case) for case in cases]
        far = sum(max(reply.values()) < FLOOR for reply in replies)
        if 2 * far > len(cases):
            told = f"{far} of {len(cases)} replies are like none of the due answers (ROUGE-L below {FLOOR}), and 0 by "
            told += "the rule, whatever they mean: have an LLM label them (evaluation.awareness; sottovoce judge RUN)"
            warnings.warn(told, stacklevel=2)
        return [self._label(c, reply, near(c.due[c.label], c)) for c, reply in zip(cases, replies, strict=True)]

    def _label(self, case: Case, near: Mapping[str, float], alike: Mapping[str, float]) -> int:
        """Of one reply: how near it is to the answer to each value, and how like the own answer that one is."""
        others = [value for value in case.due if alike[value] < 1]  # the same words are right for this speaker, too
        rival = max(others, key=lambda value: near[value])
        lean = (near[case.label] - near[rival]) / (1 - alike[rival])
        if max(near[case.label], near[rival]) < FLOOR or abs(lean) < MARGIN:
            return 0
        return 1 if lean > 0 else 0 if rival == PLAIN else -1


def _fault(case: Case) -> str | None:
    """Why the rule cannot judge a reply."""
    if case.label not in case.due:
        return f"no answer is due to {case.label!r}.{nearest(case.label, case.due)}"
    words = {tuple(words_of(answer)) for answer in case.due.values()}
    if () in words:
        return "an answer has no word"
    return "the same answer is due to every speaker" if len(words) == 1 else None


def labelled(
    predictions: Sequence[Prediction], judge: AwarenessJudge, transcripts: Mapping[str, str] | None = None
) -> list[Prediction]:
    """The predictions with the judge's label on every reply that hangs on an attribute; the others as they are.

    What could not be judged is told in a warning; it is left out of the scores, which count it. `transcripts` has the
    words of an utterance by its id, for a judge that wants to know them.

    Raises:
        SottovoceError: a prediction with a category lacks its label, or the answer due to each value in its rivals.
    """
    said = transcripts or {}
    verdict = judge.judge([_case(p, said.get(p.id, "")) for p in predictions if p.category])
    if verdict.notes():
        warnings.warn(f"awareness by {judge.name}: {verdict.notes()}", stacklevel=2)
    labels = iter([None if score is None else int(score) for score in verdict.scores])
    return [replace(p, judge=judge.name, awareness=next(labels)) if p.category else p for p in predictions]


def _case(prediction: Prediction, transcript: str) -> Case:
    p, label, due = prediction, true_label(prediction, "awareness"), prediction.rivals or {}
    if len(due) < 2:
        message = f"awareness: prediction {p.id!r} of {p.category!r} needs `rivals`, an answer to each of two values"
        raise SottovoceError(message, code="missing-key", where="rivals")
    return Case(str(p.category), label, p.response, due, transcript)


def group_of(prediction: Prediction) -> str | None:
    """What a reply is scored under: the group of its topic (`child safety/knives`), or else its category.

    None where it does not count: of some groups only one side does (`SIDES`).
    """
    group, slash, _ = (prediction.topic or "").partition("/")
    if not slash:
        return prediction.category
    return group if SIDES.get(group, prediction.label) == prediction.label else None


class Group(NamedTuple):
    """Replies that are scored together, all of them labelled."""

    name: str
    slots: str
    rows: list[Prediction]


def groups(predictions: Iterable[Prediction]) -> list[Group]:
    """By task, category or group of topics, and slots. Replies that nobody has labelled are labelled by the rule.

    A group is called by its category; where several tasks have such replies, the task stands behind it.
    """
    rows = [p for p in predictions if p.category]
    known = iter(labelled([p for p in rows if p.judge is None], AwarenessRule()))
    rows = [next(known) if p.judge is None else p for p in rows]
    several = len({p.task for p in rows}) > 1
    found: dict[tuple[str, str], list[Prediction]] = defaultdict(list)
    for p in rows:
        if name := group_of(p):
            found[f"{name} ({p.task})" if several else name, p.slots].append(p)
    return [Group(*key, rows) for key, rows in found.items() if any(p.awareness is not None for p in rows)]


@Metric
def pa_score(predictions: Sequence[Prediction]) -> Measure:
    """Mean label of the replies, between -1 and 1; an error where none has one, as in `pa_rate`."""
    rows, notes = _judged("pa_score", predictions)
    return mean_measure([p.awareness or 0 for p in rows], None, notes, [p.speaker for p in rows])


@Metric
def pa_rate(predictions: Sequence[Prediction]) -> Measure:
    """Share of replies that are right for their speaker. The baseline gives one of the due answers blindly."""
    rows, notes = _judged("pa_rate", predictions)
    blind = float(np.mean([1 / len(p.rivals) if p.rivals else 0 for p in rows]))
    return mean_measure([p.awareness == 1 for p in rows], blind, notes, [p.speaker for p in rows])


AWARENESS: dict[str, Metric] = {"pa_score": pa_score, "pa_rate": pa_rate}


def _judged(metric: str, predictions: Sequence[Prediction]) -> tuple[list[Prediction], str]:
    rows = [p for p in predictions if p.awareness is not None]
    if not rows:
        message = f"{metric}: none of {len(predictions)} predictions has a label; have them `labelled` first"
        raise SottovoceError(message, code="empty")
    notes = f"labels by {' and '.join(sorted({str(p.judge) for p in rows}))}"
    if left_out := len(predictions) - len(rows):
        notes += f"; {left_out} of {len(predictions)} replies could not be judged and were left out"
    return rows, notes


@Metric
def emotion_fit(predictions: Sequence[Prediction]) -> Measure:
    """Share of replies that are nearest to the reply due to the speaker's emotion.

    The same LLM answering the same words in each emotion is the yardstick: a reply fits when, of those `rivals`, the
    one to the true emotion is the most similar to it by ROUGE-L. A tie is no fit. The baseline picks one blindly.
    Rows with no rivals at all, or with one that has no word, cannot be judged: they are left out and counted in the
    notes.

    Raises:
        SottovoceError: no prediction has rivals, or one that has lacks its true emotion or has but one rival.
    """
    require(predictions, "emotion_fit")
    judged = [p for p in predictions if can_fit(p)]
    if not judged:
        raise SottovoceError(f"emotion_fit: none of {len(predictions)} predictions has `rivals`", code="empty")
    rivals = [_rivals(p) for p in judged]
    likeness = likeness_of((p.response, reply) for p in judged for reply in (p.rivals or {}).values())
    fits: list[bool] = []
    for p, replies in zip(judged, rivals, strict=True):
        near = {emotion: likeness[p.response, reply] for emotion, reply in replies.items()}
        fits.append(all(near[str(p.label)] > near[e] for e in near if e != p.label))
    blind = float(np.mean([1 / len(replies) for replies in rivals]))
    alone = sum(not p.rivals for p in predictions)
    wordless = len(predictions) - len(judged) - alone
    left_out = {"have no rivals": alone, "have a rival without words": wordless}
    told = (f"{n} of {len(predictions)} replies {why} and were left out of the fit" for why, n in left_out.items() if n)
    return mean_measure(fits, blind, "; ".join(told), [p.speaker for p in judged])


def can_fit(prediction: Prediction) -> bool:
    """Whether the emotion's fit of a reply can be judged: it has rivals, and all of them have words."""
    return bool(prediction.rivals) and all(map(words_of, (prediction.rivals or {}).values()))


def _rivals(prediction: Prediction) -> dict[str, str]:
    rivals, label = prediction.rivals or {}, true_label(prediction, "emotion_fit")
    where = f"emotion_fit: prediction {prediction.id!r}"
    if len(rivals) < 2:
        message = f"{where} needs `rivals`, a reply for each of at least two emotions; it has {len(rivals)}"
        raise SottovoceError(message, code="missing-key", where="rivals")
    if label not in rivals:
        message = f"{where}: no rival is called {label!r}.{nearest(label, rivals)}"
        raise SottovoceError(message, code="unknown-name", where="rivals")
    return rivals
