"""What a model is asked about a spoken turn, and what it should answer: a task is wordings and a target."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from undertone.data.utterance import Utterance
from undertone.data.wordings import read_wordings
from undertone.errors import ConfigError, nearest
from undertone.paths import resolve
from undertone.registry import Registry

_PROMPTS = Path(__file__).parent / "prompts"


class Task(ABC):
    """A question about an utterance, in several wordings, with the answer to learn.

    A subclass sets `name` and `relies_on`, and takes its knobs as keyword-only parameters.

    Args:
        prompts: a file of wordings, one a line, `#` for comments; the project's own `prompts/<name>.txt` if absent.
        fields: what the wordings may name in braces, and what stands there instead.

    Raises:
        ConfigError: the file is missing, holds no wording, or names an unknown field; the message has file and line.
    """

    name: ClassVar[str]
    relies_on: ClassVar[Literal["linguistic", "paralinguistic", "both"]]

    def __init__(self, prompts: str | None = None, fields: Mapping[str, str] | None = None) -> None:
        self._wordings = read_wordings(resolve(prompts) if prompts else _PROMPTS / f"{self.name}.txt", fields or {})

    @abstractmethod
    def available(self, utterance: Utterance) -> bool:
        """Whether the utterance has the transcript or label that this task learns from."""

    @abstractmethod
    def target(self, utterance: Utterance) -> str | None:
        """The answer to learn; None where the run's own LLM must make it."""

    def instructions(self) -> list[str]:
        """All wordings of the question, ready to be shown, in the order of their file."""
        return list(self._wordings)

    def label(self, utterance: Utterance) -> str | None:
        """The label that is scored; None for a task that is not a choice among labels."""
        return None

    def parse(self, response: str) -> str | None:
        """The label that a response names; None for a task that is not a choice among labels."""
        return None


TASKS: Registry[Task] = Registry("task")


@TASKS.register("asr")
class ASR(Task):
    """Say again what was said: the target is the transcript."""

    name = "asr"
    relies_on = "linguistic"

    def __init__(self, *, prompts: str | None = None) -> None:
        super().__init__(prompts)

    def available(self, utterance: Utterance) -> bool:
        return utterance.text is not None

    def target(self, utterance: Utterance) -> str | None:
        return utterance.text


@TASKS.register("dialogue")
class Dialogue(Task):
    """Reply to what is said and to how it is said.

    Style-aware behaviour alignment (Wang et al., ICME 2025): the target is the response of the run's own LLM to the
    styled transcript, unless the manifest has a ready response.
    """

    name = "dialogue"
    relies_on = "both"

    def __init__(self, *, prompts: str | None = None) -> None:
        super().__init__(prompts)

    def available(self, utterance: Utterance) -> bool:
        styled = utterance.text is not None and style_caption(utterance) is not None
        return utterance.response is not None or styled

    def target(self, utterance: Utterance) -> str | None:
        return utterance.response


