"""Dialogue with a bundle: spoken and written turns, each answered in the light of all before."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.errors import refused
from tests.helpers.runs import Fit

from sottovoce.data.examples import Batch
from sottovoce.errors import AudioError
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.chat_template import Placeholder
from sottovoce.serving import chat as serving
from sottovoce.serving.chat import Conversation, wording


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
    spoken = [[p.key.clip.name for p in turn.pieces if isinstance(p, Placeholder)] for turn in prompts[2]]
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
