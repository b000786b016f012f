"""Scores of a run on its test side, in its folder: predictions, metrics, judges, text retention, and the report."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sottovoce.config.recipe import load
from sottovoce.device import on_device
from sottovoce.errors import ConfigError, MissingError
from sottovoce.evaluation.records import Record, read_results, score_all, write_results
from sottovoce.evaluation.reports.results import results_table
from sottovoce.lightning_modules.curriculum import read_trained, stage_folder
from sottovoce.lightning_modules.run import Run, prepare_run
from sottovoce.paths import resolve
from sottovoce.scoring.judging import judged, label_awareness
from sottovoce.scoring.predict import predict
from sottovoce.scoring.text_retention import BEFORE, retention_after
from sottovoce.training.run_folder import recipe_file


def score(run: Run, system: str, folder: Path) -> list[Record]:
    """Score the model as it is now; a folder that holds results of this run is read instead."""
    if (folder / "results.json").is_file():
        return read_results(folder)
    node = run.recipe.evaluation
    with on_device(run.module):
        test = run.data.splits["test"].utterances
        predictions = label_awareness(run.recipe, predict(run), test, folder)
        records = score_all(system, predictions)
        if node.retention and (folder / BEFORE).is_file():
            file = resolve(node.retention)
            records += retention_after(system, run.module.llm, file, folder, batch_size=node.batch_size)
    write_results(folder, records, predictions)  # before anybody is asked who may not be there
    if node.judges:
        records += judged(system, run.recipe, predictions, test, folder, run.console)
        write_results(folder, records, predictions)
    return records


def report(run: Run, records: Sequence[Record], bundle: Path | None) -> None:
    """The end of a run: table, what was left out, what to try next."""
    console, folder = run.console, run.recipe.folder
    console.print(results_table(records))
    if run.data.faults:
        console.print(f"left out, {len(run.data.faults)} in all:")
        for fault in run.data.faults[:20]:
            console.print(f"  {fault}", markup=False, highlight=False, soft_wrap=True)
    for name, count in skipped_steps(run).items():
        file = stage_folder(run.recipe, name) / "skipped.jsonl"
        console.print(f"stage {name}: {count} steps left out, loss or gradient not finite ({file})", highlight=False)
    console.print(f"scores  {folder / 'evaluation' / 'results.md'}", highlight=False)
    if bundle is None:  # nothing was trained that a bundle would hold
        return
    size = sum(file.stat().st_size for file in bundle.iterdir()) / 1e6
    console.print(f"bundle  {bundle} ({size:.1f} MB)", highlight=False)
    if test := run.data.splits["test"].utterances:
        console.print(f"try     sottovoce chat {bundle} --audio {test[0].audio}", highlight=False, soft_wrap=True)


def skipped_steps(run: Run) -> dict[str, int]:
    """Stages in which steps were left out, and how many."""
    files = {name: stage_folder(run.recipe, name) / "done.json" for name in run.recipe.stages}
    told = {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.is_file()}
    return {name: one["skipped"] for name, one in told.items() if one.get("skipped")}


def evaluate(folder: str, stage: str | None, overrides: Sequence[str] = ()) -> None:
    """Score the best checkpoint of one stage of a run, beside the run's own scores."""
    recipe = load(recipe_file(Path(folder)), overrides)
    name = stage or list(recipe.stages)[-1]
    if name not in recipe.stages:
        told = f"--stage {name}: the run's stages are {', '.join(recipe.stages)}"
        raise ConfigError(told, code="unknown-name", where="--stage")
    best = stage_folder(recipe, name) / "best.ckpt"
    if not best.is_file():
        raise MissingError(f"{best} is not there: stage {name!r} of this run has not been trained", where=best)
    run = prepare_run(recipe, Console())
    run.module.load_trained(read_trained(best), str(best))
    records = score(run, f"{recipe.name}/{name}", recipe.folder / "evaluation" / name)
    run.console.print(results_table(records))
