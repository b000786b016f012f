"""Scores of a run on its test side, in its folder: predictions, metrics, judges, text retention, and the report."""

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from torch import Tensor

from sottovoce.config.recipe import Recipe, used_tasks
from sottovoce.config.sources import SourceConfig
from sottovoce.config_model import unknown
from sottovoce.data.skipped import listed, summary
from sottovoce.device import on_device
from sottovoce.errors import ConfigError, MissingError, SottovoceError
from sottovoce.evaluation import OWN_METRICS
from sottovoce.evaluation.metrics import Prediction
from sottovoce.evaluation.own_metrics import titled, with_values
from sottovoce.evaluation.records import Record, read_predictions, read_results, score_all, write_results
from sottovoce.evaluation.reports.plots import layer_weights_picture
from sottovoce.evaluation.reports.results import results_table
from sottovoce.evaluation.voicebench import TASK as BENCH
from sottovoce.hub import bundle_folder, bundle_home
from sottovoce.lightning_modules.bundle import PRINTS, consent, read_bundle
from sottovoce.lightning_modules.curriculum import read_trained, stage_folder
from sottovoce.lightning_modules.run import Run, encode_clips, prepare_run
from sottovoce.paths import resolve
from sottovoce.scoring import provenance
from sottovoce.scoring.ask_later import own_scores
from sottovoce.scoring.judging import asked_again, awaiting_labels, judged, label_awareness, merged, print_results
from sottovoce.scoring.predict import answer_share, predict
from sottovoce.scoring.run_report import PAGE, write_report
from sottovoce.scoring.shared_answers import forget_answers
from sottovoce.scoring.text_retention import BEFORE, retention_after
from sottovoce.scoring.voicebench import AFTER as ANSWERED
from sottovoce.scoring.voicebench import scored as benched
from sottovoce.scoring.voicebench import untuned_weights, voicebench
from sottovoce.training.audio_reader import AudioReader
from sottovoce.training.run_folder import RECIPE, load_run, where_trained
from sottovoce.training.slot_layers import layer_weights
from sottovoce.training.splits import build_tasks, read_splits

LAYERS = "layer_weights.png"
_log = logging.getLogger(__name__)


def score(
    run: Run, system: str, folder: Path, *, unlabelled: bool = False, untuned: Mapping[str, Tensor] | None = None
) -> list[Record]:
    """Score the model as it is now; a folder that holds results of this run and this evaluation is read instead.

    With `unlabelled`, utterances that lack what a score needs are answered, too. `untuned` are `untuned_weights`.
    """
    made_with = provenance.provenance(run.recipe, run.data.splits["test"])
    node = run.recipe.evaluation
    if provenance.results_are(made_with, folder):
        records = read_results(folder)
        own, said = folder == own_scores(run.recipe), read_predictions(folder)
        if node.voicebench and not (folder / ANSWERED).is_file():  # it has failed, or was killed
            records = merged([*_scored(system, said), *records], voicebench(run, system, folder, untuned))
            write_results(folder, records, said)
        elif node.voicebench and not own and all(record.task != BENCH for record in records):  # its judge was away
            records = merged(records, benched(system, run.recipe, folder, run.console))
            write_results(folder, records, said)
        if not own:
            records = asked_again(system, run.recipe, records, run.data.splits["test"].utterances, folder, run.console)
        return records
    with on_device(run.module):
        test = run.data.splits["test"].utterances
        answers = _with_own_metrics(run, predict(run, unlabelled=unlabelled, folder=folder))
        predictions = awaiting_labels(answers) if node.awareness else answers
        records = _scored(system, predictions)
        if node.retention and (folder / BEFORE).is_file():
            file = resolve(node.retention)
            records += retention_after(system, run.module.llm, file, folder, batch_size=node.batch_size)
    provenance.write(made_with, folder)
    _draw_layers(run, folder)
    write_results(folder, records, predictions)  # before anybody is asked who may not be there
    forget_answers(folder)
    if node.awareness:
        predictions = label_awareness(run.recipe, answers, test, folder, run.console)
        records = merged(records, _scored(system, predictions))
        write_results(folder, records, predictions)
    if node.voicebench:
        records += voicebench(run, system, folder, untuned)
        write_results(folder, records, predictions)
    if node.judges:
        records += judged(system, run.recipe, predictions, test, folder, run.console)
        write_results(folder, records, predictions)
    return records


