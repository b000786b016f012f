"""Estimates: hollow steps do what real steps do; bytes and operations are counted as an outsider counts them."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.helpers import audio_llms
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.data.batch_sampler import Rows
from sottovoce.data.batches import collate
from sottovoce.errors import ConfigError
from sottovoce.estimation.estimate import TRIED, Estimate, estimate, processes
from sottovoce.estimation.hardware import GPUS, LocalDevice, OpCounter, chosen
from sottovoce.estimation.meta_tensor import MetaTensor, PeakMemory, hollow, observed
from sottovoce.estimation.placeholders import supposed
from sottovoce.estimation.step_simulator import Rehearsal, Trial, hollow_module
from sottovoce.lightning_modules.run import Run, example_sampler_of, prepare_run
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.training.splits import build_tasks, read_splits

PRODUCTS = ("mm", "addmm", "bmm", "convolution", "convolution_backward")
ROWS = Rows(0, [0, 3, 5, 8])


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> MetaTensor:
    return MetaTensor(torch.empty(*shape, dtype=dtype, device="meta"))


class Counted(TorchDispatchMode):
    """Counts matrix products of real tensors by name."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products[func._overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def real_step(run: Run, stage: str) -> Callable[[], None]:
    """A step of a loaded run on the rows that are rehearsed, after one that has filled what is kept."""
    run.module.start_stage(stage, 1)
    drawing = run.example_sampler(stage, cut=True)
    utterances = run.data.splits["train"].utterances
    drawn = [drawing(utterances[n], 0, 0) for n in ROWS.numbers]
    batch = collate([example for example in drawn if example is not None], run.audio_reader.read)

    def step() -> None:
        out = run.module.loss(batch)
        (out.total / out.tokens).backward()  # type: ignore[no-untyped-call]

    step()
    return step


def rehearse(recipe: recipes.Recipe, stage: str) -> Any:
    module = hollow_module(recipe)
    material = read_splits(recipe)
    rehearsal = Rehearsal(recipe, module, material.splits["train"].utterances, 1)
    return rehearsal.stage(stage, example_sampler_of(recipe, build_tasks(recipe), stage, cut=True), [ROWS])


@pytest.mark.parametrize("stage", ["joint", "disentangle"])
def test_a_hollow_step_makes_the_products_of_a_real_one(recipe: recipes.Recipe, stage: str) -> None:
    step = real_step(prepare_run(recipe, Console(quiet=True)), stage)
    with Counted() as counted, FlopCounterMode(display=False) as flops:
        step()
    work: OpCounter = rehearse(recipe, stage).steps[0]
    made: Counter[str] = Counter()
    ours = 0
    for key, times in work.times.items():
        kind = work.kinds[key]
        made[kind.name] += times
        ours += kind.flops * times if kind.name in PRODUCTS else 0
    assert {name: made[name] for name in PRODUCTS} == {name: counted.products[name] for name in PRODUCTS}
    assert ours == flops.get_total_flops() > 0


def test_the_peak_is_that_of_a_real_step(recipe: recipes.Recipe) -> None:
    run = prepare_run(recipe, Console(quiet=True))
    step = real_step(run, "joint")
    for weight in run.module.parameters():
        weight.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    now = most = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda one: one.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    cost = rehearse(recipe, "joint")
    assert cost.peak - cost.moments == pytest.approx(most, rel=0.1)
    assert cost.gradients == sum(w.numel() for w in run.module.trainable_parameters()) * 4
    assert cost.moments == 2 * cost.gradients


def test_what_is_freed_no_longer_counts() -> None:
    living = PeakMemory()
    with observed(living):
        x = empty(1000)
        first = x * 2  # 4,000 bytes
        second = first.view(10, 100) + 1  # a view takes nothing
        del first
        third = second[:5] * 1.0
    assert (living.now, living.most) == (6000, 8000)
    del second, third
    assert living.now == 0


def test_masks_pick_and_shapes_change_in_place() -> None:
    kept = empty(3, 4)[torch.tensor([True, False, True])]
    assert kept.shape == (2, 4)
    x = empty(1, 5)
    x.squeeze_(0)
    assert x.shape == x.within.shape == (5,)
    assert (empty(2, 3) + torch.ones(3)).shape == (2, 3)  # a real tensor may take part
    with pytest.raises(RuntimeError):
        empty(2).tolist()


