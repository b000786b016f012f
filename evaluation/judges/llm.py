"""Judges score replies: how good they are, and how well they take the speaker's emotion into account.

Kang et al. (2024), section IV-C, ask an LLM (there Llama 3 Instruct 70B) for both scores of every reply, and report
their means with 95 % intervals.
"""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Formatter
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from sottovoce.errors import ConfigError, nearest
from sottovoce.evaluation import JUDGES
from sottovoce.evaluation.bootstrap import Interval, bootstrap, ratio
from sottovoce.paths import read_text, resolve

T = TypeVar("T")
Aspect: TypeAlias = str  # what is scored
ASPECTS: tuple[Aspect, ...] = ("quality", "emotion")
LOWEST, HIGHEST = 1, 10

_RUBRICS = Path(__file__).parents[1] / "rubrics"
_RETRY_TEMPERATURE = 0.7  # at 0 another seed would say the same again


@dataclass(frozen=True)
class Reply:
    """What is judged: the words that were said, how the speaker truly felt, and the answer.

    Args:
        transcript: of the spoken turn.
        emotion: of the speaker.
        response: the answer.
        context: the dialogue before the spoken turn, a turn a line.
        caption: how the spoken turn was said, in words.
    """

    transcript: str
    emotion: str
    response: str
    context: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Verdict:
    """The scores of one aspect, and all that kept replies from being scored.

    Args:
        scores: one for each reply, in their order; None where there is none.
        failed: why a reply could not be judged at all -> how many replies.
        unclear: replies in whose judgements no score was found, however often the judge was asked.
        malformed: judgements without a score, those that were mended by asking again included.
    """

    scores: list[float | None]
    failed: Counter[str] = field(default_factory=Counter)
    unclear: int = 0
    malformed: int = 0

    @property
    def mean(self) -> float | None:
        """Over the replies that have a score; None where none has."""
        scored = self._scored()
        return float(np.mean(scored)) if scored else None

    @property
    def interval(self) -> Interval | None:
        """95 % interval of the mean (percentile bootstrap over replies); None where no reply has a score."""
        scored = self._scored()
        return bootstrap(np.array([[score, 1.0] for score in scored]), ratio) if scored else None

    def of(self, rows: Sequence[int]) -> "Verdict":
        """The scores of some replies alone. What kept others from being scored is told of all replies together."""
        return replace(self, scores=[self.scores[row] for row in rows])

    def notes(self) -> str:
        """What is missing from the mean, in words; empty where nothing is."""
        failed = [f"{count} could not be judged: {why}" for why, count in self.failed.most_common()]
        unclear = [f"{self.unclear} got judgements without a score"] if self.unclear else []
        malformed = [f"{self.malformed} judgements had no score in all"] if self.malformed else []
        missing = len(self.scores) - len(self._scored())
        return "; ".join(
            [f"{missing} of {len(self.scores)} left out", *failed, *unclear, *malformed] if missing else malformed
        )

    def _scored(self) -> list[float]:
        return [score for score in self.scores if score is not None]


class Failed(Protocol):
    """An item that an engine could not answer."""

    @property
    def reason(self) -> str: ...


