"""What can be known before a clip is encoded: devices, what the sides of the data serve, room on the disk."""

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sottovoce.config.recipe import Recipe, used_tasks
from sottovoce.config.sections import ALL, LOSS, StageConfig
from sottovoce.data.examples import ExampleSampler
from sottovoce.data.tasks import Task
from sottovoce.encoders.cache_formats import stored_bytes
from sottovoce.encoders.feature_shards import count_members
from sottovoce.errors import ConfigError, ManifestError
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.lightning_modules.trainer_settings import processes
from sottovoce.training.splits import DataSplits, LazySplit, Split

_COPIES = 8  # of what trains: two checkpoints with AdamW's moments, the best one, a bundle


def example_sampler_of(recipe: Recipe, tasks: Mapping[str, Task], stage: str | None, *, cut: bool) -> ExampleSampler:
    """How examples of a stage are drawn; None: for scoring, where the task and the slots are given."""
    node = recipe.stages[stage] if stage else StageConfig(tasks={}, lr=1.0)
    slots = {name: slot.text for name, slot in recipe.slots.items()}
    trains = frozenset(node.train or slots)
    return ExampleSampler(
        tasks, node.tasks, slots, trains, node.err, recipe.seed, stage or "evaluation", cut, recipe.instructions,
        carries=recipe.carries, per_task=node.tasks_per_utterance == ALL,
    )  # fmt: skip


def check_devices(trainer: Mapping[str, Any], *, compiles: bool = False) -> None:
    """`ConfigError` where a recipe asks for GPUs, or to compile for CPUs, and this machine does not have it."""
    wanted = str(trainer.get("accelerator", "auto"))
    if wanted in ("gpu", "cuda") and not torch.cuda.is_available() and not torch.backends.mps.is_available():
        why = "there is no GPU here, or PyTorch does not see it: take accelerator=cpu, or auto"
        raise ConfigError.at("trainer.accelerator", "unavailable", why)
    here, nodes = torch.cuda.device_count(), int(trainer.get("num_nodes", 1))
    compiler = os.environ.get("CXX", "g++")
    if compiles and (wanted == "cpu" or not here) and not shutil.which(compiler):
        why = f"torch.compile needs a C++ compiler on a CPU, and there is no {compiler} (CXX names another)"
        raise ConfigError.at("compile", "unavailable", why)
    each = processes(dict(trainer)) // nodes
    if wanted in ("gpu", "cuda", "auto") and 0 < here < each:
        raise ConfigError.at("trainer.devices", "unavailable", f"it asks for {each} GPUs, and there are {here} here")


def check_sides(recipe: Recipe, data: DataSplits, tasks: Mapping[str, Task], stages: Collection[str]) -> None:
    """Whether the sides have what these stages and their monitors need, as far as lines tell.

    Raises:
        ManifestError: a side is empty, or none of its utterances serves a stage, or a score that a stage monitors.
    """
    learns = recipe.stages or (recipe.cascade and not recipe.cascade.recognizer)
    for side in ("train", "validation") if learns else ():
        if not data.splits[side].utterances:
            told = f"no utterance is left in {side!r}: data.{side} must name a manifest with usable lines"
            raise ManifestError(told, code="empty", where=f"data.{side}")
        for stage in stages:
            served(recipe, data.splits[side], tasks, stage, side)
    for stage in stages:
        task = str(recipe.stages[stage].monitor or LOSS).partition("/")[0]
        if task != LOSS and not any(serving(recipe, data.splits["validation"], tasks, task)):
            told = f"no utterance of 'validation' has what {task} needs, whose score stages.{stage}.monitor names"
            raise ManifestError(told, code="empty", where=f"stages.{stage}.monitor")


