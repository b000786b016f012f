"""The curriculum: one stage after another, each from the best checkpoint of the one before; a killed stage goes on."""

import json
import logging
import math
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch.utils.data import DataLoader

from sottovoce.config.recipe import Recipe
from sottovoce.config.sections import BATCH_KEYS
from sottovoce.data.batch_sampler import BatchSampler
from sottovoce.data.examples import Examples, ExampleSampler, LazyExamples
from sottovoce.errors import ConfigError
from sottovoce.io import atomic_write
from sottovoce.lightning_modules.callbacks import NonFiniteGuard, ResumeCheckpoint, SkippedRows, ThroughputMeter
from sottovoce.lightning_modules.checkpointing import LAST, BestCheckpoint, latest, read_checkpoint
from sottovoce.lightning_modules.loggers import Tracker
from sottovoce.lightning_modules.monitors import early_stopping, monitored, tell_early_stop, validation_scores
from sottovoce.lightning_modules.own_callbacks import own_callbacks
from sottovoce.lightning_modules.run import Run
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.lightning_modules.tracking import AnswerSamples, StageProgress, StepLog, samples_of
from sottovoce.lightning_modules.trainer import build_trainer, loader, tell_profile, train_to_end
from sottovoce.lightning_modules.trainer_settings import batches_of, is_sharded, seconds_of
from sottovoce.training.batch_plan import stage_batches, step_size
from sottovoce.training.llm_targets import Made, Name
from sottovoce.training.readings import stage_readings
from sottovoce.training.splits import LazySplit
from sottovoce.training.spoken_prompt import response_tokens
from sottovoce.training.stage_rows import StageRows, count_draws, stage_rows

_log = logging.getLogger(__name__)


def train_stages(run: Run) -> Path | None:
    """Train all stages; returns the best checkpoint of the last, None where there is no stage."""
    best: Path | None = None
    for name in run.recipe.stages:
        best = train_stage(run, name, best)
    return best


def stage_folder(recipe: Recipe, name: str) -> Path:
    """`stages/<number>-<name>` in the run's folder."""
    return recipe.folder / "stages" / f"{list(recipe.stages).index(name) + 1}-{name}"


