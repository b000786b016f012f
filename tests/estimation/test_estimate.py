"""Estimates: simulated steps do what real steps do; bytes and operations as PyTorch's own profilers count them."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import audio_llms
from tests.helpers.errors import refused
from tests.helpers.runs import Fit, Write, quiet_run
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.data.batch_sampler import Rows
from sottovoce.data.examples import collate
from sottovoce.estimation import meta_tensor
from sottovoce.estimation.estimate import TIMED, Estimate, command, estimate, processes
from sottovoce.estimation.hardware import GPUS, LocalDevice, OpCounter, hardware_of
from sottovoce.estimation.meta_tensor import MetaTensor, PeakMemory, observed, to_meta_tensors
from sottovoce.estimation.placeholders import placeholder_splits
from sottovoce.estimation.step_simulator import StepSimulator, StepTimer, meta_module
from sottovoce.lightning_modules.run import Run, example_sampler_of
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
    """A step of a loaded run on the rows that are simulated, after one that has filled the caches."""
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


def simulate(recipe: recipes.Recipe, stage: str) -> Any:
    module = meta_module(recipe)
    material = read_splits(recipe)
    simulator = StepSimulator(recipe, module, material.splits["train"].utterances, 1)
    return simulator.stage(stage, example_sampler_of(recipe, build_tasks(recipe), stage, cut=True), [ROWS])


@pytest.mark.parametrize("stage", ["joint", "disentangle"])
def test_a_simulated_step_makes_the_products_of_a_real_one(recipe: recipes.Recipe, stage: str) -> None:
    step = real_step(quiet_run(recipe), stage)
    with Counted() as counted, FlopCounterMode(display=False) as flops:
        step()
    work: OpCounter = simulate(recipe, stage).steps[0]
    made: Counter[str] = Counter()
    ours = 0
    for key, times in work.times.items():
        kind = work.kinds[key]
        made[kind.name] += times
        ours += kind.flops * times if kind.name in PRODUCTS else 0
    assert {name: made[name] for name in PRODUCTS} == {name: counted.products[name] for name in PRODUCTS}
    assert ours == flops.get_total_flops() > 0


def test_the_peak_is_that_of_a_real_step(recipe: recipes.Recipe) -> None:
    run = quiet_run(recipe)
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
    cost = simulate(recipe, "joint")
    assert cost.peak - cost.moments == pytest.approx(most, rel=0.1)
    assert cost.gradients == sum(w.numel() for w in run.module.trainable_parameters()) * 4
    assert cost.moments == 2 * cost.gradients


def test_what_is_freed_no_longer_counts() -> None:
    memory = PeakMemory()
    with observed(memory):
        x = empty(1000)
        first = x * 2  # 4,000 bytes
        second = first.view(10, 100) + 1  # a view takes nothing
        del first
        third = second[:5] * 1.0
    assert (memory.now, memory.most) == (6000, 8000)
    del second, third
    assert memory.now == 0


def test_masks_index_and_shapes_change_in_place() -> None:
    chosen = empty(3, 4)[torch.tensor([True, False, True])]
    assert chosen.shape == (2, 4)
    x = empty(1, 5)
    x.squeeze_(0)
    assert x.shape == x.wrapped.shape == (5,)
    assert (empty(2, 3) + torch.ones(3)).shape == (2, 3)  # a real tensor may take part
    with pytest.raises(RuntimeError):
        empty(2).tolist()


def test_private_names_of_pytorch_are_still_there() -> None:
    """A new PyTorch that breaks this breaks estimates: mend the first lines of estimation/meta_tensor.py."""
    operations = (*meta_tensor.INDEXING, meta_tensor.CHOOSE_ATTENTION)
    assert all(isinstance(operation, torch._ops.OpOverload) for operation in operations)
    assert all(isinstance(packet, torch._ops.OpOverloadPacket) for packet in meta_tensor.CPU_ATTENTION)
    x, aten = torch.zeros(2, 2), torch.ops.aten
    assert meta_tensor.storage_key(x.untyped_storage()) == meta_tensor.storage_key(x[0].untyped_storage())
    assert meta_tensor.is_in_place(aten.add_.Tensor) and not meta_tensor.is_in_place(aten.add.Tensor)
    assert meta_tensor.returns_view(aten.view.default) and not meta_tensor.returns_view(aten.mm.default)
    assert aten.mm.default._overloadpacket in flop_registry
    with meta_tensor.no_dispatch():
        assert meta_tensor.make_wrapper(MetaTensor, x.size()).shape == x.shape
    assert meta_tensor.tree_leaves(meta_tensor.tree_map(lambda n: n + 1, [1, (2,)])) == [2, 3]
    assert nn.Linear(1, 1)._parameters and nn.BatchNorm1d(1)._buffers


def test_tied_weights_stay_tied() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    module[1].weight = module[0].weight
    to_meta_tensors(module)
    assert module[1].weight is module[0].weight and len(list(module.parameters())) == 1


@pytest.fixture
def whole(recipe: recipes.Recipe) -> Estimate:
    return estimate(recipe, GPUS["h100"], read_splits(recipe))


def test_checkpoints_and_steps_are_those_of_the_run(whole: Estimate, fit: Fit) -> None:
    folder = fit()
    for number, stage in enumerate(whole.stages, 1):
        there = folder / "stages" / f"{number}-{stage.name}"
        assert stage.steps * stage.epochs == json.loads((there / "done.json").read_text())["steps"]
        size = (there / "last.ckpt").stat().st_size
        assert stage.checkpoint < size < stage.checkpoint + 60_000  # names, recipe and the place in the data
    assert whole.bundle < (folder / "bundle" / "trained.safetensors").stat().st_size < whole.bundle + 10_000


def test_strategies_share_out_what_they_say(recipe: recipes.Recipe, whole: Estimate) -> None:
    assert len(set(whole.stages[0].memory.values())) == 1  # nobody to share with
    recipe.trainer["devices"] = 2
    module = meta_module(recipe)
    trained = sum(w.numel() for w in module.adapters.parameters()) * 4
    shared = estimate(recipe, GPUS["h100"], read_splits(recipe)).stages[0].memory
    assert shared["ddp"] - shared["deepspeed_stage_1"] == 2 * trained  # the buckets, and half of both moments
    assert shared["deepspeed_stage_1"] - shared["deepspeed_stage_2"] == trained // 2


def test_an_llm_too_large_for_a_gpu_is_sent_to_stage_3(recipe: recipes.Recipe, whole: Estimate) -> None:
    assert whole.fits("ddp")
    short = replace(whole, hardware=replace(GPUS["h100"], memory=whole.needed("ddp") - 1))
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
    work, memory = OpCounter(), PeakMemory()
    with observed(work), observed(memory):
        torch.nn.functional.scaled_dot_product_attention(MetaTensor(query), MetaTensor(query), MetaTensor(query))
    assert work.flops == 2 * 2 * 4 * 32 * 32 * (8 + 8)
    assert memory.most < 2 * 4 * 32 * 32 * 4


def test_steps_are_timed_on_this_machine(recipe: recipes.Recipe) -> None:
    steps: list[float] = []
    answered: list[int] = []
    made, generate = StepTimer.step, CausalLLM.generate

    def counted(self: StepTimer, batch: Any, optimizer: Any) -> None:
        made(self, batch, optimizer)
        steps.append(float(sum(weight.detach().abs().sum() for weight in self.module.trainable_parameters())))

    def replying(self: CausalLLM, prompts: list[torch.Tensor], most: int) -> list[str]:
        answered.append(len(prompts))
        return generate(self, prompts, most)

    recipe.stages["joint"].warmup_steps = 0  # whose first step would change nothing
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepTimer, "step", counted)
        patch.setattr(CausalLLM, "generate", replying)
        whole = estimate(recipe, LocalDevice(torch.device("cpu")), read_splits(recipe))
    assert len(steps) == len(set(steps)) == 3 * TIMED * 2  # each of them changed the weights
    assert whole.encoding > 0 and all(stage.step > 0 and stage.validation > 0 for stage in whole.stages)
    assert any(answered)  # the tasks that the LLM makes targets for
    assert whole.memory("ddp") > 100e6  # all that this process has taken


def test_placeholders_serve_every_task(tree: dict[str, Any]) -> None:
    recipe = recipes.parse({**tree, "data": {"train": [{"manifest": "absent.jsonl"}]}})
    whole = estimate(recipe, GPUS["a100"], placeholder_splits(recipe, 9, 0.8))
    assert [stage.steps for stage in whole.stages] == [3, 3, 3]  # 9 in batches of 4
    assert all(stage.step > 0 and stage.validation == 0 for stage in whole.stages)


def of_placeholders(tree: dict[str, Any]) -> Estimate:
    recipe = recipes.parse(tree)
    return estimate(recipe, GPUS["h100"], placeholder_splits(recipe, 8, 0.8))


def test_heads_of_pe_ft_are_in_the_step(tree: dict[str, Any]) -> None:
    stage = {"tasks": {"response": 1}, "train": ["llm"], "lr": 1e-3, "batch_size": 4}
    tuned = {**tree["llm"], "tuning": {"method": "lora", "rank": 2}}
    plain = {**tree, "llm": tuned, "tasks": {}, "stages": {"tune": stage}}
    categories = {"age": ["child", "adult"], "gender": ["male", "female"]}
    with_heads = of_placeholders({**plain, "auxiliary_head": {"layer": 1, "categories": categories}})
    without = of_placeholders(plain)
    assert with_heads.stages[0].checkpoint > without.stages[0].checkpoint
    assert with_heads.stages[0].step >= without.stages[0].step


def test_ctc_is_in_the_step(tree: dict[str, Any]) -> None:
    """And the LLM is not, where the response has no weight."""
    tree["slots"]["linguistic"]["adapter"]["stack"] = 1
    joint = {**tree["stages"]["joint"], "tasks": {"asr": 1}}
    plain, both, alone = (
        _flops(recipes.parse({**tree, "stages": {"joint": {**joint, **changes}}}))
        for changes in ({}, {"ctc": {"linguistic": 1}}, {"ctc": {"linguistic": 1}, "response_weight": 0})
    )
    assert alone < plain < both


def _flops(recipe: recipes.Recipe) -> int:
    work: OpCounter = simulate(recipe, "joint").steps[0]
    return sum(kind.flops * work.times[key] for key, kind in work.kinds.items())


@pytest.mark.parametrize("kind", ["qwen2_audio", "thinker"])
def test_finished_audio_llms_are_estimated(kind: str, checkpoints: dict[str, Path]) -> None:
    whole = of_placeholders(audio_llms.recipe(kind, checkpoints[kind]))
    assert whole.encoding > 0 and whole.stages[0].step > 0


def test_an_encoder_that_learns_is_in_the_step(alignment: dict[str, Any]) -> None:
    learns = of_placeholders(alignment)
    rests = of_placeholders({**alignment, "stages": {"align": {**alignment["stages"]["align"], "train": ["speech"]}}})
    assert learns.encoding == 0 < rests.encoding
    assert learns.stages[0].checkpoint > rests.stages[0].checkpoint
    assert learns.memory("ddp") > rests.memory("ddp")


def test_mixed_precision_takes_less(recipe: recipes.Recipe) -> None:
    full = simulate(recipe, "joint")
    recipe.trainer["precision"] = "bf16-mixed"
    mixed = simulate(recipe, "joint")
    assert mixed.peak < full.peak and mixed.gradients == full.gradients
    assert {kind.dtype for kind in mixed.steps[0].kinds.values() if kind.name == "mm"} == {torch.bfloat16}


@pytest.mark.parametrize(("trainer", "expected"), [
    ({}, 1), ({"devices": 4, "num_nodes": 2}, 8), ({"devices": [0, 3]}, 2), ({"devices": "auto"}, 1),
    ({"devices": -1}, 1),
])  # fmt: skip
def test_processes(trainer: dict[str, Any], expected: int) -> None:
    assert processes(trainer) == expected


def test_command(write_recipe: Write, capsys: Any, tree: dict[str, Any]) -> None:
    assert main(["estimate", "--config", write_recipe(), "--gpu", "h100", "trainer.devices=2"]) == 0
    shown = capsys.readouterr().out
    assert "2 x H100" in shown and "take ddp" in shown
    with refused("bad-value", "--seconds"):
        command(write_recipe(), "h100", 9, 0.0, [])
    with refused("empty", "stages"):
        command(write_recipe(stages={}, init_from="bundle", evaluation={"tasks": ["asr"]}), "h100", None, 5.0, [])
    gone = write_recipe(data={**tree["data"], "train": [{"manifest": "gone.jsonl"}]})
    with refused("not-found"):
        command(gone, "h100", None, 5.0, [])
    command(gone, "h100", 9, 0.8, [])


def test_a_recipe_for_gpus_is_estimated_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware_of(None, "gpu") is GPUS["h100"]
    assert isinstance(hardware_of(None, "cpu"), LocalDevice) and isinstance(hardware_of("here", "gpu"), LocalDevice)
    with refused("unknown-name", "--gpu"):
        hardware_of("v100", "gpu")


def test_the_feature_cache_is_counted_by_its_layers(tree: dict[str, Any], capsys: Any) -> None:
    """As many bytes as a run leaves on disk, headers of files aside; and a step with a mix can be simulated."""
    sizes = {}
    for layers in ("last", "0-2"):
        slots = {name: {**slot, "layers": layers} for name, slot in tree["slots"].items()}
        changed = recipes.parse({**tree, "slots": slots})
        told = estimate(changed, GPUS["h100"], read_splits(changed))
        cache = quiet_run(changed).audio_reader.cache
        assert cache is not None
        sizes[layers] = told.cache
        real = sum(place.size for place in cache.shards.places.values())
        assert told.cache == pytest.approx(real, rel=0.15)
    assert sizes["0-2"] == 3 * sizes["last"]
    whole = {}
    for dtype in ("float32", "int8"):
        changed = recipes.parse({**tree, "data": {**tree["data"], "cache_dtype": dtype}})
        whole[dtype] = estimate(changed, GPUS["h100"], read_splits(changed)).cache
    assert whole["float32"] == 2 * sizes["last"] > 1.5 * whole["int8"] > 0.5 * sizes["last"]
    shared = recipes.parse({**tree, "trainer": {**tree["trainer"], "devices": 4, "strategy": "ddp"}})
    alone, by_four = (estimate(each, GPUS["h100"], read_splits(each)) for each in (recipes.parse(tree), shared))
    assert by_four.encoding == pytest.approx(alone.encoding / 4)
    uncached = recipes.parse({**tree, "data": {**tree["data"], "cache": None}})
    assert estimate(uncached, GPUS["h100"], read_splits(uncached)).cache == 0
