"""Dialogue with a bundle: spoken and written turns, each answered in the light of all before."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.errors import refused
from tests.helpers.runs import Fit

from sottovoce.cli.main import main
from sottovoce.data.examples import Batch
from sottovoce.errors import AudioError, ConfigError
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.chat_template import Placeholder
from sottovoce.serving import chat as serving
from sottovoce.serving.chat import Conversation, chat, spoken_file, wording


@pytest.fixture
def model(fit: Fit, tree: dict[str, Any]) -> SpeechLLM:
    evaluation = {"max_new_tokens": 2, "slots": ["both"], "limit": 2}
    return read_bundle(fit(stages={"joint": tree["stages"]["joint"]}, evaluation=evaluation) / "bundle")


def test_follow_up_prompts_hold_the_turns_before(
    model: SpeechLLM, manifests: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second and third prompt hold the earlier turns: speech as speech, answers as text."""
    prompts: list[list[Any]] = []
    prompt = model.llm.chat.prompt
    monkeypatch.setattr(model.llm.chat, "prompt", lambda turns: prompts.append(list(turns)) or prompt(turns))
    conversation = Conversation(model, wording(model, "emotion"), max_new_tokens=4)
    folder = manifests["test"].parent
    answers = [conversation.answer_audio(folder / "test-0.wav"), conversation.answer_text("why?")]
    conversation.answer_audio(folder / "test-1.wav")
    assert [len(turns) for turns in prompts] == [2, 4, 6]
    assert [turn.role for turn in prompts[2]] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [turn.pieces for turn in prompts[2] if turn.role == "assistant"] == [(answers[0],), (answers[1],)]
    spoken = [
        [p.key.clip.name.partition("#")[0] for p in turn.pieces if isinstance(p, Placeholder)] for turn in prompts[2]
    ]
    assert spoken[1] == ["test-0.wav"] * 2 and spoken[3] == [] and spoken[5] == ["test-1.wav"] * 2


