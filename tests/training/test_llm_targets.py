"""Targets of a run's own LLM: made once, and those that did not end are counted and named."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress
from tests.helpers.errors import refused

from sottovoce.data.examples import Example
from sottovoce.data.utterance import Utterance
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.training.llm_targets import Targets


def example(name: str) -> Example:
    utterance = Utterance(name, Path("a.wav"), f"word {name}", None, 1.0, {})
    return Example(utterance, "response", "", (), {"linguistic": "speech"}, frozenset(), None)


@pytest.fixture
def llm(tiny_llm: str) -> CausalLLM:
    llm = CausalLLM(tiny_llm, "float32")
    llm.load()
    return llm


def make(folder: Path, llm: CausalLLM, names: str) -> tuple[Targets, int, str]:
    """The targets, how many were made now, and what was printed."""
    targets = Targets(folder, llm.fingerprint(), {"linguistic": "transcript"}, 4)
    console = Console(file=StringIO(), width=200)
    made = targets.make(llm, map(example, names), Progress(console=console, disable=True))
    return targets, made, console.file.getvalue()  # type: ignore[attr-defined]


def test_a_prompt_is_answered_once_and_a_killed_run_goes_on(llm: CausalLLM, tmp_path: Path) -> None:
    whole, made, _ = make(tmp_path / "whole", llm, "abcab")
    assert made == 3
    killed, _, _ = make(tmp_path / "killed", llm, "ab")
    killed.cache.file.write_bytes(killed.cache.file.read_bytes() + b'{"key": "torn')
    rest, made, _ = make(tmp_path / "killed", llm, "abc")
    assert made == 1 and rest.cache.answers == whole.cache.answers
    assert rest.complete(example("a")).target == whole.complete(example("a")).target
    with refused("missing-key", "d"):
        rest.complete(example("d"))


def test_targets_that_did_not_end_are_counted_and_named(
    llm: CausalLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, printed = make(tmp_path, llm, "ab")  # a random LLM never comes to an end
    assert "2 of 2 targets were cut at 4 tokens" in printed and "a, b" in printed
    monkeypatch.setattr(llm, "generate", lambda prompts, _: ["done"] * len(prompts))
    targets, _, printed = make(tmp_path, llm, "abc")
    assert printed == "" and targets.complete(example("c")).target == "done"