class Answerer(Protocol):
    """What an LLM judge asks: `sottovoce.llms.engines.Engine`, in the words of this room."""

    @property
    def name(self) -> str: ...

    def answer(
        self, chats: Sequence[list[dict[str, str]]], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Sequence[str | Failed]: ...


class Judge(ABC):
    """Scores replies. A subclass takes `(engine)` as wiring, which it may not need, and its knobs by keyword."""

    name: str  # tells apart judges whose scores must not be compared

    @abstractmethod
    def judge(self, replies: Sequence[Reply]) -> dict[Aspect, Verdict]:
        """A verdict for each aspect.

        A reply that cannot be judged costs its own score, and is counted; it never costs the others theirs.
        """


def who_answers(judge: str, engine: "Answerer | None", retries: int, max_new_tokens: int) -> "Answerer":
    """The engine of a judge that asks one.

    Raises:
        ConfigError: there is none, or a knob of the asking makes no sense.
    """
    if engine is None:
        raise ConfigError(f"judge {judge}: it needs an engine to ask; set `engine`, or take a judge of `type: rule`")
    if retries < 0 or max_new_tokens < 1:
        raise ConfigError(
            f"judge {judge}: retries must be at least 0 and max_new_tokens at least 1, got {retries}, {max_new_tokens}"
        )
    return engine


@JUDGES.register("llm")
class LLMJudge(Judge):
    """An LLM with a rubric for each aspect. A judgement without a score is asked for again, with another seed.

    Args:
        engine: the LLM. One that keeps its answers (`sottovoce.llms.answer_cache.CachedEngine`) makes a second
            judging of the same replies by the same rubric free.
        quality: file of the rubric for overall quality; the project's own if absent.
        emotion: file of the rubric for heed of the emotion; the project's own if absent.
        retries: how often a judgement without a score is asked for again.
        seed: of the first attempt, at temperature 0; further ones, at 0.7, count on from it.
        max_new_tokens: of a judgement.

    Raises:
        ConfigError: there is no engine, a knob makes no sense, or a rubric cannot be used.
    """

    def __init__(
        self,
        engine: Answerer | None,
        *,
        quality: str | None = None,
        emotion: str | None = None,
        retries: int = 2,
        seed: int = 0,
        max_new_tokens: int = 64,
    ) -> None:
        engine = who_answers("llm", engine, retries, max_new_tokens)
        self.engine, self.name = engine, f"llm:{engine.name}"
        files: dict[Aspect, str | None] = {"quality": quality, "emotion": emotion}
        self.rubrics = {
            aspect: Rubric(resolve(file) if file else _RUBRICS / f"{aspect}.txt") for aspect, file in files.items()
        }
        self.retries, self.seed, self.max_new_tokens = retries, seed, max_new_tokens

    def judge(self, replies: Sequence[Reply]) -> dict[Aspect, Verdict]:
        return {aspect: self._verdict(rubric, replies) for aspect, rubric in self.rubrics.items()}

    def _verdict(self, rubric: "Rubric", replies: Sequence[Reply]) -> Verdict:
        prompts = [rubric.fill(reply) for reply in replies]
        limits = {"retries": self.retries, "seed": self.seed, "max_new_tokens": self.max_new_tokens}
        return ask(self.engine, prompts, parse_score, **limits)


def ask(
    engine: Answerer,
    prompts: Sequence[str],
    parse: Callable[[str], int | None],
    *,
    retries: int,
    seed: int,
    max_new_tokens: int,
) -> Verdict:
    """A verdict of an LLM on what each prompt shows; `parse` finds the score in a judgement, or None. See `ask_all`."""
    asked = ask_all(engine, prompts, parse, retries=retries, seed=seed, max_new_tokens=max_new_tokens)
    return Verdict([None if found is None else float(found) for found in asked.found], *asked.trouble)


@dataclass(frozen=True)
class Asked(Generic[T]):
    """What was found in the judgement of each prompt, and what kept others from having any.

    `trouble` is what a `Verdict` tells beside its scores: failed, unclear, malformed.
    """

    found: list[T | None]
    trouble: tuple[Counter[str], int, int]


def ask_all(
    engine: Answerer,
    prompts: Sequence[str],
    parse: Callable[[str], T | None],
    *,
    retries: int,
    seed: int,
    max_new_tokens: int,
) -> Asked[T]:
    """Ask an LLM for a judgement of what each prompt shows; `parse` finds in it what is wanted, or None.

    A judgement without is asked for again, at temperature 0.7 and with the next seed, `retries` times at most.
    """
    scores: list[T | None] = [None] * len(prompts)
    failed: Counter[str] = Counter()
    malformed, waiting = 0, list(range(len(prompts)))
    for attempt in range(1 + retries):
        unclear = []
        chats = [[{"role": "user", "content": prompts[at]}] for at in waiting]
        limits = {"max_new_tokens": max_new_tokens, "seed": seed + attempt}
        temperature = _RETRY_TEMPERATURE if attempt else 0.0
        answers = engine.answer(chats, temperature=temperature, **limits) if chats else []
        for at, answer in zip(waiting, answers, strict=True):
            if not isinstance(answer, str):
                failed[answer.reason] += 1
            elif (score := parse(answer)) is not None:
                scores[at] = score
            else:
                unclear.append(at)
        malformed, waiting = malformed + len(unclear), unclear
    return Asked(scores, (failed, len(waiting), malformed))


class Rubric:
    """A text that asks for a score, with the fields {transcript}, {emotion} and {response}.

    Lines that begin with `#` are comments. Braces that are meant are written twice.

    Args:
        file: with the text.
        fields: what it may name, where that is something else; {response} is always needed.

    Raises:
        ConfigError: the file cannot be read, does not show the response, or names an unknown field.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ("transcript", "emotion", "response")

    def __init__(self, file: Path, fields: Sequence[str] = FIELDS) -> None:
        try:
            lines = read_text(file).split("\n")
            self.text = "\n".join(line for line in lines if not line.startswith("#")).strip()
            parts = [part for part in Formatter().parse(self.text) if part[1] is not None]
            named = self.named = {str(name) for _, name, _, _ in parts}
            if any(shape or conversion for _, _, shape, conversion in parts):  # {response:>9999999999} fills the memory
                raise ValueError("a field stands alone in its braces, without a format")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file}: the rubric cannot be used: {error}; braces that are meant go twice") from None
        for name in sorted(named - set(fields)):
            raise ConfigError(f"{file}: unknown field {{{name}}}.{nearest(name, fields)}")
        if "response" not in named:
            raise ConfigError(f"{file}: the rubric never shows the {{response}}, so there is nothing to judge")

    def fill(self, shown: Any) -> str:
        """The text about a reply, whose attributes are the fields."""
        return self.text.format(**{name: getattr(shown, name) for name in self.named})


THOUGHTS = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
_OUT_OF = re.compile(rf"(?<=\d)\s*(?:/|out of)\s*{HIGHEST}\b", re.IGNORECASE)
_NUMBER = r"(-?\d+(?:[.,]\d+)?)"
_PLACES = [  # where a judgement puts its score, the plainest first
    re.compile(rf'"score"\s*:\s*"?{_NUMBER}', re.IGNORECASE),
    re.compile(
        rf"(?:score|rating)\W{{0,6}}?(?:is|of)?\W{{0,3}}?{_NUMBER}(?![\d.,]*\d|\s*(?:[-\u2013\u2014]|to|or)\s*\d)",
        re.IGNORECASE,
    ),
    re.compile(rf"\A\W*?{_NUMBER}\W*(?:\n|\Z)"),
    re.compile(_NUMBER),
]


def parse_score(judgement: str) -> int | None:
    """The whole number from 1 to 10 that a judgement gives; None for none, several, or one out of range.

    The number that JSON calls score counts first, then one after the word, one that fills the first line, and one
    that is alone in the text. "of 10" is no number of its own; 7.5 and 7-8 are no scores.
    """
    text = _OUT_OF.sub("", THOUGHTS.sub("", judgement).strip())
    found = next((numbers for place in _PLACES if (numbers := set(place.findall(text)))), set())
    only = found.pop() if len(found) == 1 else ""
    return int(only) if only in map(str, range(LOWEST, HIGHEST + 1)) else None