def test_hollow_modules_keep_tied_weights() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    module[1].weight = module[0].weight
    hollow(module)
    assert module[1].weight is module[0].weight and len(list(module.parameters())) == 1


@pytest.fixture
def found(recipe: recipes.Recipe) -> Estimate:
    return estimate(recipe, GPUS["h100"], read_splits(recipe))


def test_checkpoints_and_steps_are_those_of_the_run(found: Estimate, write_recipe: Any, tree: dict[str, Any]) -> None:
    assert main(["fit", "--config", write_recipe()]) == 0
    folder = Path(tree["output_dir"]) / "tiny"
    for number, stage in enumerate(found.stages, 1):
        there = folder / "stages" / f"{number}-{stage.name}"
        assert stage.steps * stage.epochs == json.loads((there / "done.json").read_text())["steps"]
        size = (there / "last.ckpt").stat().st_size
        assert stage.checkpoint < size < stage.checkpoint + 60_000  # names, recipe and the place in the data
    assert found.bundle < (folder / "bundle" / "trained.safetensors").stat().st_size < found.bundle + 10_000


def test_strategies_share_out_what_they_say(recipe: recipes.Recipe) -> None:
    alone = estimate(recipe, GPUS["h100"], read_splits(recipe)).stages[0].memory
    assert len(set(alone.values())) == 1  # nobody to share with
    recipe.trainer["devices"] = 2
    module = hollow_module(recipe)
    trained = sum(w.numel() for w in module.adapters.parameters()) * 4
    shared = estimate(recipe, GPUS["h100"], read_splits(recipe)).stages[0].memory
    assert shared["ddp"] - shared["deepspeed_stage_1"] == 2 * trained  # the buckets, and half of both moments
    assert shared["deepspeed_stage_1"] - shared["deepspeed_stage_2"] == trained // 2


def test_an_llm_too_large_for_a_gpu_is_sent_to_stage_3(recipe: recipes.Recipe, found: Estimate) -> None:
    assert found.fits("ddp")
    short = replace(found, hardware=replace(GPUS["h100"], memory=found.needed("ddp") - 1))
    for stage in short.stages:
        stage.memory["deepspeed_stage_3"] //= 2
    assert not short.fits("ddp") and short.fits("deepspeed_stage_3")


def test_a_gpu_takes_what_its_sheet_says() -> None:
    work = OpCounter()
    with observed(work):
        empty(4096, 4096, dtype=torch.bfloat16) @ empty(4096, 4096, dtype=torch.bfloat16)
    assert work.flops == 2 * 4096**3
    h100 = GPUS["h100"]
    assert h100.seconds(work) == pytest.approx(work.flops / 989e12 / h100.products + h100.per_kernel)
    slower = replace(h100, per_launch=1.0)
    assert slower.seconds(work) == pytest.approx(1.0)  # where the host cannot keep up


def test_attention_is_counted_without_its_scores() -> None:
    query = torch.zeros(2, 4, 32, 8, device="meta")
    work, living = OpCounter(), PeakMemory()
    with observed(work), observed(living):
        torch.nn.functional.scaled_dot_product_attention(MetaTensor(query), MetaTensor(query), MetaTensor(query))
    assert work.flops == 2 * 2 * 4 * 32 * 32 * (8 + 8)
    assert living.most < 2 * 4 * 32 * 32 * 4


def test_the_machine_at_hand_is_tried(recipe: recipes.Recipe) -> None:
    steps: list[float] = []
    answered: list[int] = []
    made, generate = Trial.step, CausalLLM.generate

    def counted(self: Trial, batch: Any, optimizer: Any) -> None:
        made(self, batch, optimizer)
        steps.append(float(sum(weight.detach().abs().sum() for weight in self.module.trainable_parameters())))

    def replying(self: CausalLLM, prompts: list[torch.Tensor], most: int) -> list[str]:
        answered.append(len(prompts))
        return generate(self, prompts, most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trial, "step", counted)
        patch.setattr(CausalLLM, "generate", replying)
        found = estimate(recipe, LocalDevice(torch.device("cpu")), read_splits(recipe))
    assert len(steps) == len(set(steps)) == 3 * TRIED * 2  # each of them changed the weights
    assert found.listening > 0 and all(stage.step > 0 and stage.validation > 0 for stage in found.stages)
    assert any(answered)  # the tasks that the LLM makes targets for
    assert found.memory("ddp") > 100e6  # all that this process has taken


