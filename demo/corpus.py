"""Speak a corpus of the demo world, on all cores, the same for the same seed."""

import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np

from undertone.data.espeak import ESpeak
from undertone.demo.voices import SAMPLE_RATE, Audio, say, speakers
from undertone.demo.world import Style, draw_sentence, draw_style

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


def speak_corpus(count: int, split: str, seed: int, workers: int = 2) -> Iterator[Spoken]:
    """Yield `count` utterances of `split`; utterance i depends on (seed, split, i) alone."""
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for spoken in pool.map(partial(_speak_chunk, split, seed), chunks):
            yield from spoken


def _speak_chunk(split: str, seed: int, numbers: range) -> list[Spoken]:
    return [speak_one(split, seed, number) for number in numbers]


def speak_one(split: str, seed: int, number: int) -> Spoken:
    """Utterance `number` of a split."""
    global _synthesizer
    if _synthesizer is None:
        _synthesizer = ESpeak()
    rng = random.Random(f"{seed} {split} {number}")
    sentence, style = draw_sentence(rng, split), draw_style(rng)
    speaker = rng.choice(speakers(split, style.gender))
    audio = say(_synthesizer, sentence, style, speaker, rng)
    return Spoken(sentence, style, speaker, np.ascontiguousarray(audio))
