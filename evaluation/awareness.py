"""Paralinguistic awareness: does a reply suit the speaker who was heard, or another who might have said the same words?

PE-FT labels every reply -1, 0 or +1 by a judge, and reports the labels' mean (PA-score) and the share of +1 (PA-rate).
"""

import re
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from sottovoce.errors import ConfigError, SottovoceError, nearest
from sottovoce.evaluation import AWARENESS_JUDGES
from sottovoce.evaluation.judges.llm import Answerer, Verdict
from sottovoce.evaluation.metrics import Measure, Metric, Prediction, mean_measure, rouge_l_of_each

MARGIN = 0.25  # of the way between two answers, by which a reply must be nearer to one of them
FLOOR = 0.3  # ROUGE-L to the nearest answer, below which a reply is none of them
SIDES = {"child safety": "child"}  # group of topics -> the only speakers who count: what adults are told is safe anyhow
_WORD = re.compile("[a-z0-9]+")  # as ROUGE reads texts


@dataclass(frozen=True)
class Case:
    """What is judged: an answer to somebody whose `category` (such as age) is `label` (such as child).

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
    """Labels replies. A subclass takes `(engine)` as wiring, which it may not need, and its knobs by keyword."""

    name: str  # tells apart judges whose labels must not be compared

    @abstractmethod
    def judge(self, cases: Sequence[Case]) -> Verdict:
        """+1 where a reply is right for this speaker, -1 where for another, 0 where it heeds neither.

        A reply that cannot be judged costs its own label, and is counted; it never costs the others theirs.
        """


@AWARENESS_JUDGES.register("rule")
class AwarenessRule(AwarenessJudge):
    """Reads the reply: holds it against the answers that are due to each value of the attribute, by ROUGE-L.

    A reply *leans* by the difference of its likeness to the speaker's own answer and to the nearest of the others, over
    how unlike these two answers are: 1 for the own answer word by word, -1 for the other. It is +1 from `margin` on, -1
    from -`margin` down, and 0 in between, or if it is like none of them. It reads letters and digits of ASCII only, and
    cannot see that other words mean the same: where replies are free, ask an LLM.

    Args:
        engine: not used; judges are built alike.
        margin: 0 to 1.
        floor: 0 to 1, the likeness to the nearest answer from which on a reply is one of them.
        plain: values whose answer is what everybody gets who is not heard. To a speaker of another value it is
            0 and not -1, since it heeds nothing.

    Raises:
        ConfigError: `margin` or `floor` is not between 0 and 1.
    """

    def __init__(
        self,
        engine: Answerer | None = None,
        *,
        margin: float = MARGIN,
        floor: float = FLOOR,
        plain: tuple[str, ...] = ("neutral",),
    ) -> None:
        if not (0 < margin <= 1 and 0 <= floor <= 1):
            raise ConfigError(f"judge rule: margin and floor lie between 0 and 1, got {margin} and {floor}")
        self.margin, self.floor, self.plain = margin, floor, tuple(plain)
        self.name = f"rule(margin={margin}, floor={floor}, plain={'+'.join(self.plain)})"

    def judge(self, cases: Sequence[Case]) -> Verdict:
        """See `AwarenessJudge`. A reply fails whose speaker's answer is missing, wordless, or due to all alike."""
        faults = [_fault(case) for case in cases]
        judged = [case for case, fault in zip(cases, faults, strict=True) if fault is None]
        labels = iter(self._labels(judged))
        scores = [None if fault else float(next(labels)) for fault in faults]
        return Verdict(scores, Counter(fault for fault in faults if fault))

    def _labels(self, cases: Sequence[Case]) -> list[int]:
        pairs = {(t, due) for c in cases for t in (c.response, c.due[c.label]) for due in c.due.values()}
        ordered = sorted(pairs)  # each once: the same answers are due to the same words, whoever says them
        likeness = dict(zip(ordered, rouge_l_of_each([a for a, _ in ordered], [b for _, b in ordered]), strict=True))

        def near(text: str, case: Case) -> dict[str, float]:
            return {value: likeness[text, due] for value, due in case.due.items()}

        return [self._label(case, near(case.response, case), near(case.due[case.label], case)) for case in cases]

    def _label(self, case: Case, near: Mapping[str, float], alike: Mapping[str, float]) -> int:
        """Of one reply: how near it is to the answer to each value, and how like the own answer that one is."""
        others = [value for value in case.due if alike[value] < 1]  # the same words are right for this speaker, too
        rival = max(others, key=lambda value: near[value])
        lean = (near[case.label] - near[rival]) / (1 - alike[rival])
        if max(near[case.label], near[rival]) < self.floor or abs(lean) < self.margin:
            return 0
        return 1 if lean > 0 else 0 if rival in self.plain else -1


