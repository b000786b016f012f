"""A run: its recipe, data, module and targets, and all that must be right before training starts."""

import logging
import time
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import cast

import lightning as L
from rich.console import Console

from sottovoce.adapters import Adapter
from sottovoce.cache_notes import note_use
from sottovoce.config.recipe import Recipe
from sottovoce.data.examples import ExampleSampler
from sottovoce.data.manifest import refuse
from sottovoce.data.skipped import LineFault
from sottovoce.data.tasks import Task
from sottovoce.device import on_device
from sottovoce.errors import ConfigError, MissingError
from sottovoce.evaluation import OWN_METRICS
from sottovoce.hub import bundle_of
from sottovoce.io import file_lock
from sottovoce.lightning_modules.bundle import bundle_weights, check_shapes
from sottovoce.lightning_modules.own_callbacks import own_callbacks
from sottovoce.lightning_modules.preflight import check_devices, check_room, check_sides, served, unscored
from sottovoce.lightning_modules.preflight import example_sampler_of as example_sampler_of
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.lightning_modules.trackers import Trackers
from sottovoce.lightning_modules.trainer_settings import check_trainer, is_trial, processes
from sottovoce.llms.ctc_head import frames_needed
from sottovoce.progress import Progress
from sottovoce.training.audio_reader import AudioReader
from sottovoce.training.category_labels import check_head_labels
from sottovoce.training.llm_targets import Targets
from sottovoce.training.preparation_helpers import starter
from sottovoce.training.readings import scored_readings, stage_readings
from sottovoce.training.row_lengths import RowLengths, check_prompts
from sottovoce.training.run_folder import begun, check_data, check_folder, open_folder
from sottovoce.training.splits import DataSplits, LazySplit, build_tasks, check_content_apart, read_splits
from sottovoce.training.stage_rows import check_draws

_log = logging.getLogger(__name__)
ALIGNED = 1_000  # transcripts that are held against their clips


@dataclass
class Run:
    """What the stages and the scoring share."""

    recipe: Recipe
    tasks: dict[str, Task]
    data: DataSplits
    module: SpeechLLM
    audio_reader: AudioReader
    slots: dict[str, str]  # slot -> the text equivalent to its speech
    cache: Path  # folder of encoder outputs and of targets
    console: Console  # of the command's result, and of progress
    began: float = field(default_factory=time.monotonic)  # seconds, from which `trainer.max_time` counts
    barred: dict[tuple[str, str], dict[str, frozenset[str]]] = field(default_factory=dict)  # see `ExampleSampler`
    trackers: Trackers = field(default_factory=Trackers)  # none, unless `fit` opens those of the recipe

    @cached_property
    def targets(self) -> Targets:
        """Targets that the LLM makes itself, from the texts in the slots."""
        made = Targets(self.cache, self.module.llm.fingerprint(), self.slots, self.recipe.target_max_new_tokens)
        note_use(made.cache.file, self.recipe.llm.checkpoint, self.recipe.folder)
        return made

    @cached_property
    def row_lengths(self) -> RowLengths:
        """How long rows are for the LLM, and which it cannot read."""
        module, frames = self.module, cache(self.module.encoder.output_length)

        def speech(slot: str, clip: Path) -> int:
            return cast(Adapter, module.adapters[slot]).output_length(frames(self.audio_reader.count_samples(clip)))

        llm, most, made = module.llm, self.recipe.evaluation.max_new_tokens, self.recipe.target_max_new_tokens
        return RowLengths(llm.chat, llm.context_length, llm.checkpoint, speech, most, made, self.recipe.instructions)

    def progress(self) -> Progress:
        return Progress(self.console, bars=self.recipe.trainer.get("enable_progress_bar") is not False)

    def example_sampler(self, stage: str | None, *, cut: bool) -> ExampleSampler:
        return example_sampler_of(self.recipe, self.tasks, stage, cut=cut)


