"""A whole run: data, stages one after another, scores, bundle; the same command again goes on where it stopped."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch.utils.data import DataLoader

from sottovoce.config.recipe import Recipe
from sottovoce.config.sections import StageConfig
from sottovoce.data.batch_sampler import BatchSampler
from sottovoce.data.batches import Examples, LazyExamples
from sottovoce.data.examples import Example, ExampleSampler
from sottovoce.data.lazy_batch_sampler import LazyBatchSampler
from sottovoce.data.tasks import Task
from sottovoce.data.utterance import Utterance
from sottovoce.device import on_device
from sottovoce.errors import ConfigError, ManifestError, MissingError
from sottovoce.io import atomic_write
from sottovoce.lightning_modules.bundle import bundle_weights
from sottovoce.lightning_modules.checkpointing import (
    LAST,
    ResumeCheckpoint,
    ignore_signals,
    latest,
    read_checkpoint,
    write_checkpoints_atomically,
)
from sottovoce.lightning_modules.distributed import check_trainer, is_sharded, trainer_arguments
from sottovoce.lightning_modules.error_messages import readable_errors
from sottovoce.lightning_modules.nonfinite_guard import NonFiniteGuard
from sottovoce.lightning_modules.skipped_rows import SkippedRows
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.lightning_modules.throughput import ThroughputMeter
from sottovoce.locks import file_lock
from sottovoce.signals import Terminated
from sottovoce.training.audio_reader import AudioReader
from sottovoce.training.llm_targets import Targets
from sottovoce.training.run_folder import check_data, check_folder, open_folder
from sottovoce.training.splits import DataSplits, LazySplit, build_tasks, read_splits


@dataclass
class Run:
    """What the stages and the scoring share."""

    recipe: Recipe
    tasks: dict[str, Task]
    data: DataSplits
    module: SpeechLLM
    audio_reader: AudioReader
    targets: Targets
    console: Console

    def progress(self) -> Progress:
        columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        return Progress(*columns, console=self.console)

    def example_sampler(self, stage: str | None, *, cut: bool) -> ExampleSampler:
        return example_sampler_of(self.recipe, self.tasks, stage, cut=cut)


def example_sampler_of(recipe: Recipe, tasks: dict[str, Task], stage: str | None, *, cut: bool) -> ExampleSampler:
    """How examples of a stage are drawn; None: for scoring, where the task and the slots are given."""
    node = recipe.stages[stage] if stage else StageConfig(tasks={}, lr=1.0)
    slots = {name: slot.text for name, slot in recipe.slots.items()}
    trains = frozenset(node.train or slots)
    return ExampleSampler(
        tasks, node.tasks, slots, trains, node.err, recipe.seed, stage or "evaluation", cut, recipe.instructions
    )


def prepare_run(recipe: Recipe, console: Console) -> Run:
    """Everything that must be right before training: the folder, the data, every clip, the frozen parts.

    Raises:
        SottovoceError: with what is wrong and what to do.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its notices are not about the recipe
    check_trainer(recipe)
    if recipe.init_from and not Path(recipe.init_from).is_dir():
        raise MissingError(f"init_from: there is no bundle {recipe.init_from}: train the recipe that leaves it first")
    cache = Path(recipe.data.cache or recipe.folder / "cache")
    with file_lock(cache):  # the first process reads weights from disk, and makes what a corpus makes
        check_folder(recipe.folder, recipe.plain())
        L.seed_everything(recipe.seed, workers=True, verbose=False)
        material = read_splits(recipe)
        module = SpeechLLM(recipe.plain())
        module.configure_model()
        open_folder(recipe.folder, recipe.plain())  # now that nothing is missing: a mended recipe begins anew
    if recipe.init_from:
        module.load_trained(bundle_weights(Path(recipe.init_from)), recipe.init_from, begins=True)
    kept = recipe.data.cache and not recipe.trains_encoder  # what an encoder that learns returns is soon out of date
    ear = AudioReader(module.encoder, cache if kept else None, recipe.data.max_seconds)
    slots = {name: slot.text for name, slot in recipe.slots.items()}
    targets = Targets(cache, module.llm.fingerprint(), slots, recipe.evaluation.max_new_tokens)
    run = Run(recipe, build_tasks(recipe), material, module, ear, targets, console)
    with file_lock(cache):
        encode_clips(run)
    check_data(recipe.folder, {name: split.order_depends_on() for name, split in run.data.splits.items()})
    return run


