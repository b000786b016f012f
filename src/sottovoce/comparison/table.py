"""`sottovoce table`: train what is missing of a paper's systems, score it further, compare, and add what was published.

Judge, BERTScore and linear probe are those of Kang et al. (2024), table I and section V-C.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from safetensors.torch import load_file, save
from torch import Tensor

from sottovoce.comparison.compare import Measured, described, measured, remarks_on, reported_by, write_comparison
from sottovoce.comparison.finished_runs import FinishedRun, incomparable, read_run, refuse_incomparable
from sottovoce.comparison.table_config import TableRecipe, load, overrides_for, system_recipe
from sottovoce.config.recipe import Recipe
from sottovoce.config_model import Node
from sottovoce.data.utterance import Utterance
from sottovoce.device import on_device
from sottovoce.errors import SottovoceError, TrainingError
from sottovoce.evaluation import JUDGES, Prediction, Reply
from sottovoce.evaluation.linear_probe import probe
from sottovoce.evaluation.metrics import Measure, accuracy, mean_measure
from sottovoce.evaluation.paired_bootstrap import Key
from sottovoce.evaluation.reports.compare import Comparison, comparison_of, of_columns
from sottovoce.evaluation.reports.plots import tsne_picture
from sottovoce.evaluation.text_similarity import BertScore
from sottovoce.io import atomic_write
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.lightning_modules.fit import fit
from sottovoce.lightning_modules.trainer import is_rank_zero
from sottovoce.lightning_modules.trainer_settings import processes
from sottovoce.llms import ENGINES
from sottovoce.llms.answer_cache import CachedEngine
from sottovoce.progress import Progress
from sottovoce.scoring.provenance import is_scored
from sottovoce.scoring.speech_tokens import pooled_tokens
from sottovoce.training.run_folder import check_folder, digest_rows
from sottovoce.training.splits import read_splits

EMOTION, RESPONSE, SLOTS = "emotion", "response", "both"  # tasks, and the choice of slots that is compared
PICTURE = "tokens.png"
Runs: TypeAlias = dict[str, list[FinishedRun]]  # system -> its run of each seed
_log = logging.getLogger(__name__)


def table(config: str, overrides: Sequence[str] = ()) -> None:
    """The command. What is there already is used; the same command again goes on where it stopped."""
    console = Console(quiet=not is_rank_zero())
    recipe = load(Path(config), overrides)
    with Progress(console) as progress:
        runs = [(seed, name) for seed in recipe.seeds for name in recipe.systems]
        for seed, name in progress.track(runs, description="table", unit="run"):
            made = system_recipe(recipe, name, seed)
            if not is_finished(made):
                console.rule(made.name)
                train_run(made, recipe.systems[name].recipe, overrides_for(recipe, name, seed))
    if not is_rank_zero():
        return
    comparison = compare_systems(recipe, console)
    picture = draw_tokens(recipe)
    write_comparison(comparison, recipe.folder, console, picture.read_bytes() if picture else None)
    if picture:
        console.print(f"written  {picture}", highlight=False, soft_wrap=True)


def train_run(made: Recipe, config: str, overrides: Sequence[str]) -> None:
    """Train and score a run; one of several processes by a command of its own.

    Processes that ddp starts would otherwise wait in the next run, until their time-out, while the first one scores.
    """
    if processes(made.trainer) == 1 or "WORLD_SIZE" in os.environ:  # a launcher has started them all
        return fit(config, overrides)
    command = [sys.executable, "-m", "sottovoce.lightning_modules.fit", "--config", config, *overrides]
    if status := subprocess.run(command).returncode:
        raise TrainingError(f"{made.name}: its training ended with exit status {status}", code="died", where=made.name)


def is_finished(recipe: Recipe) -> bool:
    """Whether the run of this very recipe has been scored; a folder of another recipe is an error."""
    check_folder(recipe.folder, recipe.plain())
    return is_scored(recipe)


def compare_systems(recipe: TableRecipe, console: Console) -> Comparison:
    """Hold the systems of a table against each other, where they were asked the same, as its seeds must be."""
    runs: Runs = {}
    for name in recipe.systems:
        runs[name] = [read_run(system_recipe(recipe, name, seed).folder) for seed in recipe.seeds]
        refuse_incomparable(runs[name])
    pairs = {frozenset(pair): incomparable([*runs[pair[0]], *runs[pair[1]]]) for pair in combinations(runs, 2)}
    unpaired = {pair: faults[0] for pair, faults in pairs.items() if faults}
    of_a_pair = (name for name in runs if sum(name in pair for pair in unpaired) < len(runs) - 1)
    systems = described(runs)
    for name, node in recipe.systems.items():
        published = {**systems[name].published, **of_columns(node.paper)}
        systems[name] = replace(systems[name], title=node.title, published=published)
    scores, remarks = dict(measured(runs)), [*remarks_on(runs)]
    further: dict[str, Callable[[], tuple[Measured, list[str]]]] = {}
    if recipe.judge:
        further["BERTScore"] = partial(_bert_scores, recipe, runs)
        further["judge"] = partial(_judgements, recipe, recipe.judge, runs, console)
        for name in (name for name in runs if recipe.systems[name].probe):
            further[f"linear probe of {name}"] = partial(_probe, recipe, name)
    for what, score in further.items():
        try:
            found, notes = score()
        except SottovoceError as error:  # costs itself: the others, and what was trained for days, are there
            _log.warning(f"{what}: {error}")
            notes, found = [f"No {what}: {error}"], {}
        for key, by_system in found.items():
            scores[key] = {**scores.get(key, {}), **by_system}
        remarks += notes
    remarks += [f"No difference of {' and '.join(sorted(pair))}: {reason}." for pair, reason in unpaired.items()]
    baseline = next(of_a_pair, next(iter(runs)))  # the first that has a difference to any other
    return comparison_of(systems, scores, baseline, remarks, list(unpaired), reported_by(runs))


def _replies(run: FinishedRun) -> list[Prediction]:
    return [p for p in run.predictions if (p.task, p.slots) == (RESPONSE, SLOTS)]


def _bert_scores(recipe: TableRecipe, runs: Runs) -> tuple[Measured, list[str]]:
    if not recipe.bert_score:
        return {}, []
    bert = BertScore(recipe.bert_score.checkpoint, layer=recipe.bert_score.layer)
    with on_device(bert.model):
        found = {name: {run.seed: bert.measure(_replies(run)) for run in group} for name, group in runs.items()}
    return {Key(RESPONSE, "bert_score", SLOTS): found}, [f"BERTScore by {bert.name}, layer {bert.layer}."]


def _judgements(recipe: TableRecipe, node: Node, runs: Runs, console: Console) -> tuple[Measured, list[str]]:
    """Scores of one judge for all systems; a reply that it could not score in one run is left out of all."""
    engine = ENGINES.build(recipe.engine) if recipe.engine else None
    kept = CachedEngine(engine, recipe.folder / "judgements.jsonl", Progress(console=console)) if engine else None
    judge = JUDGES.build(node, kept)
    scores: dict[Key, dict[str, dict[int, dict[str, float | None]]]] = {}  # score -> system -> seed -> reply
    notes = [f"Judge: {judge.name}."]
    for name, group in runs.items():
        for run in group:
            replies = _replies(run)
            spoken = {u.id: u for u in read_splits(system_recipe(recipe, name, run.seed)).splits["test"].utterances}
            asked = [Reply(spoken[p.id].text or "", p.label or "", p.response) for p in replies]
            for aspect, verdict in judge.judge(asked).items():
                of_run = dict(zip([p.id for p in replies], verdict.scores, strict=True))
                key = Key(RESPONSE, f"judge_{aspect}", SLOTS)
                scores.setdefault(key, {}).setdefault(name, {})[run.seed] = of_run
                notes += [f"{name}, seed {run.seed}, {aspect}: {verdict.notes()}"] if verdict.notes() else []
    judged = {key: judged_in_all(by_system) for key, by_system in scores.items()}
    notes += [f"No {key.metric}: no reply has one in every run." for key, found in judged.items() if not found]
    return {key: found for key, found in judged.items() if found}, notes


def judged_in_all(scores: Mapping[str, Mapping[int, Mapping[str, float | None]]]) -> dict[str, dict[int, Measure]]:
    """System -> seed -> the mean of a judge's scores (by id of the utterance), of replies that have one in every run.

    A system of which a run has no score at all is left out, and costs the others nothing.
    """
    complete = {
        name: seeds for name, seeds in scores.items() if not any({*run.values()} <= {None} for run in seeds.values())
    }
    runs = [run for seeds in complete.values() for run in seeds.values()]
    lost = {reply for run in runs for reply, score in run.items() if score is None}
    found: dict[str, dict[int, Measure]] = {}
    for name, seeds in complete.items():
        for seed, run in seeds.items():
            if kept := [score for reply, score in run.items() if score is not None and reply not in lost]:
                found.setdefault(name, {})[seed] = mean_measure(kept)
    return found


def _probe(recipe: TableRecipe, name: str) -> tuple[Measured, list[str]]:
    """A probe of a system that learns from the training side and is tested on the test side, whose speakers are others.

    The table names its utterances; otherwise they are those of the system's own recipe.
    """
    found: dict[int, Measure] = {}
    for seed in recipe.seeds:
        made = system_recipe(recipe, name, seed)
        train, test = _probe_sides(recipe, made)
        both = [*train, *test]
        labels, speakers = [u.labels[EMOTION] for u in both], [str(u.speaker) for u in both]
        held_out = [row >= len(train) for row in range(len(both))]
        result = probe(_tokens(made, both).numpy(), labels, speakers, held_out=held_out)
        found[seed] = accuracy.measure(result.predictions)
    return {Key(EMOTION, "probe", SLOTS): {name: found}}, []


def _probe_sides(recipe: TableRecipe, made: Recipe) -> tuple[list[Utterance], list[Utterance]]:
    """Utterances with a label to train and to test on; of the table's own manifests spread over the training side."""
    if recipe.probe:
        data = replace(made.data, corpus=None, train=recipe.probe.train, validation=[], test=recipe.probe.test)
        made = replace(made, data=data)
    splits = read_splits(made).splits
    train, test = (_labelled(splits[side].utterances) for side in ("train", "test"))
    if recipe.probe and (count := len(train)) > recipe.probe_train:
        return [train[row * count // recipe.probe_train] for row in range(recipe.probe_train)], test
    return train[: recipe.probe_train], test


def _labelled(utterances: Sequence[Utterance]) -> list[Utterance]:
    return [u for u in utterances if u.audio and EMOTION in u.labels]


def _tokens(made: Recipe, utterances: Sequence[Utterance]) -> Tensor:
    """Mean speech tokens, (utterances, dim), kept in the run's folder."""
    digest = digest_rows(u.id for u in utterances)[:8]
    file = made.folder / "evaluation" / f"tokens-{len(utterances)}-{digest}.safetensors"
    if not file.is_file():
        trusted = ["llm.trust_remote_code=true"] if made.llm.trust_remote_code else []
        atomic_write(file, save({"tokens": pooled_tokens(read_bundle(made.folder / "bundle", trusted), utterances)}))
    return load_file(file)["tokens"]


def draw_tokens(recipe: TableRecipe) -> Path | None:
    """Figure 2: the speech tokens of the test side, coloured by emotion; None where no system is to be drawn."""
    panels = {}
    try:
        for name in recipe.picture:
            made = system_recipe(recipe, name, recipe.seeds[0])
            test = _labelled(read_splits(made).splits["test"].utterances)
            panels[recipe.systems[name].title] = (_tokens(made, test).numpy(), [u.labels[EMOTION] for u in test])
        if not panels:
            return None
        tsne_picture(panels, recipe.folder / PICTURE)
    except SottovoceError as error:  # matplotlib is an extra; a picture costs no table
        _log.warning(str(error))
        return None
    return recipe.folder / PICTURE
