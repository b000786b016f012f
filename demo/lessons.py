"""Training chats of the demo's LLM: questions and answers about the demo world, in text."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from sottovoce.data.tasks import PROMPTS, TASKS, AttributeTask, caption_from
from sottovoce.demo.world import (
    ADJECTIVES,
    CHOICES,
    NAMES,
    NOUNS,
    PLACES,
    VERBS,
    Exchange,
    Style,
    draw_sentence,
    draw_small_talk,
    draw_style,
    follow_up,
    reply,
)
from sottovoce.templates import read_wordings

AGES = ("child", "adult")  # known to the LLM; the demo's voices are all of one age
ATTRIBUTES = (*CHOICES, "age")
COPYING = ("asr", "words")
REPLYING = ("dialogue", "dialogue", "dialogue", "follow-up", "response", "caption", "repeat", "tone")
ALIGNMENT = PROMPTS / "speech_emotion_llama"  # the wordings of Kang et al. (2024), for the last four
ALIGNED = ("companion", "asr", "caption", "emotion")
LABELS = [label for labels in (*CHOICES.values(), AGES) for label in labels]
LEXICON = sorted({*VERBS, *ADJECTIVES, *NOUNS, *PLACES, *NAMES, *LABELS})


@dataclass(frozen=True)
class Phase:
    """Settings of some training steps.

    `context` is the share of chats that have something before the question, `copying` the share of lessons that repeat
    words, `attributes` the share of questions about a style caption, `loose` the share of captions and transcripts that
    are written loosely, and `noise` the most noise on word embeddings, in their standard deviations (NEFTune, Jain et
    al., ICLR 2024, with a strength drawn per chat).
    """

    steps: int
    batch: int
    lr: float
    context: float
    copying: float
    attributes: float
    loose: float
    noise: float


Lesson = tuple[list[dict[str, str]], str]  # messages, answer


class Lessons:
    """Draws chats; every wording that the tasks' prompt files hold is seen in training.

    A large LLM reads sloppy text as well as neat text. This one must be taught to: some captions come as a list in any
    order, some transcripts with words said several times over.
    """

    def __init__(self, seed: int, split: str, phase: Phase) -> None:
        self.rng, self.split, self.phase = random.Random(f"{seed} {split}"), split, phase
        nodes: dict[str, dict[str, list[str]]] = {"asr": {}, "dialogue": {}, "age": {"choices": list(AGES)}}
        nodes |= {name: {"choices": list(choices)} for name, choices in CHOICES.items()}
        self.tasks = {name: TASKS.build({"type": name, **knobs}) for name, knobs in nodes.items()}
        self.wordings = {name: task.instructions() for name, task in self.tasks.items()}
        fields = {"choices": ", ".join(CHOICES["emotion"])}
        self.aligned = {name: read_wordings(ALIGNMENT / f"{name}.txt", fields)[0] for name in ALIGNED}

    def __iter__(self) -> Iterator[Lesson]:
        """Yield lessons for ever."""
        while True:
            p = self.phase
            shares = (p.copying, p.attributes, 1 - p.copying - p.attributes)
            yield self.lesson(self.rng.choice(self.rng.choices((COPYING, ATTRIBUTES, REPLYING), shares)[0]))

    def lesson(self, kind: str) -> Lesson:
        """A lesson of one kind: an attribute, or one of COPYING or REPLYING."""
        rng = self.rng
        sentence, style = draw_sentence(rng, self.split), draw_style(rng)
        if kind in ("response", "caption", "repeat", "tone"):
            return self._tagged(kind, sentence, style.emotion)
        talk, who = draw_small_talk(rng) if rng.random() < self.phase.context else ([], None)
        talk = [*talk, *self._spoken(who)]
        if kind in ATTRIBUTES:
            labels = self._labels(style, aged=kind == "age")
            user, answer = self._styled(sentence if rng.random() < 0.6 else None, labels), self._answer(kind, labels)
        elif kind == "dialogue":
            user, answer = self._turn(sentence, style, who)
        elif kind == "follow-up":
            talk = [*talk, Exchange(self._styled(sentence, self._labels(style)), reply(sentence, style.emotion, who))]
            question = follow_up(rng, sentence, style, who)
            kind, user, answer = "dialogue", question.user, question.assistant
        else:
            answer = sentence if kind == "asr" else " ".join(rng.sample(LEXICON, k=rng.randint(3, 7)))
            kind, user = "asr", self._styled(answer, self._labels(style) if rng.random() < 0.6 else None)
        return messages(rng.choice(self.wordings[kind]), talk, user), answer

    def _tagged(self, kind: str, sentence: str, emotion: str) -> Lesson:
        """As SpeechEmotionLlama asks: a tag before the words, no caption, and the question in the same turn."""
        tagged = kind == "tone" or self.rng.random() < 0.7
        words = self._stretched(sentence) if self._loosely() else sentence
        user = f"<{emotion}> {words}" if tagged else words
        feeling = emotion if tagged else "neutral"
        if kind == "response":
            shown = [self.aligned["companion"]] if self.rng.random() < 0.5 else []
            return messages("".join(shown), [], user), reply(sentence, feeling)
        prompt, answer = {
            "caption": ("caption", f"{f'A {feeling} speaker' if tagged else 'Someone'} says: {sentence}."),
            "repeat": ("asr", sentence),
            "tone": ("emotion", emotion),
        }[kind]
        return messages("", [], f"{self.aligned[prompt]} {user}"), answer

    def _labels(self, style: Style, aged: bool = False) -> dict[str, str]:
        """The labels of a caption; some hold the age, too."""
        age = {"age": self.rng.choice(AGES)} if aged or self.rng.random() < 0.2 else {}
        return {**vars(style), **age}

    def _answer(self, attribute: str, labels: dict[str, str]) -> str:
        return cast(AttributeTask, self.tasks[attribute]).answer(labels[attribute])

    def _spoken(self, who: str | None) -> list[Exchange]:
        """An earlier spoken turn, in a quarter of the chats with context."""
        if self.rng.random() > 0.25 * self.phase.context:
            return []
        sentence, style = draw_sentence(self.rng, self.split), draw_style(self.rng)
        return [Exchange(*self._turn(sentence, style, who))]

    def _turn(self, sentence: str, style: Style, who: str | None) -> tuple[str, str]:
        labels, known = self._labels(style), self.rng.random()
        if known < 0.15:  # the words alone
            return self._styled(sentence, None), reply(sentence, "neutral", who)
        if known < 0.3:  # the style alone
            return self._styled(None, labels), reply(None, style.emotion, who)
        return self._styled(sentence, labels), reply(sentence, style.emotion, who)

    def _styled(self, sentence: str | None, labels: dict[str, str] | None) -> str:
        """A user turn in text: the caption and the transcript, as far as they are known, on lines of their own."""
        caption = (self._listed(labels) if self._loosely() else caption_from(labels)) if labels else None
        words = sentence and (self._stretched(sentence) if self._loosely() else sentence)
        return "\n".join(filter(None, [caption, words]))

    def _loosely(self) -> bool:
        return self.rng.random() < self.phase.loose

    def _listed(self, labels: dict[str, str]) -> str:
        """The words of the style in any order, some more than once, with or without what they are about."""
        named = self.rng.random() < 0.3
        parts = [f"{label} {name}" if named else label for name, label in labels.items()]
        parts += self.rng.choices(parts, k=self.rng.randint(0, 4))
        self.rng.shuffle(parts)
        return self.rng.choice((" ", ", ")).join(parts)

    def _stretched(self, sentence: str) -> str:
        """Each word one to four times."""
        return " ".join(word for word in sentence.split() for _ in range(self.rng.randint(1, 4)))


def messages(instruction: str, talk: list[Exchange], user: str) -> list[dict[str, str]]:
    turns = [("system", instruction)] if instruction else []
    for exchange in talk:
        turns += [("user", exchange.user), ("assistant", exchange.assistant)]
    return [{"role": role, "content": content} for role, content in [*turns, ("user", user)]]
