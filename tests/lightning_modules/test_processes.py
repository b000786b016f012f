"""Several processes and ZeRO, on CPU: they train what one process trains, and go on with each other's checkpoints."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tests.conftest import tiny_tree, write_lines
from tests.helpers.errors import refused
from tests.helpers.processes import difference, launch, scores
from tests.helpers.runs import Write, run_killed

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.lightning_modules.curriculum import _steps_done, read_trained
from sottovoce.lightning_modules.trainer import trainer_arguments
from sottovoce.lightning_modules.trainer_settings import check_trainer

STAGES = ("1-joint", "2-disentangle", "3-holistic")
ACCUMULATED = ("ddp-accumulated", "deepspeed_stage_2-accumulated")
STRATEGIES = (
    "ddp", "ddp_find_unused_parameters_true", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_2_offload",
    "deepspeed_stage_3", "deepspeed_stage_3_offload",
)  # fmt: skip
NEAR = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def config(folder: Path, tiny_llm: str, tiny_whisper: str, manifests: dict[str, Path]) -> str:
    """The tiny recipe of conftest.py, with as little scoring as there can be.

    Without what differs between processes (dropout), or grows from rounding: Adam divides gradients by their own size,
    be they noise or not. Beside an `eps` of 1 it takes them as they are, and its moments are still what it needs.
    """
    tree = tiny_tree(tiny_llm, tiny_whisper, manifests, folder)
    tree["slots"]["paralinguistic"]["adapter"]["dropout"] = 0.0
    for stage in tree["stages"].values():
        stage |= {"lr": 2e-4, "eps": 1.0}
    tree["evaluation"] = {"batch_size": 5, "max_new_tokens": 2, "limit": 1, "tasks": ["asr"], "slots": ["both"]}
    file = folder / "recipe.yaml"
    file.write_text(OmegaConf.to_yaml(tree))
    return str(file)


def shares(batch_size: int, accumulate: int) -> list[str]:
    names = [f"stages.{stage.split('-')[1]}" for stage in STAGES]
    sizes = [f"{name}.batch_size={batch_size}" for name in names]
    return [*sizes, *(f"{name}.accumulate_grad_batches={accumulate}" for name in names)]


def job(name: str, strategy: str, kill: int | None = None, accumulate: int = 1) -> dict[str, Any]:
    """A run in two processes, with half the batch each, which one step or several batches take."""
    overrides = [f"name={name}", f"trainer.strategy={strategy}", "trainer.devices=2"]
    return {"overrides": [*overrides, *shares(2 // accumulate, accumulate)], "kill": kill}


@pytest.fixture(scope="module")
def runs(folder: Path, config: str) -> Iterator[Path]:
    """`one`: in this process. Of two processes, each strategy; and one of ZeRO's stage 3 that is killed in stage 2."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["fit", "--config", config, "name=one"]) == 0
    assert main(["fit", "--config", config, "name=quarters", *shares(1, 4)]) == 0
    together = [job(name, name.split("-")[0], accumulate=2) for name in ACCUMULATED]
    jobs = [
        *(job(strategy, strategy) for strategy in STRATEGIES),
        *together,
        job("killed", "deepspeed_stage_3", kill=9),
    ]
    done = launch(config, jobs, torchrun=True)
    assert "SIGKILL" in done.stderr or "-9" in done.stderr, done.stderr[-4000:]
    yield folder / "runs"
    torch.set_num_threads(threads)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("strategy", [*STRATEGIES, *ACCUMULATED, "quarters"])
def test_two_processes_train_what_one_trains(runs: Path, strategy: str, stage: str) -> None:
    assert difference(runs / "one", runs / strategy, stage) < NEAR
    assert scores(runs / strategy, stage) == pytest.approx(scores(runs / "one", stage), rel=1e-5)
    index = STAGES.index(stage)
    if index:  # they have moved, and by more than that
        before, after = (read_trained(runs / strategy / "stages" / STAGES[i] / "best.ckpt") for i in (index - 1, index))
        assert max(float((before[name] - after[name]).abs().max()) for name in before) > 1e-5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_checkpoints_and_bundles_hold_what_was_trained(runs: Path, strategy: str) -> None:
    best = read_trained(runs / strategy / "stages" / STAGES[-1] / "best.ckpt")
    assert best and all(name.startswith("adapters.") for name in best)
    bundle = load_file(runs / strategy / "bundle" / "trained.safetensors")
    assert all(torch.equal(best[name], value) for name, value in bundle.items()) and set(best) == set(bundle)
    assert json.loads((runs / strategy / "evaluation" / "results.json").read_text())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_adamw_finds_its_moments_as_it_would_have_written_them(runs: Path, strategy: str) -> None:
    files = [runs / name / "stages" / STAGES[0] / "last.ckpt" for name in (strategy, "one")]
    ours, theirs = (torch.load(file, weights_only=True) for file in files)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1)) for _ in theirs["state_dict"]])
    optimizer.load_state_dict(ours["optimizer_states"][0])
    mine, its = (kept["optimizer_states"][0]["state"] for kept in (ours, theirs))
    assert list(mine) == list(its)
    for number, state in its.items():
        assert float(mine[number]["step"]) == float(state["step"]) > 0
        for key in ("exp_avg", "exp_avg_sq"):
            assert mine[number][key].shape == state[key].shape
            assert (mine[number][key] - state[key]).norm() < 1e-4 * state[key].norm()