def test_supposed_utterances_serve_every_task(tree: dict[str, Any]) -> None:
    recipe = recipes.parse({**tree, "data": {"train": [{"manifest": "absent.jsonl"}]}})
    found = estimate(recipe, GPUS["a100"], supposed(recipe, 9, 0.8))
    assert [stage.steps for stage in found.stages] == [3, 3, 3]  # 9 in batches of 4
    assert all(stage.step > 0 and stage.validation == 0 for stage in found.stages)


def test_heads_of_pe_ft_are_in_the_step(tree: dict[str, Any]) -> None:
    stage = {"tasks": {"response": 1}, "train": ["llm"], "lr": 1e-3, "batch_size": 4}
    tuned = {**tree["llm"], "tuning": {"method": "lora", "rank": 2}}
    plain = {**tree, "llm": tuned, "tasks": {}, "stages": {"tune": stage}}
    heads = {
        **plain,
        "auxiliary_head": {"layer": 1, "categories": {"age": ["child", "adult"], "gender": ["male", "female"]}},
    }
    with_heads, without = (
        estimate(recipe, GPUS["h100"], supposed(recipe, 8, 0.8)) for recipe in map(recipes.parse, (heads, plain))
    )
    assert with_heads.stages[0].checkpoint > without.stages[0].checkpoint
    assert with_heads.stages[0].step >= without.stages[0].step


@pytest.mark.parametrize("kind", ["qwen2_audio", "thinker"])
def test_finished_audio_llms_are_estimated(kind: str, checkpoints: dict[str, Path]) -> None:
    recipe = recipes.parse(audio_llms.recipe(kind, checkpoints[kind]))
    found = estimate(recipe, GPUS["h100"], supposed(recipe, 8, 0.8))
    assert found.listening > 0 and found.stages[0].step > 0


def test_an_encoder_that_learns_is_in_the_step(alignment: dict[str, Any], tree: dict[str, Any]) -> None:
    learns = estimate(recipes.parse(alignment), GPUS["h100"], supposed(recipes.parse(alignment), 8, 0.8))
    resting = {**alignment, "stages": {"align": {**alignment["stages"]["align"], "train": ["speech"]}}}
    rests = estimate(recipes.parse(resting), GPUS["h100"], supposed(recipes.parse(resting), 8, 0.8))
    assert learns.listening == 0 < rests.listening
    assert learns.stages[0].checkpoint > rests.stages[0].checkpoint
    assert learns.memory("ddp") > rests.memory("ddp")


def test_mixed_precision_takes_less(recipe: recipes.Recipe) -> None:
    full = rehearse(recipe, "joint")
    recipe.trainer["precision"] = "bf16-mixed"
    mixed = rehearse(recipe, "joint")
    assert mixed.peak < full.peak and mixed.gradients == full.gradients
    assert {kind.dtype for kind in mixed.steps[0].kinds.values() if kind.name == "mm"} == {torch.bfloat16}


@pytest.mark.parametrize(("trainer", "expected"), [
    ({}, 1), ({"devices": 4, "num_nodes": 2}, 8), ({"devices": [0, 3]}, 2), ({"devices": "auto"}, 1),
    ({"devices": -1}, 1),
])  # fmt: skip
def test_processes(trainer: dict[str, Any], expected: int) -> None:
    assert processes(trainer) == expected


def test_command(write_recipe: Any, capsys: pytest.CaptureFixture[str], tree: dict[str, Any]) -> None:
    assert main(["estimate", "--config", write_recipe(), "--gpu", "h100", "trainer.devices=2"]) == 0
    told = capsys.readouterr().out
    assert "2 x H100" in told and "take ddp: it is the first that fits" in told
    assert main(["estimate", "--config", write_recipe(), "--gpu", "h1oo"]) == 2
    assert "h100" in capsys.readouterr().err
    gone = write_recipe(data={**tree["data"], "train": [{"manifest": "gone.jsonl"}]})
    assert main(["estimate", "--config", gone, "--gpu", "h100"]) == 2
    assert "--utterances" in capsys.readouterr().err


def test_a_recipe_for_gpus_is_estimated_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen(None, "gpu") is GPUS["h100"]
    assert isinstance(chosen(None, "cpu"), LocalDevice) and isinstance(chosen("here", "gpu"), LocalDevice)
    with pytest.raises(ConfigError, match="not known"):
        chosen("v100", "gpu")
