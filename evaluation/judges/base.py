"""Judge interface: replies in, a verdict for each aspect out."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

import numpy as np

from sottovoce.evaluation.bootstrap import Array, Interval, bootstrap, by_speaker, ratio

Aspect: TypeAlias = str  # what is scored, such as quality or cs_content


@dataclass(frozen=True)
class Reply:
    """A reply to be judged: `response`, to a spoken turn with this transcript and the speaker's emotion."""

    transcript: str
    emotion: str
    response: str
    context: str = ""  # the dialogue before the spoken turn, a turn a line
    caption: str = ""  # how the spoken turn was said, in words


@dataclass(frozen=True)
class Verdict:
    """The scores of one aspect, one for each reply or None, and counts of what was not scored.

    Mean and interval are over the replies that have a score, and None where none has.
    """

    scores: list[float | None]
    failed: Counter[str] = field(default_factory=Counter)  # why a reply could not be judged at all -> how many
    unclear: int = 0  # replies in whose judgements no score was found, however often the judge was asked
    malformed: int = 0  # judgements without a score, those that were mended by asking again included
    speakers: Sequence[str | None] = ()  # to whom the replies are, where that is known

    @property
    def scored(self) -> list[float]:
        return [score for score in self.scores if score is not None]

    @property
    def mean(self) -> float | None:
        return float(np.mean(self.scored)) if self.scored else None

    @property
    def interval(self) -> Interval | None:
        """95 % interval of the mean (percentile bootstrap over speakers, or over replies)."""
        return bootstrap(self._drawn()[0], ratio) if self.scored else None

    @property
    def clusters(self) -> int:
        """Speakers whom the interval is over; 0: replies."""
        return self._drawn()[1] if self.scored else 0

    def _drawn(self) -> tuple[Array, int]:
        rows = np.array([[score, 1.0] for score in self.scored])
        known = [who for who, score in zip(self.speakers, self.scores, strict=False) if score is not None]
        return by_speaker(rows, known)

    def of(self, rows: Sequence[int]) -> "Verdict":
        """The scores of some replies alone; the counts stay those of all replies together."""
        speakers = [self.speakers[row] for row in rows] if self.speakers else ()
        return replace(self, scores=[self.scores[row] for row in rows], speakers=speakers)

    def notes(self) -> str:
        """What is missing from the mean, in words; empty where nothing is."""
        failed = [f"{count} could not be judged: {why}" for why, count in self.failed.most_common()]
        unclear = [f"{self.unclear} got judgements without a score"] if self.unclear else []
        malformed = [f"{self.malformed} judgements had no score in all"] if self.malformed else []
        missing = len(self.scores) - len(self.scored)
        left_out = [f"{missing} of {len(self.scores)} left out", *failed, *unclear] if missing else []
        return "; ".join([*left_out, *malformed])


class Failed(Protocol):
    """An item that an engine could not answer."""

    @property
    def reason(self) -> str: ...


class Answerer(Protocol):
    """The engine of an LLM judge: `sottovoce.llms.engines.Engine`, in the words of this room."""

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
        """A verdict for each aspect; a reply that cannot be judged costs its own score alone, and is counted."""
