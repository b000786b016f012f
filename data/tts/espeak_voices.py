"""eSpeak NG as a synthesizer: what makes a voice a child's, a man's or an angry one is a table."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from sottovoce.data.tts import SYNTHESIZERS
from sottovoce.data.tts.base import Labels, NotSpoken, Synthesizer, digest
from sottovoce.data.tts.effects import Quality, median_f0, set_level, trim, voice_quality
from sottovoce.data.tts.espeak import ESpeak
from sottovoce.errors import nearest

SAMPLE_RATE = 16_000  # Hz
_CALIBRATION = "we cleaned the old bicycle yesterday and left it at the station"
_SETTINGS = (0, 50, 99)  # of eSpeak's pitch, at which each voice is measured once


@dataclass(frozen=True)
class Style:
    """How a label sounds; values are drawn evenly from ranges."""

    hertz: tuple[float, float] | None = None  # F0; None: the voice's own
    raised: tuple[float, float] = (1.0, 1.0)  # the voice's own F0 is multiplied by it
    tract: tuple[float, float] = (0.97, 1.03)  # scale of the formants; above 1 is a smaller head
    words_a_minute: tuple[float, float] = (150.0, 185.0)  # as eSpeak counts them
    range: tuple[float, float] = (45.0, 45.0)  # how far the pitch moves, 0-99
    quality: Quality = "plain"
    rms: tuple[float, float] = (0.04, 0.08)  # level of the finished clip; full scale is 1


STYLES: dict[str, dict[str, Style]] = {
    "age": {"child": Style((270, 330), tract=(1.18, 1.3), range=(50, 70)), "adult": Style(tract=(0.94, 1.0))},
    "gender": {"male": Style((85, 135), tract=(0.94, 1.0)), "female": Style((175, 235), tract=(1.0, 1.06))},
    "emotion": {
        "neutral": Style(),
        "happy": Style(raised=(1.1, 1.2), words_a_minute=(170, 200), range=(99, 99), quality="bright"),
        "sad": Style(raised=(0.85, 0.92), words_a_minute=(115, 140), range=(5, 5), quality="breathy", rms=(0.02, 0.04)),
        "angry": Style(raised=(1.0, 1.1), words_a_minute=(175, 205), range=(55, 55), quality="rough", rms=(0.1, 0.14)),
    },
}


@SYNTHESIZERS.register("espeak")
class ESpeakSynthesizer(Synthesizer):
    """eSpeak NG, within this process: no network, no weights, and it sounds like a machine.

    A voice is written language+variant, such as `en-us+f2`. The samples differ in their last digits by what the
    process has said before: eSpeak NG lets voices flutter, from a state that outlives an utterance.

    Raises:
        ModuleNotFoundError: the extra `demo` is not installed.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self) -> None:
        self._espeak = ESpeak()
        self.name = f"espeak:{digest({a: {n: asdict(s) for n, s in labels.items()} for a, labels in STYLES.items()})}"
        self._measured: dict[str, tuple[float, float, float]] = {}

    def speak(self, text: str, *, attribute: str, label: str, voice: str, seed: int) -> NDArray[np.float32]:
        style, rng = STYLES[attribute][label], random.Random(f"{seed} {voice} {attribute} {label}")
        tract = rng.uniform(*style.tract)
        hertz = rng.uniform(*style.hertz) if style.hertz else self._reach(voice)[1] * rng.uniform(*style.raised)
        try:
            audio, rate_hz = self._espeak.say(
                text,
                voice=voice,
                rate=round(rng.uniform(*style.words_a_minute) / tract),
                pitch=self._pitch(voice, hertz / tract),
                range=round(rng.uniform(*style.range)),
            )
        except ValueError as error:
            raise NotSpoken(str(error)) from None
        # Played faster by `tract`, formants and F0 rise by as much, and time shrinks.
        audio = soxr.resample(trim(audio), rate_hz * tract, SAMPLE_RATE).astype(np.float32)
        audio = voice_quality(audio, style.quality, np.random.default_rng(rng.getrandbits(32)), SAMPLE_RATE)
        return set_level(audio, rng.uniform(*style.rms))

    def faults(self, labels: Labels, voices: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
        """Labels without a style, voices that do not exist, and voices that cannot speak as high or low as asked."""
        found = [
            f"{attribute}: eSpeak has no style for {label!r}.{nearest(label, STYLES.get(attribute, {}))}"
            for attribute, wanted in labels.items()
            for label in wanted
            if label not in STYLES.get(attribute, {})
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
        style, (lowest, own, highest) = STYLES[attribute][label], self._reach(voice)
        asked = style.hertz or (own * style.raised[0], own * style.raised[1])
        low, high = asked[0] / style.tract[1], asked[1] / style.tract[0]
        if lowest * 0.97 <= low and high <= highest * 1.03:
            return []
        return [
            f"voices.{attribute}.{label}: {voice} reaches {lowest:.0f}-{highest:.0f} Hz, and {label} needs "
            f"{low:.0f}-{high:.0f} Hz; choose another voice"
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
