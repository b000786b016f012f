"""eSpeak NG as a synthesizer: what makes a voice a child's, a man's or an angry one is data."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from sottovoce.data.tts import SYNTHESIZERS
from sottovoce.data.tts.base import Labels, NotSpoken, Synthesizer, digest
from sottovoce.data.tts.effects import Quality, median_f0, set_level, trim, voice_quality
from sottovoce.data.tts.espeak import ESpeak
from sottovoce.errors import ConfigError, nearest

SAMPLE_RATE = 16_000  # Hz
_CALIBRATION = "we cleaned the old bicycle yesterday and left it at the station"
_SETTINGS = (0, 50, 99)  # of eSpeak's pitch, at which each voice is measured once


@dataclass
class Manner:
    """How a label sounds; a range is drawn from, evenly."""

    hertz: tuple[float, float] | None = None  # F0; null: the voice's own
    raised: tuple[float, float] = (1.0, 1.0)  # the voice's own F0 is multiplied by it
    tract: tuple[float, float] = (0.97, 1.03)  # scale of the formants; above 1 is a smaller head
    words_a_minute: tuple[float, float] = (150.0, 185.0)  # as eSpeak counts them
    range: tuple[float, float] = (45.0, 45.0)  # how far the pitch moves, 0-99
    quality: Quality = "plain"
    rms: tuple[float, float] = (0.04, 0.08)  # level of the finished clip; full scale is 1


MANNERS: dict[str, dict[str, Manner]] = {
    "age": {"child": Manner((270, 330), tract=(1.18, 1.3), range=(50, 70)), "adult": Manner(tract=(0.94, 1.0))},
    "gender": {"male": Manner((85, 135), tract=(0.94, 1.0)), "female": Manner((175, 235), tract=(1.0, 1.06))},
    "emotion": {
        "neutral": Manner(),
        "happy": Manner(raised=(1.1, 1.2), words_a_minute=(170, 200), range=(99, 99), quality="bright"),
        "sad": Manner(
            raised=(0.85, 0.92), words_a_minute=(115, 140), range=(5, 5), quality="breathy", rms=(0.02, 0.04)
        ),
        "angry": Manner(raised=(1.0, 1.1), words_a_minute=(175, 205), range=(55, 55), quality="rough", rms=(0.1, 0.14)),
    },
}


@SYNTHESIZERS.register("espeak")
class ESpeakSynthesizer(Synthesizer):
    """eSpeak NG, within this process: no network, no weights, and it sounds like a machine.

    A voice is written language+variant, such as `en-us+f2`. The samples differ in their last digits from one synthesis
    to the next: eSpeak NG lets voices flutter, from a state that outlives an utterance and cannot be set.

    Args:
        manners: attribute -> label -> how it sounds, beside those that are built in for age (child, adult), gender
            (male, female) and emotion (neutral, happy, sad, angry). A manner has `hertz` (F0; the voice's own where
            absent), `raised` (times the voice's own), `tract` (scale of the formants), `words_a_minute`, `range` (of
            the pitch, 0-99), `quality` (plain, bright, breathy, rough) and `rms`; all but the quality are ranges,
            [low, high], that are drawn from. A manner that is given replaces a built-in one key by key.

    Raises:
        ConfigError: a manner has an unknown key, or a range that is none.
        ModuleNotFoundError: the extra `demo` is not installed.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, *, manners: dict[str, dict[str, Any]] | None = None) -> None:
        self._espeak = ESpeak()
        self.manners = {attribute: dict(labels) for attribute, labels in MANNERS.items()}
        for attribute, labels in (manners or {}).items():
            known = self.manners.setdefault(attribute, {})
            for label, keys in labels.items():
                known[label] = _manner(f"{attribute}.{label}", known.get(label, Manner()), keys)
        self.name = f"espeak:{digest({a: {n: asdict(m) for n, m in ls.items()} for a, ls in self.manners.items()})}"
        self._measured: dict[str, tuple[float, float, float]] = {}

    def speak(self, text: str, *, attribute: str, label: str, voice: str, seed: int) -> NDArray[np.float32]:
        """See `Synthesizer`."""
        manner, rng = self.manners[attribute][label], random.Random(f"{seed} {voice} {attribute} {label}")
        tract = rng.uniform(*manner.tract)
        hertz = rng.uniform(*manner.hertz) if manner.hertz else self._reach(voice)[1] * rng.uniform(*manner.raised)
        try:
            audio, rate_hz = self._espeak.say(
                text,
                voice=voice,
                rate=round(rng.uniform(*manner.words_a_minute) / tract),
                pitch=self._pitch(voice, hertz / tract),
                range=round(rng.uniform(*manner.range)),
            )
        except ValueError as error:
            raise NotSpoken(str(error)) from None
        # Played faster by `tract`, formants and F0 rise by as much, and time shrinks.
        audio = soxr.resample(trim(audio), rate_hz * tract, SAMPLE_RATE).astype(np.float32)
        audio = voice_quality(audio, manner.quality, np.random.default_rng(rng.getrandbits(32)), SAMPLE_RATE)
        return set_level(audio, rng.uniform(*manner.rms))

    def faults(self, labels: Labels, voices: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
        """Labels without a manner, voices that do not exist, and voices that cannot speak as high or low as asked."""
        found = [
            f"manners.{attribute}: no manner for {label!r}.{nearest(label, self.manners.get(attribute, {}))}"
            for attribute, wanted in labels.items()
            for label in wanted
            if label not in self.manners.get(attribute, {})
        ]
        names = sorted({name for by in voices.values() for names in by.values() for name in names})
        unknown = [name for name in names if not self._espeak.knows(name)]
        found += [f"voices: eSpeak NG has no voice {name!r}; write language+variant: en-us+f2" for name in unknown]
        if found:
            return found
        return list(dict.fromkeys(
            fault for attribute, by in voices.items() for label, names in by.items() for name in names
            for fault in self._out_of_reach(attribute, label, name)
        ))  # fmt: skip

    def _out_of_reach(self, attribute: str, label: str, voice: str) -> list[str]:
        manner, (lowest, own, highest) = self.manners[attribute][label], self._reach(voice)
        asked = manner.hertz or (own * manner.raised[0], own * manner.raised[1])
        low, high = asked[0] / manner.tract[1], asked[1] / manner.tract[0]
        if lowest * 0.97 <= low and high <= highest * 1.03:
            return []
        return [
            f"voices.{attribute}.{label}: {voice} reaches {lowest:.0f}-{highest:.0f} Hz, and with its manner's `tract` "
            f"{low:.0f}-{high:.0f} Hz are asked; choose another voice, or other `hertz`"
        ]

    def _reach(self, voice: str) -> tuple[float, float, float]:
        """F0 in Hz of a voice at its lowest, middle and highest setting; measured once."""
        if voice not in self._measured:
            said = (self._espeak.say(_CALIBRATION, voice=voice, pitch=setting) for setting in _SETTINGS)
            low, own, high = (median_f0(audio, rate_hz) for audio, rate_hz in said)
            self._measured[voice] = low, own, high
        return self._measured[voice]

    def _pitch(self, voice: str, hertz: float) -> int:
        reach = self._reach(voice)
        if not 0 < reach[0] < reach[1] < reach[2]:
            raise NotSpoken(f"the pitch of {voice} cannot be measured; it may be a whisper")
        return round(float(np.interp(np.log(hertz), np.log(reach), _SETTINGS)))


def _manner(where: str, base: Manner, keys: object) -> Manner:
    known = [f.name for f in fields(Manner)]
    if not isinstance(keys, Mapping):
        raise ConfigError(f"synthesizer espeak: manners.{where}: a mapping is needed, not {keys!r}")
    for key, value in keys.items():
        if key not in known:
            raise ConfigError(f"synthesizer espeak: manners.{where}: unknown key {key!r}.{nearest(str(key), known)}")
        qualities = ("plain", "bright", "breathy", "rough")
        good = value in qualities if key == "quality" else _is_range(value) or (key == "hertz" and value is None)
        if not good:
            needed = nearest(str(value), qualities) if key == "quality" else " Write [low, high]"
            raise ConfigError(f"synthesizer espeak: manners.{where}.{key}: {value!r} cannot be used.{needed}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in keys.items()}
    return Manner(**{**asdict(base), **values})


def _is_range(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    low, high = value
    return all(isinstance(n, int | float) and not isinstance(n, bool) for n in value) and 0 < low <= high < float("inf")