def served(recipe: Recipe, split: Split, tasks: Mapping[str, Task], stage: str, side: str) -> list[bool]:
    """Whether a stage draws each utterance of a side; `ManifestError` where it draws none."""
    node, training = recipe.stages[stage], side == "train"
    weights = split.stage_weights(node, example_sampler_of(recipe, tasks, stage, cut=training), training=training)
    if not (weights > 0).any():
        told = f"stage {stage!r}: of the {len(split.utterances)} utterances of {side!r} none can serve its tasks "
        told += f"({', '.join(node.tasks)}), or none has a weight: look at the manifests' labels, and at `tasks`, "
        told += "`weight` and `parts` in the recipe"
        raise ManifestError(told, code="empty", where=f"stages.{stage}.tasks")
    drawn: list[bool] = (weights > 0).tolist()
    return drawn


def serving(recipe: Recipe, split: Split, tasks: Mapping[str, Task], task: str) -> Iterator[bool]:
    """Whether each utterance can be asked a task, and scored."""
    sampler = replace(example_sampler_of(recipe, tasks, None, cut=False), weights={task: 1.0})
    yield from (bool(sampler.possible(utterance)) for utterance in split.utterances)


def unscored(recipe: Recipe, data: DataSplits, tasks: Mapping[str, Task]) -> str:
    """A note on what the test side has nothing for, which would otherwise show when all is trained."""
    asked = recipe.evaluation.tasks or used_tasks(recipe)
    idle = [task for task in asked if not any(serving(recipe, data.splits["test"], tasks, task))]
    if not idle:
        return ""
    what = "nothing" if len(idle) == len(asked) else f"no {', '.join(idle)}"
    return f"{what} will be scored: no utterance of data.test has what that needs"


def check_room(recipe: Recipe, module: SpeechLLM, data: DataSplits) -> str:
    """How much disk encoder outputs and checkpoints will take, and how much is free, in a line.

    Clips that may lie in the cache already are not counted, nor is what a lazy side has.

    Raises:
        ConfigError: a disk has too little room.
    """
    needs = {recipe.folder: _checkpoints(recipe, module)}
    if recipe.data.cache and not recipe.trains_encoder:
        cache = Path(recipe.data.cache)
        needs[cache] = needs.get(cache, 0) + _features(module, data, cache / "features")
    disks: dict[int, list[Path]] = {}
    for folder in needs:
        disks.setdefault(os.stat(_existing(folder)).st_dev, []).append(folder)
    told = []
    for folders in disks.values():
        needed, free = sum(needs[folder] for folder in folders), shutil.disk_usage(_existing(folders[0])).free
        names = " and ".join(map(str, folders))
        told.append(f"{names}: {needed / 1e9:.2g} GB needed, {free / 1e9:.3g} GB free")
        if needed > free:
            where = "data.cache" if Path(str(recipe.data.cache)) in folders else "output_dir"
            raise ConfigError.at(where, "storage", f"the disk has too little room: {told[-1]}")
    return "disk: " + "; ".join(told)


def _checkpoints(recipe: Recipe, module: SpeechLLM) -> int:
    names, weights = module.trained_prefixes, module.named_parameters()
    trained = sum(weight.numel() * weight.element_size() for name, weight in weights if name.startswith(names))
    return _COPIES * trained * len(recipe.stages)


def _features(module: SpeechLLM, data: DataSplits, folder: Path) -> int:
    """Bytes, in the recipe's `data.cache_dtype`, of clips that are not in the cache yet."""
    encoder, seconds = module.encoder, dict[Path, float]()
    for split in data.splits.values():
        if not isinstance(split, LazySplit):
            seconds |= {u.clip: u.seconds for u in split.utterances if u.audio}
    if not seconds:
        return 0
    frames = sum(encoder.output_length(int(length * encoder.sample_rate)) for length in seconds.values())
    dtype = module.recipe.data.cache_dtype
    kept = max(map(count_members, folder.glob(f"*-{dtype}")), default=0)
    missing = max(0, len(seconds) - kept) / len(seconds)
    return int(stored_bytes(dtype, len(seconds), frames, len(module.layers) * encoder.dim) * missing)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    folder = folder.absolute()
    return next(each for each in (folder, *folder.parents) if each.exists())
