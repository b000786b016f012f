"""Stages whose batches have a budget of seconds or tokens: what they train on, restarts, weights of unequal batches."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import write_lines
from tests.helpers.errors import refused
from tests.helpers.runs import Fit, Write, quiet_run, run_killed

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.config.sections import StageConfig
from sottovoce.data.batch_sampler import Rows
from sottovoce.data.examples import Batch, Examples
from sottovoce.estimation.estimate import estimate
from sottovoce.estimation.hardware import GPUS
from sottovoce.lightning_modules.checkpointing import read_checkpoint
from sottovoce.lightning_modules.curriculum import read_trained, train_stages
from sottovoce.lightning_modules.run import Run
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.training.batch_plan import SHORTEST, stage_batches
from sottovoce.training.readings import stage_readings
from sottovoce.training.splits import read_splits
from sottovoce.training.spoken_prompt import dialogue_of, response_tokens
from sottovoce.training.stage_rows import StageRows, stage_rows

BUDGETS = {"batch_seconds": 4.5, "batch_tokens": 420}
TRAINED = "stages/1-joint/best.ckpt"


def with_budget(tree: dict[str, Any], key: str, **more: Any) -> dict[str, Any]:
    """The stage `joint` alone, its batches by a budget."""
    return {"joint": {**tree["stages"]["joint"], "batch_size": None, key: BUDGETS[key], **more}}


def size_of(run: Run, batch: Batch, key: str) -> float:
    """Rows times the longest, in seconds, or in embeddings and tokens as the LLM reads them."""
    if key == "batch_seconds":
        return len(batch.examples) * max(SHORTEST, *(e.utterance.seconds for e in batch.examples), 0.0)
    chat, dialogues = run.module.llm.chat, [dialogue_of(e, run.slots) for e in batch.examples]
    prompts = run.module.embed(batch, dialogues)
    answers = [chat.response(d, e.target or "") for d, e in zip(dialogues, batch.examples, strict=True)]
    return len(prompts) * max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))


@pytest.mark.parametrize("key", BUDGETS)
def test_batches_of_training_and_validation_keep_to_it(
    key: str, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As collated; each row comes once an epoch, in as many steps as are told."""
    run = quiet_run({**tree, "stages": with_budget(tree, key)})
    seen: dict[bool, list[Batch]] = {True: [], False: []}
    loss = SpeechLLM.loss
    monkeypatch.setattr(SpeechLLM, "loss", lambda self, batch: seen[self.training].append(batch) or loss(self, batch))
    best = train_stages(run)
    assert best is not None
    for training, count in ((True, 12), (False, 5)):
        batches, side = seen[training], run.data.splits["train" if training else "validation"]
        ids = Counter(name for batch in batches for name in batch.ids)
        assert ids == Counter({u.id: 2 for u in side.utterances})  # in two epochs, and two validations
        assert 2 < len(batches) < 2 * count
    for batch in (*seen[True], *seen[False]):
        assert len(batch.examples) == 1 or size_of(run, batch, key) <= BUDGETS[key]
    done = json.loads((best.parent / "done.json").read_text())
    assert done["steps"] == len(seen[True]) and done[key] == BUDGETS[key]