def encode_clips(run: Run) -> None:
    """Check and encode every clip; leave out what is faulty, or stop, as the recipe says.

    Raises:
        ManifestError: clips are faulty and the policy is `error`, or nothing is left.
    """
    clips = [clip for split in run.data.splits.values() for clip in split.clips()]
    with run.progress() as progress, on_device(run.module.encoder):
        faults = run.audio_reader.prepare(run.module.encoder, list(dict.fromkeys(clips)), progress)
    if faults and run.recipe.data.policy == "error":
        shown = "\n".join(f"  {fault.problem}" for fault in faults[:20])
        more = f"\n  and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise ManifestError(f"{len(faults)} clips cannot be used (data.policy=skip leaves them out):\n{shown}{more}")
    run.data.faults += faults
    bad = {Path(fault.path) for fault in faults}
    run.data.splits = {name: split.without(bad) for name, split in run.data.splits.items()}
    for name in ("train", "validation"):
        if not run.data.splits[name].utterances:
            raise ManifestError(f"no utterance is left in {name!r}: data.{name} must name a manifest with usable lines")
        for stage in run.recipe.stages:
            _check_serves(run, stage, name)


def _check_serves(run: Run, stage: str, split: str) -> None:
    """Say how many utterances a stage leaves aside.

    Raises:
        ManifestError: all of them, so that it could not train, which is told before the stages before it do.
    """
    node, material, training = run.recipe.stages[stage], run.data.splits[split], split == "train"
    weights = material.of_stage(node, run.example_sampler(stage, cut=training), training=training)
    served, count = int((weights > 0).sum()), len(material.utterances)
    if not served:
        raise ManifestError(
            f"stage {stage!r}: of the {count} utterances of {split!r} none can serve its tasks "
            f"({', '.join(node.tasks)}), or none has a weight: look at the manifests' labels, and at `tasks`, `weight` "
            "and `parts` in the recipe"
        )
    if served < count:
        run.console.print(f"stage {stage}: {served:,} of {count:,} utterances of {split} serve its tasks")


def train(run: Run) -> Path | None:
    """Run all stages; returns the best checkpoint of the last, None where there is no stage."""
    best: Path | None = None
    for number, name in enumerate(run.recipe.stages, 1):
        best = train_stage(run, number, name, best)
    return best


def stage_folder(recipe: Recipe, name: str) -> Path:
    return recipe.folder / "stages" / f"{list(recipe.stages).index(name) + 1}-{name}"