def prepare_run(recipe: Recipe, console: Console, *, trains: bool = True) -> Run:
    """Everything that must be right before training, or `SottovoceError`: folder, data, every clip, frozen parts.

    `trains`: whether stages that have not begun will; if not, nothing need serve their tasks, the bundle that the run
    began from may be gone (its weights are in the run's own), and the run's recipe stays as it is.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its notices are not about the recipe
    check_trainer(recipe)
    check_devices(recipe.trainer, compiles=recipe.compile)
    own_callbacks(recipe)
    for name, node in recipe.evaluation.metrics.items():
        OWN_METRICS.check(node.metric, f"evaluation.metrics.{name}.metric")
    begins_from = _begins_from(recipe, needed=trains or recipe.evaluation.voicebench is not None)
    cache = Path(recipe.data.cache or recipe.folder / "cache")
    with file_lock(cache):  # the first process reads weights from disk, and makes what a corpus makes
        check_folder(recipe.folder, recipe.plain())
        L.seed_everything(recipe.seed, workers=True, verbose=False)
        data, tasks = read_splits(recipe), build_tasks(recipe)
        check_head_labels(recipe, data)
        check_sides(recipe, data, tasks, _ahead(recipe, trains=trains))
        module = SpeechLLM(recipe)
        if begins_from:
            check_shapes(module, begins_from, begins=True)
        module.configure_model()
        if trains and not is_trial(recipe):
            open_folder(recipe.folder, recipe.plain())  # now that nothing is missing: a mended recipe begins anew
    if module.llm.passed_over:
        _log.info(module.llm.passed_over)
    if begins_from:
        module.load_trained(bundle_weights(begins_from), str(recipe.init_from), begins=True)
    kept = recipe.data.cache and not recipe.trains_encoder  # what an encoder that learns returns is soon out of date
    most, dtype = recipe.data.max_seconds, recipe.data.cache_dtype
    reader = AudioReader(module.encoder, cache if kept else None, most, module.layers, dtype)
    run = Run(recipe, tasks, data, module, reader, module.slots, cache, console)
    if trains:
        check_room(recipe, module, data)
        if note := unscored(recipe, data, tasks):
            console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    encode_clips(run, trains=trains)
    if not is_trial(recipe):
        check_data(recipe.folder, {name: run.data.splits[name].fingerprint_rows() for name in ("train", "validation")})
    return run


def _begins_from(recipe: Recipe, *, needed: bool) -> Path | None:
    """The bundle that a run begins from; None for none, and for one that is gone and not needed."""
    if not recipe.init_from:
        return None
    why = f"there is no bundle {recipe.init_from}: train the recipe that leaves it first"
    try:
        if (folder := bundle_of(recipe.init_from)).is_dir():
            return folder
    except MissingError as error:
        why = str(error)
    if needed:
        raise MissingError.at("init_from", "not-found", why)
    return None


def encode_clips(run: Run, *, trains: bool = True) -> None:
    """Check every row, check and encode every clip; leave out what is faulty, or stop by an error, as the recipe says.

    Raises:
        ManifestError: rows or clips are faulty and the recipe's policy is `error`; or the same samples are on two
            sides, under whatever names.
        ConfigError: a prompt holds a control token of the LLM's chat.
    """
    _note_features(run)
    for note in run.data.notes:
        _log.warning(note)
    scored = {reading.name: reading.task for reading in scored_readings(run.recipe, run.tasks)}
    own = [overrides.tasks for split in run.data.splits.values() for overrides in split.overrides]
    for tasks in (run.tasks, scored, *own):
        check_prompts(run.module.llm.chat, tasks)
    reader = run.audio_reader
    claimed = {clip: reader.count_samples(clip) for split in run.data.splits.values() for clip in split.clips()}
    reader.samples |= claimed
    _leave_out_unreadable(run)
    reader.silent = frozenset(path for split in run.data.splits.values() for path in split.silent())
    with run.progress() as progress, on_device(run.module.encoder):
        clips = [clip for split in run.data.splits.values() for clip in split.clips()]
        clips, node = list(dict.fromkeys(clips)), run.recipe.data
        encoder, asked, gpus = run.module.encoder, node.prepare_workers, _gpus(run.recipe)
        threads = encoder.reentrant
        helpers = starter(reader, run.cache, run.recipe.encoder, clips, asked, gpus, threads=threads)
        faults = reader.prepare(encoder, clips, progress, helpers)
    if faults and run.recipe.data.policy == "error":
        refuse(f"{len(faults)} clips cannot be used (data.policy=skip leaves them out):", faults)
    run.data.faults += faults
    bad = {Path(fault.where) for fault in faults}
    run.data.splits = {name: split.without(bad) for name, split in run.data.splits.items()}
    longer = {clip for clip, count in reader.samples.items() if count > claimed.get(clip, count)}
    if longer:  # than their headers say
        _leave_out_unreadable(run, longer)
    heard = {clip: digest for clip, digest in reader.keys.items() if clip not in reader.silent}  # silence is all alike
    check_content_apart(run.data, heard)
    others = [clip for name in ("validation", "test") for clip in run.data.splits[name].clips()]
    reader.apart = frozenset(reader.keys[clip] for clip in others)
    ahead = _ahead(run.recipe, trains=trains)
    check_sides(run.recipe, run.data, run.tasks, ahead)  # again: clips and rows may have been left out
    for stage in ahead:
        for name in ("train", "validation"):
            _tell_served(run, stage, name)
    for stage in ahead:
        told = check_draws(stage, run.recipe, run.data.splits["train"], run.example_sampler(stage, cut=True))
        _log.info(told)
        _check_aligns(run, stage)


def _gpus(recipe: Recipe) -> int:
    """GPUs of this machine that the recipe trains on; `auto` and -1 are all."""
    known = str(recipe.trainer.get("devices", "auto")) not in ("auto", "-1")
    return processes(recipe.trainer) // int(recipe.trainer.get("num_nodes", 1)) if known else 256


def _note_features(run: Run) -> None:
    """Beside the encoder outputs: of which encoder they are, and that this run uses them."""
    if (cache := run.audio_reader.cache) is not None:
        node, layers = run.recipe.encoder, ", ".join(map(str, run.audio_reader.layers))
        of = f"{node['type']} {node.get('checkpoint') or ''}".strip()
        note_use(cache.folder, f"{of}, layer{'s' * (len(run.audio_reader.layers) > 1)} {layers}", run.recipe.folder)


def _check_aligns(run: Run, stage: str) -> None:
    """`ConfigError` where CTC can align none of the first transcripts, so that the stage would not train by it."""
    weights = run.recipe.stages[stage].ctc
    if not weights or isinstance(run.data.splits["train"], LazySplit):  # whose lines are checked when they are drawn
        return
    spoken = (u for u in run.data.splits["train"].utterances if u.audio and u.text)
    some = [(u.clip, run.module.llm.chat.ids_after_words(str(u.text))) for u in islice(spoken, ALIGNED)]
    for slot, weight in weights.items():
        fit = sum(frames_needed(text) <= run.row_lengths.speech(slot, clip) for clip, text in some)
        if weight and some and not fit:
            told = f"no transcript of {len(some)} has as few tokens as {slot} has embeddings of its clip: lower the "
            raise ConfigError.at(f"stages.{stage}.ctc.{slot}", "conflict", f"{told}adapter's `stack` or `stride`")


def _leave_out_unreadable(run: Run, clips: set[Path] | None = None) -> None:
    """Leave out rows that the LLM cannot read, of those that need one of some clips; or stop by `ManifestError`."""
    faults: dict[str, list[LineFault]] = {}
    for name, split in run.data.splits.items():
        if isinstance(split, LazySplit):
            continue
        rows = [u for u in split.utterances if clips is None or not clips.isdisjoint(u.clips)]
        readings = scored_readings(run.recipe, run.tasks) if name == "test" else []
        for stage, node in run.recipe.stages.items() if name != "test" else ():
            sampler = run.example_sampler(stage, cut=False)
            drawn = split.stage_weights(node, sampler, training=name == "train")
            used = {id(u) for u, weight in zip(split.utterances, drawn, strict=True) if weight > 0}
            read = stage_readings(run.recipe, run.tasks, stage)
            faults.setdefault(name, []).extend(run.row_lengths.faults((u for u in rows if id(u) in used), read))
        faults.setdefault(name, []).extend(run.row_lengths.faults(rows, readings))
    found = list({fault.where: fault for each in faults.values() for fault in each}.values())
    if found and run.recipe.data.policy == "error":
        refuse(f"{len(found)} rows cannot be read by the LLM (data.policy=skip leaves them out):", found)
    run.data.faults += found
    for name, each in faults.items():
        places, split = {fault.where for fault in each}, run.data.splits[name]
        run.data.splits[name] = split.only(u.place not in places for u in split.utterances) if each else split


def _ahead(recipe: Recipe, *, trains: bool) -> list[str]:
    """Stages that will train: those that have begun need no more than they had."""
    old = set() if is_trial(recipe) else set(begun(recipe.folder))
    return [stage for stage in recipe.stages if trains and stage not in old]


def _tell_served(run: Run, stage: str, split: str) -> None:
    """Say how many utterances a stage leaves aside."""
    data = run.data.splits[split]
    weights = served(run.recipe, data, run.tasks, stage, split)
    drawn, count = sum(weights), len(data.utterances)
    if drawn < count:
        _log.info(f"stage {stage}: {drawn:,} of {count:,} utterances of {split} serve its tasks")
    if isinstance(data, LazySplit):
        return  # which of its lines are text alone shows when they are drawn
    written = sum(u.audio is None and wanted for u, wanted in zip(data.utterances, weights, strict=True))
    if written:
        _log.info(f"stage {stage}: {written:,} of {drawn:,} utterances of {split} are text alone")


def frozen_fingerprints(module: SpeechLLM) -> dict[str, str]:
    """Digests of what no stage trains: the encoder, if it does not learn, and all of the LLM that is not unfrozen."""
    encoder = {} if module.owns_encoder else {"encoder": module.encoder.fingerprint()}
    return {**encoder, "llm": module.llm.fingerprint(frozen=True)}
