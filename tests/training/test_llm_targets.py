"""Targets of a run's own LLM: made once, and those that are nothing to learn from are named."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.helpers.errors import refused

from sottovoce.data.examples import Example
from sottovoce.data.utterance import Utterance
from sottovoce.llms import answer_cache
from sottovoce.llms.answer_text import CUT, REFUSED, SILENT, Cut
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.progress import Progress
from sottovoce.training import llm_targets
from sottovoce.training.llm_targets import Made, Targets

fork = multiprocessing.get_context("fork")
NAMES = [f"{'word ' * (number % 7)}{number}" for number in range(64)]


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
    monkeypatch.setattr(llm, "generate", lambda prompts, *_: [said[name] for name in "abcde"][: len(prompts)])
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


class Slow(torch.nn.Module):
    """Takes its time, and tells in every answer which prompts were answered together; it may be killed on its way."""

    def __init__(self, seconds: float = 0.0, dies_at: int = 0) -> None:
        super().__init__()
        self.seconds, self.left, self.told = seconds, dies_at, list[str]()
        self.chat = SimpleNamespace(prompt=lambda turns: [[ord(c) for turn in turns for c in str(turn.pieces[0])]])

    @contextmanager
    def untuned(self) -> Iterator[None]:
        yield

    def embed_all(self, chats: Sequence[Any], _: Any) -> list[str]:
        return ["".join(map(chr, tokens)) for (tokens,) in chats]

    def generate(self, prompts: list[str], *_: Any) -> list[str]:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        self.told += prompts
        return [f"{prompt}, with {'/'.join(prompts)}" for prompt in prompts]


def share(folder: Path, llm: Slow, names: Sequence[str] = NAMES) -> tuple[Targets, Made]:
    targets = Targets(folder, "ab" * 32, {"linguistic": "transcript"}, 12)
    return targets, targets.make(llm, map(example, names), Progress(Console(quiet=True)))  # type: ignore[arg-type]


def _member(folder: Path, dies_at: int, start: Any, told: Any) -> None:
    start.wait()
    llm = Slow(0.05, dies_at)
    targets, made = share(folder, llm)
    told.put((len(llm.told), made.new, targets.cache.answers))


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What one process makes that nobody disturbs, in batches of 4."""
    monkeypatch.setattr(llm_targets, "BATCH", 4)
    return share(tmp_path / "whole", Slow())[0].cache.answers


@pytest.mark.parametrize("killed", [False, True])
def test_four_processes_make_a_quarter_each_and_none_twice(killed: bool, whole: dict[str, str], tmp_path: Path) -> None:
    start, told = fork.Barrier(4), fork.Queue()
    deaths = [2 if killed else 0, 0, 0, 0]
    members = [fork.Process(target=_member, args=(tmp_path, dies_at, start, told)) for dies_at in deaths]
    for member in members:
        member.start()
    counts, new, answers = zip(*[told.get(timeout=60) for _ in members[killed:]], strict=True)
    for member in members:
        member.join()
    assert [member.exitcode for member in members] == [-signal.SIGKILL if killed else 0, 0, 0, 0]
    assert counts == new and sum(new) == 64 - 4 * killed  # it had written a part before
    assert killed or all(8 <= count <= 24 for count in counts), counts
    assert all(found == whole for found in answers)
    lines = (tmp_path / "targets" / f"{'ab' * 8}.answers").read_text().splitlines()
    assert len(lines) == len(whole) == 64
    assert not list((tmp_path / "targets").glob(".*.parts"))


def _torn(folder: Path) -> None:
    def half(stream: FileIO, content: bytes) -> None:
        stream.write(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    answer_cache.write_all = half  # type: ignore[attr-defined]
    share(folder, Slow())


def test_killed_while_it_writes_it_ends_in_the_same_answers(whole: dict[str, str], tmp_path: Path) -> None:
    torn = fork.Process(target=_torn, args=(tmp_path,))
    torn.start()
    torn.join()
    assert torn.exitcode == -signal.SIGKILL
    file = tmp_path / "targets" / f"{'ab' * 8}.answers"
    assert b"\n" in file.read_bytes() and not file.read_bytes().endswith(b"\n")
    targets, made = share(tmp_path, Slow())
    assert targets.cache.answers == whole and 60 < made.new < 64  # two of the four were there
    assert len(file.read_text().splitlines()) == 64


def test_who_wants_more_makes_what_is_missing_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, str]
) -> None:
    share(tmp_path, Slow(), NAMES[::2])
    llm = Slow()
    targets, made = share(tmp_path, llm)
    assert made.new == 32 and len(llm.told) == 32 and targets.cache.answers.keys() == whole.keys()
    monkeypatch.setattr("sottovoce.byte_claims.fcntl", None)  # one at a time, where there are no locks on bytes
    assert share(tmp_path / "other", Slow())[0].cache.answers == whole
