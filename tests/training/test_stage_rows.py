"""What a stage draws: counted by task and part, refused where nobody serves one, and each task of each utterance."""

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_lines
from tests.helpers.errors import refused
from tests.helpers.runs import Fit, Write, quiet_run

import sottovoce.lightning_modules.run
from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.data.batch_sampler import BatchSampler
from sottovoce.data.examples import ExampleSampler
from sottovoce.errors import ConfigError, ManifestError
from sottovoce.evaluation import read_results
from sottovoce.lightning_modules.run import example_sampler_of
from sottovoce.training import stage_rows as module
from sottovoce.training.splits import LazySplit, build_tasks, read_splits
from sottovoce.training.stage_rows import Draws, StageRows, count_draws, stage_rows

JOINT: dict[str, Any] = {"tasks": {"asr": 2, "gender": 1, "emotion": 1}, "lr": 1e-2, "epochs": 2, "batch_size": 4}


def drawn(rows: StageRows, drawing: ExampleSampler, stage: Any) -> Counter[tuple[str, str]]:
    """(utterance, task) of everything that the batches of a stage draw."""
    order = BatchSampler(rows.seconds, rows.weights, stage.batch_size, stage.epochs, 0, groups=rows.groups)
    examples = [
        drawing(rows.utterances[number], batch.epoch, k)
        for batch in order for number in batch.numbers for k in range(stage.draws)
    ]  # fmt: skip
    return Counter((example.utterance.id, example.task) for example in examples if example)


def of_stage(tree: dict[str, Any], stage: str) -> tuple[Any, Any, ExampleSampler]:
    """The training side of a recipe, a stage, and how that draws."""
    recipe = recipes.parse(tree)
    split = read_splits(recipe).splits["train"]
    return split, recipe.stages[stage], example_sampler_of(recipe, build_tasks(recipe), stage, cut=True)


def test_draws_of_a_stage_are_counted_by_task_and_part(tree: dict[str, Any]) -> None:
    """As many as its batches come to, of 12 utterances in two parts."""
    lines = [json.loads(line) for line in Path(tree["data"]["train"][0]["manifest"]).read_text().splitlines()]
    del lines[0]["text"], lines[0]["labels"]["emotion"]
    folder = Path(tree["data"]["train"][0]["manifest"]).parent
    tree["data"]["train"] = [
        {"manifest": str(write_lines(folder / f"draws-{name}.jsonl", part)), "name": name, "tasks": tasks}
        for name, part, tasks in (("a", lines[:4], None), ("b", lines[4:], ["asr"]))
    ]
    tree["stages"] = {"joint": {**JOINT, "epochs": 400, "parts": {"a": 2}}}
    split, stage, drawing = of_stage(tree, "joint")
    tasks, parts = count_draws(split, stage, drawing)
    assert tasks == {"asr": Draws(11, 4400), "gender": Draws(4, 1400), "emotion": Draws(3, 600)}
    assert parts == {"a": Draws(4, 3200)}
    seen = Counter(
        task for _, task in drawn(stage_rows(split, stage, drawing, training=True), drawing, stage).elements()
    )
    assert all(seen[task] == pytest.approx(found.draws, rel=0.12) for task, found in tasks.items())


@pytest.mark.parametrize("weight", [1, 3])
def test_every_task_of_every_utterance_is_drawn_in_every_epoch(tree: dict[str, Any], weight: int) -> None:
    tree["data"]["train"][0]["weight"] = weight
    tree["stages"] = {"joint": {**JOINT, "epochs": 3, "tasks_per_utterance": "all"}}
    split, stage, drawing = of_stage(tree, "joint")
    rows = stage_rows(split, stage, drawing, training=True)
    counted = drawn(rows, drawing, stage)
    ids = [u.id for u in split.utterances]
    assert counted == {(u, task): 3 * weight * often for u in ids for task, often in stage.tasks.items()}
    tasks, _ = count_draws(split, stage, drawing)
    assert tasks == {task: Draws(12, 36 * weight * int(often)) for task, often in stage.tasks.items()}
    validated = stage_rows(split, stage, drawing, training=False)
    assert len(validated.utterances) == 36 and set(validated.weights) == {1.0}


