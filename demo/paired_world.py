"""Paired speech of the demo world: the same words from speakers who need different answers.

Splits share no text and no voice. The topics of child safety stand in the test split alone.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Any

from sottovoce.demo.corpus import SpokenCorpus, in_processes, synthesizer
from sottovoce.demo.paired_words import SAFETY_TOPICS, TOPICS, VALUES, answers, category_of, draw_text, plain, topic_of
from sottovoce.demo.voices import Audio, say, speakers
from sottovoce.demo.world import VERBS, Style, draw_style
from sottovoce.progress import track

CALM = {"emotion": "neutral", "pitch": "low"}  # how adults speak where age or gender matters: taken for nothing else


@dataclass(frozen=True)
class Line:
    """What is said, by whom and how; `answer` is the right one for this speaker."""

    text: str
    age: str
    style: Style
    speaker: str
    answer: str
    paired: bool  # whether it stands among others of the same words

    @property
    def labels(self) -> dict[str, str]:
        """Age, emotion, and the gender of adults: whether a child is a boy or a girl cannot be heard."""
        gender = {"gender": self.style.gender} if self.age == "adult" else {}
        return {"age": self.age, **gender, "emotion": self.style.emotion}

    def record(self) -> dict[str, Any]:
        """As a line of a manifest."""
        paired = {"category": category_of(self.text), "answers": answers(self.text)} if self.paired else {}
        topic = topic_of(self.text)
        record = dict(text=self.text, speaker=self.speaker, labels=self.labels, topic=topic, response=self.answer)
        return {**record, **paired}


def share_of(text: str) -> str:
    """Whether a text is for pairs or for plain replies, for ever: half of the texts each."""
    return "pairs" if sha256(text.encode()).digest()[4] % 2 else "plain"


def draw_texts(seed: int, split: str, share: str, verbs: tuple[str, ...], count: int) -> list[str]:
    """As many different texts with one of `verbs`, each of these as often as the others, up to one."""
    rng, texts = random.Random(f"{seed} {split} {share} {verbs}"), dict[str, None]()
    while len(texts) < count:
        text = draw_text(rng, split, (verbs[len(texts) % len(verbs)],))
        if share_of(text) == share:
            texts[text] = None
    return list(texts)


def paired_lines(texts: list[str], split: str, seed: int) -> Iterator[Line]:
    """Each text once for each value of its category, by another speaker in another style each time."""
    for text in texts:
        rng = random.Random(f"{seed} {split} {text}")
        category, used = category_of(text), set[str]()
        for value, right in answers(text).items():
            calm = {} if category == "emotion" else {"emotion": "neutral"} if value == "child" else CALM
            age, style, speaker = _speaker(rng, split, {**calm, category: value}, used)
            used.add(speaker)
            yield Line(text, age, style, speaker, right, True)


def plain_lines(texts: list[str], split: str, seed: int) -> Iterator[Line]:
    """Each text once, by anybody, with the reply of a listener who does not know the speaker."""
    for text in texts:
        rng = random.Random(f"{seed} {split} {text}")
        age, style, speaker = _speaker(rng, split, {"age": rng.choice(VALUES["age"])}, set())
        yield Line(text, age, style, speaker, plain(text), False)


def _speaker(rng: random.Random, split: str, given: dict[str, str], others: set[str]) -> tuple[str, Style, str]:
    """Age (an adult's where none is given), style, and a speaker who is none of `others`."""
    age, style = given.get("age", "adult"), draw_style(rng)
    style = replace(style, **{name: value for name, value in given.items() if name != "age"})
    names = speakers(split, style.gender, age == "child")
    return age, style, rng.choice([name for name in names if name not in others])


def speak_line(seed: int, numbered: tuple[int, Line]) -> Audio:
    """A line's audio, (samples,) at 16 kHz; what is drawn depends on seed, number and text alone."""
    number, line = numbered
    rng = random.Random(f"{seed} {number} {line.text}")
    return say(synthesizer(), line.text, line.style, line.speaker, rng, child=line.age == "child")


@dataclass(kw_only=True)
class PairedWorld(SpokenCorpus):
    """Paired data of the demo world as manifests: the same words, and another answer for another speaker.

    The right answers to a third of the texts depend on the speaker's age (child, adult), to a third on the gender, to a
    third on the emotion (of four); each text is spoken once for every value. Where age or gender matters everybody is
    calm and adults speak at an ordinary pitch. The test split also has texts of child safety, about what no other
    paired text is about; their topics are called `child safety/<verb>`.

    Args:
        train, validation, test: texts of each split, without those of child safety.
        safety: texts for each of the seven topics of child safety.
        plain: whether everybody gets the reply that heeds the words alone. Such texts are about everything, are never
            those of the pairs, and are spoken once each, as often by children as by adults.
        seed: of everything drawn.
        workers: processes that speak.
    """

    name = "paired_world-2"
    train: int = 1500
    validation: int = 60
    test: int = 180
    safety: int = 10
    plain: bool = False
    seed: int = 0
    workers: int = 2

    def variant(self, split: str) -> str:
        """See `SpokenCorpus.variant`."""
        return "-plain" if self.plain else f"-pairs-{self.safety}" if split == "test" else "-pairs"

    def utterances(self, split: str) -> Iterator[tuple[dict[str, Any], Audio]]:
        """See `SpokenCorpus.utterances`."""
        lines = self.lines(split)
        spoken = in_processes(partial(speak_line, self.seed), enumerate(lines), self.workers)
        for line, audio in zip(lines, track(spoken, f"speaking {split}", len(lines), "clip"), strict=True):
            yield line.record(), audio

    def lines(self, split: str) -> list[Line]:
        """The lines of a split."""
        count = self.size(split)
        if self.plain:
            return list(plain_lines(draw_texts(self.seed, split, "plain", tuple(VERBS), count), split, self.seed))
        texts = []
        for position, verbs in enumerate(TOPICS.values()):
            share = len(range(count)[position :: len(TOPICS)])
            texts += draw_texts(self.seed, split, "pairs", verbs, share)
        if split == "test":
            texts += draw_texts(self.seed, split, "pairs", SAFETY_TOPICS, self.safety * len(SAFETY_TOPICS))
        return list(paired_lines(texts, split, self.seed))
