"""The LLM in a server that speaks vLLM's protocol: the same answers as here, and no other LLM's without a word."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.chat_requests import body, clip, endpoint, user
from tests.helpers.errors import refused
from tests.helpers.families import save_family
from tests.helpers.vllm import Served, vllm

import sottovoce as sv
from sottovoce.errors import ConfigError, SottovoceError
from sottovoce.llms import CausalLLM
from sottovoce.llms.vllm_server import PROBED, VLLMServer, hand_over
from sottovoce.serving.model import load

ASK = "Is she tired?"
HERE = {"device": "cpu"}


def loaded(folder: str | Path) -> CausalLLM:
    llm = CausalLLM(str(folder), "float32")
    llm.load()
    return llm.eval()


@pytest.fixture(scope="module")
def served(tiny_llm: str) -> Iterator[Served]:
    with vllm(loaded(tiny_llm)) as made:
        yield made


@pytest.fixture(scope="module")
def here(tiny_run: Path) -> sv.Model:
    return load(tiny_run, **HERE)


@pytest.fixture(scope="module")
def there(tiny_run: Path, served: Served) -> sv.Model:
    return load(tiny_run, engine="vllm", url=served.url, **HERE)


@pytest.fixture
def clips(manifests: dict[str, Path]) -> list[Path]:
    return [manifests["test"].parent / f"test-{i}.wav" for i in range(6)]


def test_answers_are_those_of_the_llm_here(here: sv.Model, there: sv.Model, clips: list[Path], served: Served) -> None:
    served.bodies.clear()
    for task in ("asr", "emotion"):
        assert there(clips, task, max_new_tokens=9) == here(clips, task, max_new_tokens=9)
    assert len(served.bodies) == 2 * len(clips)
    assert "".join(there.stream(clips[0], ask=ASK)) == here(clips[0], ask=ASK)
    talks = [model.conversation(ask=ASK, max_new_tokens=6) for model in (here, there)]
    assert talks[0].answer_audio(clips[0]) == talks[1].answer_audio(clips[0])
    assert talks[0].answer_text("why?") == talks[1].answer_text("why?")
    with refused("unavailable", "engine", ConfigError):
        there.probabilities(clips[0], "emotion")


def test_what_is_asked_leaves_nothing_to_the_server(there: sv.Model, clips: list[Path], served: Served) -> None:
    """Greedy whatever its generation_config.json says, our stop tokens, and no second prompt."""
    served.bodies.clear()
    there(clips[0], "asr", max_new_tokens=3)
    [asked] = served.bodies
    assert "prompt" not in asked and asked["max_tokens"] == 3 and asked["temperature"] == 0
    assert asked["repetition_penalty"] == 1 and asked["stop_token_ids"] == sorted(there.module.llm.chat.stop_ids)


def test_only_the_embeddings_of_the_llm_stay(there: sv.Model, here: sv.Model) -> None:
    table = here.module.llm.model.get_input_embeddings()
    kept = list(there.module.llm.model.parameters())
    assert [weight.shape for weight in kept] == [table.weight.shape]  # type: ignore[union-attr]


def test_the_endpoint_answers_from_there(here: sv.Model, there: sv.Model, clips: list[Path]) -> None:
    with endpoint(there) as app:
        found = app.post_all([body(user(ASK, clip(file)), max_tokens=9) for file in clips])
        expected = here(clips, ask=ASK, max_new_tokens=9)
        assert [one.json()["choices"][0]["message"]["content"] for one in found] == expected
        streamed = app.post(body(user(ASK, clip(clips[0])), stream=True))
        assert streamed.text.endswith("data: [DONE]\n\n")
        too_long = app.post(body(user("hello"), max_tokens=390))  # the server reads fewer tokens than the LLM could
        assert too_long.json()["error"]["code"] == "context_length_exceeded"


def test_a_server_that_fails_costs_a_request_and_no_more(
    there: sv.Model, clips: list[Path], served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(there.module.llm.remote, "_sdk", there.module.llm.remote._sdk.with_options(max_retries=0))  # type: ignore[union-attr]
    monkeypatch.setattr(served, "broken", True)
    with refused("unavailable", "url", SottovoceError):
        there(clips[0], "asr")
    with endpoint(there) as app:
        told = app.post(body(user(clip(clips[0]))))
        assert told.status_code == 502 and told.json()["error"]["code"] == "engine_unavailable"
        monkeypatch.setattr(served, "broken", False)
        assert app.post(body(user(clip(clips[0])))).status_code == 200


def test_another_llm_is_refused(tiny_run: Path, tmp_path: Path, tiny_llm: str) -> None:
    """Other weights, another width, another tokenizer."""
    other = tmp_path / "weights"
    shutil.copytree(tiny_llm, other)
    llm = loaded(other)
    with torch.no_grad():
        for weight in llm.model.get_output_embeddings().parameters():
            weight.copy_(weight.flip(0))
    wide = loaded(tiny_llm)
    wide.dim = 48
    for impostor in (llm, wide, loaded(save_family("llama3", tmp_path / "llama"))):
        with vllm(impostor) as served, refused("mismatch", "url", ConfigError):
            load(tiny_run, engine="vllm", url=served.url, **HERE)


def test_a_tuned_llm_must_be_served_as_it_was_exported(tiny_llm: str, served: Served) -> None:
    def tuned() -> CausalLLM:
        llm = loaded(tiny_llm)
        llm.trainable_names = ["model.layers.0.mlp.down_proj.weight"]
        return llm

    same = tuned()
    notices = hand_over(same, VLLMServer(served.url, same.chat.stop_ids))
    assert len(notices) == 1 and "export" in notices[0]
    other = tuned()
    with torch.no_grad():
        other.layers[0].mlp.down_proj.weight.mul_(-3)  # type: ignore[union-attr, operator]
    with refused("mismatch", "url", ConfigError):
        hand_over(other, VLLMServer(served.url, other.chat.stop_ids))


def test_a_server_that_cannot_do_it_is_told(served: Served, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stops = frozenset({1})
    monkeypatch.setattr(served, "tells_ids", False)
    with refused("mismatch", "url"):
        load(tiny_run, engine="vllm", url=served.url, **HERE)
    with refused("unknown-name", "served_model", ConfigError):
        VLLMServer(served.url, stops, model="other")
    monkeypatch.setattr(served, "models", ["one", "two"])
    with refused("unknown-name", "served_model", ConfigError):
        VLLMServer(served.url, stops)
    assert VLLMServer(served.url, stops, model="two").context == 400
    with refused("unavailable", "url"):
        VLLMServer("http://127.0.0.1:9/v1", stops, timeout=1)
    with refused("bad-value", "base_url", ConfigError):
        VLLMServer("localhost:8000", stops)
    for wrong in ({"engine": "vllm"}, {"url": served.url}, {"engine": "sglang", "url": served.url}):
        arguments: dict[str, Any] = wrong
        with refused("conflict", "url", ConfigError):
            load(tiny_run, **arguments)


def test_other_rounding_is_told_and_taken(tiny_llm: str, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = loaded(tiny_llm)
    real = llm.generated_ids

    def rounded(*given: Any, **more: Any) -> torch.Tensor:
        ids = real(*given, **more)
        ids[0, 1:] = 5
        return ids

    monkeypatch.setattr(llm, "generated_ids", rounded)
    [notice] = hand_over(llm, VLLMServer(served.url, llm.chat.stop_ids))
    assert "token 2" in notice and PROBED > 1