def train_stage(run: Run, name: str, before: Path | None) -> Path | None:
    """Train one stage, from a checkpoint of the one before; returns its own best checkpoint.

    With `trainer.fast_dev_run` it tries some batches, from the weights at hand, and leaves nothing: None.
    """
    folder, stage = stage_folder(run.recipe, name), run.recipe.stages[name]
    best, done = folder / "best.ckpt", folder / "done.json"
    chosen = run.recipe.trainer
    trial = bool(chosen.get("fast_dev_run"))
    if done.is_file() and not trial:
        steps = json.loads(done.read_text("utf-8"))["steps"]
        _log.info(f"stage {name} is done: {steps} steps, {best}")
        return best
    if before is not None:
        run.module.load_trained(read_trained(before), str(before))

    # trainer
    resume = None if trial else latest(folder)
    meter, guard = ThroughputMeter(), NonFiniteGuard(folder / "skipped.jsonl", name)
    limit = chosen.get("max_time")
    deadline = math.inf if limit is None else run.began + seconds_of(limit)
    resumable = ResumeCheckpoint(folder / LAST, run.recipe.checkpoint_every, deadline)
    scores, stops = validation_scores(run, name), early_stopping(stage)
    callbacks: list[Callback] = [*([scores] if scores else []), *stops, *own_callbacks(run.recipe)]
    kept = BestCheckpoint(best, *monitored(stage))
    callbacks += [kept, meter, guard, resumable, SkippedRows(run.data.faults)]
    loggers, told = _tracked(run, name, resume)
    callbacks += told
    own = {
        "gradient_clip_val": stage.grad_clip, "accumulate_grad_batches": stage.accumulate_grad_batches,
        "default_root_dir": run.recipe.folder,
    }  # fmt: skip
    trainer = build_trainer(chosen, folder, callbacks, loggers, **own)

    # data
    for split in ("train", "validation"):
        _make_targets(run, name, split, trainer, chosen)
    together = stage.accumulate_grad_batches
    key, size = step_size(stage, trainer.world_size * together)
    rows, validated = _rows(run, name, "train"), _rows(run, name, "validation")
    sampler = _sampler(run, name, "train", rows, trainer, _steps_done(resume, size, key))
    whole = sampler.steps
    sampler.max_steps = steps = optimizer_steps(chosen, sampler)
    if not trial:
        due = max(1, steps // (stage.epochs * stage.val_checks_per_epoch))
        trainer.val_check_interval = due * together
    training = _loader(run, name, "train", rows, sampler)
    validation = _loader(run, name, "validation", validated, _sampler(run, name, "validation", validated, trainer))

    # training
    module = _module_to_train(run, trainer, name, steps)
    number = list(run.recipe.stages).index(name) + 1
    _log.info(f"stage {number} of {len(run.recipe.stages)}: {name}, {steps} steps")
    train_to_end(trainer, module, training, validation, resume, resumable)
    trainer.strategy.barrier()
    tell_profile(trainer, run.console)
    if trial:
        return None
    tell_early_stop(stops, name, run.console)
    run.trackers.steps += trainer.global_step
    if trainer.is_global_zero:
        steps = trainer.global_step
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        trainable = sum(weight.numel() for weight in run.module.trainable_parameters())
        drawn, _ = count_draws(run.data.splits["train"], stage, _drawing(run, name, "train"))
        report = {
            "steps": steps, key: size, "skipped": len(guard.skipped),
            "trainable": trainable, "best": kept.best, **meter.report(), **metrics,
            "tasks": {task: {"utterances": n, "draws": round(d * steps / whole)} for task, (n, d) in drawn.items()},
        }  # fmt: skip
        atomic_write(done, json.dumps(report, indent=2) + "\n")
    return best


def _tracked(run: Run, stage: str, resume: Path | None) -> tuple[list[Tracker], list[Callback]]:
    """The trackers of a stage, whose steps go on from those of the stages before it; and callbacks that log and show.

    Under DeepSpeed's stage 3, where one process cannot answer alone, there are no samples.
    """
    recipe, trackers = run.recipe, run.trackers
    bars = recipe.trainer.get("enable_progress_bar") is not False
    callbacks: list[Callback] = [StepLog(), StageProgress(stage, run.console, bars=bars)]
    if recipe.trainer.get("fast_dev_run") or not trackers.on:
        return [], callbacks
    earlier = list(recipe.stages)[: list(recipe.stages).index(stage)]
    reports = [stage_folder(recipe, name) / "done.json" for name in earlier]
    trackers.steps = sum(int(json.loads(report.read_text("utf-8"))["steps"]) for report in reports)
    if recipe.logging.samples and not is_sharded(recipe.trainer):
        callbacks.append(AnswerSamples(run, samples_of(run, stage, recipe.logging.samples)))
    return trackers.begin_stage(trackers.steps, _steps_made(resume)), callbacks


def _steps_made(checkpoint: Path | None) -> int:
    """Optimizer steps that are in a checkpoint."""
    return int(read_checkpoint(checkpoint, mapped=True)["global_step"]) if checkpoint else 0


def optimizer_steps(chosen: dict[str, Any], sampler: BatchSampler) -> int:
    """Optimizer steps of a stage, fewer than its sampler has where the recipe's `trainer` says so."""
    if trial := int(chosen.get("fast_dev_run") or 0):
        return min(trial, sampler.steps)
    batches = batches_of(chosen.get("limit_train_batches"), len(sampler))
    return -(-batches // sampler.accumulate)


def _validated(chosen: dict[str, Any], sampler: BatchSampler) -> int:
    """Batches of a validation."""
    if trial := int(chosen.get("fast_dev_run") or 0):
        return min(trial, sampler.steps)
    return batches_of(chosen.get("limit_val_batches"), sampler.steps)


def _module_to_train(run: Run, trainer: L.Trainer, stage: str, steps: int) -> SpeechLLM:
    """The run's own module; under DeepSpeed another one, since its hooks stay on what it has trained.

    That module's large parts come inside `fit`, where ZeRO's stage 3 shards them as they are read.
    """
    run.module.start_stage(stage, steps)
    module = run.module
    if isinstance(trainer.strategy, DeepSpeedStrategy):
        prefixes, weights = run.module.trained_prefixes, run.module.state_dict()
        module = SpeechLLM(run.recipe)
        module.init_from({name: weight for name, weight in weights.items() if name.startswith(prefixes)})
        module.start_stage(stage, steps)
    if is_sharded(run.recipe.trainer):
        run.module.llm.unload()  # until a stage wants targets, or the scoring: the one that trains is another
    return module


def read_trained(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The trained weights of a checkpoint, by name; see `read_checkpoint`."""
    weights: dict[str, torch.Tensor] = read_checkpoint(checkpoint)["state_dict"]
    return weights


def _steps_done(checkpoint: Path | None, size: float, key: str) -> int:
    """Steps of a stage that a killed run has made; `ConfigError` if they were not of this size, by this key."""
    if checkpoint is None:
        return 0
    kept = read_checkpoint(checkpoint, mapped=True)
    if (began := kept.get("batch_size", size)) != size:
        told = f"{checkpoint}: this stage was begun with {began:g} {BATCH_KEYS[key]} a step in all processes, and "
        told += f"would go on with {size:g}: the product of the stage's `{key}`, `accumulate_grad_batches` and the "
        raise ConfigError(told + "number of processes must stay", code="mismatch", where=key)
    batches = int(kept["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"])
    return batches // int(kept.get("accumulate_grad_batches", 1))


def _rows(run: Run, stage: str, split: str) -> StageRows:
    """What a stage draws from, but for those without a target."""
    node, training = run.recipe.stages[stage], split == "train"
    return stage_rows(run.data.splits[split], node, _drawing(run, stage, split), training=training)


def _sampler(run: Run, stage: str, split: str, rows: StageRows, trainer: L.Trainer, start: int = 0) -> BatchSampler:
    """This process's batches of a stage, from batch `start` on."""
    node, training = run.recipe.stages[stage], split == "train"
    count = partial(run.row_lengths.most_tokens, readings=stage_readings(run.recipe, run.tasks, stage))
    order = stage_batches(node, rows, count, run.recipe.seed, trainer.world_size, training=training)
    order.rank, order.start = trainer.global_rank, start
    few = run.recipe.trainer.get("overfit_batches")
    return overfitted(order, few) if training and few else order


def overfitted(sampler: BatchSampler, amount: float) -> BatchSampler:
    """Batches of the same few rows in all epochs: of those with which the first one begins."""
    batches = batches_of(amount, -(-len(sampler) // sampler.epochs))
    steps = islice(sampler.global_steps(), -(-batches // sampler.accumulate))
    numbers = [number for rows in steps for number in rows.numbers]
    return replace(sampler, weights=np.bincount(numbers, minlength=len(np.asarray(sampler.weights))))


def _drawing(run: Run, stage: str, split: str) -> ExampleSampler:
    """How examples are drawn, but for those without a target."""
    sampler = run.example_sampler(stage, cut=split == "train")
    return replace(sampler, barred=run.barred.get((stage, split), {}))


def _make_targets(run: Run, stage: str, split: str, trainer: L.Trainer, chosen: dict[str, Any]) -> None:
    """Make the targets that only the LLM can give, for all epochs of a stage.

    What has none is not drawn, and the rows are drawn anew, until each that is drawn has one. `ConfigError` where not
    one of a task is left.
    """
    data = run.data.splits[split]
    if isinstance(data, LazySplit) or not _generates(run, stage):
        return
    draws = run.recipe.stages[stage].draws if split == "train" else 1
    wanted: set[Name] = set()
    rejected: dict[Name, str] = {}
    while True:
        side = _rows(run, stage, split)
        drawn = Examples(side.utterances, _drawing(run, stage, split), draws, None, run.audio_reader.read)
        order = _sampler(run, stage, split, side, trainer)
        order.max_steps = optimizer_steps(chosen, order) if split == "train" else _validated(chosen, order)
        examples = (example for rows in order.global_steps() for example in drawn.examples(rows))
        with run.progress() as progress:
            made = run.targets.make(run.module.llm, examples, progress)
        wanted, rejected = wanted | made.wanted, rejected | made.rejected
        if not made.rejected:
            break
        tasks = {task for task, _ in rejected}
        run.barred[stage, split] = {task: frozenset(name for t, name in rejected if t == task) for task in tasks}
        told = Made(0, wanted, rejected).told(run.recipe.target_max_new_tokens)
        if gone := sorted(tasks - {task for task, _ in wanted - rejected.keys()}):
            why = f"stage {stage!r}: not one target of {', '.join(gone)} in {split!r} can be learned.\n{told}"
            raise ConfigError.at("data.target_max_new_tokens", "empty", why)
    if rejected:
        _log.warning(f"stage {stage}, {split}: {told}")


def _generates(run: Run, stage: str) -> bool:
    return any(weight and run.tasks[task].generated for task, weight in run.recipe.stages[stage].tasks.items())


def _loader(run: Run, stage: str, split: str, rows: StageRows, sampler: BatchSampler) -> DataLoader[Any]:
    """Batches of a stage, whose targets are there."""
    node, recipe, utterances = run.recipe.stages[stage], run.recipe, rows.utterances
    draw, draws = _drawing(run, stage, split), node.draws if split == "train" else 1
    complete = run.targets.complete if _generates(run, stage) else None
    count = partial(response_tokens, run.module.llm.chat, run.module.slots)
    if isinstance(run.data.splits[split], LazySplit):
        skip = recipe.data.policy == "skip"
        readings = stage_readings(recipe, run.tasks, stage)
        stand_in = run.audio_reader.stand_in(run.module.encoder, cached=False)
        lazy = LazyExamples(
            utterances, draw, draws, complete, run.audio_reader.read, count, stand_in, skip=skip,
            check=partial(run.row_lengths.check, readings=readings),
        )  # fmt: skip
        return loader(lazy, sampler, recipe.data.num_workers)
    stand_in = run.audio_reader.stand_in(run.module.encoder, cached=True)
    data = Examples(utterances, draw, draws, complete, run.audio_reader.read, count, stand_in)
    return loader(data, sampler, recipe.data.num_workers)