def _fault(case: Case) -> str | None:
    """Why the rule cannot judge a reply."""
    if case.label not in case.due:
        return f"no answer is due to {case.label!r}.{nearest(case.label, case.due)}"
    words = {tuple(_WORD.findall(answer.lower())) for answer in case.due.values()}
    if () in words:
        return "an answer has no word in a-z or 0-9"
    return "the same answer is due to every speaker" if len(words) == 1 else None


def labelled(
    predictions: Sequence[Prediction], judge: AwarenessJudge, transcripts: Mapping[str, str] | None = None
) -> list[Prediction]:
    """The predictions with the judge's label on every reply that hangs on an attribute; the others as they are.

    What could not be judged is told in a warning; it is left out of the scores, which count it.

    Args:
        predictions: those with a `category` have `label` and `rivals`, the answer due to each of its values.
        judge: who labels.
        transcripts: id of the utterance -> its words, for a judge that wants to know them.

    Raises:
        SottovoceError: a prediction with a category lacks its label or its rivals.
    """
    rows = [p for p in predictions if p.category]
    said = transcripts or {}
    verdict = judge.judge([_case(p, said.get(p.id, "")) for p in rows])
    if verdict.notes():
        warnings.warn(f"awareness by {judge.name}: {verdict.notes()}", stacklevel=2)
    scores = iter(verdict.scores)
    return [replace(p, judge=judge.name, awareness=_whole(next(scores))) if p.category else p for p in predictions]


def _whole(score: float | None) -> int | None:
    return None if score is None else int(score)


def _case(prediction: Prediction, transcript: str) -> Case:
    p, where = prediction, f"awareness: prediction {prediction.id!r} of category {prediction.category!r}"
    if p.category is None or p.label is None:
        raise SottovoceError(f"{where} has no true label; set `label`")
    if len(p.rivals or {}) < 2:
        raise SottovoceError(f"{where} needs `rivals`, the answer due to each of at least two values of the attribute")
    return Case(p.category, p.label, p.response, p.rivals or {}, transcript)


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
    found: dict[tuple[str, str], list[Prediction]] = {}
    for p in rows:
        if name := group_of(p):
            found.setdefault((f"{name} ({p.task})" if several else name, p.slots), []).append(p)
    return [Group(*key, rows) for key, rows in found.items() if any(p.awareness is not None for p in rows)]


@Metric
def pa_score(predictions: Sequence[Prediction]) -> Measure:
    """Mean label of the replies, between -1 and 1.

    Raises:
        SottovoceError: no prediction has a label.
    """
    rows, notes = _judged("pa_score", predictions)
    return mean_measure([float(p.awareness or 0) for p in rows], notes=notes)


@Metric
def pa_rate(predictions: Sequence[Prediction]) -> Measure:
    """Share of replies that are right for their speaker. The baseline gives one of the due answers blindly.

    Raises:
        SottovoceError: no prediction has a label.
    """
    rows, notes = _judged("pa_rate", predictions)
    blind = float(np.mean([1 / len(p.rivals) if p.rivals else 0 for p in rows]))
    return mean_measure([float(p.awareness == 1) for p in rows], blind, notes)


AWARENESS: dict[str, Metric] = {"pa_score": pa_score, "pa_rate": pa_rate}


def _judged(metric: str, predictions: Sequence[Prediction]) -> tuple[list[Prediction], str]:
    rows = [p for p in predictions if p.awareness is not None]
    if not rows:
        raise SottovoceError(
            f"{metric}: none of {len(predictions)} predictions has a label; have them `labelled` first"
        )
    left_out = len(predictions) - len(rows)
    notes = [f"{left_out} of {len(predictions)} replies could not be judged and were left out"] if left_out else []
    return rows, "; ".join([f"labels by {' and '.join(sorted({str(p.judge) for p in rows}))}", *notes])
