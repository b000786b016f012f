"""What a stage watches: rates by part, scores in validation, early stopping, callbacks of the user's own."""

import csv
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.helpers.errors import refused
from tests.helpers.runs import Write, quiet_run

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.config.stage_conflicts import scores_of
from sottovoce.evaluation.records import score_all
from sottovoce.lightning_modules.checkpointing import read_checkpoint
from sottovoce.lightning_modules.curriculum import read_trained, train_stages
from sottovoce.lightning_modules.monitors import monitored, validation_scores
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.lightning_modules.trainer_settings import check_trainer
from sottovoce.signals import Terminated

Tree = dict[str, Any]
MINE = """
from lightning.pytorch.callbacks import Callback
class Mine(Callback):
    def __init__(self, file="none", every=1):
        self.file, self.every = file, every
    def on_train_batch_end(self, trainer, module, *rest):
        with open(self.file, "a") as out:
            out.write(f"{trainer.global_step}\\n")
class Other:
    pass
"""


def one_stage(tree: Tree, **changes: Any) -> Tree:
    joint = {**tree["stages"]["joint"], "warmup_steps": 0, **changes}
    return {**tree, "name": "one", "checkpoint_every": 50, "stages": {"joint": joint}}


def done(tree: Tree) -> Tree:
    read: Tree = json.loads((Path(tree["output_dir"]) / tree["name"] / "stages" / "1-joint" / "done.json").read_text())
    return read


# Learning rates


def test_each_part_has_its_own_learning_rate(tree: Tree) -> None:
    one = one_stage(tree, lr={"linguistic": 1e-2, "paralinguistic": 1e-30}, epochs=1, weight_decay=0)
    run = quiet_run({**one, "trainer": {**one["trainer"], "log_every_n_steps": 1}})
    before = {name: weight.clone() for name, weight in run.module.adapters.named_parameters()}
    train_stages(run)
    after = dict(run.module.adapters.named_parameters())
    moved = {name for name in before if (after[name] - before[name]).abs().max() > 1e-20}
    assert moved and all(name.startswith("linguistic.") for name in moved)
    rows = list(csv.DictReader((next(Path(tree["output_dir"]).rglob("metrics.csv"))).open()))
    assert {"lr-AdamW/linguistic", "lr-AdamW/paralinguistic"} <= set(rows[0])


def test_equal_rates_are_one_rate(tree: Tree) -> None:
    ends = []
    for name, lr in (("number", 1e-2), ("parts", {"linguistic": 1e-2, "paralinguistic": 1e-2})):
        best = train_stages(quiet_run({**one_stage(tree, lr=lr, epochs=1), "name": name}))
        assert best is not None
        ends.append(read_trained(best))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize(
    ("code", "lr", "where"),
    [
        ("missing-key", {"linguistic": 1e-2}, "lr"),
        ("bad-value", {"linguistic": 0, "paralinguistic": 1}, "linguistic"),
        ("unknown-name", {"linguistic": 1, "paralinguistic": 1, "llm": 1}, "lr"), ("bad-value", {}, "lr"),
    ],
)  # fmt: skip
def test_rates_that_fit_no_part_are_refused(code: Any, lr: Any, where: str, tree: Tree) -> None:
    with refused(code, where):
        recipes.parse(one_stage(tree, lr=lr))


# Scores in validation