def test_a_killed_run_goes_on_in_one_process_or_two_under_any_strategy(runs: Path, config: str) -> None:
    killed = runs / "killed" / "stages" / STAGES[1]
    assert (killed / "last.ckpt").is_file() and not (killed / "done.json").is_file()
    for name in ("two", "other", "in_quarters"):
        shutil.copytree(runs / "killed", runs / name)
        recipe = runs / name / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace("name: killed", f"name: {name}"))
    done = launch(config, [job("two", "deepspeed_stage_3"), job("other", "deepspeed_stage_1")], torchrun=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert main(["fit", "--config", config, "name=killed"]) == 0
    assert main(["fit", "--config", config, "name=in_quarters", *shares(1, 4)]) == 0
    for stage in STAGES[1:]:
        assert difference(runs / "deepspeed_stage_3", runs / "two", stage) == 0  # to the bit
        assert difference(runs / "deepspeed_stage_3", runs / "other", stage) < NEAR
        assert difference(runs / "deepspeed_stage_3", runs / "killed", stage) < NEAR
        assert difference(runs / "deepspeed_stage_3", runs / "in_quarters", stage) < NEAR


def test_processes_whose_batches_are_text_alone_stay_in_step(
    tiny_llm: str, tiny_whisper: str, manifests: dict[str, Path], tmp_path: Path
) -> None:
    """One process has rows of text where the other has speech, with encoder outputs kept and without."""
    lines = [json.loads(text) for text in manifests["train"].read_text().splitlines()][:5]
    written = [{"id": f"w{i}", "text": f"where is lamp {i}", "response": "there"} for i in range(4)]
    spoken = [{**line, "response": "yes"} for line in lines]
    mixed = write_lines(manifests["train"].with_name("mixed.jsonl"), [*spoken, *written])
    tree = tiny_tree(tiny_llm, tiny_whisper, {**manifests, "train": mixed}, tmp_path)
    tree["slots"]["paralinguistic"]["adapter"]["dropout"] = 0.0
    tree["stages"] = {"joint": {"tasks": {"dialogue": 1}, "lr": 2e-4, "eps": 1.0, "epochs": 1, "batch_size": 2}}
    tree["evaluation"] = {"batch_size": 5, "max_new_tokens": 2, "limit": 1, "tasks": ["asr"], "slots": ["both"]}
    file = tmp_path / "recipe.yaml"
    file.write_text(OmegaConf.to_yaml(tree))
    assert main(["fit", "--config", str(file), "name=one"]) == 0
    jobs = []
    uncached = ("deepspeed_stage_3", "data.cache=null")
    for name, *other in (("deepspeed_stage_2",), ("deepspeed_stage_3",), uncached):
        overrides = [f"name={name}{len(other)}", f"trainer.strategy={name}", "trainer.devices=2"]
        jobs.append({"overrides": [*overrides, "stages.joint.batch_size=1", *other], "kill": None})
    done = launch(str(file), jobs, torchrun=True)
    assert done.returncode == 0, done.stderr[-4000:]
    for name in ("deepspeed_stage_20", "deepspeed_stage_30"):
        assert difference(tmp_path / "runs" / "one", tmp_path / "runs" / name, "1-joint") < NEAR
    assert difference(tmp_path / "runs" / "one", tmp_path / "runs" / "deepspeed_stage_31", "1-joint") < 1e-3  # float16


def test_two_processes_end_with_fewer_rows_than_they_are(
    tiny_llm: str, tiny_whisper: str, manifests: dict[str, Path], tmp_path: Path
) -> None:
    """Three training rows and one to validate, a row a batch, and a process that reads: as one process does."""
    few = {**manifests}
    for split, count in (("train", 3), ("validation", 1)):
        lines = [json.loads(text) for text in manifests[split].read_text().splitlines()][:count]
        few[split] = write_lines(manifests[split].with_name(f"few-{split}.jsonl"), lines)
    tree = tiny_tree(tiny_llm, tiny_whisper, few, tmp_path)
    tree["slots"]["paralinguistic"]["adapter"]["dropout"] = 0.0
    tree["data"]["num_workers"] = 1
    tree["stages"] = {"joint": {"tasks": {"asr": 1}, "lr": 2e-4, "eps": 1.0, "epochs": 2, "batch_size": 2}}
    tree["evaluation"] = {"batch_size": 5, "max_new_tokens": 2, "limit": 1, "tasks": ["asr"], "slots": ["both"]}
    file = tmp_path / "recipe.yaml"
    file.write_text(OmegaConf.to_yaml(tree))
    assert main(["fit", "--config", str(file), "name=one"]) == 0
    two = ["name=two", "trainer.strategy=ddp", "trainer.devices=2", "stages.joint.batch_size=1"]
    done = launch(str(file), [{"overrides": two, "kill": None}], torchrun=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert difference(tmp_path / "runs" / "one", tmp_path / "runs" / "two", "1-joint") < NEAR


def test_two_processes_take_the_steps_of_one_by_a_budget(
    tiny_llm: str, tiny_whisper: str, manifests: dict[str, Path], tmp_path: Path
) -> None:
    """One that adds up two batches of so many seconds goes on as two, after a kill, and ends as it would have."""
    tree = tiny_tree(tiny_llm, tiny_whisper, manifests, tmp_path)
    tree["slots"]["paralinguistic"]["adapter"]["dropout"] = 0.0
    tree["stages"] = {"joint": {"tasks": {"asr": 1}, "lr": 2e-4, "eps": 1.0, "epochs": 2, "batch_seconds": 2.4}}
    tree["evaluation"] = {"batch_size": 5, "max_new_tokens": 2, "limit": 1, "tasks": ["asr"], "slots": ["both"]}
    tree["checkpoint_every"] = 1
    file = tmp_path / "recipe.yaml"
    file.write_text(OmegaConf.to_yaml(tree))
    one = "stages.joint.accumulate_grad_batches=2"
    assert main(["fit", "--config", str(file), "name=one", one]) == 0
    run_killed(6, "fit", "--config", str(file), "name=two", one)
    two = {"overrides": ["name=two", "trainer.strategy=ddp", "trainer.devices=2"], "kill": None}
    done = launch(str(file), [two], torchrun=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert difference(tmp_path / "runs" / "one", tmp_path / "runs" / "two", "1-joint") < NEAR
    told = [json.loads((tmp_path / f"runs/{name}/stages/1-joint/done.json").read_text()) for name in ("one", "two")]
    assert told[0]["steps"] == told[1]["steps"] > 4 and told[0]["batch_seconds"] == told[1]["batch_seconds"] == 4.8


def test_a_stage_does_not_go_on_with_other_batches(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    loops = {"fit_loop": {"epoch_loop.batch_progress": {"current": {"processed": 3}}}}
    torch.save({"batch_size": 48, "loops": loops}, file)
    assert _steps_done(file, 48, "batch_size") == 3
    with refused("mismatch", "batch_tokens"):
        _steps_done(file, 24, "batch_tokens")


@pytest.mark.parametrize(("name", "meant"), [("deepspeed_stage_4", r"deepspeed_stage_\d"), ("dpp", "ddp")])
def test_a_dry_run_knows_strategies(name: str, meant: str, write_recipe: Write, capsys: Any) -> None:
    assert main(["fit", "--config", write_recipe(), "--dry-run", f"trainer.strategy={name}"]) == 2
    assert re.search(rf"no strategy '{name}'. Did you mean '{meant}'\?", capsys.readouterr().err)


def test_without_deepspeed_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with refused("unavailable", "trainer.strategy"):
        trainer_arguments({"strategy": "deepspeed_stage_2"})


def test_sharded_weights_cannot_train_all(tree: dict[str, Any], write_recipe: Write) -> None:
    stages = {name: {**node, "train": ["llm"], "err": None} for name, node in tree["stages"].items()}
    changes = {"trainer": {"strategy": "deepspeed_stage_3"}, "stages": stages}
    llm = {**tree["llm"], "tuning": {"method": "weights"}}
    with refused("conflict", "trainer.strategy"):
        check_trainer(recipes.load(write_recipe(**changes, llm=llm)))
    check_trainer(recipes.load(write_recipe(**changes, llm={**llm, "tuning": {"method": "lora"}})))
