"""How the demo world sounds: eSpeak NG voices, set to a pitch in Hz, a tempo, a loudness and an emotion one can hear.

Pitch and tempo are asked of the synthesizer; emotion is a pitch range and a voice quality (happy: wide and bright,
sad: flat, breathy and trembling, angry: driven and rough); energy is the level of the finished audio. The targets lie
on either side of TextrolSpeech's published thresholds for energy and tempo; pitch is low or high for the voice's sex.
"""

import random

import numpy as np
import soxr

from sottovoce.data.tts.effects import Audio as Audio  # for whoever speaks with these voices
from sottovoce.data.tts.effects import Quality, set_level, trim, voice_quality
from sottovoce.data.tts.espeak import ESpeak
from sottovoce.demo.world import Style

SAMPLE_RATE = 16_000  # Hz, of everything this module returns

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
# Voice -> words a second at eSpeak rate 130 and 260 ("we cleaned the old bicycle ...", trimmed, en-us).
WORDS_PER_SECOND: dict[str, tuple[float, float]] = {
    "Alicia": (2.239, 4.845), "Andrea": (3.138, 5.577), "Andy": (2.574, 5.063), "Annie": (2.676, 5.243),
    "Denis": (2.651, 5.144), "Diogo": (2.651, 5.158), "Henrique": (2.649, 5.138), "Lee": (2.515, 4.963),
    "Marco": (1.813, 4.368), "Mike": (2.657, 5.132), "Reed": (2.705, 5.214), "anika": (3.139, 5.595),
    "antonio": (3.109, 5.506), "aunty": (2.668, 5.194), "belinda": (2.725, 5.285), "f1": (2.604, 5.154),
    "f2": (2.638, 5.165), "f3": (2.665, 5.225), "f4": (2.665, 5.124), "f5": (2.638, 5.166),
    "grandma": (2.671, 5.221), "linda": (2.674, 5.215), "m1": (2.643, 5.103), "m2": (2.638, 5.124),
    "m3": (2.699, 5.263), "m4": (2.535, 5.035), "m5": (2.65, 5.161), "m6": (2.651, 5.139), "m7": (2.649, 5.174),
    "m8": (2.641, 5.135), "michel": (2.651, 5.158), "miguel": (2.664, 5.199), "norbert": (2.656, 5.145),
    "paul": (2.642, 5.149), "quincy": (2.644, 5.118), "robert": (2.648, 5.128), "sandro": (2.652, 5.162),
    "shelby": (2.673, 5.186), "steph": (2.667, 5.219), "steph3": (2.667, 5.219), "travis": (2.649, 5.154),
    "victor": (2.657, 5.125),
}  # fmt: skip
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-us-nyc", "en-gb-x-gbclan")
TRACTS = (0.94, 1.0, 1.06)  # vocal tract scale: > 1 is a smaller head
BOYS = ("f1", "f2", "f3", "grandma", "shelby", "steph", "f4", "f5")  # of WOMEN, the lower ones; girls have the others
CHILD_TRACTS = (1.22, 1.28, 1.34)

# Mean F0 in Hz.
F0 = {"male": {"low": (80, 98), "high": (128, 150)}, "female": {"low": (160, 185), "high": (240, 275)}}
CHILD_F0 = {"male": {"low": (270, 300), "high": (320, 360)}, "female": {"low": (280, 310), "high": (345, 390)}}
SECONDS_PER_WORD = {"slow": (0.41, 0.45), "fast": (0.185, 0.23)}  # thresholds: fast below 0.252, slow above 0.386
RMS = {"weak": (0.012, 0.027), "strong": (0.065, 0.12)}  # TextrolSpeech: low below 0.0333, high above 0.0505
PITCH_RANGE = {"neutral": 45, "happy": 99, "sad": 5, "angry": 55}  # eSpeak units
QUALITY: dict[str, Quality] = {"neutral": "plain", "happy": "bright", "sad": "breathy", "angry": "rough"}
RANGE_RAISES_F0 = {"neutral": 1.0, "happy": 1.1, "sad": 0.85, "angry": 1.0}  # what that does to the mean F0, measured


def speakers(split: str, gender: str, child: bool = False) -> list[str]:
    """Names of all speakers of a split: a voice, an accent and a vocal tract, such as `f2.en-us.1.06`.

    Children have voices of women of the same split in small heads.
    """
    if child:
        voices, tracts = [voice for voice in WOMEN[split] if (voice in BOYS) == (gender == "male")], CHILD_TRACTS
    else:
        voices, tracts = list((WOMEN if gender == "female" else MEN)[split]), TRACTS
    return [f"{voice}.{accent}.{tract}" for voice in voices for accent in ACCENTS for tract in tracts]


def say(
    synthesizer: ESpeak, sentence: str, style: Style, speaker: str, rng: random.Random, *, child: bool = False
) -> Audio:
    """Speak `sentence` in `style`: (samples,) at 16 kHz in [-1, 1]. A child's pitch is low or high for a child."""
    voice, accent, scale = speaker.split(".", 2)
    tract = float(scale)
    f0 = (CHILD_F0 if child else F0)[style.gender][style.pitch]
    hertz = rng.uniform(*f0) / RANGE_RAISES_F0[style.emotion] / tract
    seconds_per_word = rng.uniform(*SECONDS_PER_WORD[style.tempo]) * tract
    rate, pitch = _espeak_rate(voice, seconds_per_word), _espeak_pitch(voice, hertz)
    audio, rate_hz = synthesizer.say(
        sentence, voice=f"{accent}+{voice}", rate=rate, pitch=pitch, range=PITCH_RANGE[style.emotion]
    )
    audio = soxr.resample(trim(audio), rate_hz * tract, SAMPLE_RATE).astype(np.float32)
    noise = np.random.default_rng(rng.getrandbits(32))
    return set_level(voice_quality(audio, QUALITY[style.emotion], noise, SAMPLE_RATE), rng.uniform(*RMS[style.energy]))


def _espeak_pitch(voice: str, hertz: float) -> int:
    table = next(voices[voice] for sexes in (WOMEN, MEN) for voices in sexes.values() if voice in voices)
    slope, offset = np.polyfit(np.log(table), (10, 50, 90), 1)
    return int(np.clip(round(slope * np.log(hertz) + offset), 0, 99))


def _espeak_rate(voice: str, seconds_per_word: float) -> int:
    slow, fast = WORDS_PER_SECOND[voice]  # voices differ in speed at the same setting
    return int(np.clip(130 + 130 * (1 / seconds_per_word - slow) / (fast - slow), 80, 450))
