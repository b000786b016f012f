"""Every setting of the trainer: refused when the recipe is read, or it works, and a run that is stopped goes on."""

import inspect
import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import StrategyRegistry
from tests.helpers.errors import refused
from tests.helpers.runs import Fit, Write, quiet_run
from torch import Tensor

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.config.trainer_arguments import RESERVED
from sottovoce.errors import Code
from sottovoce.lightning_modules.curriculum import read_trained, train_stages
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.lightning_modules.trainer_settings import REFUSED, batches_of, check_trainer
from sottovoce.signals import Terminated
from sottovoce.training.llm_targets import Targets

Tree = dict[str, Any]
SAME: list[Tree] = [  # with these a run ends in the weights that it ends in without them
    {
        "accelerator": "auto", "devices": "1", "num_nodes": 1, "precision": 32, "strategy": "single_device",
        "log_every_n_steps": 1, "enable_progress_bar": True, "deterministic": "warn", "benchmark": True,
        "inference_mode": False, "detect_anomaly": True, "enable_autolog_hparams": False, "profiler": "simple",
        "max_time": {"hours": 9}, "gradient_clip_algorithm": "norm", "limit_train_batches": 1.0,
        "limit_val_batches": 99,
    },
    {
        "devices": "auto", "precision": None, "strategy": "auto", "log_every_n_steps": 0, "profiler": "advanced",
        "deterministic": True, "benchmark": False, "inference_mode": True,
        "max_time": "01:00:00:00", "limit_val_batches": 1.0, "fast_dev_run": False, "overfit_batches": 0,
    },
]  # fmt: skip
OTHER: list[Tree] = [  # with these in others
    {"precision": "bf16-mixed"}, {"precision": "16-mixed"}, {"gradient_clip_algorithm": "value"},
    {"limit_train_batches": 0.7}, {"limit_train_batches": 3}, {"overfit_batches": 2},
]  # fmt: skip
NO: list[tuple[Code, Tree]] = [
    *(("bad-value", {key: value}) for key, value in (
        ("limit_val_batches", 0), ("limit_train_batches", 0), ("limit_val_batches", 1.5), ("overfit_batches", True),
        ("fast_dev_run", -1), ("fast_dev_run", 0.5), ("log_every_n_steps", "often"), ("max_time", "8 h"),
        ("max_time", {"parsecs": 12}), ("max_time", 600), ("profiler", "xla"), ("gradient_clip_algorithm", "norms"),
        ("deterministic", "yes"), ("benchmark", 1), ("inference_mode", "no"), ("detect_anomaly", "on"),
        ("enable_progress_bar", "rich"), ("devices", 0), ("num_nodes", 1.5),
    )),
    *(("conflict", {key: value}) for key, value in (
        ("min_epochs", 2), ("min_steps", 5), ("check_val_every_n_epoch", 2), ("reload_dataloaders_every_n_epochs", 1),
        ("limit_test_batches", 1), ("limit_predict_batches", 0.5), ("barebones", True), ("plugins", ["x"]),
        ("model_registry", "mine"), ("sync_batchnorm", True), ("precision", "16-true"), ("precision", "bf16-true"),
        ("precision", "64-true"), ("precision", 64), ("precision", "transformer-engine"),
        ("precision", "transformer-engine-float16"), ("accelerator", "tpu"), ("devices", [0]), ("devices", -1),
        ("devices", "0,1"),
    )),
    ("unknown-name", {"strategy": 3}), ("unknown-name", {"precision": "8-bit"}), ("unknown-name", {"accelerator": 1}),
    ("conflict", {"strategy": "single_device", "devices": 2}),
    ("conflict", {"precision": "16-mixed", "strategy": "deepspeed"}),
    ("conflict", {"gradient_clip_algorithm": "value", "strategy": "deepspeed_stage_2"}),
]  # fmt: skip
STRATEGIES = (  # that work; tests/lightning_modules/test_processes.py trains with them in two processes
    "single_device", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", "deepspeed",
    "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_2_offload", "deepspeed_stage_3",
    "deepspeed_stage_3_offload",
)  # fmt: skip


def named(settings: Tree) -> str:
    if len(settings) > 3:
        return "all that change nothing"
    return ",".join(f"{key}={value}" for key, value in settings.items())


def one_stage(tree: Tree, trainer: Tree, name: str) -> Tree:
    return {
        **tree, "name": name, "trainer": {**tree["trainer"], **trainer}, "checkpoint_every": 50,
        "stages": {"joint": {**tree["stages"]["joint"], "warmup_steps": 0}},
    }  # fmt: skip


