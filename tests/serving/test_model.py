"""A bundle in Python: what it answers, streams and returns; what it refuses, and what it only warns of."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tests.helpers.errors import refused

import sottovoce as sv
from sottovoce.cli.main import main
from sottovoce.data.examples import Batch
from sottovoce.errors import AudioError, ConfigError
from sottovoce.llms import Placeholder, streaming
from sottovoce.llms.chat_template import Segment
from sottovoce.serving.audio_input import waveform

MOST = {"max_new_tokens": 4}


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> sv.Model:
    return sv.load(str(tiny_run / "bundle"), device="cpu")


@pytest.fixture
def clips(manifests: dict[str, Path]) -> list[Path]:
    return [manifests["test"].parent / f"test-{i}.wav" for i in range(5)]


def test_the_package_opens_at_once_and_says_what_is_public() -> None:
    told = "import sottovoce, sys; print(sorted({'torch', 'numpy', 'pydantic'} & {*sys.modules}), dir(sottovoce))"
    out = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout
    assert out.startswith("[] ") and "'load'" in out and "'_PUBLIC'" not in out
    stub = Path(sv.__file__).with_suffix(".pyi").read_text()
    for name in sv.__all__:
        assert getattr(sv, name) is not None and (f"as {name}\n" in stub or f"{name}: str" in stub)
    with pytest.raises(AttributeError):
        sv.nothing  # noqa: B018


def test_a_run_opens_as_its_bundle_does(tiny_run: Path, model: sv.Model, clips: list[Path]) -> None:
    whole = sv.load(tiny_run)
    assert whole.tasks == model.tasks == ("asr", "gender", "emotion")
    assert whole(clips[0], "asr", **MOST) == model(clips[0], "asr", **MOST)


def test_chat_takes_a_run_too(tiny_run: Path, clips: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for folder in (tiny_run, tiny_run / "bundle"):
        assert main(["chat", str(folder), "--once", "--task", "gender", "--audio", str(clips[0])]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "answer" in said[0]
    assert main(["chat", str(tiny_run.parent), "--once", "--audio", str(clips[0])]) == 2


def test_files_arrays_and_tensors_are_the_same_clip(model: sv.Model, clips: list[Path]) -> None:
    samples, rate = soundfile.read(clips[0], dtype="float32")
    forms = [
        str(clips[0]), {"array": samples, "sampling_rate": rate}, {"array": samples.tolist(), "sampling_rate": rate},
    ]  # fmt: skip
    answers = [model(form, "asr", **MOST) for form in forms]
    arrays = [samples, torch.from_numpy(samples)[None], (samples * 32768).astype(np.int16), samples.astype(np.float64)]
    answers += [model(array, "asr", sample_rate=rate, **MOST) for array in arrays]
    assert set(answers) == {model(clips[0], "asr", **MOST)}


def test_an_array_is_resampled(clips: list[Path]) -> None:
    samples, rate = soundfile.read(clips[0], dtype="float32")
    slow = waveform(samples, 8_000, rate)
    assert len(slow) == len(samples) // 2 and torch.equal(waveform(samples, rate, rate), torch.from_numpy(samples))


def test_a_batch_is_answered_as_its_clips_are_alone(model: sv.Model, clips: list[Path]) -> None:
    alone = [model(clip, "asr", **MOST) for clip in clips]
    assert model(clips, "asr", batch_size=2, **MOST) == alone and len(set(alone)) > 1
    assert model([], "asr") == []


def test_pieces_of_a_stream_make_the_answer(model: sv.Model, clips: list[Path]) -> None:
    for clip in clips[:3]:
        pieces = list(model.stream(clip, "asr", max_new_tokens=12))
        assert "".join(pieces) == model(clip, "asr", max_new_tokens=12) and "" not in pieces
    first = model.stream(clips[0], "asr", max_new_tokens=200)
    next(first, None)
    first.close()  # its thread ends, and the model is free
    assert model(clips[0], "asr", **MOST) == model(str(clips[0]), "asr", **MOST)


def test_an_error_of_a_stream_reaches_the_reader(
    model: sv.Model, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(streaming, "generate_rows", fails)
    with pytest.raises(RuntimeError, match="broken"):
        list(model.stream(clips[0], "asr"))


def test_tokens_are_what_the_llm_is_given(model: sv.Model, clips: list[Path]) -> None:
    both, alone = model.tokens(clips[:2]), model.tokens(clips[0])
    assert set(alone) == {"paralinguistic", "linguistic"} and alone["paralinguistic"].shape == (2, model.module.llm.dim)
    for slot in alone:
        torch.testing.assert_close(both[0][slot], alone[slot])
    assert not alone["linguistic"].requires_grad


def test_probabilities_are_shares_of_whole_answers(model: sv.Model, clips: list[Path]) -> None:
    task = model.recipe.tasks["emotion"]
    shares = model.probabilities(clips[:3], "emotion", batch_size=2)
    assert list(shares[0]) == list(task["choices"]) and all(sum(each.values()) == pytest.approx(1) for each in shares)
    one = model.probabilities(clips[1], "emotion")
    assert one == pytest.approx(shares[1], abs=1e-5)
    # by hand, of each whole answer
    batch, chats = model._spoken([waveform(clips[1], 16_000)], _wording(model, "emotion"), model.slots)
    llm, prompt = model.module.llm, model.module.embed(batch, chats)[0].detach()
    said = [llm.chat.response(chats[0], f"The speaker sounds {label}.") for label in one]
    nll = torch.stack([llm.loss([prompt], [ids]).total for ids in said]).detach().double()
    assert list(one.values()) == pytest.approx((-nll).softmax(0).tolist(), abs=1e-5)


def test_an_answer_that_begins_another_has_no_advantage(model: sv.Model, clips: list[Path]) -> None:
    """Each is scored with its end: the share of the shorter is not that of both."""
    short, long = "we", "we found the lamp"
    shares = model.probabilities(clips[0], ask="What?", choices=[short, long, "they"])
    assert sum(shares.values()) == pytest.approx(1) and 0 < shares[long] and 0 < shares[short] < 1
    _, chats = model._spoken([waveform(clips[0], 16_000)], "What?", model.slots)
    ids = model.module.llm.chat.response(chats[0], short)
    assert ids[-1] in model.module.llm.chat.stop_ids


def _wording(model: sv.Model, task: str) -> str:
    from sottovoce.serving.questions import question

    return question(model.recipe, task, None).instruction


def test_slots_can_be_left_empty(model: sv.Model, clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[list[str]] = []
    embed = model.module.embed_prompts

    def seen(batch: Batch, prompts: list[list[Segment]]) -> list[torch.Tensor]:
        heard.append([part.key.slot for part in prompts[0] if isinstance(part, Placeholder)])  # type: ignore[attr-defined]
        return embed(batch, prompts)

    monkeypatch.setattr(model.module, "embed_prompts", seen)
    for slots in ("both", "linguistic", ["linguistic", "paralinguistic"]):
        model(clips[0], "asr", slots=slots, **MOST)
        model.probabilities(clips[0], "emotion", slots=slots)
    whole = ["paralinguistic", "linguistic"]  # in the order of a spoken turn
    assert heard == [whole, whole, ["linguistic"], ["linguistic"], whole, whole]
    with refused("unknown-name", "slots", ConfigError):
        model(clips[0], "asr", slots="voice")
    with refused("empty", "slots", ConfigError):
        model(clips[0], "asr", slots=[])


def test_an_answer_knows_its_label(model: sv.Model, clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.module, "generate", lambda *_: ["The speaker sounds sad."])
    answer = model(clips[0], task="emotion")
    assert answer == "The speaker sounds sad." and answer.label == "sad"
    assert model(clips[0], ask="How?").label is None


def test_what_was_never_learned_is_told(model: sv.Model, clips: list[Path]) -> None:
    with pytest.warns(sv.UntrainedTaskWarning, match="age"):
        model(clips[0], task="age", **MOST)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(clips[0], task="gender", **MOST)
        model(clips[0], ask="Is she tired?", **MOST)
    with refused("unknown-name", "task", ConfigError):
        model(clips[0], task="weather")
    with refused("conflict", "task", ConfigError):
        model(clips[0], task="gender", ask="Who?")


@pytest.mark.parametrize(
    ("audio", "rate", "code", "where"),
    [
        (np.zeros(16_000, np.float32) + 0.1, None, "missing-key", "sample_rate"),
        (np.zeros((2, 16_000), np.float32), 16_000, "bad-value", "audio"),
        (np.zeros(16_000, np.float32), 16_000, "bad-value", "audio"),
        (np.full(16_000, np.nan, np.float32), 16_000, "nonfinite", "audio"),
        (np.full(16_000, 900.0, np.float32), 16_000, "bad-value", "audio"),
        (np.zeros(0, np.float32), 16_000, "empty", "audio"),
        (np.ones(100, np.float32), 16_000, "bad-value", "audio"),
        (np.ones(16_000, np.uint8), 16_000, "bad-value", "audio"),
        (np.ones(16_000, np.float32), 0, "bad-value", "audio"),
        ({"array": [0.1] * 9_000}, None, "missing-key", "audio"),
        (".", None, "bad-value", "."),
        (b"RIFF", None, "bad-value", "audio"),
        ((16_000, np.ones(16_000, np.float32)), None, "bad-value", "audio"),
    ],
)
def test_audio_that_is_none_is_refused(audio: object, rate: int | None, code: str, where: str) -> None:
    with refused(code, where, AudioError):  # type: ignore[arg-type]
        waveform(audio, 16_000, rate)  # type: ignore[arg-type]


def test_a_conversation_takes_arrays_and_keeps_what_was_said(model: sv.Model, clips: list[Path]) -> None:
    samples, rate = soundfile.read(clips[0], dtype="float32")
    talk = model.conversation("asr", max_new_tokens=3)
    answers = [talk.answer_audio(samples, rate), talk.answer_text("and now?"), talk.answer_audio(str(clips[1]))]
    assert answers[0] == model(clips[0], "asr", max_new_tokens=3)
    said = [("user", "audio"), ("user", "and now?"), ("user", str(clips[1]))]
    assert talk.history[::2] == said and talk.history[1::2] == [("assistant", answer) for answer in answers]


def test_choices_are_needed_where_there_are_none(model: sv.Model, clips: list[Path]) -> None:
    for asked in ({"task": "asr"}, {"ask": "Who?"}):
        with refused("missing-key", "choices", ConfigError):
            model.probabilities(clips[0], **asked)
    with refused("bad-value", "choices", ConfigError):
        model.probabilities(clips[0], ask="Who?", choices=["a", "a"])
