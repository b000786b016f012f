"""Rows that are to be scored are answered by all processes of a run, once each, whoever is killed."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from tests.helpers.processes import launch
from tests.helpers.runs import quiet_run

from sottovoce import byte_claims
from sottovoce.cli.main import main
from sottovoce.data.examples import Example
from sottovoce.data.utterance import Utterance
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.progress import Progress
from sottovoce.scoring import evaluate
from sottovoce.scoring.shared_answers import Row, SharedAnswers, forget_answers

fork = multiprocessing.get_context("fork")
SLOTS = {"linguistic": "transcript"}


def row(number: int) -> Row:
    utterance = Utterance(f"u{number}", Path(f"{number}.wav"), f"word {number}", None, 1.0, {})
    return "both", Example(utterance, "asr", "Say it.", (), {"linguistic": "speech"}, frozenset(), "")


ROWS = [row(number) for number in range(64)]


def a_run(weight: float = 1.0, tokens: int = 8, **keys: str) -> Any:
    """As much of a run as answers depend on; `keys` are digests of clips."""
    return SimpleNamespace(
        module=SimpleNamespace(
            trained=lambda: {"adapters.w": torch.tensor([weight])}, encoder=SimpleNamespace(fingerprint=lambda: "e")
        ),
        targets=SimpleNamespace(fingerprint="l"),
        recipe=SimpleNamespace(
            data=SimpleNamespace(cache="c", cache_dtype="float16"), evaluation=SimpleNamespace(max_new_tokens=tokens)
        ),
        audio_reader=SimpleNamespace(keys={Path(f"{name[1:]}.wav"): key for name, key in keys.items()}),
        slots=SLOTS,
    )


def answers_of(seconds: float = 0.0, dies_at: int = 0) -> Callable[[Sequence[Row]], list[str]]:
    """Takes its time, and tells in every answer which rows were answered together; it may be killed on its way."""
    left = [dies_at]

    def answer(part: Sequence[Row]) -> list[str]:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(seconds)
        names = [example.utterance.id for _, example in part]
        return [f"{name} of {'/'.join(names)}" for name in names]

    return answer


def give(shared: SharedAnswers, answer: Any = None, size: int = 4) -> list[str]:
    return shared.give(ROWS, size, answer or answers_of(), Progress(Console(quiet=True)))


def _member(folder: Path, number: int, dies_at: int, start: Any, told: Any) -> None:
    shared = SharedAnswers(a_run(), folder, (lambda: False) if number else None)
    start.wait()
    said = give(shared, answers_of(0.05, dies_at))
    told.put((number, shared.given, said))


def together(folder: Path, *deaths: int) -> dict[int, tuple[int, list[str]]]:
    """Answers of one that scores and of those that help, by number; some are killed at a part of theirs."""
    start, told = fork.Barrier(len(deaths)), fork.Queue()
    members = [fork.Process(target=_member, args=(folder, *pair, start, told)) for pair in enumerate(deaths)]
    for member in members:
        member.start()
    found = [told.get(timeout=60) for _ in range(deaths.count(0))]
    for member in members:
        member.join()
    assert [member.exitcode for member in members] == [-signal.SIGKILL if death else 0 for death in deaths]
    return {number: (given, said) for number, given, said in found}


@pytest.fixture
def whole(tmp_path: Path) -> list[str]:
    """What one process answers that nobody disturbs."""
    return give(SharedAnswers(a_run(), tmp_path / "whole"))


def test_each_of_four_processes_answers_a_quarter(whole: list[str], tmp_path: Path) -> None:
    found = together(tmp_path, 0, 0, 0, 0)
    assert found[0][1] == whole
    counts = [given for given, _ in found.values()]
    assert sum(counts) == 64 and all(8 <= count <= 24 for count in counts), counts
    assert len(next(tmp_path.glob(".answers-*")).read_text().splitlines()) == 16  # parts


def test_a_part_of_one_that_was_killed_is_answered_by_another(whole: list[str], tmp_path: Path) -> None:
    found = together(tmp_path, 0, 2, 1, 0)
    assert found[0][1] == whole
    assert sum(given for given, _ in found.values()) == 60  # a part of the first was kept


def test_scoring_that_was_killed_goes_on_where_it_was(whole: list[str], tmp_path: Path) -> None:
    together(tmp_path, 7)
    (journal,) = tmp_path.glob(".answers-*")
    kept = journal.read_text().splitlines(keepends=True)
    assert len(kept) == 6
    changed = kept[0].replace("u0 of", "u1 of", 1)
    assert changed != kept[0]
    journal.write_text("".join([changed, '["strange"]\n', *kept[1:], kept[0][:50]]))  # changed, foreign and torn lines
    again = SharedAnswers(a_run(), tmp_path)
    assert give(again) == whole and again.given == 64 - 20


def test_other_weights_or_rows_are_answered_anew_and_what_is_stale_goes(whole: list[str], tmp_path: Path) -> None:
    assert give(SharedAnswers(a_run(), tmp_path)) == whole
    for run, count in ((a_run(), 0), (a_run(weight=2.0), 64), (a_run(tokens=9), 64), (a_run(u3="other sound"), 1)):
        shared = SharedAnswers(run, tmp_path)
        give(shared)
        assert shared.given == count
    assert len(list(tmp_path.glob(".answers-*"))) == 3
    forget_answers(tmp_path)
    assert not list(tmp_path.glob(".answers-*"))


def test_who_helps_neither_waits_nor_works_once_the_scores_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = SharedAnswers(a_run(), tmp_path, lambda: True)
    assert give(over) == [""] * 64 and over.given == 0
    monkeypatch.setattr(byte_claims, "fcntl", None)  # without locks on bytes one works alone
    helping = SharedAnswers(a_run(), tmp_path, lambda: False)
    assert give(helping) == [""] * 64 and helping.given == 0
    assert give(SharedAnswers(a_run(), tmp_path))[0] == "u0 of u0/u1/u2/u3"


def test_scores_of_a_killed_scoring_are_those_of_one_that_was_not(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree["evaluation"] = {"batch_size": 2, "max_new_tokens": 3, "tasks": ["asr", "emotion"], "slots": ["both", "text"]}
    run, generate, asked = quiet_run(tree), SpeechLLM.generate, list[int]()
    run.module.start_stage("joint", 1)
    evaluate.score(run, "tiny", tmp_path / "whole")

    def counted(self: SpeechLLM, batch: Any, dialogues: Any, most: int) -> list[str]:
        asked.append(len(dialogues))
        if sum(asked) > 10 and not again:
            raise KeyboardInterrupt
        return generate(self, batch, dialogues, most)

    again = False
    monkeypatch.setattr(SpeechLLM, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate.score(run, "tiny", tmp_path / "killed")
    again, before = True, sum(asked) - asked[-1]
    asked.clear()
    evaluate.score(run, "tiny", tmp_path / "killed")
    files = [(tmp_path / name / "results.json").read_text() for name in ("whole", "killed")]
    rows = (tmp_path / "killed" / "predictions.jsonl").read_text().splitlines()
    assert files[0] == files[1] and before + sum(asked) == len(rows) and before > 0
    assert not list((tmp_path / "killed").glob(".answers-*"))


def test_two_processes_score_what_one_scores(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["stages"] = {"joint": {**tree["stages"]["joint"], "epochs": 1, "batch_size": 2}}
    tasks = ["asr", "emotion", "dialogue"]
    tree["evaluation"] = {"batch_size": 2, "max_new_tokens": 3, "limit": 4, "tasks": tasks}
    file = tmp_path / "recipe.yaml"
    file.write_text(OmegaConf.to_yaml(tree))
    two = ["trainer.strategy=ddp", "trainer.devices=2"]
    done = launch(str(file), [{"overrides": two, "meet": str(tmp_path / "met")}], torchrun=True)
    assert done.returncode == 0, done.stderr[-4000:]
    scores = tmp_path / "runs" / "tiny" / "evaluation"
    shared = {name: (scores / name).read_text() for name in ("results.json", "predictions.jsonl")}
    given = [(tmp_path / "met" / rank).stat().st_size for rank in "01"]
    assert min(given) > 0 and sum(given) == len(shared["predictions.jsonl"].splitlines()), given
    scores.rename(tmp_path / "shared")
    assert main(["fit", "--config", str(file)]) == 0  # the weights are there, the scores are not
    assert {name: (scores / name).read_text() for name in shared} == shared