def test_an_answer_is_the_same_as_in_scoring(model: SpeechLLM, manifests: dict[str, Path], tmp_path: Path) -> None:
    """One spoken turn through `chat` is the row of predictions.jsonl, though it was answered alone."""
    rows = [json.loads(line) for line in (tmp_path / "runs/tiny/evaluation/predictions.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["task"] == "asr" and row["id"] == "test-0")  # it has no context
    conversation = Conversation(model, row["instruction"], max_new_tokens=2)
    assert conversation.answer_audio(manifests["test"].parent / "test-0.wav") == row["response"]


def test_a_clip_that_cannot_be_used_is_named(model: SpeechLLM, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    with refused("damaged", "bad.wav", AudioError):
        Conversation(model, "Reply.").answer_audio(tmp_path / "bad.wav")


def test_a_dialogue_goes_where_a_gpu_is(
    model: SpeechLLM, manifests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is moved for the whole dialogue, and each turn's speech is moved to it."""
    moved: list[SpeechLLM] = []
    devices: list[torch.device] = []
    to = Batch.to
    monkeypatch.setattr(serving, "on_device", lambda part: nullcontext(moved.append(part)))
    monkeypatch.setattr(Batch, "to", lambda self, device: devices.append(device) or to(self, device))
    clip = str(manifests["test"].parent / "test-0.wav")
    serving.chat(str(tmp_path / "runs/tiny/bundle"), [clip, clip], None, "Reply.", True, [])
    assert [type(part) for part in moved] == [SpeechLLM] and devices == [torch.device("cpu")] * 2


def test_what_cannot_be_read_does_not_end_a_dialogue(
    model: SpeechLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A control token that somebody types, or more than the LLM reads: told, and the dialogue goes on without it."""
    typed = iter(["hello", "<|im_start|>system", "on and on " * 300, "and now?", ""])
    monkeypatch.setattr("sottovoce.serving.chat._read_line", lambda: next(typed))
    monkeypatch.setattr("sottovoce.serving.chat.read_bundle", lambda *_: model)
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda batch, chats, most: generate(batch, chats, 2))
    chat("bundle", [], None, "Reply.", False, [])
    out = capsys.readouterr().out
    assert out.count("sottovoce:") == 2 and out.count("answer ") == 2 and "<|im_start|>" in out


def test_a_file_that_is_recorded_anew_is_another_turn(
    model: SpeechLLM, manifests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second turn is answered with what was heard in the first, and with its own recording."""
    batches: list[Any] = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda batch, *rest: batches.append(batch) or generate(batch, *rest))
    conversation, folder, file = Conversation(model, "Reply.", 2), manifests["test"].parent, tmp_path / "rec.wav"
    for name in ("test-0.wav", "test-3.wav"):
        shutil.copy(folder / name, file)
        conversation.answer_audio(file)
    lengths = [batch.audio.lengths.tolist() for batch in batches]
    assert [len(one) for one in lengths] == [1, 2] and lengths[1][0] == lengths[0][0] != lengths[1][1]


@pytest.mark.parametrize(
    ("line", "file"),
    [("audio quality is bad today", None), ("audio a.wav", "a.wav"), ("audio 'my clip.mp3'", "my clip.mp3"),
     ("hello", None), ("audio e.g. this one", None)],
)  # fmt: skip
def test_a_sentence_that_begins_with_audio_is_text(line: str, file: str | None) -> None:
    assert spoken_file(line) == (file and Path(file))


@pytest.fixture
def dialogue(
    model: SpeechLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """What the command prints when these lines are typed; answers are two tokens long."""

    def type_in(*lines: str) -> list[str]:
        typed, generate = iter([*lines, ""]), model.generate
        monkeypatch.setattr("sottovoce.serving.chat._read_line", lambda: next(typed))
        monkeypatch.setattr("sottovoce.serving.chat.read_bundle", lambda *_: model)
        monkeypatch.setattr(model, "generate", lambda batch, chats, most: generate(batch, chats, 2))
        chat("bundle", [], None, "Reply.", False, [])
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("answer", "sottovoce:"))]

    return type_in


def test_a_slip_does_not_end_a_dialogue(dialogue: Callable[..., list[str]], manifests: dict[str, Path]) -> None:
    said = dialogue(
        "hello", "audio mistyped.wav", f"audio {manifests['test'].parent}/test-0.wav", "audio quality is bad"
    )
    assert [line.split()[0] for line in said] == ["answer", "sottovoce:", "answer", "answer"]
    assert "mistyped.wav" in said[1]


def test_a_full_context_forgets_the_oldest_turns(dialogue: Callable[..., list[str]], model: SpeechLLM) -> None:
    """Told once for each time; what is too long by itself is refused, and nothing is forgotten for it."""
    most = model.llm.config.get_text_config().max_position_embeddings
    words = ["on"] * 100
    tokens = len(model.llm.tokenizer(" ".join(words))["input_ids"]) / len(words)
    long = " ".join(["on"] * int(0.35 * most / tokens))  # two have room, three have not
    said = dialogue(long, long, long, " ".join(["on"] * most), "and now?")
    assert [line.split()[0] for line in said] == ["answer", "answer", "sottovoce:", "answer", "sottovoce:", "answer"]


class Piped(StringIO):
    """Standard input that is no terminal."""

    def isatty(self) -> bool:
        return False


def test_once_answers_what_is_piped_in_or_says_what_is_missing(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Piped("hello\n"))
    assert main(["chat", str(tiny_run / "bundle"), "--once", "--task", "asr"]) == 0
    assert capsys.readouterr().out.startswith("answer ")
    monkeypatch.setattr("sys.stdin", Piped(""))
    with refused("missing-key", "--once", ConfigError):
        chat(str(tiny_run / "bundle"), [], None, "Reply.", True, [])


def test_a_folder_is_no_clip(tmp_path: Path) -> None:
    with refused("bad-value", tmp_path, AudioError):
        chat("bundle", [str(tmp_path)], None, "Reply.", True, [])


def test_chat_tells_what_a_bundle_never_learned(model: SpeechLLM, capsys: pytest.CaptureFixture[str]) -> None:
    wording(model, "age")
    assert "age" in capsys.readouterr().err
    wording(model, "asr")
    assert not capsys.readouterr().err
    with refused("unknown-name", "--task", ConfigError):
        wording(model, "weather")
