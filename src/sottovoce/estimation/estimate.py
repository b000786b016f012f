"""`sottovoce estimate`: memory, time and checkpoint sizes of a recipe, before anything is trained."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean
from typing import cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table

from sottovoce.config import recipe as recipes
from sottovoce.config.recipe import Recipe
from sottovoce.config.sections import StageConfig
from sottovoce.data.batch_sampler import BatchSampler, Rows
from sottovoce.device import check_fits
from sottovoce.errors import ConfigError, MissingError
from sottovoce.estimation.hardware import GPU, Hardware, LocalDevice, hardware_of
from sottovoce.estimation.placeholders import placeholder_splits, row_lengths
from sottovoce.estimation.step_simulator import Cost, StepSimulator, StepTimer, meta_module, uninitialized_module
from sottovoce.lightning_modules.callbacks import peak_memory
from sottovoce.lightning_modules.curriculum import optimizer_steps, overfitted
from sottovoce.lightning_modules.run import example_sampler_of
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.lightning_modules.trainer_settings import batches_of, check_trainer, is_sharded, is_trial, processes
from sottovoce.llms.chat_template import ChatFormat
from sottovoce.training.batch_plan import stage_batches
from sottovoce.training.preparation import PART as BATCH
from sottovoce.training.readings import stage_readings
from sottovoce.training.splits import DataSplits, build_tasks, read_splits
from sottovoce.training.stage_rows import stage_rows

SIMULATED = 3  # steps of a stage that are simulated for their time, from short clips to long ones
TIMED = 12  # and that are timed on this machine: what their rows need differs much
GATHERED = 10**9  # weights that ZeRO's stage 3 keeps whole at once (DeepSpeed's stage3_max_live_parameters)
CONTEXT = 0.6e9  # bytes that CUDA and its libraries take of a GPU
SPARE = 1.1  # memory between tensors that cannot be used, and that a process does not give back
STRATEGIES = ("ddp", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3")


@dataclass
class StageEstimate:
    """One stage: `step` and `validation` in seconds, `memory` of each process in bytes by strategy."""

    name: str
    steps: int  # an epoch
    epochs: float  # part of one, where the recipe's `trainer` says that the stage has fewer steps
    step: float
    validation: float  # all validations of an epoch
    memory: dict[str, int]
    checkpoint: int  # bytes

    @property
    def epoch(self) -> float:
        """Seconds of an epoch, validations included."""
        return self.steps * self.step + self.validation


@dataclass
class Estimate:
    """A whole recipe on some hardware. `encoding` is seconds, of all clips by all processes; 0 without a cache."""

    hardware: Hardware
    ranks: int
    stages: list[StageEstimate]
    encoding: float
    own_tokenizer: bool
    bundle: int  # bytes
    cache: int  # bytes on disk, of all clips; 0 where features are not cached
    layers: tuple[int, ...]  # of the encoder, that are cached

    def memory(self, strategy: str) -> int:
        """The most that a process takes in any stage, in bytes."""
        return max(stage.memory[strategy] for stage in self.stages)

    def needed(self, strategy: str) -> int:
        """Bytes that the device must have for that."""
        most = self.memory(strategy)
        return int(most * SPARE + CONTEXT) if isinstance(self.hardware, GPU) else most

    def fits(self, strategy: str) -> bool:
        return self.needed(strategy) <= self.hardware.memory


def estimate(recipe: Recipe, hardware: Hardware, data: DataSplits) -> Estimate:
    """Simulate some steps of every stage, or time them on this machine, and add up."""
    on_cpu = isinstance(hardware, LocalDevice) and hardware.device.type == "cpu"
    program = peak_memory() if on_cpu else 0
    module, ranks = meta_module(recipe), processes(recipe.trainer)
    train, validation = data.splits["train"], data.splits["validation"]
    simulator, timer = StepSimulator(recipe, module, train.utterances, ranks), None
    if isinstance(hardware, LocalDevice):
        check_fits(module, f"--gpu here: {recipe.name}")
        timer = StepTimer(recipe, uninitialized_module(recipe, hardware.device), train.utterances, ranks)
    encoding, cached = 0.0, simulator.cached_bytes()  # of all clips, not of a stage's rows
    if simulator.cached:
        encoding = timer.encoding_time() if timer else cast(GPU, hardware).seconds(simulator.encoding())
    tasks, stages, lengths = build_tasks(recipe), [], row_lengths(recipe, module, data)
    for name, node in recipe.stages.items():
        sampler = example_sampler_of(recipe, tasks, name, cut=True)
        rows = stage_rows(train, node, sampler, training=True)
        for one in (simulator, timer or simulator):
            one.utterances = rows.utterances
        together = node.accumulate_grad_batches
        count = partial(lengths.most_tokens, readings=stage_readings(recipe, tasks, name))
        order = stage_batches(node, rows, count, recipe.seed, ranks, training=True)
        order = replace(order, epochs=1, groups=None)
        validated, checks = stage_rows(validation, node, sampler, training=False), 0
        if validated.weights.any():
            checks = stage_batches(node, validated, count, recipe.seed, ranks, training=False).steps
        if few := recipe.trainer.get("overfit_batches"):
            order = overfitted(order, few)
        steps = optimizer_steps(recipe.trainer, replace(order, epochs=node.epochs))
        fewer = steps < order.steps * node.epochs
        epochs = steps / order.steps if fewer or node.budget else node.epochs  # with a budget, epochs differ a little
        validations = _validation_batches(recipe, checks, node, steps) / epochs
        largest = _largest(order, rows.seconds, ranks * together)
        typical = _typical(order, rows.seconds, ranks * together, TIMED if timer else SIMULATED)
        cost = simulator.stage(name, sampler, largest if timer else [*largest, *typical], len(largest))
        by_sheet = None if timer else _by_sheet(cast(GPU, hardware), cost, len(largest))
        step, check = timer.times(name, sampler, typical) if timer else cast(tuple[float, float], by_sheet)
        memory = {strategy: program + _memory(module, cost, strategy, ranks) for strategy in STRATEGIES}
        if on_cpu and timer:  # the timed steps took more where memory was not given back, and a run keeps still more
            timer.generate_targets(name, sampler, typical)
            memory = {strategy: int(SPARE * max(most, peak_memory())) for strategy, most in memory.items()}
        file = _trained_bytes(module) + cost.moments
        stages.append(StageEstimate(name, order.steps, epochs, step * together, validations * check, memory, file))
    clips = sum(len(split.clips()) for split in data.splits.values())
    own_tokenizer, cache = isinstance(module.llm.chat, ChatFormat), clips * cached
    encoding *= clips / BATCH / ranks  # every process encodes its share
    return Estimate(hardware, ranks, stages, encoding, own_tokenizer, _trained_bytes(module), cache, module.layers)


def _validation_batches(recipe: Recipe, most: int, node: StageConfig, steps: int) -> int:
    """Batches of all validations of a stage, each of which has `most` where the recipe's `trainer` says no other."""
    trial = is_trial(recipe)
    times = 1 if trial else min(node.epochs * node.val_checks_per_epoch, steps)
    amount = int(recipe.trainer["fast_dev_run"]) if trial else recipe.trainer.get("limit_val_batches")
    return times * batches_of(amount, most) if most else 0


