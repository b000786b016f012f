"""A trained run, or its bundle, opened to be looked at: weights, data, answers; only caches change in its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from sottovoce.config.recipe import Recipe, load, used_tasks
from sottovoce.config.sections import SlotText
from sottovoce.config_model import unknown
from sottovoce.data.examples import Example
from sottovoce.data.own_attribute import build_task
from sottovoce.data.utterance import Utterance
from sottovoce.errors import ConfigError, ManifestError, MissingError
from sottovoce.hub import bundle_folder, bundle_home
from sottovoce.lightning_modules.bundle import PRINTS, bundle_weights, read_bundle
from sottovoce.lightning_modules.curriculum import read_trained, stage_folder
from sottovoce.lightning_modules.run import Run, encode_clips
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.scoring.evaluate import test_sources
from sottovoce.training.audio_reader import AudioReader
from sottovoce.training.run_folder import load_run
from sottovoce.training.splits import DataSplits, LazySplit, Split, build_tasks, read_splits

LOOKED_AT = 10  # lines of a lazy manifest that are read for each row that is wanted
Sides = dict[str, dict[str, list[Example]]]  # task -> side -> examples


@dataclass
class TrainedRun:
    """Weights of one stage, and where the rest of its run lies."""

    module: SpeechLLM
    folder: Path  # of the run
    stage: Path | None  # its folder; None where nothing was trained, or there is the bundle alone
    answers: Path  # folder of what was answered with these weights, if it was
    source: str  # what was opened


def open_trained(folder: Path, stage: str | None, overrides: Sequence[str]) -> TrainedRun:
    """The weights of a stage of a run; those of its last stage, or of its bundle, where none is named.

    Raises:
        ConfigError: the run has no such stage, or a bundle is asked for one.
        MissingError: this is no run, or the stage has not been trained.
    """
    is_bundle = (bundle_folder(folder) / PRINTS).is_file()
    if is_bundle and stage:
        raise ConfigError.at("--stage", "conflict", f"{folder} is a bundle; name the run's folder")
    home = bundle_home(folder) if is_bundle else folder
    bundle = bundle_folder(folder) if is_bundle else folder / "bundle"
    recipe = load(bundle / "recipe.yaml", overrides, own=False) if is_bundle else load_run(folder, overrides)
    if stage is not None:
        for error in unknown("--stage", [stage], list(recipe.stages), "stage of this run"):
            raise error
    stages = {name: home / "stages" / stage_folder(recipe, name).name for name in recipe.stages}
    last = list(stages)[-1] if stages else None
    if stage is None and (bundle / PRINTS).is_file():
        own = stages[last] if last and stages[last].is_dir() else None
        return TrainedRun(read_bundle(bundle, overrides), home, own, home / "evaluation", str(bundle))
    done = [name for name, place in stages.items() if (place / "best.ckpt").is_file()]
    name = stage or (done[-1] if done else last)
    module = SpeechLLM(recipe)
    if name is None:
        module.configure_model()
        if recipe.init_from:
            module.load_trained(bundle_weights(recipe.init_from), recipe.init_from, begins=True)
        return TrainedRun(module.eval(), home, None, home / "evaluation", recipe.init_from or str(folder))
    best = stages[name] / "best.ckpt"
    if not best.is_file():
        raise MissingError(f"{best} is not there: stage {name!r} of this run has not been trained", where=best)
    module.configure_model()
    module.load_trained(read_trained(best), str(best))
    scores = home / "evaluation" if name == last else home / "evaluation" / name
    return TrainedRun(module.eval(), home, stages[name], scores, str(best))


def prepare_sides(
    trained: TrainedRun, tasks: Sequence[str], limit: int, test: Sequence[str], console: Console
) -> tuple[Run, Sides]:
    """A run that holds what is looked at: of each task at most `limit` test rows, and four times as many to learn by.

    Rows have the label or transcript of their task, speakers of the test side are in no training row, and every clip
    has been checked, and encoded where the recipe has a cache.

    Raises:
        ConfigError: there is no such task.
        ManifestError: no test row is left.
    """
    module, whole = trained.module, trained.module.recipe
    known = list(dict.fromkeys([*(whole.evaluation.tasks or []), *used_tasks(whole)]))
    for error in unknown("--tasks", tasks, known, "task of this run"):
        raise error
    asked = list(tasks) or whole.evaluation.tasks or known
    data = _data(trained, test)
    recipe = replace(whole, stages={}, cascade=None, evaluation=replace(whole.evaluation, tasks=asked, limit=None))
    cache = Path(whole.data.cache or trained.folder / "cache")
    kept = cache if whole.data.cache and not module.owns_encoder else None
    most, dtype = whole.data.max_seconds, whole.data.cache_dtype
    reader = AudioReader(module.encoder, kept, most, module.layers, dtype)
    scored = whole.evaluation.task_overrides
    own = {name: build_task(name, {**whole.tasks[name], **knobs}) for name, knobs in scored.items()}
    run = Run(recipe, {**build_tasks(whole), **own}, data, module, reader, module.slots, cache, console)
    sides: Sides = {task: _rows_of(run, task, limit) for task in asked}
    run.data.splits = {
        "train": _chosen(data.splits["train"], [e.utterance for task in asked for e in sides[task]["train"]]),
        "validation": Split(),
        "test": _chosen(data.splits["test"], [e.utterance for task in asked for e in sides[task]["test"]]),
    }
    encode_clips(run)
    left = {name: {u.id for u in split.utterances} for name, split in run.data.splits.items()}
    for found in sides.values():
        for side, examples in found.items():
            found[side] = [e for e in examples if e.utterance.id in left[side] and _readable(run, e)]
    if not any(found["test"] for found in sides.values()):
        told = f"no utterance of the test side has what {', '.join(asked)} need"
        raise ManifestError(told, code="empty", where=test[0] if test else "data.test")
    return run, sides


def _data(trained: TrainedRun, test: Sequence[str]) -> DataSplits:
    """The run's own data, or manifests of the user's own in place of its test side: then training data may be gone."""
    recipe = trained.module.recipe
    if not test:
        return read_splits(recipe)
    none = replace(recipe.data, corpus=None, train=[], validation=[], test=test_sources(test), validate="eager")
    data = read_splits(replace(recipe, data=none))
    try:
        data.splits["train"] = read_splits(recipe).splits["train"]
    except MissingError as error:
        data.notes.append(
            f"the training data are not there ({error.where}): probes are cross-validated on the test side"
        )
    return data


def _rows_of(run: Run, task: str, limit: int) -> dict[str, list[Example]]:
    """Test rows of a task, and training rows by other speakers."""
    draw = replace(run.example_sampler(None, cut=False), weights={task: 1.0}, slots=run.slots)
    test = spread(_examples(run.data.splits["test"], partial(draw, epoch=0, number=0), task, limit), limit)
    speakers = {e.utterance.speaker for e in test} - {None}
    clips = {clip for e in test for clip in e.utterance.clips}
    train = _examples(run.data.splits["train"], partial(draw, epoch=0, number=0), task, 4 * limit)
    apart = [e for e in train if e.utterance.speaker not in speakers and clips.isdisjoint(e.utterance.clips)]
    return {"test": test, "train": spread(apart, 4 * limit)}


def _examples(split: Split, draw: "partial[Example | None]", task: str, wanted: int) -> list[Example]:
    rows = range(len(split.utterances))
    if isinstance(split, LazySplit):  # reading millions of lines would take hours
        rows = rows[:: max(1, len(rows) // (LOOKED_AT * wanted))]
    found = []
    for row in rows:
        try:
            utterance = split.utterances[row]
        except ManifestError:
            if not isinstance(split, LazySplit):
                raise
            continue  # a faulty line, which training leaves out, or ends at
        example = draw(utterance) if utterance.audio else None
        if example is not None and (task != "asr" or (example.target or "").strip()):
            found.append(example)
    return found


def spread(examples: Sequence[Example], most: int) -> list[Example]:
    """At most so many, spread evenly: a manifest may be sorted by speaker or label."""
    if len(examples) <= most:
        return list(examples)
    return [examples[row * len(examples) // most] for row in range(most)]


def _chosen(split: Split, utterances: list[Utterance]) -> Split:
    once = list({u.id: u for u in utterances}.values())
    return Split(once, [1.0] * len(once), split.names)


def _readable(run: Run, example: Example) -> bool:
    try:
        run.row_lengths.check_example(example, run.slots, teacher=example.target is None)
    except ManifestError:
        return False
    return True


def recipe_of_answers(trained: TrainedRun, task: str, modes: list[str], text: Mapping[str, SlotText]) -> Recipe:
    """The run's recipe, in which one task is answered under these choices of slots; `text` as in `evaluation.text`."""
    whole = trained.module.recipe
    own = {**whole.evaluation.text, **text}
    node = replace(whole.evaluation, tasks=[task], slots=modes, limit=None, text=own, judges={}, awareness=None)
    return replace(whole, evaluation=node)
