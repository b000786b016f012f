"""The engine on this machine: greedy is the LLM's own answer, and an answer does not depend on its company."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.errors import refused
from tests.helpers.families import save_family
from tests.llms.test_engines import chat

from sottovoce.errors import ConfigError
from sottovoce.llms import ENGINES
from sottovoce.llms.chat_template import ChatTurn
from sottovoce.llms.engines import Cut, LocalEngine, Sampling
from sottovoce.llms.openai_engine import OpenAIEngine


@pytest.mark.parametrize(("knob", "value"), [("device", "gpu7"), ("batch_size", 0)])
def test_knobs_that_make_no_sense_are_told_before_weights_are_read(knob: str, value: Any) -> None:
    with refused("bad-value", knob, ConfigError):
        ENGINES.build({"type": "local", "checkpoint": "nowhere", knob: value})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("llama3", tmp_path_factory.mktemp("llm"))


def local_engine(checkpoint: Path, **knobs: Any) -> LocalEngine:
    return LocalEngine(checkpoint=str(checkpoint), dtype="float32", device="cpu", **knobs)


@pytest.fixture(scope="module")
def local(checkpoint: Path) -> LocalEngine:
    return local_engine(checkpoint)


CHATS = [chat("Hi"), chat("Repeat what you hear, please. " * 3)]
CHATS += [[{"role": "system", "content": "Be calm."}, *chat("A")]]


def test_greedy_is_the_llms_own_answer_to_the_same_chat(local: LocalEngine) -> None:
    turns = [[ChatTurn(turn["role"], (turn["content"],)) for turn in chat] for chat in CHATS]  # type: ignore[arg-type]
    expected = local.llm.generate([local.llm.embed(local.llm.chat.prompt(each), {}) for each in turns], 8)
    assert local.answer(CHATS, max_new_tokens=8) == expected and len(set(expected)) == 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_does_not_depend_on_its_company(local: LocalEngine, checkpoint: Path, temperature: float) -> None:
    limits: dict[str, Any] = {"max_new_tokens": 8, "temperature": temperature, "seed": 5}
    together = local.answer(CHATS, **limits)
    assert together == [local.answer([one], **limits)[0] for one in CHATS]
    assert together == local_engine(checkpoint, batch_size=2).answer(CHATS, **limits)
    assert together[::-1] == local.answer(CHATS[::-1], **limits)


def test_seeds_matter_above_temperature_0_and_only_there(local: LocalEngine) -> None:
    for temperature, different in ((0.0, 1), (1.5, 4)):
        said = {local.answer(CHATS[:1], max_new_tokens=8, temperature=temperature, seed=seed)[0] for seed in range(4)}
        assert len(said) == different


def test_sampling_draws_by_the_softmax() -> None:
    logits, temperature, n = torch.tensor([1.0, 0.5, *[0.0] * 20, float("-inf")]), 0.5, 4000
    draws = Sampling(temperature, range(n))(torch.empty(n, 0), logits.expand(n, -1)).argmax(1)
    shares = torch.bincount(draws, minlength=len(logits)) / n
    torch.testing.assert_close(shares, (logits / temperature).softmax(0), atol=0.02, rtol=0)


def test_a_local_chat_that_cannot_be_answered_is_a_failure_of_its_own(local: LocalEngine) -> None:
    answers = local.answer([chat("word " * 600), CHATS[0], chat("\U000f5e00")], max_new_tokens=8)
    assert isinstance(answers[1], str) and answers[1:2] == local.answer(CHATS[:1], max_new_tokens=8)
    assert "the LLM reads 512" in str(answers[0]) and "reserved" in str(answers[2])
    assert local.answer([], max_new_tokens=8) == []


def test_a_local_answer_that_was_cut_says_so(local: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    (answer,) = local.answer(CHATS[:1], max_new_tokens=3)
    assert isinstance(answer, Cut)  # a random model does not end so soon
    stop = min(local.llm.chat.stop_ids)
    whole = local.llm.text_of([65, 66, stop, 67])
    assert not isinstance(whole, Cut) and whole == local.llm.text_of([65, 66])


def test_a_local_engine_is_called_by_its_weights(local: LocalEngine, checkpoint: Path, tmp_path: Path) -> None:
    assert local_engine(checkpoint).name == local.name
    assert local_engine(save_family("qwen2", tmp_path)).name != local.name


@pytest.mark.parametrize(("limits", "where"), [((0, 0.0), "max_new_tokens"), ((5, -1.0), "temperature")])
def test_limits_that_make_no_sense(local: LocalEngine, limits: tuple[int, float], where: str) -> None:
    for engine in (local, OpenAIEngine(base_url="http://h/v1", model="m")):
        with refused("bad-value", where):
            engine.answer(CHATS, max_new_tokens=limits[0], temperature=limits[1])
