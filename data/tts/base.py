"""Synthesizers speak a text as somebody: a voice by name, and one label of one attribute, such as age: child."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.data.audio import MIN_RMS
from sottovoce.data.audio_decoder import MIN_SECONDS
from sottovoce.errors import SottovoceError

Labels = Mapping[str, Sequence[str]]  # attribute -> its labels


class NotSpoken(SottovoceError):
    """One text could not be spoken; the others can."""


class Synthesizer(ABC):
    """Speaks texts. A subclass takes its knobs as keyword-only parameters.

    `name` tells apart what would sound different: it goes into the names of clips. `in_threads` says whether one object
    may be asked by several threads, as one that waits for a server is; the others get a process each.
    """

    name: str
    sample_rate: int  # Hz
    in_threads: bool = False

    @abstractmethod
    def speak(self, text: str, *, attribute: str, label: str, voice: str, seed: int) -> NDArray[np.float32]:
        """The text as spoken by `voice` with this label of an attribute: (samples,) in [-1, 1] at `sample_rate`.

        `voice` is named as the synthesizer does; `seed` is of what is drawn, where something is.

        Raises:
            NotSpoken: not this text; its message has no secrets.
            SottovoceError: nothing can be spoken, whatever the text.
        """

    def faults(self, labels: Labels, voices: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
        """What is wrong with what will be asked for: labels of attributes, and the voices of each; before it is."""
        return []


def checked(audio: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """The audio (samples,); raises NotSpoken where it is too short, silent, or holds samples that are not finite."""
    if not np.isfinite(audio).all():
        raise NotSpoken("what came back holds samples that are not finite")
    if len(audio) < MIN_SECONDS * sample_rate:
        raise NotSpoken(f"what came back is too short: {len(audio) / sample_rate:.3f} s")
    if np.sqrt(np.mean(np.square(audio, dtype=np.float64))) < MIN_RMS:
        raise NotSpoken("what came back is silent")
    return audio


def digest(*parts: Any) -> str:
    """16 hexadecimal digits that stand for some plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