def stop_before(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM in the training step of this number, which is made, and no other."""
    training_step = SpeechLLM.training_step

    def warned(self: SpeechLLM, batch: Any, number: int) -> Tensor:
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return training_step(self, batch, number)

    monkeypatch.setattr(SpeechLLM, "training_step", warned)


def weights(folder: Path) -> dict[str, Tensor]:
    return read_trained(folder / "stages" / "1-joint" / "best.ckpt")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, Tensor]]:
    """The weights without any setting, once a test has trained them."""
    return {}


@pytest.mark.parametrize("settings", [*SAME, *OTHER], ids=named)
def test_a_run_that_is_stopped_goes_on_to_the_same_weights(
    settings: Tree, tree: Tree, tmp_path: Path, plain: dict[str, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    train_stages(quiet_run(one_stage(tree, settings, "whole")))
    if not plain:
        train_stages(quiet_run(one_stage(tree, {}, "plain")))
        plain["weights"] = weights(runs / "plain")
    assert equal(weights(runs / "whole"), plain["weights"]) == (settings in SAME)
    with monkeypatch.context() as patch:
        stop_before(1, patch)
        with pytest.raises(Terminated):
            train_stages(quiet_run(one_stage(tree, settings, "stopped")))
    assert not (runs / "stopped" / "stages" / "1-joint" / "done.json").exists()
    train_stages(quiet_run(one_stage(tree, settings, "stopped")))
    assert equal(weights(runs / "stopped"), weights(runs / "whole"))
    if "profiler" in settings:  # Lightning's notices are off
        assert "training_step" in (runs / "whole" / "stages" / "1-joint" / "fit-profile.txt").read_text()


@pytest.mark.parametrize(("code", "settings"), NO, ids=lambda value: named(value) if isinstance(value, dict) else "")
def test_what_cannot_work_is_refused_when_the_recipe_is_read(code: Code, settings: Tree, tree: Tree) -> None:
    with refused(code, f"trainer.{next(iter(settings))}"):
        check_trainer(recipes.parse({**tree, "trainer": {**tree["trainer"], **settings}}))


@pytest.mark.parametrize("name", RESERVED)
def test_what_other_keys_decide_names_them(name: str, tree: Tree) -> None:
    with refused("conflict", f"trainer.{name}"):
        recipes.parse({**tree, "trainer": {name: 1}})


@pytest.mark.parametrize("name", [*sorted(StrategyRegistry.available_strategies())])
def test_every_strategy_works_or_is_refused(name: str, tree: Tree) -> None:
    recipe = recipes.parse({**tree, "trainer": {"strategy": name}})
    if name in STRATEGIES:
        check_trainer(recipe)
        return
    with refused("conflict", "trainer.strategy"):
        check_trainer(recipe)


def test_every_argument_of_lightning_is_tried_or_refused() -> None:
    tried = {key for settings in (*SAME, *OTHER) for key in settings} | {"strategy"}
    assert {*tried, *REFUSED, *RESERVED} == set(inspect.signature(L.Trainer).parameters)
    assert not (tried & set(REFUSED) or set(RESERVED) & (tried | set(REFUSED)))


def test_lightnings_own_defaults_may_be_written_down(tree: Tree) -> None:
    defaults = {key: one.default for key, one in inspect.signature(L.Trainer).parameters.items() if key in REFUSED}
    check_trainer(recipes.parse({**tree, "trainer": {**defaults, "min_epochs": None}}))


@pytest.mark.parametrize("command", ["fit", "pretrain"])
def test_a_dry_run_refuses_too(command: str, write_recipe: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_recipe() if command == "fit" else "conf/best_rq_small.yaml"
    assert main([command, "--config", config, "--dry-run", "trainer.barebones=true"]) == 2
    assert "trainer.barebones" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["strategy=deepspeed_stage_3", "overfit_batches=1", "limit_train_batches=1"])
def test_pretraining_refuses_what_is_for_stages(setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--config", "conf/best_rq_small.yaml", "--dry-run", f"trainer.{setting}"]) == 2
    assert f"trainer.{setting.partition('=')[0]}" in capsys.readouterr().err


def test_time_that_is_over_stops_a_run_that_goes_on(
    tree: Tree, tmp_path: Path, write_recipe: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """However short it is, each command makes a step more."""
    train_stages(quiet_run(one_stage(tree, {}, "plain")))
    config = write_recipe(**one_stage(tree, {"max_time": "00:00:00:00"}, "hasty"))
    codes = []
    while not codes or (codes[-1] == 143 and len(codes) < 9):
        codes.append(main(["fit", "--config", config, "evaluation.limit=1", "evaluation.tasks=[asr]"]))
    assert codes == [143] * 5 + [0]  # of six steps
    assert "trainer.max_time" in capsys.readouterr().err
    assert equal(weights(tmp_path / "runs" / "hasty"), weights(tmp_path / "runs" / "plain"))


def test_a_fast_development_run_tries_all_stages_and_keeps_nothing(fit: Fit, tree: Tree, tmp_path: Path) -> None:
    folder = fit(trainer={**tree["trainer"], "fast_dev_run": 2})
    assert not [*folder.rglob("*.ckpt"), *folder.rglob("done.json"), *folder.rglob("predictions.jsonl")]
    assert not [*folder.glob("bundle"), *folder.glob("recipe.yaml"), *folder.glob("data.json")]


def test_a_trial_makes_the_targets_of_its_own_batches_alone(
    fit: Fit, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    make = Targets.make

    def counted(self: Targets, llm: Any, examples: Iterable[Any], progress: Any) -> Any:
        examples = list(examples)
        made.append(len(examples))
        return make(self, llm, examples, progress)

    monkeypatch.setattr(Targets, "make", counted)
    stages = {"joint": {"tasks": {"dialogue": 1}, "lr": 1e-2, "epochs": 2, "batch_size": 2}}
    fit(stages=stages, trainer={**tree["trainer"], "fast_dev_run": 2})
    assert made and max(made) <= 4  # two batches of two, of training and of validation


def test_a_fast_development_run_leaves_a_finished_run_alone(
    fit: Fit, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = {"joint": tree["stages"]["joint"]}
    folder = fit(stages=stages, evaluation={"batch_size": 5, "max_new_tokens": 2, "limit": 1})
    files, steps = [folder / "bundle" / "trained.safetensors", folder / "recipe.yaml", folder / "data.json"], []
    before = [file.read_bytes() for file in files]
    monkeypatch.setattr(SpeechLLM, "on_train_batch_end", lambda *_: steps.append(1), raising=False)
    fit(stages=stages, trainer={**tree["trainer"], "fast_dev_run": True})
    assert len(steps) == 1 and [file.read_bytes() for file in files] == before


@pytest.mark.parametrize(("limit", "accumulate", "steps"), [(3, 2, 2), (0.5, 1, 3), (0.01, 1, 1)])
def test_a_stage_has_as_many_batches_as_are_asked_for(limit: float, accumulate: int, steps: int, tree: Tree) -> None:
    """Its schedule and its validations are those of so many steps."""
    tree = one_stage(tree, {"limit_train_batches": limit}, "few")
    tree["stages"]["joint"] |= {"batch_size": 4 // accumulate, "accumulate_grad_batches": accumulate}
    run = quiet_run(tree)
    best = train_stages(run)
    assert best is not None and run.module.steps == steps
    done = json.loads((best.parent / "done.json").read_text())
    assert done["steps"] == steps
    assert sum(task["draws"] for task in done["tasks"].values()) == pytest.approx(4 * steps, abs=1)  # rows of a step


def test_overfitting_sees_the_same_rows_in_every_epoch(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = one_stage(tree, {"overfit_batches": 2}, "few")
    tree["stages"]["joint"] |= {"epochs": 3, "batch_size": 3}
    seen: list[list[str]] = []
    training_step = SpeechLLM.training_step
    monkeypatch.setattr(
        SpeechLLM,
        "training_step",
        lambda self, batch, number: seen.append(batch.ids) or training_step(self, batch, number),
    )
    train_stages(quiet_run(tree))
    epochs = [sorted(seen[i] + seen[i + 1]) for i in range(0, 6, 2)]
    assert len(seen) == 6 and epochs[0] == epochs[1] == epochs[2] and len(set(epochs[0])) == 6


@pytest.mark.parametrize(
    ("amount", "expected"), [(None, 8), (3, 3), (9, 8), (0.5, 4), (1, 1), (1.0, 8), (0.01, 1), (2.0, 2)]
)
def test_amounts_are_lightnings(amount: float | None, expected: int) -> None:
    assert batches_of(amount, 8) == expected


@pytest.mark.parametrize("setting", ["limit_train_batches=2", "overfit_batches=1", "gradient_clip_algorithm=value"])
def test_a_begun_run_keeps_what_its_weights_depend_on(setting: str, tree: Tree) -> None:
    train_stages(quiet_run(one_stage(tree, {}, "begun")))
    key, _, value = setting.partition("=")
    with refused("mismatch", f"trainer.{key}"):
        quiet_run(one_stage(tree, {key: int(value) if value.isdigit() else value}, "begun"))
