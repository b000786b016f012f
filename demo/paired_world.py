"""Paired speech of the demo world: the same words from speakers to whom different answers are due.

Splits share no text and no voice. The topics of child safety stand in the test split alone.
"""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import soundfile
from rich.progress import track

from sottovoce.data.corpora.base import Corpus
from sottovoce.data.tts.espeak import ESpeak
from sottovoce.demo.paired_words import (
    SAFETY_TOPICS,
    TOPICS,
    VALUES,
    answers,
    category_of,
    draw_text,
    plain,
    topic_of,
    verb_of,
)
from sottovoce.demo.voices import SAMPLE_RATE, Audio, children, say, speakers
from sottovoce.demo.world import VERBS, Style, draw_style

VERSION = 2  # of words, answers and voices: another one is another corpus
CHUNK = 50  # utterances a task of a process
CALM = {  # (category, value) -> how else its speakers speak, where that could be taken for something else
    ("age", "child"): {"emotion": "neutral"},
    ("age", "adult"): {"emotion": "neutral", "pitch": "low"},
    ("gender", "male"): {"emotion": "neutral", "pitch": "low"},
    ("gender", "female"): {"emotion": "neutral", "pitch": "low"},
}
_synthesizer: ESpeak | None = None  # one a process


@dataclass(frozen=True)
class Line:
    """What is said, by whom and how; `answer` is due to this speaker."""

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

    def record(self, number: int, seconds: float) -> dict[str, Any]:
        """As a line of a manifest."""
        name, did = f"{number:05d}", verb_of(self.text)
        record = {
            "id": name, "audio": f"audio/{name}.wav", "text": self.text, "speaker": self.speaker,
            "seconds": round(seconds, 4), "labels": self.labels, "topic": topic_of(did), "response": self.answer,
        }  # fmt: skip
        return {**record, "category": category_of(did), "answers": answers(self.text)} if self.paired else record


def share_of(text: str) -> str:
    """Whether a text is for pairs or for plain replies, for ever: half of the texts each."""
    return "pairs" if sha256(text.encode()).digest()[4] % 2 else "plain"


def draw_texts(seed: int, split: str, share: str, verbs: tuple[str, ...], count: int) -> list[str]:
    """As many different texts with one of `verbs`, each of these as often as the others, up to one."""
    rng, found = random.Random(f"{seed} {split} {share} {verbs}"), dict[str, None]()
    while len(found) < count:
        text = draw_text(rng, split, (verbs[len(found) % len(verbs)],))
        if share_of(text) == share:
            found[text] = None
    return list(found)


def paired_lines(texts: list[str], split: str, seed: int) -> Iterator[Line]:
    """Each text once for each value of its category, by another speaker in another style each time."""
    for text in texts:
        rng = random.Random(f"{seed} {split} {text}")
        category, due, heard = category_of(verb_of(text)), answers(text), set[str]()
        for value in VALUES[category]:
            age, style, speaker = _speaker(rng, split, {**CALM.get((category, value), {}), category: value}, heard)
            heard.add(speaker)
            yield Line(text, age, style, speaker, due[value], True)


def plain_lines(texts: list[str], split: str, seed: int) -> Iterator[Line]:
    """Each text once, by anybody, with the reply of a listener who does not know the speaker."""
    for text in texts:
        rng = random.Random(f"{seed} {split} {text}")
        age, style, speaker = _speaker(rng, split, {"age": rng.choice(VALUES["age"])}, set())
        yield Line(text, age, style, speaker, plain(text), False)


def _speaker(rng: random.Random, split: str, given: dict[str, str], others: set[str]) -> tuple[str, Style, str]:
    """Age, style and a speaker who is none of `others`.

    Where age is not given it is an adult's.
    """
    age, style = given.get("age", "adult"), draw_style(rng)
    style = replace(style, **{name: value for name, value in given.items() if name != "age"})
    names = (children if age == "child" else speakers)(split, style.gender)
    return age, style, rng.choice([name for name in names if name not in others])


def speak(lines: list[Line], seed: int, workers: int) -> Iterator[Audio]:
    """The lines' audio, in their order."""
    chunks = [list(enumerate(lines))[start : start + CHUNK] for start in range(0, len(lines), CHUNK)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for spoken in pool.map(partial(_speak_chunk, seed), chunks):
            yield from spoken


def _speak_chunk(seed: int, lines: list[tuple[int, Line]]) -> list[Audio]:
    global _synthesizer
    if _synthesizer is None:
        _synthesizer = ESpeak()
    return [
        say(_synthesizer, line.text, line.style, line.speaker, random.Random(f"{seed} {number} {line.text}"),
            child=line.age == "child")
        for number, line in lines
    ]  # fmt: skip


class PairedWorld(Corpus):
    """Paired data of the demo world as manifests: the same words, and another answer for another speaker.

    The right answers to a third of the texts hang on the speaker's age (child, adult), to a third on the gender, to a
    third on the emotion (of four); each text is spoken once for every value. Where age or gender matters everybody is
    calm and adults speak at an ordinary pitch. The test split also has texts of child safety, about what no other
    paired text is about; their topics are called `child safety/<verb>`.

    Args:
        train: texts of the training split.
        validation: of the validation split.
        test: of the test split, without those of child safety.
        safety: texts for each of the seven topics of child safety.
        plain: whether everybody gets the reply that heeds the words alone. Such texts are about everything, are never
            those of the pairs, and are spoken once each, as often by children as by adults.
        seed: of everything drawn.
        workers: processes that speak.
    """

    def __init__(
        self,
        *,
        train: int = 1500,
        validation: int = 60,
        test: int = 180,
        safety: int = 10,
        plain: bool = False,
        seed: int = 0,
        workers: int = 2,
    ) -> None:
        self.counts = {"train": train, "validation": validation, "test": test}
        self.safety, self.plain, self.seed, self.workers = safety, plain, seed, workers

    def prepare(self, folder: Path) -> dict[str, Path]:
        """Speak what is missing. See `Corpus.prepare`."""
        return {split: self._split(folder, split) for split in self.counts}

    def lines(self, split: str) -> list[Line]:
        """What is said in a split."""
        count = self.counts[split]
        if self.plain:
            return list(plain_lines(draw_texts(self.seed, split, "plain", tuple(VERBS), count), split, self.seed))
        texts = []
        for position, verbs in enumerate(TOPICS.values()):
            share = len(range(count)[position :: len(TOPICS)])
            texts += draw_texts(self.seed, split, "pairs", verbs, share)
        if split == "test":
            texts += draw_texts(self.seed, split, "pairs", SAFETY_TOPICS, self.safety * len(SAFETY_TOPICS))
        return list(paired_lines(texts, split, self.seed))

    def _split(self, folder: Path, split: str) -> Path:
        kind = "plain" if self.plain else f"pairs-{self.safety}" if split == "test" else "pairs"
        home = folder / f"paired_world-{VERSION}-{self.seed}-{split}-{self.counts[split]}-{kind}"
        manifest = home / "manifest.jsonl"
        if manifest.is_file():
            return manifest
        (home / "audio").mkdir(parents=True, exist_ok=True)
        lines, records = self.lines(split), []
        spoken = track(speak(lines, self.seed, self.workers), total=len(lines), description=f"speaking {split:<7}")
        for number, (line, audio) in enumerate(zip(lines, spoken, strict=True)):
            record = line.record(number, len(audio) / SAMPLE_RATE)
            soundfile.write(home / record["audio"], audio, SAMPLE_RATE, subtype="PCM_16")
            records.append(record)
        draft = manifest.with_suffix(".tmp")
        draft.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
        draft.replace(manifest)
        return manifest
