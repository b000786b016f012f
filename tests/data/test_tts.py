"""Synthesizers: a child sounds like one, a server that misbehaves costs a clip and not the run, keys are not shown."""

import io
from typing import Any

import numpy as np
import pytest
import soundfile
from tests.helpers.errors import refused
from tests.helpers.servers import Serve, Server

from sottovoce.data.tts import SYNTHESIZERS
from sottovoce.data.tts.base import NotSpoken, checked
from sottovoce.data.tts.effects import median_f0, set_level, trim, voice_quality
from sottovoce.data.tts.espeak_voices import ESpeakSynthesizer
from sottovoce.data.tts.openai import OpenAISpeech
from sottovoce.errors import Code

SECRET = "sk-very-secret-456"
TONE = (0.3 * np.sin(2 * np.pi * 220 * np.arange(12000) / 24000)).astype(np.float32)


def sound(audio: Any = TONE, rate: int = 24000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, audio, rate, subtype="PCM_16", format="WAV")
    return file.getvalue()


def speech_of(server: Server, **knobs: Any) -> OpenAISpeech:
    return OpenAISpeech(**{"base_url": server.url, "model": "m", "retries": 2, "timeout": 5.0, **knobs})


def say(synthesizer: Any, text: str = "hi", label: str = "child", voice: str = "coral", attribute: str = "age") -> Any:
    return synthesizer.speak(text, attribute=attribute, label=label, voice=voice, seed=1)


def test_the_request_is_what_the_api_wants(serve: Serve) -> None:
    server = serve(lambda text, number: sound())
    speech = speech_of(server, instructions={"age": {"child": "Like a child."}})
    audio = say(speech)
    assert audio.dtype == np.float32 and np.abs(audio - TONE).max() < 1e-4
    say(speech, label="adult")
    plain = {"model": "m", "input": "hi", "voice": "coral", "response_format": "wav"}
    assert server.bodies == [{**plain, "instructions": "Like a child."}, plain]
    assert server.paths == ["/v1/audio/speech"] * 2 and server.keys == [None, None]


def test_stereo_at_another_rate_becomes_one_channel_at_ours(serve: Serve) -> None:
    tone = 0.3 * np.sin(2 * np.pi * 220 * np.arange(24000) / 48000)
    server = serve(lambda text, number: sound(np.stack([tone, 0 * tone], 1), 48000))
    audio = say(speech_of(server))
    assert audio.shape == (12000,) and np.abs(audio[500:-500] - TONE[500:-500] / 2).max() < 1e-3


def test_what_passes_is_tried_again_and_what_does_not_costs_one_clip(serve: Serve) -> None:
    replies = {"busy": (503, b"", {}), "bad": (400, b"too long", {}), "rubbish": b"<html>", "cut": sound()[:20]}
    server = serve(lambda text, n: sound() if (text, n) == ("busy", 2) else replies[text])
    speech = speech_of(server)
    assert len(say(speech, "busy")) == len(TONE)
    for text, reason in (("bad", "HTTP 400: too long"), ("rubbish", "is no audio"), ("cut", "is no audio")):
        with pytest.raises(NotSpoken, match=reason):
            say(speech, text)
        assert server.asked[text] == 1


def test_one_server_is_given_up_for_all_clips(serve: Serve) -> None:
    server = serve(lambda text, number: (500, b"", {}))
    speech = speech_of(server, retries=0)
    for number in range(9):
        with pytest.raises(NotSpoken, match="HTTP 500" if number < 8 else "given up"):
            say(speech, str(number))
    assert server.asked["8"] == 0


