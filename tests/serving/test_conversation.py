"""Dialogue with a bundle: spoken and written turns, each answered in the light of all before."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.errors import refused
from tests.helpers.runs import Fit

from sottovoce.errors import AudioError
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.chat_template import Placeholder
from sottovoce.serving.chat import Conversation, chat, wording


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