def test_a_manifest_without_weight_serves_nothing(tree: dict[str, Any]) -> None:
    manifest = Path(tree["data"]["train"][0]["manifest"])
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    heard, unheard = (write_lines(manifest.parent / f"{n}.jsonl", lines[n::2]) for n in range(2))
    tree["data"]["train"] = [
        {"manifest": str(heard), "name": "a", "tasks": ["asr"]},
        {"manifest": str(unheard), "name": "b", "weight": 0},
    ]
    tree["stages"] = {"joint": JOINT}
    split, stage, drawing = of_stage(tree, "joint")
    tasks, _ = count_draws(split, stage, drawing)
    assert tasks == {"asr": Draws(6, 12), "gender": Draws(0, 0), "emotion": Draws(0, 0)}


def test_many_draws_of_an_utterance_are_left_to_chance(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As groups they would be as many as rows, and the work of mixing them grows with both."""
    tree["stages"] = {"joint": {**JOINT, "tasks_per_utterance": 5}}
    split, stage, drawing = of_stage(tree, "joint")
    assert len({*_groups(stage_rows(split, stage, drawing, training=True))}) > 3
    monkeypatch.setattr(module, "_GROUPS", 3)
    assert {*_groups(stage_rows(split, stage, drawing, training=True))} == {*split.groups(drawing).tolist()}


def _groups(rows: StageRows) -> list[int]:
    assert callable(rows.groups)
    return rows.groups(0).tolist()


def test_of_lines_that_are_not_read_their_manifest_tells_the_tasks(tree: dict[str, Any]) -> None:
    file = Path(tree["data"]["train"][0]["manifest"])
    lines = [
        {**json.loads(line), "seconds": 0.4 + 0.13 * (i % 7)} for i, line in enumerate(file.read_text().splitlines())
    ]
    lazy = write_lines(file.with_name("lazy-draws.jsonl"), lines)
    tree["data"] = {**tree["data"], "validate": "lazy", "train": [{"manifest": str(lazy), "tasks": ["asr", "gender"]}]}
    tree["stages"] = {"joint": {**JOINT, "tasks_per_utterance": "all"}}
    split, stage, drawing = of_stage(tree, "joint")
    assert isinstance(split, LazySplit)
    counted = drawn(stage_rows(split, stage, drawing, training=True), drawing, stage)
    assert counted == {(line["id"], t): 2 * n for line in lines for t, n in (("asr", 2), ("gender", 1))}
    assert count_draws(split, stage, drawing)[0] == {"asr": (12, 48), "gender": (12, 24), "emotion": (0, 0)}
    with refused("empty", "stages.joint.tasks.emotion", ManifestError):
        quiet_run({**tree, "name": "lazy"})


LINE = "stage joint, draws in 2 epochs (utterances): asr 12 (12), gender 6 (12), emotion 6 (12)"


def test_draws_are_printed_before_training_and_by_a_dry_run(
    tree: dict[str, Any], write_recipe: Write, capsys: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    tree["stages"] = {"joint": JOINT}
    caplog.set_level(logging.INFO, "sottovoce")
    quiet_run(tree)
    assert LINE in caplog.messages
    config = write_recipe(stages={"joint": JOINT})
    assert main(["fit", "--config", config, "--dry-run"]) == 0
    assert LINE in capsys.readouterr().out.splitlines()
    gone = f"data.train=[{{manifest: {tmp_path / 'gone.jsonl'}}}]"
    assert main(["fit", "--config", config, "--dry-run", gone]) == 0
    told = capsys.readouterr().out
    assert "`fit` would stop" in told and f"not counted, since there is no {tmp_path / 'gone.jsonl'}" in told


def test_a_dry_run_tells_speakers_of_both_sides(
    tree: dict[str, Any], write_recipe: Write, caplog: pytest.LogCaptureFixture
) -> None:
    data = dict(tree["data"])
    for side in ("train", "test"):
        (node,) = data[side]
        lines = [json.loads(line) for line in Path(node["manifest"]).read_text().splitlines()]
        file = Path(node["manifest"]).with_name(f"same-{side}.jsonl")
        file.write_text("".join(json.dumps({**line, "speaker": "ann"}) + "\n" for line in lines))
        data[side] = [{"manifest": str(file)}]
    assert main(["fit", "--config", write_recipe(stages={"joint": JOINT}, data=data), "--dry-run"]) == 0
    assert "ann" in caplog.text


def test_a_dry_run_refuses_a_tokenizer_without_a_chat_template(
    tree: dict[str, Any], write_recipe: Write, tmp_path: Path, capsys: Any
) -> None:
    llm = shutil.copytree(tree["llm"]["checkpoint"], tmp_path / "plain")
    for file in llm.glob("chat_template*"):
        file.unlink()
    knobs = json.loads((llm / "tokenizer_config.json").read_text())
    knobs.pop("chat_template", None)
    (llm / "tokenizer_config.json").write_text(json.dumps(knobs))
    config = write_recipe(stages={"joint": JOINT})
    assert main(["fit", "--config", config, "--dry-run", f"llm.checkpoint={llm}"]) == 2
    assert "chat template" in capsys.readouterr().err


def test_a_task_that_no_utterance_serves_is_refused(tree: dict[str, Any]) -> None:
    """At its own key, before the stages before it train; switched off by 0, it is no fault."""
    tree["stages"]["holistic"]["tasks"] = {"dialogue": 1, "age": 1}
    with refused("empty", "stages.holistic.tasks.age", ManifestError):
        quiet_run(tree)
    tree["stages"]["holistic"]["tasks"]["age"] = 0
    quiet_run({**tree, "name": "off"})


def test_what_has_begun_goes_on_though_nobody_serves_a_task(
    fit: Fit, write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As runs of versions that did not ask; what has not begun is refused, and is no matter to `evaluate`."""
    stages = {name: {"tasks": {"asr": 1, "age": 1}, "lr": 1e-3, "batch_size": 8} for name in ("first", "second")}
    with monkeypatch.context() as patch:
        patch.setattr(sottovoce.lightning_modules.run, "check_draws", lambda *_: "")
        folder = fit(stages=stages)
    shutil.rmtree(folder / "evaluation")
    config = write_recipe(stages=stages)
    assert main(["fit", "--config", config]) == 0
    shutil.rmtree(folder / "stages/2-second")
    assert main(["fit", "--config", config]) == 2
    assert main(["evaluate", str(folder), "--stage", "first"]) == 0
    assert read_results(folder / "evaluation/first")


def test_a_part_that_a_stage_weights_and_nobody_serves_is_refused(tree: dict[str, Any]) -> None:
    (node,) = tree["data"]["train"]
    lines = Path(node["manifest"]).read_text().splitlines()
    halves = [Path(node["manifest"]).with_name(f"half-{name}.jsonl") for name in "ab"]
    for half, part in zip(halves, (lines[:6], lines[6:]), strict=True):
        half.write_text("\n".join(part) + "\n")
    tree["data"]["train"] = [
        {"manifest": str(halves[0]), "name": "a"}, {"manifest": str(halves[1]), "name": "b", "tasks": ["gender"]},
    ]  # fmt: skip
    tree["data"]["validation"][0]["name"] = "other"
    stage = {**JOINT, "tasks": {"asr": 1}}
    tree["stages"] = {"joint": {**stage, "parts": {"a": 1, "b": 2, "other": 1}}}
    with refused("empty", "stages.joint.parts.b", ManifestError):
        quiet_run(tree)
    tree["stages"] = {"joint": {**stage, "parts": {"a": 1, "b": 0, "other": 1}}}
    quiet_run({**tree, "name": "off"})


def test_a_stage_of_all_tasks_trains_and_reports_its_draws(fit: Fit) -> None:
    stages = {"joint": {**JOINT, "tasks_per_utterance": "all", "err": {"speech": 1, "text": 1, "none": 1}}}
    folder = fit(stages=stages, evaluation={"batch_size": 5, "max_new_tokens": 2, "slots": ["both"], "limit": 1})
    done = json.loads((folder / "stages" / "1-joint" / "done.json").read_text())
    assert done["steps"] == 24  # 48 rows an epoch, 4 a step
    shown = {task: {"utterances": 12, "draws": 24 * often} for task, often in JOINT["tasks"].items()}
    assert done["tasks"] == shown


@pytest.mark.parametrize("value", ["0", "every", "1.5", "20000"])
def test_so_many_tasks_cannot_be_drawn(tree: dict[str, Any], value: str) -> None:
    tree["stages"]["joint"]["tasks_per_utterance"] = float(value) if value[0] in "012" else value
    with refused("bad-value", "stages.joint.tasks_per_utterance", ConfigError):
        recipes.parse(tree)