def _by_sheet(gpu: GPU, cost: Cost, largest: int) -> tuple[float, float]:
    """Seconds of a training step of typical batches, which come after so many of the largest; of a validation step."""
    return mean(gpu.seconds(work) for work in cost.steps[largest:]), gpu.seconds(cost.validation)


def _largest(order: BatchSampler, seconds: NDArray[np.float32], shares: int) -> list[Rows]:
    """The batch of the most seconds, as one process has it; with a budget, which all spend, that of most rows, too."""
    steps = [Rows(rows.epoch, rows.numbers[::shares]) for rows in order.global_steps()]
    found = [max(steps, key=lambda rows: float(seconds[rows.numbers].sum()))]
    if order.budget is not None:
        lengths = np.asarray(order.lengths)
        found.append(max(steps, key=lambda rows: len(rows.numbers) * float(lengths[rows.numbers].max())))
        found.append(max(steps, key=lambda rows: len(rows.numbers)))
    return [rows for at, rows in enumerate(found) if rows not in found[:at]]


def _typical(order: BatchSampler, seconds: NDArray[np.float32], shares: int, count: int) -> list[Rows]:
    """Some batches of an epoch from short to long, as one process has them."""
    by_length = sorted(order.global_steps(), key=lambda rows: float(seconds[rows.numbers].sum()))
    chosen = [by_length[(2 * i + 1) * len(by_length) // (2 * count)] for i in range(count)]
    return [Rows(rows.epoch, rows.numbers[::shares]) for rows in chosen]


def _memory(module: SpeechLLM, cost: Cost, strategy: str, ranks: int) -> int:
    """Bytes that a process takes at its peak: weights, gradients, moments, and what a step makes."""
    weights = sum(weight.nbytes for weight in (*module.parameters(), *module.buffers()))
    stage, elsewhere, total = STRATEGIES.index(strategy), 1 - 1 / ranks, weights + cost.peak
    if ranks > 1 and stage == 0:
        total += cost.gradients  # DDP's buckets
    if stage >= 1:
        total -= int(cost.moments * elsewhere)
    if stage >= 2:
        total -= int(cost.gradients * elsewhere)
    if stage == 3:
        size = weights / max(sum(weight.numel() for weight in module.parameters()), 1)
        total -= int(max(weights - GATHERED * size, 0) * elsewhere)
    return total


def _trained_bytes(module: SpeechLLM) -> int:
    """Bytes of what some stage trains."""
    return sum(w.nbytes for name, w in module.state_dict().items() if name.startswith(module.trained_prefixes))


def command(config: str, gpu: str | None, utterances: int | None, seconds: float, overrides: Sequence[str]) -> None:
    """Print what a recipe takes."""
    recipe = recipes.load(config, overrides)
    if not recipe.stages:
        raise ConfigError(f"{config}: it has no stages, so nothing is trained", code="empty", where="stages")
    check_trainer(recipe)
    if utterances is not None and not (utterances >= 1 and 0 < seconds <= recipe.data.max_seconds):
        most = f"{recipe.data.max_seconds:g} (data.max_seconds)"
        message = f"--utterances must be positive, and --seconds from 0 to {most}"
        raise ConfigError(message, code="bad-value", where="--utterances" if utterances < 1 else "--seconds")
    hardware = hardware_of(gpu, str(recipe.trainer.get("accelerator", "auto")))
    try:
        data = placeholder_splits(recipe, utterances, seconds) if utterances else read_splits(recipe)
    except MissingError as error:
        message = f"{error}\nOr suppose what they will hold: --utterances 100000 --seconds 5"
        raise MissingError(message, where=error.where) from None
    report(estimate(recipe, hardware, data), recipe, Console())


def report(estimate: Estimate, recipe: Recipe, console: Console) -> None:
    """Print the tables, and what they rest on."""
    used = strategy_of(recipe)
    columns = "steps an epoch", "epochs", "s a step", "hours an epoch", "memory, GB", "checkpoint, MB"
    table = _table(f"{recipe.name}: {estimate.ranks} x {estimate.hardware.name}, {used}", "stage", *columns)
    for stage in estimate.stages:
        table.add_row(
            stage.name, f"{stage.steps:,}", f"{stage.epochs:.3g}", f"{stage.step:.3g}", f"{stage.epoch / 3600:.3g}",
            f"{stage.memory[used] / 1e9:.2f}", f"{stage.checkpoint / 1e6:.1f}",
        )  # fmt: skip
    console.print(table)
    hours = sum(stage.epoch * stage.epochs for stage in estimate.stages) / 3600
    encoding = f"encoding every clip once, by all processes: {estimate.encoding / 3600:.3g} hours"
    console.print(f"all stages: {hours:.3g} hours; {encoding}")
    if estimate.cache:
        layers = f"layer{'s' * (len(estimate.layers) > 1)} {', '.join(map(str, estimate.layers))} of the encoder"
        console.print(f"feature cache: {estimate.cache / 1e9:.3g} GB on disk, of {layers}")
    console.print(f"bundle: {estimate.bundle / 1e6:.1f} MB. Replies that the LLM makes, and scoring, are not counted.")
    if not estimate.own_tokenizer:
        console.print("The LLM's tokenizer cannot be reached: a token was taken to be four letters.")
    title = f"strategies, on {estimate.ranks} of {estimate.hardware.memory / 1e9:.0f} GB"
    fitting = _table(title, "strategy", "tensors, GB", "needed, GB", "fits")
    for strategy in STRATEGIES:
        sizes = f"{estimate.memory(strategy) / 1e9:.2f}", f"{estimate.needed(strategy) / 1e9:.2f}"
        fitting.add_row(strategy, *sizes, "yes" if estimate.fits(strategy) else "no")
    console.print(fitting)
    advice = [f"take {strategy}: it is the first that fits" for strategy in STRATEGIES if estimate.fits(strategy)]
    console.print(*advice[:1] or ["none fits: more GPUs with deepspeed_stage_3, smaller batches, or a smaller LLM"])


def _table(title: str, first: str, *others: str) -> Table:
    return Table(first, *(Column(name, justify="right") for name in others), title=title)


def strategy_of(recipe: Recipe) -> str:
    """The recipe's strategy as one of STRATEGIES."""
    name = str(recipe.trainer.get("strategy", "auto"))
    if is_sharded(recipe.trainer):
        return "deepspeed_stage_3"
    return next((one for one in STRATEGIES if name.startswith(one)), "ddp")
