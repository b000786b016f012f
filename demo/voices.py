"""How the demo world sounds: eSpeak NG voices, set to a pitch in Hz, a tempo, a loudness and an emotion one can hear.

Pitch and tempo are asked of the synthesizer; emotion is a pitch range and a voice quality (happy: wide and bright,
sad: flat, breathy and trembling, angry: driven and rough); energy is the level of the finished audio. The targets lie
on either side of TextrolSpeech's published thresholds for energy and tempo; pitch is low or high for the voice's sex.
"""

import functools
import random
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray
from scipy import signal

from undertone.data.espeak import ESpeak
from undertone.demo.world import Style

SAMPLE_RATE = 16_000  # Hz, of everything this module returns
Audio = NDArray[np.float32]

# Voice -> F0 in Hz at eSpeak pitch 10, 50, 90 (pyin, "i found the red umbrella ...", rate 175, en-us).
WOMEN: dict[str, dict[str, tuple[int, int, int]]] = {
    "train": {
        "Alicia": (181, 251, 378), "Andrea": (164, 245, 389), "Annie": (200, 245, 325), "anika": (191, 272, 414),
        "f1": (131, 180, 276), "f2": (141, 197, 295), "f3": (161, 211, 307), "grandma": (162, 203, 281),
        "shelby": (152, 179, 246), "steph": (118, 184, 301), "steph3": (118, 184, 301),
    },
    "validation": {"aunty": (88, 172, 317), "f4": (124, 180, 278)},
    "test": {"belinda": (149, 228, 371), "f5": (142, 206, 317), "linda": (149, 229, 371)},
}  # fmt: skip
MEN: dict[str, dict[str, tuple[int, int, int]]] = {
    "train": {
        "Andy": (68, 95, 152), "Denis": (71, 99, 152), "Diogo": (75, 105, 160), "Henrique": (84, 109, 154),
        "Lee": (66, 96, 152), "Marco": (94, 133, 200), "Mike": (68, 94, 133), "Reed": (85, 117, 173),
        "antonio": (82, 112, 165), "m1": (68, 95, 142), "m2": (70, 101, 160), "m3": (78, 105, 157),
        "m5": (74, 102, 155), "m6": (73, 102, 155), "m8": (63, 86, 127), "michel": (75, 105, 159),
        "miguel": (82, 111, 163), "norbert": (72, 102, 156), "robert": (78, 100, 140), "sandro": (70, 98, 150),
        "victor": (68, 95, 148),
    },
    "validation": {"m4": (71, 95, 139), "quincy": (65, 86, 128)},
    "test": {"m7": (83, 107, 155), "paul": (60, 87, 130), "travis": (78, 104, 151)},
}  # fmt: skip
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-us-nyc", "en-gb-x-gbclan")
TRACTS = (0.94, 1.0, 1.06)  # vocal tract scale: > 1 is a smaller head

F0 = {
    ("male", "low"): (80, 98),
    ("male", "high"): (128, 150),
    ("female", "low"): (160, 185),
    ("female", "high"): (240, 275),
}
SECONDS_PER_WORD = {"slow": (0.41, 0.45), "fast": (0.185, 0.23)}  # thresholds: fast below 0.252, slow above 0.386
RMS = {"weak": (0.012, 0.027), "strong": (0.065, 0.12)}  # TextrolSpeech: low below 0.0333, high above 0.0505
PITCH_RANGE = {"neutral": 45, "happy": 99, "sad": 5, "angry": 55}  # eSpeak units
RANGE_RAISES_F0 = {"neutral": 1.0, "happy": 1.1, "sad": 0.85, "angry": 1.0}  # what that does to the mean F0, measured
CALIBRATION = "we cleaned the old bicycle yesterday and they left the camera at the station on monday"


def speakers(split: str, gender: str) -> list[str]:
    """Names of all speakers of a split: a voice, an accent and a vocal tract, such as `f2.en-us.1.06`."""
    voices = (WOMEN if gender == "female" else MEN)[split]
    return [f"{voice}.{accent}.{tract}" for voice in voices for accent in ACCENTS for tract in TRACTS]


