"""Neural voices: what their packages are asked for, by fakes of their documented interfaces, and what is refused."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.helpers.errors import refused

from sottovoce.data.tts import SYNTHESIZERS
from sottovoce.data.tts.base import NotSpoken, Synthesizer
from sottovoce.errors import SottovoceError

TONE = (0.3 * np.sin(2 * np.pi * 220 * np.arange(22050) / 22050)).astype(np.float32)


@dataclass
class Asked:
    """What the fakes were asked for."""

    loaded: list[tuple[str, ...]] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)


def module(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(attributes)
    monkeypatch.setitem(sys.modules, name, made)
    return made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """piper-tts 1.8, kokoro-onnx 0.6 and hibari-tts 0.2 as far as their pages document them."""
    asked = Asked()

    class PiperVoice:
        config = SimpleNamespace(sample_rate=22050, num_speakers=2, speaker_id_map={"ann": 0, "bob": 1})

        @staticmethod
        def load(model_path: Path) -> "PiperVoice":
            if Path(model_path).read_bytes() == b"broken":
                raise OSError("protobuf parsing failed")
            asked.loaded.append(("piper", Path(model_path).name))
            return PiperVoice()

        def synthesize(self, text: str, syn_config: Any) -> Any:
            asked.said.append({"text": text, **vars(syn_config)})
            half = SimpleNamespace(audio_float_array=TONE[: len(TONE) // 2])
            return iter([half, half] if text != "..." else [])

    class Kokoro:
        def __init__(self, model_path: str, voices_path: str) -> None:
            if Path(model_path).read_bytes() == b"broken":
                raise OSError("protobuf parsing failed")
            asked.loaded.append(("kokoro", Path(model_path).name, Path(voices_path).name))
            self.voices = {"af_heart": 0, "bm_fable": 0, "jf_alpha": 0}

        def create(self, text: str, voice: str, speed: float, lang: str) -> tuple[Any, int]:
            if text == "...":
                raise ValueError("Nothing to synthesize")
            asked.said.append({"text": text, "voice": voice, "speed": speed, "lang": lang})
            return TONE, 22050

    class Hibari:
        def __init__(self, voice: str) -> None:
            if voice == "fenrir":
                raise RuntimeError("could not download it")
            asked.loaded.append(("hibari", voice))

        def __call__(self, text: str, speed: float, seed: int) -> Any:
            asked.said.append({"text": text, "speed": speed, "seed": seed})
            return TONE if text != "..." else TONE[:0]

    module(monkeypatch, "piper", PiperVoice=PiperVoice, SynthesisConfig=SimpleNamespace)
    module(monkeypatch, "kokoro_onnx", Kokoro=Kokoro)
    module(monkeypatch, "hibari", Hibari=Hibari)
    module(monkeypatch, "hibari.voices", VOICES={"heart": {}, "fenrir": {}})
    return asked


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("joe.onnx", "joe.onnx.json", "kokoro.onnx", "voices.bin"):
        (tmp_path / name).write_bytes(b"model")
    return tmp_path


def build(kind: str, files: Path, **knobs: Any) -> Synthesizer:
    own: dict[str, dict[str, Any]] = {
        "piper": {"models": {"joe": str(files / "joe.onnx")}},
        "kokoro": {"model": str(files / "kokoro.onnx"), "voices_file": str(files / "voices.bin")},
        "hibari": {},
    }
    return SYNTHESIZERS.build({"type": kind, **own[kind], **knobs})


def say(synthesizer: Synthesizer, voice: str, text: str = "hi", seed: int = 1) -> Any:
    return synthesizer.speak(text, attribute="gender", label="female", voice=voice, seed=seed)


VOICE = {"piper": "joe", "kokoro": "af_heart", "hibari": "heart"}


@pytest.mark.parametrize("kind", VOICE)
def test_a_voice_is_loaded_once_and_gives_one_channel_in_float32(kind: str, asked: Asked, files: Path) -> None:
    synthesizer = build(kind, files)
    audio = say(synthesizer, VOICE[kind])
    say(synthesizer, VOICE[kind], "again")
    assert audio.dtype == np.float32 and audio.ndim == 1 and np.abs(audio).max() <= 1
    seconds = 22050 / (24000 if kind == "hibari" else 22050)  # the fake's second; hibari speaks at 24 kHz
    assert len(audio) == pytest.approx(seconds * synthesizer.sample_rate, abs=2)
    assert len(asked.loaded) == 1 and [said["text"] for said in asked.said] == ["hi", "again"]


@pytest.mark.parametrize("kind", VOICE)
def test_the_seed_draws_a_tempo_within_its_bounds(kind: str, asked: Asked, files: Path) -> None:
    synthesizer = build(kind, files, slowest=0.8, fastest=1.25)
    for seed in (1, 1, 2, 3):
        say(synthesizer, VOICE[kind], seed=seed)
    tempi = [said["speed"] if "speed" in said else 1 / said["length_scale"] for said in asked.said]
    assert tempi[0] == tempi[1] and len(set(tempi)) == 3 and 0.8 <= min(tempi) <= max(tempi) <= 1.25
    assert build(kind, files).name != synthesizer.name


@pytest.mark.parametrize("kind", VOICE)
def test_a_text_of_which_nothing_can_be_said_costs_that_clip(kind: str, asked: Asked, files: Path) -> None:
    with pytest.raises(NotSpoken):
        say(build(kind, files), VOICE[kind], "...")


def test_kokoro_speaks_the_language_of_its_voice(asked: Asked, files: Path) -> None:
    for voice in ("af_heart", "bm_fable", "jf_alpha"):
        say(build("kokoro", files), voice)
    say(build("kokoro", files, language="en-us"), "jf_alpha")
    assert [said["lang"] for said in asked.said] == ["en-us", "en-gb", "ja", "en-us"]


def test_speakers_of_one_file_of_piper_share_a_model(asked: Asked, files: Path) -> None:
    synthesizer = build("piper", files)
    for voice in ("joe#bob", "joe#0", "joe"):
        say(synthesizer, voice)
    assert [said["speaker_id"] for said in asked.said] == [1, 0, None] and asked.loaded == [("piper", "joe.onnx")]


def test_a_voice_of_piper_comes_from_a_package(asked: Asked, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = files / "voice_in_a_package" / "data"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "ann.onnx").touch()
    monkeypatch.syspath_prepend(str(files))
    say(build("piper", files, models={"ann": "voice_in_a_package"}), "ann")
    assert asked.loaded == [("piper", "ann.onnx")]
    (package / "bob.onnx").touch()
    with refused("not-found", "models.ann"):
        say(build("piper", files, models={"ann": "voice_in_a_package"}), "ann")


@pytest.mark.parametrize(("kind", "voice"), [("piper", "jo"), ("piper", "joe#carl"), ("kokoro", "af"), ("hibari", "x")])
def test_unknown_voices_are_told_before(kind: str, voice: str, asked: Asked, files: Path) -> None:
    synthesizer = build(kind, files)
    assert len(synthesizer.faults({"gender": ["female"]}, {"gender": {"female": [voice, VOICE[kind]]}})) == 1
    with refused("unknown-name", "voices"):
        say(synthesizer, voice)


def test_a_voice_for_two_labels_is_told_before(asked: Asked, files: Path) -> None:
    labels, synthesizer = {"age": ["child", "adult"]}, build("hibari", files)
    (fault,) = synthesizer.faults(labels, {"age": {"child": ["heart"], "adult": ["heart"]}})
    assert "'child' and 'adult' alike" in fault
    assert not synthesizer.faults(labels, {"age": {"child": ["heart"]}, "gender": {"female": ["heart"]}})


@pytest.mark.parametrize(
    ("kind", "file"),
    [("piper", "joe.onnx"), ("piper", "joe.onnx.json"), ("kokoro", "kokoro.onnx"), ("kokoro", "voices.bin")],
)
def test_missing_files_are_named(kind: str, file: str, asked: Asked, files: Path) -> None:
    (files / file).unlink()
    with refused("not-found", file):
        say(build(kind, files), VOICE[kind])


@pytest.mark.parametrize("kind", ["piper", "kokoro"])
def test_a_damaged_model_is_named(kind: str, asked: Asked, files: Path) -> None:
    name = {"piper": "joe.onnx", "kokoro": "kokoro.onnx"}[kind]
    (files / name).write_bytes(b"broken")
    with refused("damaged", name):
        say(build(kind, files), VOICE[kind])


def test_a_voice_that_cannot_be_downloaded_is_named(asked: Asked, files: Path) -> None:
    with refused("unavailable", "voices.fenrir"):
        say(build("hibari", files), "fenrir")


@pytest.mark.parametrize("kind", VOICE)
def test_without_its_package_a_synthesizer_is_refused(kind: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("piper", "kokoro_onnx", "hibari"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with refused("unavailable", "synthesizer"):
        say(build(kind, files), VOICE[kind])


@pytest.mark.parametrize("knobs", [{"slowest": 1.2}, {"fastest": 2.5}, {"slowest": 0.1}])
def test_tempi_that_make_no_sense_are_refused(knobs: dict[str, float], files: Path) -> None:
    with pytest.raises(SottovoceError) as caught:
        build("hibari", files, **knobs)
    assert caught.value.where.endswith(next(iter(knobs)))
