"""DeepSpeed on two CPU processes: the shipped recipe in its own precision, LoRA with auxiliary heads, pre-training."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tests.conftest import CONFORMER, EMOTIONS, WORDS, tiny_tree, write_lines, write_tone
from tests.helpers.processes import Jobs, difference, launch, scores

from sottovoce.cli.main import main
from sottovoce.lightning_modules.curriculum import read_trained
from sottovoce.paths import resolve

STAGES = ("1-joint", "2-disentangle", "3-holistic")
ZERO = ("deepspeed_stage_1", "deepspeed_stage_2")
SHARDED = "deepspeed_stage_3"
NEAR, NEAR_BF16, NEAR_TUNED = 1e-5, 1e-6, 2e-6
Tree = dict[str, Any]


def shipped_tree(tree: Tree) -> Tree:
    """`conf/dual_adapter.yaml`, with small random parts in place of its checkpoints, on as many CPUs as it has GPUs."""
    shipped: Any = OmegaConf.to_container(OmegaConf.load(resolve("sottovoce:conf/dual_adapter.yaml")))
    for stage in shipped["stages"].values():
        stage |= {"batch_size": 2, "epochs": 1, "warmup_steps": 0, "parts": {}, "tasks_per_utterance": 1}
        stage["tasks"] = {task: share for task, share in stage["tasks"].items() if task in ("asr", "gender", "emotion")}
    shipped["stages"]["holistic"]["tasks"]["dialogue"] = 1
    shipped["slots"]["paralinguistic"]["adapter"]["dropout"] = 0.0
    shipped["encoder"], shipped["llm"]["checkpoint"] = tree["encoder"], tree["llm"]["checkpoint"]
    shipped["trainer"] |= {"accelerator": "cpu", "devices": 2, "enable_progress_bar": False}
    kept = ("data", "tasks", "output_dir", "evaluation", "checkpoint_every")
    return {**shipped, **{key: tree[key] for key in kept}, "published": None}


def tuned_tree(tree: Tree, folder: Path) -> Tree:
    """One stage in which LoRA and auxiliary heads learn; some rows have no category, and so no part in the heads."""
    values = {"gender": ["male", "female"], "emotion": list(EMOTIONS)}
    data = {}
    for split, count in (("train", 9), ("validation", 3), ("test", 2)):
        lines = []
        for i in range(count):
            write_tone(folder / f"{split}-{i}.wav", 0.4 + 0.1 * (i % 3), 100 + 30 * i + len(split))
            line = {"audio": f"{split}-{i}.wav", "text": f"{WORDS[i % 4]} {split} {i}", "response": f"it is {i}"}
            category = list(values)[i % 2]
            labels = {"labels": {category: values[category][i % 2]}, "category": category}
            lines.append({"id": f"{split}-{i}", **line, **(labels if i % 3 else {})})
        data[split] = [{"manifest": str(write_lines(folder / f"{split}.jsonl", lines))}]
    tuning = {"method": "lora", "layers": "0", "rank": 2, "dropout": 0.0}
    stage = {"tasks": {"dialogue": 1}, "train": ["llm", "linguistic"], "lr": 2e-3, "eps": 1.0, "batch_size": 4}
    return {
        **tree, "llm": {**tree["llm"], "tuning": tuning}, "auxiliary_head": {"layer": 1, "categories": values},
        "stages": {"tune": {**stage, "epochs": 1}}, "data": {"cache": tree["data"]["cache"], **data},
        "evaluation": {"max_new_tokens": 2, "limit": 1, "slots": ["both"]},
    }  # fmt: skip


def pretrain_tree(folder: Path, manifests: dict[str, Path], runs: str) -> Tree:
    return {
        "seed": 3, "steps": 5, "batch_size": 2, "lr": 1e-3, "validate_every": 3, "checkpoint_every": 2,
        "encoder": CONFORMER, "quantizer": {"codebooks": 2, "codes": 12}, "output_dir": runs,
        "data": {split: [{"manifest": str(manifests[split])}] for split in ("train", "validation")},
        "trainer": {"accelerator": "cpu", "devices": 2, "enable_progress_bar": False},
    }  # fmt: skip


def job(config: Path, name: str, strategy: str, *overrides: str, **more: Any) -> Tree:
    return {"config": str(config), "overrides": [f"name={name}", f"trainer.strategy={strategy}", *overrides], **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deepspeed")


@pytest.fixture(scope="module")
def shipped(folder: Path) -> Path:
    return folder / "dual_adapter.yaml"


@pytest.fixture(scope="module")
def runs(folder: Path, shipped: Path, tiny_llm: str, tiny_whisper: str, manifests: dict[str, Path]) -> Iterator[Path]:
    """Of the shipped recipe and of pre-training under each strategy; `one`, of tuning, is in this process."""
    tree = tiny_tree(tiny_llm, tiny_whisper, manifests, folder)
    tree["evaluation"] = {"batch_size": 5, "max_new_tokens": 2, "limit": 1, "tasks": ["asr"], "slots": ["both"]}
    tuned, pretrain = folder / "tuned.yaml", folder / "pretrain.yaml"
    shipped.write_text(OmegaConf.to_yaml(shipped_tree(tree)))
    tuned.write_text(OmegaConf.to_yaml(tuned_tree(tree, folder)))
    pretrain.write_text(OmegaConf.to_yaml(pretrain_tree(folder, manifests, tree["output_dir"])))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["fit", "--config", str(tuned), "name=tuned-one"]) == 0
    assert main(["fit", "--config", str(tuned), "name=lora-one", "auxiliary_head=null"]) == 0
    halves = "trainer.devices=2", "stages.tune.batch_size=2"
    before, bf16 = {"command": "pretrain"}, "trainer.precision=bf16-mixed"
    jobs: Jobs = [
        *(job(tuned, f"tuned-{name}", name, *halves) for name in ZERO),
        job(tuned, "tuned-stopped", ZERO[1], *halves, stop=2),
        job(tuned, "tuned-stopped", ZERO[1], *halves),
        *(job(pretrain, f"pretrain-{name}", name, **before) for name in ("ddp", ZERO[1])),
        *(job(pretrain, f"pretrain-{name}-bf16", name, bf16, **before) for name in ("ddp", ZERO[1])),
        job(pretrain, "pretrain-stopped", ZERO[1], stop=5, **before),
        job(pretrain, "pretrain-stopped", ZERO[1], **before),
        job(tuned, f"lora-{SHARDED}", SHARDED, *halves, "auxiliary_head=null"),
        *(job(shipped, name, name) for name in (SHARDED, "ddp", ZERO[1])),  # what stage 3 changes is put back
        job(shipped, "killed", ZERO[1], kill=6),
    ]
    done = launch(str(shipped), jobs, torchrun=True)
    assert "SIGKILL" in done.stderr or "-9" in done.stderr, done.stderr[-4000:]
    yield folder / "runs"
    torch.set_num_threads(threads)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("strategy", [ZERO[1], SHARDED])
def test_the_shipped_recipe_trains_under_deepspeed_what_it_trains_under_ddp(
    runs: Path, strategy: str, stage: str
) -> None:
    """In bfloat16 under autocast, with the recipe's own learning rates and AdamW.

    Under stage 3 rows go through the LLM in other shapes, which bfloat16 rounds otherwise; AdamW makes whole steps of
    that. Losses are alike.
    """
    recipe: Any = OmegaConf.load(runs / strategy / "recipe.yaml")
    assert recipe.trainer.precision == "bf16-mixed" and recipe.llm.dtype == "bfloat16"
    sharded, index = strategy == SHARDED, STAGES.index(stage)
    assert scores(runs / strategy, stage) == pytest.approx(scores(runs / "ddp", stage), rel=3e-2 if sharded else 1e-4)
    assert sharded or difference(runs / "ddp", runs / strategy, stage) < NEAR_BF16
    if index:  # they have moved, and by more than that
        before, after = (read_trained(runs / strategy / "stages" / STAGES[i] / "best.ckpt") for i in (index - 1, index))
        assert max(float((before[name] - after[name]).abs().max()) for name in before) > 3 * NEAR_BF16


def test_the_shipped_recipe_goes_on_after_a_kill(runs: Path, shipped: Path) -> None:
    """By the command that users type, which starts the second process itself; to the same bits and a bundle."""
    stage = runs / "killed" / "stages" / STAGES[1]
    assert (stage / "last.ckpt").is_file() and not (stage / "done.json").exists()
    command = [sys.executable, "-m", "lightning_modules.fit", "--config", str(shipped), "name=killed"]
    done = subprocess.run([*command, f"trainer.strategy={ZERO[1]}"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    for name in STAGES[1:]:
        assert difference(runs / ZERO[1], runs / "killed", name) == 0
    ours, theirs = (load_file(runs / name / "bundle" / "trained.safetensors") for name in (ZERO[1], "killed"))
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(name.startswith("adapters.") for name in ours)
    assert "train/grad_norm" not in json.loads((stage / "done.json").read_text())  # DeepSpeed keeps gradients to itself


@pytest.mark.parametrize("strategy", ZERO)
def test_lora_and_auxiliary_heads_train_under_deepspeed_what_one_process_trains(runs: Path, strategy: str) -> None:
    """In the second batch one process has no row with a category."""
    one, run = runs / "tuned-one", runs / f"tuned-{strategy}"
    assert difference(one, run, "1-tune") < NEAR_TUNED
    assert scores(run, "1-tune") == pytest.approx(scores(one, "1-tune"), rel=1e-4)
    best = read_trained(run / "stages" / "1-tune" / "best.ckpt")
    bundle = load_file(run / "bundle" / "trained.safetensors")
    heads = {name for name in best if name.startswith("auxiliary_head.")}
    assert heads and set(bundle) == set(best) - heads and all(torch.equal(best[name], bundle[name]) for name in bundle)
    risen = [value.abs().max() for name, value in bundle.items() if "lora_B" in name]  # from 0
    assert len(risen) == 7 and min(risen) > 0 and max(risen) > 10 * NEAR_TUNED


def test_lora_trains_under_stage_3_what_one_process_trains(runs: Path) -> None:
    assert difference(runs / "lora-one", runs / f"lora-{SHARDED}", "1-tune") < NEAR_TUNED
    assert scores(runs / f"lora-{SHARDED}", "1-tune") == pytest.approx(scores(runs / "lora-one", "1-tune"), rel=1e-4)


def test_lora_and_auxiliary_heads_go_on_to_the_same_bits(runs: Path) -> None:
    assert difference(runs / f"tuned-{ZERO[1]}", runs / "tuned-stopped", "1-tune") == 0


@pytest.mark.parametrize("precision", ["", "-bf16"])
def test_pretraining_trains_under_deepspeed_what_it_trains_under_ddp(runs: Path, precision: str) -> None:
    one, other = runs / f"pretrain-ddp{precision}", runs / f"pretrain-{ZERO[1]}{precision}"
    assert _encoders_differ(one, other) < NEAR
    ours, theirs = (json.loads((run / "done.json").read_text()) for run in (one, other))
    assert ours == pytest.approx(theirs, rel=1e-5)  # the validation after `fit` is in the same precision, too


def test_pretraining_goes_on_to_the_same_bits(runs: Path) -> None:
    whole, stopped = runs / f"pretrain-{ZERO[1]}", runs / "pretrain-stopped"
    assert _encoders_differ(whole, stopped) == 0
    assert (whole / "done.json").read_text() == (stopped / "done.json").read_text()


def _encoders_differ(one: Path, other: Path) -> float:
    ours, theirs = (load_file(run / "encoder" / "conformer.safetensors") for run in (one, other))
    assert set(ours) == set(theirs)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