def help_to_score(run: Run, folder: Path) -> None:
    """Answer a share of what another process of the run scores into a folder, with the module as it is now.

    What fails costs this share alone: the other process answers it.
    """
    made_with = provenance.provenance(run.recipe, run.data.splits["test"])
    is_over = partial(provenance.are_there, made_with, folder)
    try:
        if not is_over():
            with on_device(run.module):
                answer_share(run, folder, is_over)
    except (SottovoceError, RuntimeError) as error:  # torch's own, such as of a device, is the latter
        _log.error(f"this process no longer helps to score: {error}")


def _with_own_metrics(run: Run, answers: list[Prediction]) -> list[Prediction]:
    """Answers with their values by the recipe's own metrics; one that fails costs its own score, and is told."""
    for name, node in run.recipe.evaluation.metrics.items():
        try:
            metric = OWN_METRICS.build(node.metric)
            answers = with_values(answers, titled(name, node.better), metric, node.tasks)
        except ConfigError as error:
            _log.warning(str(error))
    return answers


def _draw_layers(run: Run, folder: Path) -> None:
    """A picture of the weights of the encoder's layers, where a slot hears others than the last."""
    module = run.module
    if module.layers == (module.encoder.depth,):
        return
    try:
        layer_weights_picture(layer_weights(module.slot_layers, module.adapters), folder / LAYERS)
    except MissingError as error:  # matplotlib is an extra
        _log.warning(str(error))


def _scored(system: str, predictions: Sequence[Prediction]) -> list[Record]:
    return score_all(system, predictions) if any(not p.unscored for p in predictions) else []


def report(run: Run, records: Sequence[Record], bundle: Path | None) -> None:
    """The end of a run: table, what was left out, what to try next."""
    console, folder = run.console, run.recipe.folder
    print_results(console, records, run.recipe)
    if run.data.faults:
        console.print(f"left out, {len(run.data.faults)} in all:")
        console.print(listed(summary(run.data.faults), "  "), markup=False, highlight=False, soft_wrap=True)
    for name, count in skipped_steps(run).items():
        file = stage_folder(run.recipe, name) / "skipped.jsonl"
        console.print(f"stage {name}: {count} steps left out, loss or gradient not finite ({file})", highlight=False)
    console.print(f"scores  {folder / 'evaluation' / 'results.md'}", highlight=False)
    console.print(f"report  {write_report(folder / 'evaluation', folder / PAGE, folder)}", highlight=False)
    if bundle is None:  # nothing was trained that a bundle would hold
        return
    size = sum(file.stat().st_size for file in bundle.iterdir()) / 1e6
    console.print(f"bundle  {bundle} ({size:.1f} MB)", highlight=False)
    if test := run.data.splits["test"].utterances:
        clip = shlex.quote(str(test[0].audio))
        told = f"try     sottovoce chat {bundle} --audio {clip}{consent(bundle)}"
        console.print(told, markup=False, highlight=False, soft_wrap=True)


def skipped_steps(run: Run) -> dict[str, int]:
    """Stages in which steps were left out, and how many."""
    files = {name: stage_folder(run.recipe, name) / "done.json" for name in run.recipe.stages}
    told = {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.is_file()}
    return {name: one["skipped"] for name, one in told.items() if one.get("skipped")}


