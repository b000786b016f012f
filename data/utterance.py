"""Utterances: a user's turn, spoken or written, with transcript, style labels, and the dialogue that led to it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # it imports this module
    from sottovoce.data.overrides import Overrides


@dataclass(frozen=True)
class Turn:
    """A turn of the dialogue before the spoken turn."""

    role: Literal["user", "assistant"]
    text: str  # what was said; of a spoken turn, its transcript
    audio: Path | None = None  # of a spoken user turn
    caption: str | None = None  # how it was said


@dataclass(frozen=True)
class Utterance:
    """A turn of the user that a model hears, or where there is no audio reads, and answers."""

    id: str
    audio: Path | None  # None: a written turn, which is its text
    text: str | None  # transcript; empty where nothing is said
    speaker: str | None
    seconds: float  # of a written turn, how long it would take to say
    labels: dict[str, str] = field(default_factory=dict)  # attribute -> label, such as {"emotion": "sad"}
    caption: str | None = None  # how it was said; where absent, `tasks.style_caption` makes one of the labels
    context: tuple[Turn, ...] = ()
    response: str | None = None  # a ready reply; where absent, the run's own LLM makes it
    responses: dict[str, str] = field(default_factory=dict)  # task -> its own ready answer, such as {"caption": ...}
    category: str | None = None  # paired data: the attribute that the right answer hangs on, such as "age"
    answers: dict[str, str] = field(default_factory=dict)  # its label -> the right answer to such a speaker
    topic: str | None = None  # what is spoken of; `<group>/<topic>` where a group of topics is scored apart
    only: tuple[str, ...] | None = None  # the tasks that it may serve, by the recipe; None: any. No key of a manifest
    overrides: "Overrides | None" = None  # of tasks and captions, by the recipe. No key of a manifest
    place: str = field(default="", compare=False)  # `file:line` of its manifest

    @property
    def clip(self) -> Path:
        """The audio file of a spoken turn."""
        assert self.audio is not None
        return self.audio

    @property
    def clips(self) -> list[Path]:
        """The audio files that it and its context name."""
        turns: tuple[Turn | Utterance, ...] = (self, *self.context)
        return [turn.audio for turn in turns if turn.audio]
