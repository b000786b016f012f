"""Training chats of the demo's LLM: questions and answers about the demo world, in text."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from sottovoce.data.tasks import PROMPTS, TASKS, AttributeTask, caption_from
from sottovoce.demo.world import CHOICES, WORDS, Style, draw_sentence, draw_small_talk, draw_style, follow_up, reply
from sottovoce.templates import read_wordings

AGES = ("child", "adult")  # known to the LLM; the demo's voices are all of one age
ATTRIBUTES = (*CHOICES, "age")
COPYING = ("asr", "words")
REPLYING = ("dialogue", "dialogue", "dialogue", "follow-up", "response", "caption", "repeat", "tone")
ALIGNED = ("companion", "asr", "caption", "emotion")  # by Kang et al. (2024), for REPLYING's last four
LEXICON = sorted({*WORDS, *AGES, *(label for labels in CHOICES.values() for label in labels)})


@dataclass(frozen=True)
class Phase:
    """Settings of some training steps."""

    steps: int
    batch: int
    lr: float
    context: float  # share of chats that have something before the question
    copying: float  # share of lessons that repeat words
    attributes: float  # share of lessons that are questions about a style caption
    loose: float  # share of captions and transcripts that are written loosely
    noise: float  # most on word embeddings, in their standard deviations; drawn per chat (NEFTune, Jain et al., 2024)


Lesson = tuple[list[dict[str, str]], str]  # messages, answer


class Lessons:
    """Draws chats; every wording that the tasks' prompt files hold is seen in training.

    A large LLM reads sloppy text as well as neat text. This one must be taught to: some captions come as a list in any
    order, some transcripts with words said several times over.
    """

    rooms: tuple[tuple[str, ...], ...] = (COPYING, ATTRIBUTES, REPLYING)  # of which a phase has the shares
    kinds: tuple[str, ...] = tuple(dict.fromkeys((*ATTRIBUTES, *COPYING, *REPLYING)))

    def __init__(self, seed: int, split: str, phase: Phase) -> None:
        self.rng, self.split, self.phase = random.Random(f"{seed} {split}"), split, phase
        nodes: dict[str, dict[str, list[str]]] = {"asr": {}, "dialogue": {}}
        nodes |= {name: {"choices": list(choices)} for name, choices in {**CHOICES, "age": AGES}.items()}
        self.tasks = {name: TASKS.build({"type": name, **knobs}) for name, knobs in nodes.items()}
        self.wordings = {name: task.instructions() for name, task in self.tasks.items()}
        folder, fields = PROMPTS / "speech_emotion_llama", {"choices": ", ".join(CHOICES["emotion"])}
        self.aligned = {name: read_wordings(folder / f"{name}.txt", fields)[0] for name in ALIGNED}

    def __iter__(self) -> Iterator[Lesson]:
        """Yield lessons for ever."""
        shares = (self.phase.copying, self.phase.attributes, 1 - self.phase.copying - self.phase.attributes)
        while True:
            yield self.lesson(self.rng.choice(self.rng.choices(self.rooms, shares)[0]))

    def lesson(self, kind: str) -> Lesson:
        """A lesson of one kind: an attribute, or one of COPYING or REPLYING."""
        rng = self.rng
        sentence, style = draw_sentence(rng, self.split), draw_style(rng)
        if kind in ("response", "caption", "repeat", "tone"):
            return self._tagged(kind, sentence, style.emotion)
        talk, who = draw_small_talk(rng) if rng.random() < self.phase.context else ([], None)
        if rng.random() <= 0.25 * self.phase.context:  # an earlier spoken turn, in a quarter of the chats with context
            talk = [*talk, self._turn(draw_sentence(rng, self.split), draw_style(rng), who)]
        if kind in ATTRIBUTES:
            labels = self._labels(style, aged=kind == "age")
            user, answer = self._styled(sentence if rng.random() < 0.6 else None, labels), self._answer(kind, labels)
        elif kind == "dialogue":
            user, answer = self._turn(sentence, style, who)
        elif kind == "follow-up":
            talk = [*talk, (self._styled(sentence, self._labels(style)), reply(sentence, style.emotion, who))]
            kind, (user, answer) = "dialogue", follow_up(rng, sentence, style, who)
        else:
            answer = self._copied(kind, sentence)
            kind, user = "asr", self._styled(answer, self._labels(style) if rng.random() < 0.6 else None)
        return messages(rng.choice(self.wordings[kind]), user, talk), answer

    def _tagged(self, kind: str, sentence: str, emotion: str) -> Lesson:
        """As SpeechEmotionLlama asks: a tag before the words, no caption, and the question in the same turn."""
        tagged = kind == "tone" or self.rng.random() < 0.7
        words = self._words(sentence)
        user, feeling = (f"<{emotion}> {words}", emotion) if tagged else (words, "neutral")
        if kind == "response":
            shown = self.aligned["companion"] if self.rng.random() < 0.5 else ""
            return messages(shown, user), reply(sentence, feeling)
        prompt, answer = {
            "caption": ("caption", f"{f'A {feeling} speaker' if tagged else 'Someone'} says: {sentence}."),
            "repeat": ("asr", sentence),
            "tone": ("emotion", emotion),
        }[kind]
        return messages("", f"{self.aligned[prompt]} {user}"), answer

    def _labels(self, style: Style, aged: bool = False) -> dict[str, str]:
        """The labels of a caption; some hold the age, too."""
        return vars(style) | ({"age": self.rng.choice(AGES)} if aged or self.rng.random() < 0.2 else {})

    def _answer(self, attribute: str, labels: dict[str, str]) -> str:
        return cast(AttributeTask, self.tasks[attribute]).answer(labels[attribute])

    def _copied(self, kind: str, sentence: str) -> str:
        """What a lesson of COPYING has repeated: a sentence, or any words."""
        return sentence if kind == "asr" else " ".join(self.rng.sample(LEXICON, k=self.rng.randint(3, 7)))

    def _turn(self, sentence: str, style: Style, who: str | None) -> tuple[str, str]:
        labels, known = self._labels(style), self.rng.random()
        if known < 0.15:  # the words alone
            return self._styled(sentence, None), reply(sentence, "neutral", who)
        if known < 0.3:  # the style alone
            return self._styled(None, labels), reply(None, style.emotion, who)
        return self._styled(sentence, labels), reply(sentence, style.emotion, who)

    def _styled(self, sentence: str | None, labels: dict[str, str] | None) -> str:
        """A user turn in text: the caption and the transcript, as far as they are known, on lines of their own."""
        caption = self._caption(labels) if labels else None
        return "\n".join(filter(None, [caption, sentence and self._words(sentence)]))

    def _caption(self, labels: dict[str, str]) -> str:
        """A style; loosely, as its words in any order, some more than once, with or without what they are about."""
        if self.rng.random() >= self.phase.loose:
            return caption_from(labels)
        named = self.rng.random() < 0.3
        parts = [f"{label} {name}" if named else label for name, label in labels.items()]
        parts += self.rng.choices(parts, k=self.rng.randint(0, 4))
        self.rng.shuffle(parts)
        return self.rng.choice((" ", ", ")).join(parts)

    def _words(self, sentence: str) -> str:
        """A transcript; loosely, each word one to four times."""
        if self.rng.random() >= self.phase.loose:
            return sentence
        return " ".join(word for word in sentence.split() for _ in range(self.rng.randint(1, 4)))


def messages(instruction: str, user: str, talk: Sequence[tuple[str, str]] = ()) -> list[dict[str, str]]:
    turns = [("system", instruction)] if instruction else []
    for said, answered in talk:
        turns += [("user", said), ("assistant", answered)]
    return [{"role": role, "content": content} for role, content in [*turns, ("user", user)]]