def evaluate(
    folder: str,
    stage: str | None,
    test: Sequence[str] = (),
    task: Sequence[str] = (),
    out: str | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """The command: score one stage of a run on its own test side, or a bundle on manifests that it has never seen."""
    bundle = Path(folder) if (bundle_folder(folder) / PRINTS).is_file() else Path(folder) / "bundle"
    if test:
        console = Console()
        records = evaluate_bundle(bundle, test, task, Path(out) if out else None, overrides, console)
        if records:
            console.print(results_table(records))
        return
    for name, given in (("--task", task), ("--out", out)):
        if given:
            raise ConfigError.at(name, "conflict", "it goes with --test; a run's own test side has tasks and a folder")
    if bundle == Path(folder):
        raise ConfigError.at("--test", "missing-key", f"{folder} is a bundle: say what it is to answer, --test FILE")
    recipe = load_run(Path(folder), overrides)
    if not recipe.stages:
        told = "this run trains nothing, and `sottovoce fit` has scored it; --test FILE takes another test side"
        raise ConfigError.at("stages", "empty", told)
    name = stage or list(recipe.stages)[-1]
    if name not in recipe.stages:
        told = f"--stage {name}: the run's stages are {', '.join(recipe.stages)}"
        raise ConfigError(told, code="unknown-name", where="--stage")
    best = stage_folder(recipe, name) / "best.ckpt"
    if not best.is_file():
        raise MissingError(f"{best} is not there: stage {name!r} of this run has not been trained", where=best)
    scores = _scores_of_stage(Path(folder), name, recipe)
    with where_trained(Path(folder), recipe):
        run = prepare_run(recipe, Console(), trains=False)
        untuned = untuned_weights(run)
        run.module.load_trained(read_trained(best), str(best))
        records = score(run, f"{recipe.name}/{name}", scores, untuned=untuned)
    write_report(scores, scores / PAGE, recipe.folder)
    run.console.print(results_table(records))
    run.console.print(f"scores  {scores / 'results.md'}", highlight=False, soft_wrap=True)


def _scores_of_stage(folder: Path, stage: str, recipe: Recipe) -> Path:
    """The folder of a stage's scores: another than its own where `recipe` has another test side than the run."""
    own = load_run(folder)
    if recipe.data.test == own.data.test:
        return recipe.folder / "evaluation" / stage
    return scores_of(recipe.folder, [stage, *(source.manifest for source in recipe.data.test)])


def test_sources(manifests: Sequence[str]) -> list[SourceConfig]:
    """Manifests of a command line, as a recipe's test side; MissingError where one is not there."""
    absent = [name for name in manifests if not Path(name).exists()]
    if absent:
        raise MissingError(f"--test {absent[0]}: there is no such manifest (docs/manifest.md)", where="--test")
    named = len(manifests) > 1
    return [SourceConfig(manifest=name, name=Path(name).stem if named else None, allow=["/"]) for name in manifests]


def scores_of(run: Path, manifests: Sequence[str]) -> Path:
    """The folder of a run's scores on manifests of the user's own."""
    return run / "evaluation" / "-".join(Path(name).stem for name in manifests)


def evaluate_bundle(
    bundle: Path,
    manifests: Sequence[str],
    tasks: Sequence[str],
    out: Path | None,
    overrides: Sequence[str],
    console: Console,
) -> list[Record]:
    """Answers and scores of a bundle on manifests of the user's own; no training data is needed.

    Lines without the label or transcript of a task are answered, too, and not scored.

    Args:
        bundle: folder, or a name on the hub.
        manifests: JSONL files.
        tasks: what is asked; all tasks of the bundle's recipe if there are none.
        out: folder of predictions and scores; None: `evaluation/<names of the manifests>` beside the bundle.
        overrides: of the bundle's recipe.
        console: for progress.

    Raises:
        SottovoceError: bundle or manifests cannot be used; or there is no such task.
    """
    sources = test_sources(manifests)
    module = read_bundle(bundle, overrides)
    whole = module.recipe
    for error in unknown("--task", tasks, used_tasks(whole), "task of this bundle"):
        raise error
    data = replace(whole.data, corpus=None, train=[], validation=[], test=sources, validate="eager")
    evaluation = replace(whole.evaluation, tasks=list(tasks) or used_tasks(whole), retention=None, voicebench=None)
    recipe = replace(whole, data=data, stages={}, cascade=None, evaluation=evaluation)
    home = bundle_home(bundle)
    out = out or scores_of(home, manifests)
    cache = Path(data.cache or out / "cache")
    kept = cache if data.cache and not module.owns_encoder else None
    reader = AudioReader(module.encoder, kept, data.max_seconds, module.layers, data.cache_dtype)
    run = Run(recipe, build_tasks(whole), read_splits(recipe), module, reader, module.slots, cache, console)
    encode_clips(run)
    records = score(run, whole.name, out, unlabelled=True)
    if records:
        write_report(out, out / PAGE, home if (home / RECIPE).is_file() else None)
    console.print(f"answers {out / 'predictions.jsonl'}", highlight=False, soft_wrap=True)
    return records