def train_stage(run: Run, number: int, name: str, before: Path | None) -> Path:
    """One stage, from the best checkpoint of the one before; returns its own best checkpoint."""
    folder, node = stage_folder(run.recipe, name), run.recipe.stages[name]
    best, done = folder / "best.ckpt", folder / "done.json"
    if done.is_file():
        return best
    if before is not None:
        run.module.load_trained(read_trained(before), str(before))
    resume = latest(folder, run.console)
    meter, guard = ThroughputMeter(), NonFiniteGuard(folder / "skipped.jsonl", name, run.console)
    recent = ResumeCheckpoint(folder / LAST, run.recipe.checkpoint_every)
    trainer = _trainer(run, folder, node, [meter, guard, recent, SkippedRows(run.data.faults)])
    batch = node.batch_size * trainer.world_size
    sampler = _sampler(run, name, "train", _consumed(resume, batch), trainer)
    run.module.start_stage(name, len(sampler))
    module = _trained_module(run, trainer, name, len(sampler))
    trainer.val_check_interval = max(1, len(sampler) // (node.epochs * node.val_checks_per_epoch))
    training, validation = _loader(run, name, "train", sampler), _validation_loader(run, name, trainer)
    if is_sharded(run.recipe.trainer):
        run.module.llm.unload()  # until a stage wants targets, or the scoring: the one that trains is another
    run.console.rule(f"stage {number} of {len(run.recipe.stages)}: {name}, {len(sampler)} steps")
    with readable_errors(trainer):
        trainer.fit(module, training, validation, ckpt_path=resume, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        scores = {key: float(value) for key, value in trainer.callback_metrics.items()}
        trainable = sum(weight.numel() for weight in run.module.trainable_parameters())
        told = {"steps": trainer.global_step, "batch": batch, "skipped": len(guard.skipped), "trainable": trainable}
        atomic_write(done, json.dumps({**told, **meter.report(), **scores}, indent=2) + "\n")
    if recent.agreed(trainer):  # in the last validation, or since
        raise Terminated
    return best


def _trained_module(run: Run, trainer: L.Trainer, stage: str, steps: int) -> SpeechLLM:
    """The run's own module; under DeepSpeed another one, since its hooks stay on what it has trained.

    That module's large parts come inside `fit`, where ZeRO's stage 3 shards them as they are read.
    """
    if not isinstance(trainer.strategy, DeepSpeedStrategy):
        return run.module
    owned, weights = run.module.trained_prefixes, run.module.state_dict()
    module = SpeechLLM(run.recipe.plain())
    module.init_from({name: weight for name, weight in weights.items() if name.startswith(owned)})
    module.start_stage(stage, steps)
    return module


def read_trained(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The trained weights of a checkpoint, by name; see `read_checkpoint`."""
    weights: dict[str, torch.Tensor] = read_checkpoint(checkpoint)["state_dict"]
    return weights


def _consumed(checkpoint: Path | None, batch: int) -> int:
    """Batches of the stage that a killed run has trained on, of `batch_size` utterances from all processes together.

    Raises:
        ConfigError: its batches were larger or smaller, so that their number says nothing here.
    """
    if checkpoint is None:
        return 0
    kept = read_checkpoint(checkpoint, mapped=True)
    if kept.get("batch_size", batch) != batch:
        raise ConfigError(
            f"{checkpoint}: this stage was begun with {kept['batch_size']} utterances a step in all processes, and "
            f"would go on with {batch}: change the stage's `batch_size` with the number of processes"
        )
    return int(kept["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"])


def _trainer(run: Run, folder: Path, node: StageConfig, callbacks: list[Callback]) -> L.Trainer:
    """One Lightning epoch is a whole stage: its sampler goes through all epochs, so a place in it is one number.

    Raises:
        ConfigError: the recipe's `trainer` has an argument that Lightning does not take.
    """
    best = ModelCheckpoint(
        folder, "best", monitor="val/loss", save_weights_only=True, auto_insert_metric_name=False,
        enable_version_counter=False, save_on_train_epoch_end=False,
    )  # fmt: skip
    defaults: dict[str, Any] = {"accelerator": "auto", "devices": 1, "log_every_n_steps": 10}
    chosen = {**defaults, **run.recipe.trainer}
    shown = [RichProgressBar(leave=True)] if chosen.get("enable_progress_bar", True) else []
    try:
        trainer = L.Trainer(
            **trainer_arguments(chosen),
            max_epochs=1,
            num_sanity_val_steps=0,
            gradient_clip_val=node.grad_clip,
            use_distributed_sampler=False,
            enable_model_summary=False,
            callbacks=[best, *callbacks, *shown],
            logger=CSVLogger(folder, name="metrics"),
            default_root_dir=run.recipe.folder,
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: Lightning refuses these arguments: {error}") from None
    write_checkpoints_atomically(trainer)
    return trainer


def _sampler(run: Run, stage: str, split: str, start: int, trainer: L.Trainer) -> BatchSampler | LazyBatchSampler:
    node, material = run.recipe.stages[stage], run.data.splits[split]
    training = split == "train"
    weights = material.of_stage(node, run.example_sampler(stage, cut=training), training=training)
    if isinstance(material, LazySplit):
        return LazyBatchSampler(
            material.seconds, weights, node.batch_size, node.epochs, run.recipe.seed, trainer.global_rank,
            trainer.world_size, start,
        )  # fmt: skip
    return BatchSampler(
        seconds=[utterance.seconds for utterance in material.utterances],
        weights=weights.tolist(),
        batch_size=node.batch_size,
        epochs=node.epochs if training else 1,
        seed=run.recipe.seed,
        rank=trainer.global_rank,
        ranks=trainer.world_size,
        start=start,
    )


def _loader(run: Run, stage: str, split: str, sampler: BatchSampler | LazyBatchSampler) -> DataLoader[Any]:
    """Batches of a stage; targets that only the LLM can give are made first, for all its epochs."""
    node, material = run.recipe.stages[stage], run.data.splits[split]
    drawing = run.example_sampler(stage, cut=split == "train")

    def draw(utterance: Utterance, epoch: int, number: int) -> Example | None:
        return drawing(utterance, epoch, number, utterance.only)

    parts = (
        material.utterances,
        draw,
        node.tasks_per_utterance if split == "train" else 1,
        run.targets.complete,
        run.audio_reader.read,
    )
    if isinstance(sampler, LazyBatchSampler):
        unread = LazyExamples(*parts, skip=run.recipe.data.policy == "skip")
        return _reading(unread, sampler, run.recipe.data.num_workers)
    data = Examples(*parts)
    if any(weight and run.tasks[task].generated for task, weight in node.tasks.items()):
        wanted = (example for rows in sampler.order for example in data.examples(rows))
        with run.progress() as progress:
            run.targets.make(run.module.llm, wanted, progress)
    return _reading(data, sampler, run.recipe.data.num_workers)


def _reading(data: Examples, sampler: BatchSampler | LazyBatchSampler, workers: int) -> DataLoader[Any]:
    return DataLoader(data, batch_size=None, sampler=sampler, num_workers=workers, worker_init_fn=ignore_signals)


def _validation_loader(run: Run, stage: str, trainer: L.Trainer) -> DataLoader[Any]:
    sampler = _sampler(run, stage, "validation", 0, trainer)
    return _loader(run, stage, "validation", sampler)
