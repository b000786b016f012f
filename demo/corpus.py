"""Synthetic corpora of the demo: spoken by eSpeak NG on all cores, written as manifests."""

import json
import random
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import soundfile

from sottovoce.data.corpora import Corpus
from sottovoce.data.tasks import caption_from
from sottovoce.data.tts.espeak import ESpeak
from sottovoce.demo.voices import SAMPLE_RATE, Audio, say, speakers
from sottovoce.demo.world import CHOICES, Style, draw_sentence, draw_small_talk, draw_style, reply
from sottovoce.io import atomic_write
from sottovoce.progress import track

CHUNK = 100  # utterances a process: enough to outweigh its start, few enough for a smooth bar
Record = dict[str, Any]  # a line of a manifest, or a turn in it
Item = TypeVar("Item")
Result = TypeVar("Result")
synthesizer = cache(ESpeak)  # one a process


def in_processes(speak: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`speak(item)` of every item, in their order, computed by `workers` processes at a time.

    Each has one chunk: eSpeak NG remembers what it has said, so that the same items in the same process sound the same.
    They are forked from a server that has imported what they need, since imports would take longer than the speech.
    """
    context, main = get_context("forkserver"), getattr(sys.modules["__main__"], "__spec__", None)
    again = f"sottovoce.{main.name}" if main else "sottovoce"  # what `python -m` names, a child imports, too
    context.set_forkserver_preload([__name__, "scipy.signal", again])
    with context.Pool(workers, maxtasksperchild=1) as pool:
        yield from pool.imap(speak, items, chunksize=CHUNK)


class SpokenCorpus(Corpus):
    """A corpus that is synthesized where it is missing: a folder of WAV files and a manifest a split.

    A subclass is a dataclass of its knobs, among them the size of each split. All that is drawn depends on `seed`;
    `workers` processes speak.
    """

    name: ClassVar[str]  # of the folders, with a version of sounds and words: another one is another corpus
    seed: int
    workers: int

    def size(self, split: str) -> int:
        return int(getattr(self, split))

    @abstractmethod
    def variant(self, split: str) -> str:
        """What tells a split's folder from those of other knobs."""

    @abstractmethod
    def utterances(self, split: str) -> Iterator[tuple[Record, Audio]]:
        """The lines of a split's manifest, with audio (samples,) at 16 kHz; id, path and length are added."""

    def prepare(self, folder: Path) -> dict[str, Path]:
        """Speak what is missing. See `Corpus.prepare`."""
        return {split: self._prepare_split(folder, split) for split in ("train", "validation", "test")}

    def _prepare_split(self, folder: Path, split: str) -> Path:
        home = folder / f"{self.name}-{self.seed}-{split}-{self.size(split)}{self.variant(split)}"
        manifest = home / "manifest.jsonl"
        if manifest.is_file():
            return manifest
        (home / "audio").mkdir(parents=True, exist_ok=True)
        lines = []
        for number, (record, audio) in enumerate(self.utterances(split)):
            place = {"id": f"{number:05d}", "audio": audio_path(number), "seconds": round(len(audio) / SAMPLE_RATE, 4)}
            soundfile.write(home / audio_path(number), audio, SAMPLE_RATE, subtype="PCM_16")
            lines.append(json.dumps({**place, **record}) + "\n")
        atomic_write(manifest, "".join(lines))
        return manifest


def audio_path(number: int) -> str:
    """An utterance's WAV file, relative to the manifest."""
    return f"audio/{number:05d}.wav"


@dataclass(frozen=True)
class Spoken:
    """One utterance of the demo world; `audio` is (samples,) at 16 kHz."""

    sentence: str
    style: Style
    speaker: str
    audio: Audio


def speak_corpus(count: int, split: str, seed: int, workers: int = 2, every_emotion: bool = False) -> Iterator[Spoken]:
    """Yield `count` utterances of `split`; words and style of utterance i depend on (seed, split, i) alone.

    With `every_emotion`, each sentence is said by one voice in every emotion, one after another.
    """
    return in_processes(partial(speak_one, split, seed, every_emotion=every_emotion), range(count), workers)


def speak_one(split: str, seed: int, number: int, every_emotion: bool = False) -> Spoken:
    """Utterance `number` of a split; see `speak_corpus`."""
    emotions = CHOICES["emotion"]
    rng = random.Random(f"{seed} {split} {number // len(emotions) if every_emotion else number}")
    sentence, style = draw_sentence(rng, split), draw_style(rng)
    if every_emotion:
        style = replace(style, emotion=emotions[number % len(emotions)])
    speaker = rng.choice(speakers(split, style.gender))
    audio = say(synthesizer(), sentence, style, speaker, rng)
    return Spoken(sentence, style, speaker, np.ascontiguousarray(audio))


@dataclass(kw_only=True)
class DemoWorld(SpokenCorpus):
    """The demo world as manifests: disjoint speakers and sentences in train, validation and test.

    A third of the utterances stand in a dialogue: small talk before them, and for some an earlier spoken turn.

    Args:
        train, validation, test: utterances of each split.
        seed: of everything drawn.
        workers: processes that speak.
        every_emotion: whether each sentence is said in every emotion, so that words tell nothing about it.
    """

    name = "demo_world-2"
    train: int = 3000
    validation: int = 160
    test: int = 240
    seed: int = 0
    workers: int = 2
    every_emotion: bool = False

    def variant(self, split: str) -> str:
        """See `SpokenCorpus.variant`."""
        return "-every" if self.every_emotion else ""

    def utterances(self, split: str) -> Iterator[tuple[Record, Audio]]:
        """See `SpokenCorpus.utterances`."""
        earlier: list[Record] = []
        spoken = speak_corpus(self.size(split), split, self.seed, self.workers, self.every_emotion)
        for number, one in enumerate(track(spoken, f"speaking {split}", self.size(split), "clip")):
            rng, labels = random.Random(f"{self.seed} {split} {number} talk"), asdict(one.style)
            record = dict(text=one.sentence, speaker=one.speaker, labels=labels, caption=caption_from(labels))
            context = draw_context(earlier, rng) if rng.random() < 0.33 else []
            earlier.append({**record, "audio": audio_path(number)})
            yield {**record, "context": context} if context else record, one.audio


def draw_context(earlier: list[Record], rng: random.Random) -> list[Record]:
    """Small talk, and in a third of the dialogues an earlier spoken turn with the answer that it got."""
    exchanges, name = draw_small_talk(rng)
    turns: list[Record] = []
    for said, answered in exchanges:
        turns += [{"role": "user", "text": said}, {"role": "assistant", "text": answered}]
    if earlier and rng.random() < 0.33:
        turn = rng.choice(earlier)
        turns.append({"role": "user", **{key: turn[key] for key in ("text", "audio", "caption")}})
        turns.append({"role": "assistant", "text": reply(turn["text"], turn["labels"]["emotion"], name)})
    return turns
