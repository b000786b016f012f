"""Tasks: what a model is asked about a spoken turn (its wordings), and what it should answer (its target)."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import ClassVar, Literal

from sottovoce.data.utterance import Utterance
from sottovoce.errors import ConfigError, brief, nearest
from sottovoce.paths import resolve
from sottovoce.registry import Registry
from sottovoce.scripts import nfc, searched, standing
from sottovoce.templates import Template, read_wordings

PROMPTS = Path(__file__).parent / "prompts"
PLAIN = "plain"  # ready replies that know no emotion: `responses: {"plain": ...}`
PLAIN_TEACHER = "sottovoce:data/prompts/speech_emotion_llama/companion_plain.txt"
TEXTS = ("caption", "transcript")  # equivalent to speech in the slots, where nothing else is said


class Task(ABC):
    """A question about an utterance, in several wordings, with the answer to learn.

    A subclass sets `name`, as recipes call it, and `relies_on`; its knobs are keyword-only parameters.

    Args:
        prompts: a file of wordings, one a line, `#` for comments; the project's own `prompts/<name>.txt` if absent.
        shots: few-shot examples, written turns before the one that is asked: what the user says -> the answer.
        fields: what the wordings may name in braces, and what stands there instead; no knobs.

    Raises:
        ConfigError: the file is missing, holds no wording, or names an unknown field; the message has file and line.
    """

    name: ClassVar[str]
    relies_on: ClassVar[Literal["linguistic", "paralinguistic", "both"]]
    generated: ClassVar[bool] = False  # whether the run's own LLM makes its targets
    rate: str | None = None  # of a transcript: its error rate, such as `cer/basic`; None: `wer`, English
    written: ClassVar[bool] = False  # whether it can be asked of a written turn, too
    teacher: str | None = None  # a system prompt that the run's own LLM is given when it makes targets, and only then
    shots: dict[str, str] | None = None  # few-shot examples

    def __init__(self, *, prompts: str | None = None, shots: dict[str, str] | None = None, **fields: str) -> None:
        self._wordings, self.shots = self._read_wordings(prompts, fields), shots

    def _read_wordings(self, prompts: str | None, fields: Mapping[str, str]) -> list[str]:
        return read_wordings(resolve(prompts) if prompts else PROMPTS / f"{self.name}.txt", fields)

    @abstractmethod
    def available(self, utterance: Utterance) -> bool:
        """Whether the utterance has the transcript or label that this task learns from."""

    def serves(self, utterance: Utterance, texts: Iterable[str] = TEXTS) -> bool:
        """Whether it can be asked of the utterance: `available`, and the turn is spoken, or may be `written`.

        `texts` are the slots' own, which a target that the LLM makes is made from.
        """
        return (self.written or utterance.audio is not None) and self.available(utterance)

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


OWN_ATTRIBUTE = "attribute"  # the type of attributes that a recipe defines: the one that has no choices of its own
TASKS: Registry[Task] = Registry("task", {OWN_ATTRIBUTE: "sottovoce.data.own_attribute"})


@TASKS.register("asr")
class ASR(Task):
    """Say again what was said: the target is the transcript, which is empty where nothing is said.

    Args:
        metric: its error rate: of words, of characters, or mixed (characters of scripts without spaces, words of
            others).
        normalizer: of both texts: Whisper's for English; `basic` for any language, in which letters keep their marks;
            or `none`. If absent, the English one for words and `basic` for the others.
        prompts, shots: see `Task`.
    """

    name = "asr"
    relies_on = "linguistic"

    def __init__(
        self, *, prompts: str | None = None, shots: dict[str, str] | None = None,
        metric: Literal["wer", "cer", "mer"] = "wer", normalizer: Literal["english", "basic", "none"] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(prompts=prompts, shots=shots)
        chosen = normalizer or ("english" if metric == "wer" else "basic")
        self.rate = None if (metric, chosen) == ("wer", "english") else f"{metric}/{chosen}"

    def available(self, utterance: Utterance) -> bool:
        return utterance.text is not None

    def target(self, utterance: Utterance) -> str | None:
        return utterance.text


@TASKS.register("dialogue")
class Dialogue(Task):
    """Reply to what is said and to how it is said.

    Style-aware behaviour alignment (Wang et al., ICME 2025): the target is the response of the run's own LLM to the
    text in all slots, unless the manifest has a ready response.
    """

    name = "dialogue"
    relies_on = "both"
    generated = True
    written = True

    def available(self, utterance: Utterance, texts: Iterable[str] = TEXTS) -> bool:
        return self.target(utterance) is not None or all(_is_known(utterance, text) for text in texts)

    def serves(self, utterance: Utterance, texts: Iterable[str] = TEXTS) -> bool:
        return (self.written or utterance.audio is not None) and self.available(utterance, texts)

    def target(self, utterance: Utterance) -> str | None:
        return utterance.responses.get(self.name, utterance.response)


@TASKS.register("response")
class Response(Dialogue):
    """Reply to speech that no instruction stands before: alignment against emotion-conditioned responses.

    Kang et al. (2024), section III-A: the target is the response of the run's own LLM to the equivalent text under a
    system prompt, the teacher's, which is never shown in training.

    Args:
        teacher: a file with the system prompt, in one line; `none` for no system prompt. Beside `kind: plain` a recipe
            that names none has the companion's without its sentence on emotions.
        kind: of the targets, as `sottovoce targets` calls it. `plain`: not conditioned on emotion; ready ones are in
            `responses: {"plain": ...}`. `response`: conditioned; ready ones are in `response`. If absent, those in
            `response` are taken for whatever they are.
    """

    name = "response"

    def __init__(
        self,
        *,
        teacher: str = "sottovoce:data/prompts/speech_emotion_llama/companion.txt",
        kind: Literal["response", "plain"] | None = None,
    ) -> None:
        self._wordings, self.kind = [""], kind
        self.teacher = None if teacher == "none" else read_wordings(resolve(teacher), {})[0]

    def target(self, utterance: Utterance) -> str | None:
        written = utterance.audio is None  # whose reply cannot know an emotion
        return super().target(utterance) if self.kind != PLAIN or written else utterance.responses.get(PLAIN)


@TASKS.register("caption")
class Caption(Dialogue):
    """Describe the scene: the target is the description that the run's own LLM gives of the equivalent text.

    Kang et al. (2024), section III-B.
    """

    name = "caption"
    written = False

    def target(self, utterance: Utterance) -> str | None:
        return utterance.responses.get(self.name)


@dataclass(kw_only=True, eq=False)  # two tasks are equal when they are one
class AttributeTask(Task):
    """Name one attribute of the voice, out of a list of choices, in a sentence.

    A subclass is a keyword-only dataclass, whose fields are its knobs. It sets `name`, the sentence that it `says`, and
    the default of `choices`; the attribute is the key of that name in the utterance's labels.

    Args:
        choices: the labels to choose from, in the order in which the wordings list them.
        prompts, shots: see `Task`; the wordings may say {choices}.
        sentence: the answer to learn, with {label} in it; what the class says if absent.
        words: label -> how wordings and sentence call it, such as a word of their language; itself if absent.

    Raises:
        ConfigError: fewer than two choices, or two that differ in case alone; a word for another label; a sentence
            without {label}; or an answer that does not read back as its own label.
    """

    relies_on = "paralinguistic"
    says: ClassVar[str]  # with {label} where the choice goes, and {a} where its article goes
    choices: tuple[str, ...] = ()
    prompts: str | None = None
    shots: dict[str, str] | None = None
    sentence: str | None = None
    words: dict[str, str] | None = None

    def __post_init__(self) -> None:
        self.choices, where = tuple(self.choices), f"tasks.{self.name}.choices"
        if strange := [choice for choice in self.choices if not isinstance(choice, str)]:
            problem = f"task {self.name}: choices must be labels in words, found {brief(repr(strange[0]), 100)}"
            raise ConfigError(problem, code="bad-value", where=where)
        self.choices = tuple(map(nfc, self.choices))
        self._words = {nfc(label): word for label, word in (self.words or {}).items()}
        for label in self._words.keys() - set(self.choices):
            problem = f"task {self.name}: words: unknown label {label!r}.{nearest(label, self.choices)}"
            raise ConfigError(problem, code="unknown-name", where=f"tasks.{self.name}.words")
        self._by_name = {searched(self.word(choice)): choice for choice in self.choices}
        if len(self._by_name) < max(2, len(self.choices)) or not all(name.strip() for name in self._by_name):
            problem = f"task {self.name}: choices must be two or more different labels, got {list(self.choices)}"
            raise ConfigError(problem, code="bad-value", where=where)
        self._named = standing(list(self._by_name))
        super().__init__(prompts=self.prompts, shots=self.shots, choices=", ".join(map(self.word, self.choices)))
        if self.sentence is not None:
            Template(self.sentence, ("label", "a"), required=["label"], where=f"task {self.name}: sentence")
        for choice in self.choices:
            if (read := self.parse(self.answer(choice))) != choice:
                problem = f"task {self.name}: its own answer for {choice!r}, {self.answer(choice)!r}, reads back as "
                problem += f"{read!r}: change `sentence`, `choices` or `words`"
                raise ConfigError(problem, code="conflict", where=f"tasks.{self.name}")

    def word(self, label: str) -> str:
        """How a label is called."""
        return self._words.get(label, label)

    def available(self, utterance: Utterance) -> bool:
        return self.label(utterance) is not None

    def label(self, utterance: Utterance) -> str | None:
        """The utterance's label for this attribute, if any; raises ConfigError where it is not among the choices."""
        label = utterance.labels.get(self.name)
        if label is not None and label not in self.choices:
            problem = f"task {self.name}: utterance {utterance.id!r} has the unknown label {label!r}."
            raise ConfigError(problem + nearest(label, self.choices), code="unknown-name", where=utterance.id)
        return label

    def target(self, utterance: Utterance) -> str | None:
        label = self.label(utterance)
        return None if label is None else self.answer(label)

    def answer(self, label: str) -> str:
        """The sentence that names a label."""
        word = self.word(label)
        return (self.sentence or self.says).format(label=word, a="an" if word[:1].lower() in "aeiou" else "a")

    def parse(self, response: str) -> str | None:
        """The one choice that a response names, as a whole word in any case; None for no choice and for several.

        What is whole depends on the script, see `scripts.standing`. Of choices that contain each other ("happy", "very
        happy") the longest that fits is meant.
        """
        named = {match["text"] for match in self._named.finditer(searched(response))}
        return self._by_name[named.pop()] if len(named) == 1 else None


