"""The curriculum: the order of examples, ERR's draws, resume to the bit, and a run from recipe to bundle."""

import gc
import json
import shutil
import tracemalloc
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from tests.conftest import write_lines
from tests.helpers.errors import refused
from tests.helpers.runs import Fit, Write, quiet_run, run_killed

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.data.batch_sampler import BatchSampler
from sottovoce.data.examples import Example, Examples, ExampleSampler, collate
from sottovoce.data.utterance import Utterance
from sottovoce.errors import MissingError
from sottovoce.lightning_modules.bundle import read_bundle, write_bundle
from sottovoce.lightning_modules.checkpointing import read_checkpoint
from sottovoce.lightning_modules.curriculum import read_trained, train_stages
from sottovoce.lightning_modules.run import prepare_run
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.answer_text import Cut
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.training.stage_rows import stage_rows


@pytest.mark.parametrize(("shape", "end"), [("linear", 0), ("cosine", 0), ("constant", 1)])
def test_learning_rates_rise_then_fall_to_nothing(shape: str, end: float, recipe: recipes.Recipe) -> None:
    stage = recipe.stages["joint"]
    stage.lr, stage.warmup_steps, stage.lr_schedule = 1.0, 10, shape  # type: ignore[assignment]
    module = SpeechLLM(recipe)
    module.start_stage("joint", 100)
    optimization: Any = module.configure_optimizers()
    scheduler = optimization["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(101):
        rates += scheduler.get_last_lr()
        optimization["optimizer"].step()
        scheduler.step()
    assert all(a < b for a, b in pairwise(rates[:11])) and rates[10] == 1
    assert all(rate > 0 for rate in rates[1:100]) and rates[100] == end


def test_err_replaces_the_slot_that_does_not_carry_the_task(recipe: recipes.Recipe) -> None:
    run = quiet_run(recipe)
    drawing, utterance = run.example_sampler("disentangle", cut=True), run.data.splits["train"].utterances[0]
    seen: Counter[tuple[str, str]] = Counter()
    for epoch in range(600):
        example = drawing(utterance, epoch, 0)
        assert example is not None
        carrier, other = ("linguistic", "paralinguistic") if example.task == "asr" else ("paralinguistic", "linguistic")
        assert example.sources[carrier] == "speech" and example.trains == {carrier}
        seen[example.task, example.sources[other]] += 1
    assert set(seen) == {(task, source) for task in ("asr", "emotion") for source in ("speech", "text", "none")}
    assert all(70 < count < 130 for count in seen.values())  # 100 expected of each


def test_examples_are_a_function_of_seed_epoch_and_id(recipe: recipes.Recipe) -> None:
    run = quiet_run(recipe)
    utterances = run.data.splits["train"].utterances
    first, again = ([run.example_sampler("holistic", cut=True)(u, 1, 0) for u in utterances] for _ in range(2))
    assert first == again
    other = replace(run.example_sampler("holistic", cut=True), seed=4)
    assert [other(u, 1, 0) for u in utterances] != first


def long_dialogue(recipe: recipes.Recipe) -> tuple[Utterance, ExampleSampler]:
    """An utterance after four turns, and what draws a dialogue of it."""
    run = quiet_run(recipe)
    utterance = next(u for u in run.data.splits["train"].utterances if len(u.context) == 4)
    return utterance, replace(run.example_sampler("holistic", cut=True), weights={"dialogue": 1.0})


def test_dialogues_are_cut_at_varying_points(recipe: recipes.Recipe) -> None:
    utterance, drawing = long_dialogue(recipe)
    cuts = {(e.utterance.audio.name, len(e.context)) for e in (drawing(utterance, i, 0) for i in range(60)) if e}
    assert cuts == {(utterance.audio.name, n) for n in (0, 2, 4)} | {("train-0.wav", n) for n in (0, 2)}
    whole = replace(drawing, cut=False)(utterance, 0, 0)
    assert whole is not None and whole.context == utterance.context


def test_a_dialogue_that_is_cut_earlier_has_the_answer_of_that_turn(recipe: recipes.Recipe) -> None:
    utterance, drawing = long_dialogue(recipe)
    for ready in ({"responses": {"dialogue": "the end"}}, {"response": "the end", "category": "gender"}):
        drawn = [e for e in (drawing(replace(utterance, **ready), i, 0) for i in range(60)) if e]
        earlier = [e for e in drawn if "@" in e.utterance.id]
        assert {e.target for e in earlier} == {"it does"} and not any(e.utterance.category for e in earlier)
        assert {e.target for e in drawn if e not in earlier} == {"the end"}


def test_a_stage_draws_what_its_tasks_can_use_and_as_often_as_it_says(tree: dict[str, Any]) -> None:
    """An utterance of no use is in no batch, which would be smaller for it, or empty."""
    (node,) = tree["data"]["train"]
    lines = [json.loads(line) for line in Path(node["manifest"]).read_text().splitlines()]
    nodes = []
    for name, part, tasks in (("a", lines[:8], ["asr"]), ("b", lines[8:], None)):
        file = write_lines(Path(node["manifest"]).with_name(f"part-{name}.jsonl"), part)
        nodes.append({"manifest": str(file), "name": name, "tasks": tasks, "weight": 2.0})
    tree["data"]["train"] = nodes
    tree["stages"] = {
        "joint": {**tree["stages"]["joint"], "tasks": {"gender": 1}},
        "disentangle": {**tree["stages"]["disentangle"], "parts": {"a": 0.5}},
    }
    run = quiet_run(tree)
    train = run.data.splits["train"]
    weights = {
        stage: train.stage_weights(node, run.example_sampler(stage, cut=True), training=True).tolist()
        for stage, node in run.recipe.stages.items()
    }
    assert weights == {"joint": [0.0] * 8 + [2.0] * 4, "disentangle": [0.5] * 8 + [2.0] * 4}
    side, node = run.data.splits["validation"], run.recipe.stages["disentangle"]
    assert side.stage_weights(node, run.example_sampler("disentangle", cut=False), training=False).tolist() == [1.0] * 5
    tree["stages"]["joint"]["tasks"] = {"caption": 1}
    tree["data"]["train"], tree["name"] = nodes[:1], "none"
    with refused("empty", "stages.joint.tasks"):
        quiet_run(tree)


def test_a_batch_that_counts_nowhere_moves_nothing(recipe: recipes.Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no token to take a mean over, and what would be 0 / 0 is 0."""
    run = quiet_run(recipe)
    run.module.start_stage("joint", 3)
    alone = SimpleNamespace(reduce=lambda x, reduce_op: x, handles_gradient_accumulation=False)
    trainer = SimpleNamespace(strategy=alone, world_size=1, global_rank=0, accumulate_grad_batches=1)
    monkeypatch.setattr(type(run.module), "trainer", trainer)
    monkeypatch.setattr(run.module, "log", lambda *_, **__: None)
    drawn = (run.example_sampler("joint", cut=True)(u, 0, 0) for u in run.data.splits["train"].utterances[:3])
    batch = collate([run.targets.complete(example) for example in drawn if example], run.audio_reader.read)
    for counts in (True, False):
        run.module.zero_grad()
        loss = run.module.training_step(replace(batch, counts=counts), 0)
        loss.backward()  # type: ignore[no-untyped-call]
        assert torch.isfinite(loss) and (loss > 0) == counts
        moved = [bool(w.grad.any()) for w in run.module.trainable_parameters() if w.grad is not None]
        assert all(torch.isfinite(w.grad).all() for w in run.module.trainable_parameters() if w.grad is not None)
        assert any(moved) == counts


def test_what_has_no_target_is_not_drawn_for_its_task(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A third of the replies did not end. The others train, as do other tasks of the same rows; a second try agrees."""
    tree["stages"] = {"holistic": {**tree["stages"]["holistic"], "epochs": 3, "tasks": {"dialogue": 2, "asr": 1}}}

    def generate(self: Any, prompts: list[torch.Tensor], *_: Any) -> list[str]:
        return [Cut("I") if int(1e4 * p.abs().sum()) % 3 == 0 else "I see." for p in prompts]

    seen: list[Example] = []
    loss = SpeechLLM.loss
    monkeypatch.setattr(CausalLLM, "generate", generate)
    monkeypatch.setattr(SpeechLLM, "loss", lambda self, batch: seen.extend(batch.examples) or loss(self, batch))
    runs = [prepare_run(recipes.parse({**tree, "name": name}), Console(width=500)) for name in "ab"]
    for run in runs:
        train_stages(run)
    assert runs[0].barred == runs[1].barred and runs[0].barred["holistic", "train"]["dialogue"]
    barred = frozenset[str]().union(*(ids["dialogue"] for ids in runs[0].barred.values()))
    replies = [e for e in seen if e.task == "dialogue"]
    assert replies and all(e.target == "I see." and e.utterance.id not in barred for e in replies)
    assert barred & {e.utterance.id for e in seen if e.task == "asr"}
    told = capsys.readouterr().err
    assert "stage holistic, train: " in told and f"cut at max_new_tokens: {sorted(barred)[0]}" in told


def test_a_stage_whose_replies_never_end_is_refused(tree: dict[str, Any]) -> None:
    tree["stages"] = {"holistic": tree["stages"]["holistic"]}
    tree["data"]["target_max_new_tokens"] = 1
    run = quiet_run(tree)
    with refused("empty", "data.target_max_new_tokens"):
        train_stages(run)
    assert not (run.recipe.folder / "stages" / "1-holistic" / "last.ckpt").exists()


def test_a_mended_recipe_begins_in_the_folder_of_one_that_could_not(tree: dict[str, Any], capsys: Any) -> None:
    good = tree["data"]["train"]
    tree["data"]["train"] = [{"manifest": "nowhere.jsonl"}]
    with refused("not-found", "nowhere.jsonl", MissingError):
        quiet_run(tree)
    tree["stages"] = {"joint": {**tree["stages"]["joint"], "tasks": {"gender": 1}}}
    lines = [json.loads(line) for line in Path(good[0]["manifest"]).read_text().splitlines()]
    some = [{**line, "labels": line["labels"] if i >= 5 else None} for i, line in enumerate(lines)]
    file = write_lines(Path(good[0]["manifest"]).with_name("some.jsonl"), some)
    tree["data"]["train"] = [{"manifest": str(file)}]
    prepare_run(recipes.parse(tree), Console(width=200))
    assert "stage joint: 7 of 12 utterances of train serve its tasks" in capsys.readouterr().err
    with refused("not-found", "init_from"):
        quiet_run({**tree, "init_from": "runs/none"})


def test_the_best_of_many_validations_is_kept_where_each_step_is_followed_by_one(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage of six steps gets worse and worse; its best checkpoint is the first."""
    losses = iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr(SpeechLLM, "on_validation_epoch_end", lambda self: self.log("val/loss", next(losses)))
    tree["stages"] = {"joint": {**tree["stages"]["joint"], "epochs": 3, "val_checks_per_epoch": 2, "batch_size": 12}}
    best = train_stages(quiet_run(tree))
    assert best and read_checkpoint(best)["global_step"] == 1


@pytest.fixture
def finished(fit: Fit) -> Path:
    return fit()


def test_a_run_leaves_scores_and_a_bundle_that_answers(finished: Path, manifests: dict[str, Path], capsys: Any) -> None:
    records = json.loads((finished / "evaluation" / "results.json").read_text())
    assert {(r["task"], r["slots"]) for r in records} >= {
        (task, slots) for task in ("asr", "gender", "emotion", "dialogue") for slots in ("both", "linguistic", "text")
    }
    assert all(r["n"] == 6 for r in records if r["task"] in ("asr", "gender"))
    predictions = (finished / "evaluation" / "predictions.jsonl").read_text().splitlines()
    assert len(predictions) == 6 * 4 * 4  # utterances, tasks, choices of slots
    audio = str(manifests["test"].parent / "test-0.wav")
    assert main(["chat", str(finished / "bundle"), "--once", "--audio", audio]) == 0
    assert "answer" in capsys.readouterr().out
    assert sorted(file.name for file in (finished / "bundle").iterdir()) == [
        "README.md", "fingerprints.json", "recipe.yaml", "trained.safetensors",
    ]  # fmt: skip


def test_the_bundle_is_the_best_of_the_last_stage(finished: Path) -> None:
    best = torch.load(finished / "stages" / "3-holistic" / "best.ckpt", weights_only=True)["state_dict"]
    bundle = load_file(finished / "bundle" / "trained.safetensors")
    assert set(best) == set(bundle)
    assert all(torch.equal(best[name], value) for name, value in bundle.items())


def test_every_stage_moves_the_adapters(finished: Path) -> None:
    stages = [torch.load(file, weights_only=True)["state_dict"] for file in sorted(finished.glob("stages/*/best.ckpt"))]
    assert len(stages) == 3
    for before, after in pairwise(stages):
        assert all(not torch.equal(before[name], after[name]) for name in before)


def test_a_bundle_refuses_another_llm(finished: Path, tiny_llm: str, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_llm, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    name = sorted(weights)[0]
    weights[name][0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with refused("mismatch", "llm.checkpoint"):
        read_bundle(finished / "bundle", [f"llm.checkpoint={other}"])


def test_another_recipe_does_not_go_on_in_the_same_folder(finished: Path, write_recipe: Write) -> None:
    with refused("mismatch", "seed"):
        quiet_run(recipes.load(write_recipe(seed=4)))


def test_a_run_goes_on_after_an_update_that_brought_an_option(finished: Path, write_recipe: Write) -> None:
    """Its recipe says nothing of what did not exist then, which is the same as null."""
    file = finished / "recipe.yaml"
    kept = file.read_text()
    file.write_text("".join(line for line in kept.splitlines(True) if line.strip() != "parts: null"))
    assert file.read_text() != kept
    quiet_run(recipes.load(write_recipe()))


def test_a_finished_run_is_scored_again_with_another_evaluation(
    finished: Path, write_recipe: Write, tree: dict[str, Any]
) -> None:
    """Nothing is trained again, and no result is lost."""
    before = {file: file.stat().st_mtime_ns for file in finished.glob("stages/**/*") if file.is_file()}
    results = (finished / "evaluation" / "results.json").read_text()
    evaluation = {**tree["evaluation"], "limit": 2}
    assert main(["fit", "--config", write_recipe(evaluation={**tree["evaluation"], "batch_size": 1})]) == 0
    assert (finished / "evaluation" / "results.json").read_text() == results
    assert main(["fit", "--config", write_recipe(evaluation=evaluation)]) == 0
    assert (finished / "evaluation" / "results.json").read_text() != results
    assert (finished / "evaluation" / "earlier-1" / "results.json").read_text() == results
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert main(["fit", "--config", write_recipe()]) == 0
    assert (finished / "evaluation" / "results.json").read_text() == results


def test_a_run_that_ran_out_of_memory_in_scoring_goes_on_with_smaller_batches(
    write_recipe: Write, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """By the same command with `evaluation.batch_size=2`: nothing is trained again."""
    generate, sizes = SpeechLLM.generate, []

    def limited(self: SpeechLLM, batch: Any, chats: Any, most: int) -> list[str]:
        sizes.append(len(chats))
        if len(chats) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return generate(self, batch, chats, most)

    monkeypatch.setattr(SpeechLLM, "generate", limited)
    evaluation = {**tree["evaluation"], "tasks": ["asr"], "slots": ["both"]}
    command = ["fit", "--config", write_recipe(stages={"joint": tree["stages"]["joint"]}, evaluation=evaluation)]
    assert main(command) == 2 and max(sizes) == 5
    assert "evaluation.batch_size" in capsys.readouterr().err
    folder = tmp_path / "runs" / "tiny"
    assert (folder / "bundle").is_dir() and not (folder / "evaluation" / "results.json").exists()
    before = {file: file.stat().st_mtime_ns for file in folder.glob("stages/**/*") if file.is_file()}
    monkeypatch.setattr(SpeechLLM, "training_step", None)
    sizes.clear()
    assert main([*command, "evaluation.batch_size=2"]) == 0 and max(sizes) == 2
    records = json.loads((folder / "evaluation" / "results.json").read_text())
    assert [(r["metric"], r["n"]) for r in records] == [("wer", 6)]
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_moved_bundle_says_where_it_looked_for_its_llm_and_finds_it_by_an_override(
    recipe: recipes.Recipe, tiny_llm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained beside an LLM under a relative path, and taken elsewhere."""
    shutil.copytree(tiny_llm, tmp_path / "here" / "llm")
    monkeypatch.chdir(tmp_path / "here")
    tree = {**recipe.plain(), "llm": {**recipe.plain()["llm"], "checkpoint": "llm"}}
    module = quiet_run(tree).module
    write_bundle(tmp_path / "bundle", module, [])
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    bundle = shutil.move(tmp_path / "bundle", tmp_path / "there")
    with refused("not-found", "llm.checkpoint", MissingError) as caught:
        read_bundle(Path(bundle))
    assert str(tmp_path / "there" / "llm") in str(caught.value) and "llm.checkpoint=" in str(caught.value)
    found = read_bundle(Path(bundle), [f"llm.checkpoint={tmp_path / 'here' / 'llm'}"]).state_dict()
    ours = module.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in ours.items() if name.startswith("adapters."))


def test_memory_does_not_grow_with_the_epochs(tree: dict[str, Any]) -> None:
    """Batches of 40 epochs, from the cache: no more is kept of the second half than of the first."""
    run = quiet_run(tree)
    draw = run.example_sampler("joint", cut=True)
    split = run.data.splits["train"]
    groups = stage_rows(split, run.recipe.stages["joint"], draw, training=True).groups
    order = BatchSampler(split.seconds, [1.0] * 12, 4, 40, 0, groups=groups)
    data, kept = Examples(split.utterances, draw, 1, None, run.audio_reader.read), []
    tracemalloc.start()
    for number, rows in enumerate(order):
        assert data[rows].audio.x.numel()
        if number in (20, 70, 119):
            gc.collect()
            kept.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert kept[2] - kept[1] < 20_000 > kept[1] - kept[0]


def test_a_bundle_answers_data_of_ones_own(finished: Path, tmp_path: Path, manifests: dict[str, Path]) -> None:
    lines = [json.loads(line) for line in manifests["test"].read_text().splitlines()]
    clips = [{"id": line["id"], "audio": str(manifests["test"].parent / line["audio"])} for line in lines[:3]]
    clips[0]["text"] = "six"
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(clip) + "\n" for clip in clips))
    command = ["evaluate", str(finished / "bundle"), "--test", str(tmp_path / "mine.jsonl"), "--task", "asr"]
    assert main([*command, "--task", "gender", "--out", str(tmp_path / "out"), "evaluation.max_new_tokens=3"]) == 0
    said = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    heard = [one for one in said if one["slots"] == "both"]
    assert sorted((one["id"], one["task"]) for one in heard) == sorted(
        (clip["id"], task) for clip in clips for task in ("asr", "gender")
    )
    assert [one["id"] for one in heard if not one["unscored"]] == [clips[0]["id"]]
    scores = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {(score["task"], score["n"]) for score in scores} == {("asr", 1)}


def test_a_finished_run_started_again_only_prints_its_table(finished: Path, fit: Fit) -> None:
    before = {file: file.stat().st_mtime_ns for file in finished.glob("stages/**/*") if file.is_file()}
    assert fit() == finished
    assert {file: file.stat().st_mtime_ns for file in before} == before


@pytest.mark.parametrize(("every", "kills"), [(2, (4, 3, 5)), (3, (5, 4, 3))])
def test_a_killed_run_ends_in_the_same_weights(
    write_recipe: Write, fit: Fit, tmp_path: Path, every: int, kills: tuple[int, ...]
) -> None:
    """Killed in several stages, between checkpoints and after a validation; the weights are the same bit for bit."""
    whole = fit(output_dir=str(tmp_path / "whole"), checkpoint_every=every)
    parts: dict[str, Any] = {"output_dir": str(tmp_path / "killed"), "checkpoint_every": every}
    for at in kills:  # training steps since the last start
        run_killed(at, "fit", "--config", write_recipe(**parts))
    killed = fit(**parts)
    for stage in ("1-joint", "2-disentangle", "3-holistic"):
        ours, theirs = (read_trained(run / "stages" / stage / "best.ckpt") for run in (whole, killed))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), stage
