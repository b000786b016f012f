"""Targets of a run's own LLM: made once, and those that are nothing to learn from are named."""

from pathlib import Path

import pytest
from rich.console import Console
from tests.helpers.errors import refused

from sottovoce.data.examples import Example
from sottovoce.data.utterance import Utterance
from sottovoce.llms.answer_text import CUT, REFUSED, SILENT, Cut
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.progress import Progress
from sottovoce.training.llm_targets import Made, Targets


def example(name: str) -> Example:
    utterance = Utterance(name, Path("a.wav"), f"word {name}", None, 1.0, {})
    return Example(utterance, "response", "", (), {"linguistic": "speech"}, frozenset(), None)


@pytest.fixture
def llm(tiny_llm: str) -> CausalLLM:
    llm = CausalLLM(tiny_llm, "float32")
    llm.load()
    return llm


def make(folder: Path, llm: CausalLLM, names: str, max_new_tokens: int = 12) -> tuple[Targets, Made]:
    targets = Targets(folder, llm.fingerprint(), {"linguistic": "transcript"}, max_new_tokens)
    return targets, targets.make(llm, map(example, names), Progress(Console(quiet=True)))


def test_a_prompt_is_answered_once_and_a_killed_run_goes_on(llm: CausalLLM, tmp_path: Path) -> None:
    whole, made = make(tmp_path / "whole", llm, "abcab")
    assert made.new == 3 and made.wanted == {("response", name) for name in "abc"}
    killed, _ = make(tmp_path / "killed", llm, "ab")
    killed.cache.file.write_bytes(killed.cache.file.read_bytes() + b'{"key": "torn')
    rest, made = make(tmp_path / "killed", llm, "abc")
    assert made.new == 1 and rest.cache.answers == whole.cache.answers
    assert rest.complete(example("a")).target == whole.complete(example("a")).target
    with refused("missing-key", "d"):
        rest.complete(example("d"))


def test_answers_that_are_nothing_to_learn_from_are_counted_and_named(
    llm: CausalLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"a": "I see.", "b": Cut("I see. What will"), "c": "As an AI, I cannot hear.", "d": "", "e": Cut("And")}
    monkeypatch.setattr(llm, "generate", lambda prompts, _: [said[name] for name in "abcde"][: len(prompts)])
    for new in (5, 0):  # the second time by the cache
        targets, made = make(tmp_path, llm, "abcde")
        assert made.new == new and made.rejected == {
            ("response", "b"): CUT, ("response", "c"): REFUSED, ("response", "d"): SILENT, ("response", "e"): CUT,
        }  # fmt: skip
        assert targets.complete(example("a")).target == "I see."
    told = made.told(12).splitlines()
    assert told[0].startswith("4 of 5") and "data.target_max_new_tokens" in told[0]
    assert f"  2 {CUT}: b, e" in told and f"  1 {REFUSED}: c" in told


def test_thoughts_that_an_older_version_kept_are_not_learned(llm: CausalLLM, tmp_path: Path) -> None:
    targets, _ = make(tmp_path, llm, "a")
    targets.cache.add(dict.fromkeys(targets.cache.answers, "<think>It says a.</think> I see."))
    targets, made = make(tmp_path, llm, "a")
    assert not made.rejected and targets.complete(example("a")).target == "I see."