def test_the_best_checkpoint_is_that_of_the_best_score(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two accuracies the higher, of two error rates the lower: whatever the loss says."""
    answers = iter([["happy"], ["nothing"], ["nothing"]] * 9)
    steps: list[int] = []

    def generate(self: SpeechLLM, batch: Any, dialogues: Any, most: int) -> list[str]:
        steps.append(self.trainer.global_step)
        return [f"The speaker sounds {word}." for word in next(answers) * len(dialogues)]

    monkeypatch.setattr(SpeechLLM, "generate", generate)
    one = one_stage(tree, tasks={"emotion": 1}, monitor="emotion/accuracy", val_checks_per_epoch=3, epochs=1)
    best = train_stages(quiet_run(one))
    assert best is not None and read_checkpoint(best)["global_step"] == steps[0] < steps[-1]
    assert monitored(recipes.parse(one).stages["joint"]) == ("val/emotion/accuracy", "max")
    told = done(one)
    assert told["val/emotion/accuracy"] == 0 and "val/emotion/balanced_accuracy" in told and "val/loss" in told


def test_scores_in_validation_are_those_of_the_evaluation(tree: Tree) -> None:
    one = one_stage(tree, tasks={"asr": 1, "emotion": 1, "dialogue": 1}, monitor="asr/wer", monitor_batches=1)
    run = quiet_run(one)
    found = validation_scores(run, "joint")
    assert found is not None and {e.task for e in found.examples} == {"asr", "emotion", "dialogue"}
    assert all(set(e.sources.values()) == {"speech"} and e.target is not None for e in found.examples)
    logged: dict[str, float] = {}
    run.module.log = lambda name, value, **_: logged.update({name: value})  # type: ignore[method-assign,assignment]
    found.on_validation_epoch_end(SimpleNamespace(global_rank=0, world_size=1), run.module)  # type: ignore[arg-type]
    scored = {f"val/{r.task}/{r.metric}": r.value for r in score_all("x", found.predictions)}
    assert logged == pytest.approx(scored, abs=1e-6)
    named = {f"val/{task}/{score}" for task in run.tasks for score in scores_of(task, run.recipe)}
    assert named <= logged.keys() and "val/asr/wer" in named


def test_processes_share_the_answers(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    run = quiet_run(one_stage(tree, tasks={"asr": 1}, monitor_batches=1))
    whole = validation_scores(run, "joint")
    assert whole is not None
    run.module.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    whole.on_validation_epoch_end(SimpleNamespace(global_rank=0, world_size=1), run.module)  # type: ignore[arg-type]
    parts: list[Any] = []
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda into, mine: parts.append(mine))
    for rank in range(2):
        part = validation_scores(run, "joint")
        assert part is not None
        part.on_validation_epoch_end(SimpleNamespace(global_rank=rank, world_size=2), run.module)  # type: ignore[arg-type]
    assert [p for _, p in sorted(parts[0] + parts[1], key=lambda pair: pair[0])] == list(whole.predictions)
    assert 0 < len(parts[0]) < len(whole.predictions)


def test_a_score_that_no_utterance_serves_is_refused(tree: Tree, tmp_path: Path) -> None:
    file = Path(tree["data"]["validation"][0]["manifest"])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    bare = file.with_name("bare.jsonl")
    bare.write_text("".join(json.dumps({**line, "labels": {}}) + "\n" for line in lines))
    tree["data"]["validation"] = [{"manifest": str(bare)}]
    with refused("empty", "stages.joint.monitor"):
        quiet_run(one_stage(tree, tasks={"asr": 1, "emotion": 1}, monitor="emotion/accuracy"))


@pytest.mark.parametrize("monitor", ["gender/wer", "asr/cer/basic", "asr", "pitch/accuracy", "dialogue/rouge_1"])
def test_a_score_that_is_none_is_refused(monitor: str, tree: Tree) -> None:
    with refused("unknown-name", "stages.joint.monitor"):
        recipes.parse(one_stage(tree, monitor=monitor))


def test_deepspeed_has_one_rate(tree: Tree) -> None:
    rates = {"linguistic": 1e-2, "paralinguistic": 1e-3}
    with refused("conflict", "stages.joint.lr"):
        check_trainer(recipes.parse({**one_stage(tree, lr=rates), "trainer": {"strategy": "deepspeed_stage_2"}}))


@pytest.mark.parametrize("changes", [{"monitor": "asr/wer"}, {"distill": {}}])
def test_what_needs_the_whole_llm_is_refused_where_it_is_sharded(changes: Tree, tree: Tree) -> None:
    tree = {**one_stage(tree, **changes), "trainer": {"strategy": "deepspeed_stage_3"}}
    with refused("conflict", f"stages.joint.{next(iter(changes))}"):
        check_trainer(recipes.parse(tree))


# Early stopping


@pytest.fixture
def worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validations whose loss only rises."""
    end = SpeechLLM.on_validation_epoch_end

    def rising(self: SpeechLLM) -> None:
        self._validation_sums = torch.tensor([self.trainer.global_step, 1.0], dtype=torch.float64)
        end(self)

    monkeypatch.setattr(SpeechLLM, "on_validation_epoch_end", rising)


@pytest.mark.usefixtures("worse")
def test_a_stage_ends_after_validations_that_bring_nothing(tree: Tree, capsys: Any, write_recipe: Write) -> None:
    one = one_stage(tree, val_checks_per_epoch=3, epochs=2, patience=2)
    config = write_recipe(**one)
    assert main(["fit", "--config", config, "evaluation.limit=1", "evaluation.tasks=[asr]"]) == 0
    assert done(one)["steps"] == 3 and "stopped at step 3" in capsys.readouterr().out  # of six
    best = Path(one["output_dir"]) / "one" / "stages" / "1-joint" / "best.ckpt"
    assert read_checkpoint(best)["global_step"] == 1


@pytest.mark.usefixtures("worse")
def test_a_stage_that_is_stopped_keeps_its_patience(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    one = one_stage(tree, val_checks_per_epoch=3, epochs=2, patience=3)
    training_step = SpeechLLM.training_step

    def warned(self: SpeechLLM, batch: Any, number: int) -> Any:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return training_step(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(SpeechLLM, "training_step", warned)
        with pytest.raises(Terminated):
            train_stages(quiet_run(one))
    train_stages(quiet_run(one))
    assert done(one)["steps"] == 4


# Callbacks


def test_callbacks_come_by_module_or_file(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "cb.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    steps = [str(tmp_path / "a"), str(tmp_path / "b")]
    named = [{"type": "my_lab.cb:Mine", "file": steps[0]}, {"type": "./my_lab/cb.py:Mine", "file": steps[1]}]
    train_stages(quiet_run({**one_stage(tree, epochs=1), "callbacks": named}))
    assert [Path(file).read_text() for file in steps] == ["1\n2\n3\n"] * 2


@pytest.mark.parametrize(
    ("code", "node"),
    [
        ("not-found", "no_such_lab.cb:Mine"), ("not-found", "./none.py:Mine"), ("unknown-name", "./cb.py:Theirs"),
        ("bad-value", "./cb.py:Other"), ("bad-value", {"type": "./cb.py:Mine", "colour": 1}),
        ("damaged", "./broken.py:Mine"), ("bad-value", "json:dumps"),
    ],
)  # fmt: skip
def test_what_is_no_callback_is_refused_before_anything_is_read(
    code: Any, node: Any, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cb.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sottovoce.lightning_modules.run.read_splits", lambda *_: pytest.fail("data were read"))
    with refused(code, "callbacks[0]"):
        quiet_run({**one_stage(tree), "callbacks": [node]})


def test_a_bundle_names_no_code(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who trains on from it would run it, or not have it."""
    from sottovoce.lightning_modules.bundle import write_bundle

    (tmp_path / "cb.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    run = quiet_run({**one_stage(tree), "callbacks": ["./cb.py:Mine"]})
    folder = write_bundle(tmp_path / "bundle", run.module, [])
    assert recipes.load(folder / "recipe.yaml").callbacks == []