def _attribute(name: str, what: str, says: str, *choices: str) -> type[AttributeTask]:
    """Register an attribute that takes no more than a sentence and the labels to choose from."""
    own = {"__doc__": what, "__module__": __name__, "name": name, "says": says}
    knobs = [("choices", tuple[str, ...], choices)]
    made: type[AttributeTask] = make_dataclass(
        name.capitalize(), knobs, bases=(AttributeTask,), namespace=own, kw_only=True, eq=False
    )
    TASKS.register(name)(made)
    return made


Gender = _attribute("gender", "Whether the voice is a man's or a woman's.", "The speaker is {label}.", "male", "female")
Pitch = _attribute("pitch", "How high the voice is.", "The pitch is {label}.", "low", "normal", "high")
Tempo = _attribute("tempo", "How fast the speaker talks.", "The tempo is {label}.", "slow", "normal", "fast")
Energy = _attribute("energy", "How loud the voice is.", "The energy is {label}.", "low", "normal", "high")
Age = _attribute("age", "How old the speaker is.", "The speaker is {a} {label}.", "child", "adult")
Emotion = _attribute(
    "emotion", "How the speaker feels.", "The speaker sounds {label}.",
    "neutral", "happy", "sad", "angry", "surprised", "disgusted", "fearful", "contemptuous",
)  # fmt: skip