class AttributeTask(Task):
    """Name one attribute of the voice, out of a list of choices, in a sentence.

    A subclass says `name` and `sentence`; the attribute is the key of that name in the utterance's labels.

    Args:
        choices: the labels to choose from, in the order in which the wordings list them.
        prompts: see `Task`; the wordings may say {choices}.

    Raises:
        ConfigError: fewer than two choices, or two that differ in case alone.
    """

    relies_on = "paralinguistic"
    sentence: ClassVar[str]  # with {label} where the choice goes

    def __init__(self, choices: Sequence[str], prompts: str | None = None) -> None:
        self.choices = tuple(choices)
        self._by_name = {choice.lower(): choice for choice in self.choices}
        if len(self._by_name) < max(2, len(self.choices)) or not all(name.strip() for name in self._by_name):
            raise ConfigError(f"task {self.name}: choices must be two or more different labels, got {list(choices)}")
        longest_first = sorted(self._by_name, key=len, reverse=True)
        self._named = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
        super().__init__(prompts, {"choices": ", ".join(self.choices)})

    def available(self, utterance: Utterance) -> bool:
        return self.label(utterance) is not None

    def label(self, utterance: Utterance) -> str | None:
        """The utterance's label for this attribute, None where it has none.

        Raises:
            ConfigError: the label is not among the choices.
        """
        label = utterance.labels.get(self.name)
        if label is not None and label not in self.choices:
            known = nearest(label, self.choices)
            raise ConfigError(f"task {self.name}: utterance {utterance.id!r} has the unknown label {label!r}.{known}")
        return label

    def target(self, utterance: Utterance) -> str | None:
        label = self.label(utterance)
        return None if label is None else self.sentence.format(label=label)

    def parse(self, response: str) -> str | None:
        """The one choice that a response names, as a whole word in any case; None for no choice and for several.

        Of choices that contain each other ("happy", "very happy") the longest that fits is meant.
        """
        named = set(self._named.findall(response.lower()))
        return self._by_name[named.pop()] if len(named) == 1 else None


@TASKS.register("gender")
class Gender(AttributeTask):
    """Whether the voice is a man's or a woman's."""

    name = "gender"
    sentence = "The speaker is {label}."

    def __init__(self, *, choices: tuple[str, ...] = ("male", "female"), prompts: str | None = None) -> None:
        super().__init__(choices, prompts)


@TASKS.register("pitch")
class Pitch(AttributeTask):
    """How high the voice is."""

    name = "pitch"
    sentence = "The pitch is {label}."

    def __init__(self, *, choices: tuple[str, ...] = ("low", "normal", "high"), prompts: str | None = None) -> None:
        super().__init__(choices, prompts)


@TASKS.register("tempo")
class Tempo(AttributeTask):
    """How fast the speaker talks."""

    name = "tempo"
    sentence = "The tempo is {label}."

    def __init__(self, *, choices: tuple[str, ...] = ("slow", "normal", "fast"), prompts: str | None = None) -> None:
        super().__init__(choices, prompts)


@TASKS.register("energy")
class Energy(AttributeTask):
    """How loud the voice is."""

    name = "energy"
    sentence = "The energy is {label}."

    def __init__(self, *, choices: tuple[str, ...] = ("low", "normal", "high"), prompts: str | None = None) -> None:
        super().__init__(choices, prompts)


_EMOTIONS = ("neutral", "happy", "sad", "angry", "surprised", "disgusted", "fearful", "contemptuous")


@TASKS.register("emotion")
class Emotion(AttributeTask):
    """How the speaker feels."""

    name = "emotion"
    sentence = "The speaker sounds {label}."

    def __init__(self, *, choices: tuple[str, ...] = _EMOTIONS, prompts: str | None = None) -> None:
        super().__init__(choices, prompts)


def style_caption(utterance: Utterance) -> str | None:
    """How the utterance is said, in words: its own caption, or one made of its labels; None where it has neither."""
    return utterance.caption or (caption_from(utterance.labels) if utterance.labels else None)


def caption_from(labels: Mapping[str, str]) -> str:
    """Style labels as a sentence, such as "A sad female voice with high pitch, slow tempo and low energy.".

    Emotion and gender come before the voice; pitch, tempo, energy and any further attribute after it. What has no
    label is not mentioned.
    """
    before = [labels[name] for name in ("emotion", "gender") if name in labels]
    measured = ("pitch", "tempo", "energy")
    rest = [name for name in labels if name not in ("emotion", "gender", *measured)]
    after = [f"{labels[name]} {name}" for name in (*measured, *rest) if name in labels]
    voice = " ".join([*before, "voice"])
    article = "An" if voice[0].lower() in "aeiou" else "A"
    return f"{article} {voice}{' with ' if after else ''}{_listed(after)}."


def _listed(parts: Sequence[str]) -> str:
    *most, last = parts or [""]
    return f"{', '.join(most)} and {last}" if most else last