@pytest.mark.parametrize(("status", "code"), [(401, "unavailable"), (404, "not-found")])
def test_a_refused_key_or_an_unknown_model_ends_the_run(
    serve: Serve, monkeypatch: Any, status: int, code: Code
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    server = serve(lambda text, number: (status, f"no {SECRET}".encode(), {}))
    speech = speech_of(server, api_key_env="MY_KEY")
    with refused(code) as caught:
        say(speech)
    assert not isinstance(caught.value, NotSpoken) and SECRET not in f"{caught.value} {speech.name} {speech!r}"
    assert server.keys == [f"Bearer {SECRET}"]


def test_names_tell_what_sounds_different() -> None:
    speech = [
        OpenAISpeech(base_url=f"http://{host}/v1", model="m", known_as=known, instructions={"age": {"child": how}})
        for host, known, how in (("a", None, "x"), ("b", None, "x"), ("a", None, "y"), ("a", "k", "x"), ("b", "k", "x"))
    ]
    assert len({one.name for one in speech}) == 4 and speech[3].name == speech[4].name


def test_instructions_for_nobody_are_a_fault() -> None:
    speech = OpenAISpeech(base_url="http://h/v1", model="m", instructions={"age": {"chidl": "x"}, "mood": {"sad": "x"}})
    faults = speech.faults({"age": ["child", "adult"]}, {})
    assert faults[0].startswith("instructions.age: unknown label 'chidl'. Did you mean 'child'?") and len(faults) == 2


# eSpeak NG


@pytest.fixture(scope="module")
def espeak() -> ESpeakSynthesizer:
    pytest.importorskip("espeakng_loader")
    synthesizer = SYNTHESIZERS.build({"type": "espeak"})
    assert isinstance(synthesizer, ESpeakSynthesizer)
    return synthesizer


def test_children_women_and_men_have_the_pitch_they_are_given(espeak: ESpeakSynthesizer) -> None:
    wanted = {("age", "child"): (270, 330), ("gender", "male"): (85, 135), ("gender", "female"): (175, 235)}
    for (attribute, label), (low, high) in wanted.items():
        voice = "en-us+m1" if label == "male" else "en-us+f2"
        text = "we cleaned the old bicycle yesterday"
        for seed in range(1, 5):
            audio = espeak.speak(text, attribute=attribute, label=label, voice=voice, seed=seed)
            assert audio.dtype == np.float32 and np.abs(audio).max() <= 1
            assert 0.94 * low < median_f0(audio, espeak.sample_rate) < 1.06 * high, (label, seed)


def test_a_seed_is_a_sound(espeak: ESpeakSynthesizer) -> None:
    how = {"attribute": "age", "label": "child", "voice": "en-us+f2"}
    one, same, other = (espeak.speak("hello there", **how, seed=seed) for seed in (1, 1, 2))
    assert abs(len(one) - len(same)) < 200 and abs(len(one) - len(other)) > 200


def test_emotions_sound_apart(espeak: ESpeakSynthesizer) -> None:
    said = {
        label: espeak.speak("we found the red umbrella", attribute="emotion", label=label, voice="en-us+f2", seed=1)
        for label in ("neutral", "sad", "angry")
    }
    rms = {label: float(np.sqrt(np.mean(audio**2))) for label, audio in said.items()}
    assert rms["sad"] < rms["neutral"] < rms["angry"] and len(said["sad"]) > 1.15 * len(said["angry"])


@pytest.mark.parametrize(
    ("voices", "fault"),
    [
        ({"age": {"child": ["en-us+m1"]}}, "voices.age.child: en-us+m1 reaches "),
        ({"age": {"adult": ["en-us+nosuch"]}}, "voices: eSpeak NG has no voice 'en-us+nosuch'"),
        ({"age": {"adult": ["xx-nowhere"]}}, "voices: eSpeak NG has no voice 'xx-nowhere'"),
    ],
)
def test_voices_that_cannot_do_it_are_told_before(espeak: ESpeakSynthesizer, voices: Any, fault: str) -> None:
    (told,) = espeak.faults({"age": ["child", "adult"]}, voices)
    assert told.startswith(fault)


def test_labels_without_a_style_are_told_before(espeak: ESpeakSynthesizer) -> None:
    faults = espeak.faults({"emotion": ["sad", "hapy"], "mood": ["x"]}, {})
    assert len(faults) == 2 and "'hapy'. Did you mean 'happy'?" in faults[0]


# Rendering


@pytest.mark.parametrize("hertz", [80.0, 145.0, 230.0, 330.0])
def test_the_pitch_of_a_voice_is_found(hertz: float) -> None:
    seconds = np.arange(16000) / 16000
    voice = sum(np.sin(2 * np.pi * hertz * n * seconds) / n for n in range(1, 12)).astype(np.float32)
    assert abs(median_f0(0.1 * voice, 16000) - hertz) < 0.03 * hertz
    assert median_f0(np.random.default_rng(0).standard_normal(16000).astype(np.float32), 16000) == 0.0


def test_levels_and_ends() -> None:
    assert np.sqrt(np.mean(set_level(TONE, 0.05) ** 2)) == pytest.approx(0.05, rel=1e-3)
    quiet = np.zeros(4000, np.float32)
    assert len(TONE) <= len(trim(np.concatenate([quiet, TONE, quiet]))) <= len(TONE) + 1200
    noise = [np.random.default_rng(0) for _ in range(2)]
    assert np.array_equal(voice_quality(TONE, "plain", noise[0], 24000), TONE / (TONE.max() + np.float32(1e-9)))
    assert not np.array_equal(voice_quality(TONE, "rough", noise[1], 24000), TONE)


@pytest.mark.parametrize(
    ("audio", "reason"), [(np.zeros(9000), "silent"), (TONE[:100], "too short"), (np.full(9000, np.nan), "not finite")]
)
def test_what_nobody_can_hear_is_no_speech(audio: Any, reason: str) -> None:
    with pytest.raises(NotSpoken, match=reason):
        checked(audio.astype(np.float32), 24000)
    assert checked(TONE, 24000) is TONE