def _is_known(utterance: Utterance, text: str) -> bool:
    """Whether the utterance has what a slot's text is made of; a reply needs the words in any case."""
    if text == "tagged":
        return bool(utterance.text and utterance.labels.get("emotion"))
    return bool(utterance.text) and (text == "transcript" or style_caption(utterance) is not None)


def style_caption(utterance: Utterance) -> str | None:
    """How the utterance is said, in words: its own caption, or one made of its labels; None where it has neither."""
    if utterance.caption or not utterance.labels:
        return utterance.caption
    own = utterance.overrides and utterance.overrides.captions
    return own.fill(utterance.labels) if own else caption_from(utterance.labels)


def caption_from(labels: Mapping[str, str]) -> str:
    """Style labels as a sentence, such as "A sad female voice with high pitch, slow tempo and low energy.".

    Emotion and gender come before the voice; pitch, tempo, energy and any further attribute after it. What has no
    label is not mentioned.
    """
    before = [labels[name] for name in ("emotion", "gender") if name in labels]
    measured = ("pitch", "tempo", "energy")
    rest = [name for name in labels if name not in ("emotion", "gender", *measured)]
    *most, last = [f"{labels[name]} {name}" for name in (*measured, *rest) if name in labels] or [""]
    after = f"{', '.join(most)} and {last}" if most else last
    voice = " ".join([*before, "voice"])
    article = "An" if voice[0].lower() in "aeiou" else "A"
    return f"{article} {voice}{' with ' if after else ''}{after}."


def task_of(tasks: Mapping[str, Task], name: str, utterance: Utterance) -> Task:
    """The task called `name` as it is for an utterance."""
    own = utterance.overrides.tasks if utterance.overrides else {}
    return own.get(name) or tasks[name]