@pytest.mark.parametrize("key", BUDGETS)
def test_a_killed_run_ends_in_the_same_weights(
    key: str, tree: dict[str, Any], write_recipe: Write, fit: Fit, tmp_path: Path
) -> None:
    evaluation = {**tree["evaluation"], "tasks": ["asr"], "slots": ["both"], "limit": 1}
    parts: dict[str, Any] = {"stages": with_budget(tree, key), "evaluation": evaluation, "checkpoint_every": 1}
    whole = fit(output_dir=str(tmp_path / "whole"), **parts)
    parts["output_dir"] = str(tmp_path / "killed")
    run_killed(4, "fit", "--config", write_recipe(**parts))
    killed = fit(**parts)
    ours, theirs = (read_trained(run / TRAINED) for run in (whole, killed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    steps = [read_checkpoint(run / "stages/1-joint/last.ckpt")["global_step"] for run in (whole, killed)]
    assert steps[0] == steps[1] > 4


@pytest.fixture
def begun(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The tree of a run that is killed in a stage of two batches a step."""
    tree["stages"] = with_budget(tree, "batch_seconds", accumulate_grad_batches=2, batch_seconds=3.0)
    run = quiet_run(tree)
    train_stages(run)
    (run.recipe.folder / "stages/1-joint/done.json").unlink()
    yield tree


def test_what_a_step_is_may_not_change(begun: dict[str, Any]) -> None:
    """The budget, what it is of, or the number of batches in a step: rows would come twice, or not at all."""
    joint = begun["stages"]["joint"]
    for change in ({"batch_seconds": 6.0}, {"batch_seconds": None, "batch_tokens": 500}):
        with refused("mismatch", "stages.joint.batch_seconds"):
            quiet_run({**begun, "stages": {"joint": {**joint, **change}}})
    run = quiet_run({**begun, "stages": {"joint": {**joint, "accumulate_grad_batches": 1}}})
    with refused("mismatch", "batch_seconds"):
        train_stages(run)


def test_steps_may_be_taken_by_other_processes(begun: dict[str, Any], tmp_path: Path) -> None:
    """Two that take one batch each have the steps of one that takes two."""
    run = quiet_run({**begun, "name": "same"})
    node, split = run.recipe.stages["joint"], run.data.splits["train"]
    rows = stage_rows(split, node, run.example_sampler("joint", cut=True), training=True)
    two = replace(node, accumulate_grad_batches=1)
    alone, shared = (stage_batches(n, rows, never, 3, r, training=True) for n, r in ((node, 1), (two, 2)))
    assert [sorted(s.numbers) for s in alone.global_steps()] == [sorted(s.numbers) for s in shared.global_steps()]


def never(*_: object) -> list[int]:
    raise AssertionError("tokens are not counted where seconds are asked for")


@pytest.mark.parametrize("handles", [False, True])
def test_unequal_batches_of_a_step_weigh_by_their_tokens(
    handles: bool, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of a step in three unequal batches is that of all its rows together."""
    tree["slots"]["paralinguistic"]["adapter"]["dropout"] = 0.0
    run = quiet_run(tree)
    module = run.module
    module.start_stage("joint", 3)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    data = Examples(
        run.data.splits["train"].utterances, run.example_sampler("joint", cut=True), 1, None, run.audio_reader.read,
        lambda example: response_tokens(module.llm.chat, module.slots, example),
    )  # fmt: skip

    def gradient(shares: list[list[int]]) -> list[torch.Tensor]:
        alone = SimpleNamespace(reduce=lambda x, reduce_op: x, handles_gradient_accumulation=handles)
        count = len(shares)
        trainer = SimpleNamespace(strategy=alone, world_size=1, global_rank=0, accumulate_grad_batches=count)
        monkeypatch.setattr(SpeechLLM, "trainer", trainer)
        module.zero_grad()
        step = [row for share in shares for row in share] if count > 1 else None
        for number, share in enumerate(shares):
            loss = module.training_step(data[Rows(0, share, True, step)], number)
            (loss / count ** (1 + handles)).backward()  # type: ignore[no-untyped-call]
        return [weight.grad.clone() for weight in module.trainable_parameters() if weight.grad is not None]

    whole, parts = gradient([list(range(7))]), gradient([[0], [1, 2, 3, 4], [5, 6]])
    apart = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(whole, parts, strict=True)]
    assert apart and max(apart) < 1e-4


@pytest.mark.parametrize("key", BUDGETS)
def test_an_estimate_has_the_steps_and_the_memory_of_the_largest_batch(key: str, tree: dict[str, Any]) -> None:
    tree = {**tree, "stages": with_budget(tree, key)}
    recipe = recipes.parse(tree)
    (stage,) = estimate(recipe, GPUS["h100"], read_splits(recipe)).stages
    best = train_stages(quiet_run(tree))
    assert best is not None and json.loads((best.parent / "done.json").read_text())["steps"] == pytest.approx(
        stage.steps * stage.epochs
    )
    tree["stages"]["joint"][key] *= 3
    recipe = recipes.parse(tree)
    (larger,) = estimate(recipe, GPUS["h100"], read_splits(recipe)).stages
    assert larger.steps < stage.steps and larger.memory["ddp"] > stage.memory["ddp"]


def test_rows_without_a_sound_and_short_ones_count_a_second(tree: dict[str, Any]) -> None:
    """So their number has a bound; an utterance from which two tasks are drawn counts twice, in training."""
    node = StageConfig(tasks={"asr": 1}, lr=1, epochs=1, batch_seconds=5, tasks_per_utterance=2)
    utterances = read_splits(recipes.parse(tree)).splits["train"].utterances
    rows = StageRows(utterances, np.zeros(12, np.float32), np.ones(12), np.zeros(12, np.int64))
    for training, most in ((True, {2}), (False, {4})):  # 12 rows are three batches of no more than 5
        steps = list(stage_batches(node, rows, never, 0, 1, training=training))
        assert {len(step.numbers) for step in steps} == most


def test_tokens_are_those_of_the_longest_reading(tree: dict[str, Any]) -> None:
    """Of those that a stage may draw; a row that it does not draw has none."""
    run = quiet_run(tree)
    readings = stage_readings(run.recipe, run.tasks, "joint")
    utterances = run.data.splits["train"].utterances
    counted = run.row_lengths.most_tokens(utterances, readings)
    each = [run.row_lengths.most_tokens(utterances, [reading]) for reading in readings]
    assert len(each) == 3 and counted == [max(one) for one in zip(*each, strict=True)]
    assert run.row_lengths.most_tokens([replace(utterances[0], only=("caption",))], readings) == [0]
    longer = replace(utterances[0], text="and then some more of it was said, " * 9)
    assert run.row_lengths.most_tokens([longer], readings)[0] > counted[0]


def test_of_lines_that_are_not_read_only_seconds_are_known(
    tree: dict[str, Any], manifests: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(manifests["train"].parent, tmp_path / "lazy")
    lines = [json.loads(line) for line in manifests["train"].read_text().splitlines()]
    seconds = [0.4 + 0.13 * (i % 7) for i in range(len(lines))]
    file = write_lines(folder / "lazy.jsonl", [{**r, "seconds": s} for r, s in zip(lines, seconds, strict=True)])
    data = {**tree["data"], "train": [{"manifest": str(file)}], "validate": "lazy"}
    with refused("conflict", "stages.joint.batch_tokens"):
        recipes.parse({**tree, "data": data, "stages": with_budget(tree, "batch_tokens")})
    assert train_stages(quiet_run({**tree, "data": data, "stages": with_budget(tree, "batch_seconds")}))


@pytest.mark.parametrize(
    ("changes", "code", "key"),
    [
        ({"batch_size": 4, "batch_seconds": 60}, "conflict", "batch_seconds"),
        ({"batch_seconds": 60, "batch_tokens": 4000}, "conflict", "batch_tokens"),
        ({"batch_seconds": 0}, "bad-value", "batch_seconds"),
        ({"batch_seconds": "two minutes"}, "bad-value", "batch_seconds"),
        ({"batch_tokens": 1.5}, "bad-value", "batch_tokens"),
        ({"batch_tokens": -1}, "bad-value", "batch_tokens"),
        ({"batch_size": 0}, "bad-value", "batch_size"),
    ],
)
def test_a_measure_is_one_and_positive(changes: dict[str, Any], code: Any, key: str, tree: dict[str, Any]) -> None:
    tree["stages"]["joint"] = {**tree["stages"]["joint"], "batch_size": None, **changes}
    with refused(code, f"stages.joint.{key}"):
        recipes.parse(tree)


def test_without_a_measure_a_batch_has_as_many_rows_as_ever(tree: dict[str, Any], write_recipe: Write) -> None:
    for stage in tree["stages"].values():
        del stage["batch_size"]
    assert {node.batch_size for node in recipes.parse(tree).stages.values()} == {48}
    config = write_recipe(stages={"joint": {**tree["stages"]["joint"], "batch_size": 4}})
    assert main(["fit", "--config", config, "--dry-run", "stages.joint.batch_seconds=60"]) == 2
    swap = ["stages.joint.batch_seconds=60", "stages.joint.batch_size=null"]
    assert recipes.load(config, swap).stages["joint"].budget == 60
