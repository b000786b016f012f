"""Speak a corpus of the demo world, on all cores: the same words and styles for the same seed."""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.progress import track

from sottovoce.data.captions import caption_from
from sottovoce.data.corpora.base import Corpus
from sottovoce.data.tts.espeak import ESpeak
from sottovoce.demo.voices import SAMPLE_RATE, Audio, say, speakers
from sottovoce.demo.world import CHOICES, Style, draw_sentence, draw_small_talk, draw_style, reply

VERSION = 2  # of the world's sound and words: another one is another corpus
CHUNK = 50  # utterances a task: long enough to outweigh its overhead, short enough for a smooth progress bar
_synthesizer: ESpeak | None = None  # one a process


@dataclass(frozen=True)
class Spoken:
    """One utterance of the demo world; `audio` is (samples,) at 16 kHz."""

    sentence: str
    style: Style
    speaker: str
    audio: Audio

    @property
    def seconds(self) -> float:
        return len(self.audio) / SAMPLE_RATE


def speak_corpus(count: int, split: str, seed: int, workers: int = 2, every_emotion: bool = False) -> Iterator[Spoken]:
    """Yield `count` utterances of `split`; what is said in utterance i, and how, depends on (seed, split, i) alone.

    With `every_emotion`, each sentence is said by one voice in every emotion, one after another.

    The samples differ in their last digits from one synthesis to the next: eSpeak NG lets voices flutter, from a state
    that outlives an utterance and cannot be set.
    """
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for spoken in pool.map(partial(_speak_chunk, split, seed, every_emotion), chunks):
            yield from spoken


def _speak_chunk(split: str, seed: int, every_emotion: bool, numbers: range) -> list[Spoken]:
    return [speak_one(split, seed, number, every_emotion) for number in numbers]


def speak_one(split: str, seed: int, number: int, every_emotion: bool = False) -> Spoken:
    """Utterance `number` of a split; see `speak_corpus`."""
    global _synthesizer
    if _synthesizer is None:
        _synthesizer = ESpeak()
    emotions = CHOICES["emotion"]
    rng = random.Random(f"{seed} {split} {number // len(emotions) if every_emotion else number}")
    sentence, style = draw_sentence(rng, split), draw_style(rng)
    if every_emotion:
        style = replace(style, emotion=emotions[number % len(emotions)])
    speaker = rng.choice(speakers(split, style.gender))
    audio = say(_synthesizer, sentence, style, speaker, rng)
    return Spoken(sentence, style, speaker, np.ascontiguousarray(audio))


class DemoWorld(Corpus):
    """The demo world as manifests: disjoint speakers and sentences in train, validation and test.

    A third of the utterances stand in a dialogue: small talk before them, and for some an earlier spoken turn.

    Args:
        train: utterances of the training split.
        validation: of the validation split.
        test: of the test split.
        seed: of everything drawn.
        workers: processes that speak.
        every_emotion: whether each sentence is said in every emotion, so that words tell nothing about it.
    """

    def __init__(
        self,
        *,
        train: int = 3000,
        validation: int = 160,
        test: int = 240,
        seed: int = 0,
        workers: int = 2,
        every_emotion: bool = False,
    ) -> None:
        self.counts = {"train": train, "validation": validation, "test": test}
        self.seed, self.workers, self.every_emotion = seed, workers, every_emotion

    def prepare(self, folder: Path) -> dict[str, Path]:
        """Speak what is missing. See `Corpus.prepare`."""
        return {split: self._split(folder, split, count) for split, count in self.counts.items()}

    def _split(self, folder: Path, split: str, count: int) -> Path:
        home = folder / f"demo_world-{VERSION}-{self.seed}-{split}-{count}{'-every' if self.every_emotion else ''}"
        manifest = home / "manifest.jsonl"
        if manifest.is_file():
            return manifest
        (home / "audio").mkdir(parents=True, exist_ok=True)
        records: list[dict[str, Any]] = []
        spoken = speak_corpus(count, split, self.seed, self.workers, self.every_emotion)
        for number, one in enumerate(track(spoken, total=count, description=f"speaking {split:<7}")):
            records.append(
                self._record(home, number, one, records, random.Random(f"{self.seed} {split} {number} talk"))
            )
        draft = manifest.with_suffix(".tmp")
        draft.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
        draft.replace(manifest)
        return manifest

    def _record(
        self, home: Path, number: int, one: Spoken, before: list[dict[str, Any]], rng: random.Random
    ) -> dict[str, Any]:
        name = f"audio/{number:05d}.wav"
        soundfile.write(home / name, one.audio, SAMPLE_RATE, subtype="PCM_16")
        labels = asdict(one.style)
        record = {
            "id": f"{number:05d}", "audio": name, "text": one.sentence, "speaker": one.speaker,
            "seconds": round(one.seconds, 4), "labels": labels, "caption": caption_from(labels),
        }  # fmt: skip
        context = _context(before, rng) if rng.random() < 0.33 else []
        return {**record, "context": context} if context else record


def _context(before: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """Small talk, and in a third of the dialogues an earlier spoken turn with the answer that it got."""
    exchanges, name = draw_small_talk(rng)
    turns: list[dict[str, Any]] = []
    for exchange in exchanges:
        turns += [{"role": "user", "text": exchange.user}, {"role": "assistant", "text": exchange.assistant}]
    if before and rng.random() < 0.33:
        earlier = rng.choice(before)
        turns.append({"role": "user", **{key: earlier[key] for key in ("text", "audio", "caption")}})
        turns.append({"role": "assistant", "text": reply(earlier["text"], earlier["labels"]["emotion"], name)})
    return turns