def say(synthesizer: ESpeak, sentence: str, style: Style, speaker: str, rng: random.Random) -> Audio:
    """Speak `sentence` in `style`: (samples,) at 16 kHz in [-1, 1]."""
    voice, accent, scale = speaker.split(".", 2)
    tract = float(scale)
    hertz = rng.uniform(*F0[style.gender, style.pitch]) / RANGE_RAISES_F0[style.emotion] / tract
    seconds_per_word = rng.uniform(*SECONDS_PER_WORD[style.tempo]) * tract
    audio, rate_hz = synthesizer.say(
        sentence,
        voice=f"{accent}+{voice}",
        rate=_espeak_rate(synthesizer, voice, seconds_per_word),
        pitch=_espeak_pitch(voice, hertz),
        range=PITCH_RANGE[style.emotion],
    )
    audio = soxr.resample(_trim(audio), rate_hz * tract, SAMPLE_RATE).astype(np.float32)
    audio = _voice_quality(audio, style.emotion, np.random.default_rng(rng.getrandbits(32)))
    return _set_level(audio, rng.uniform(*RMS[style.energy]))


def _espeak_pitch(voice: str, hertz: float) -> int:
    table = next(voices[voice] for sexes in (WOMEN, MEN) for voices in sexes.values() if voice in voices)
    slope, offset = np.polyfit(np.log(table), (10, 50, 90), 1)
    return int(np.clip(round(slope * np.log(hertz) + offset), 0, 99))


@functools.cache
def _words_per_second(synthesizer: ESpeak, voice: str, rate: int) -> float:
    audio, rate_hz = synthesizer.say(CALIBRATION, voice=f"en-us+{voice}", rate=rate)
    return len(CALIBRATION.split()) / (len(_trim(audio)) / rate_hz)


def _espeak_rate(synthesizer: ESpeak, voice: str, seconds_per_word: float) -> int:
    """Voices differ in speed at the same setting, so each is measured once at two settings."""
    slow, fast = (_words_per_second(synthesizer, voice, rate) for rate in (130, 260))
    return int(np.clip(130 + 130 * (1 / seconds_per_word - slow) / (fast - slow), 80, 450))


def _trim(audio: Audio) -> Audio:
    """Cut the silence that eSpeak leaves at both ends, keeping 30 ms."""
    loud = np.flatnonzero(np.abs(audio) > 0.01 * np.abs(audio).max())
    if not len(loud):
        return audio
    return audio[max(0, loud[0] - 600) : loud[-1] + 600]


def _voice_quality(audio: Audio, emotion: str, noise: np.random.Generator) -> Audio:
    sound: NDArray[np.floating[Any]] = audio / (np.abs(audio).max() + 1e-9)
    seconds = np.arange(len(sound)) / SAMPLE_RATE
    if emotion == "happy":  # bright: everything above 1.5 kHz some 9 dB up
        high = signal.sosfilt(signal.butter(2, 1500, "high", fs=SAMPLE_RATE, output="sos"), sound)
        sound = sound + noise.uniform(1.6, 2.2) * high
    elif emotion == "sad":  # muffled, breathy and trembling
        envelope = signal.sosfilt(signal.butter(1, 20, fs=SAMPLE_RATE, output="sos"), np.abs(sound))
        soft = signal.sosfilt(signal.butter(1, 900, fs=SAMPLE_RATE, output="sos"), sound)
        breath = noise.standard_normal(len(sound)) * envelope * noise.uniform(0.2, 0.3)
        tremble = 1 - noise.uniform(0.35, 0.5) * (1 + np.sin(2 * np.pi * noise.uniform(4.5, 6) * seconds)) / 2
        sound = (soft + breath) * tremble
    elif emotion == "angry":  # overdriven, with a growl
        growl = 1 - noise.uniform(0.4, 0.55) * (1 + np.sin(2 * np.pi * noise.uniform(55, 70) * seconds)) / 2
        sound = np.tanh(sound * noise.uniform(5, 8)) * growl
    return sound.astype(np.float32)


def _set_level(audio: Audio, rms: float) -> Audio:
    audio = audio * (rms / (np.sqrt(np.mean(audio**2)) + 1e-9))
    return np.clip(audio, -1, 1).astype(np.float32)
