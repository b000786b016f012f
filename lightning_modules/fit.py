"""`python -m lightning_modules.fit --config conf/quickstart.yaml`: train a recipe, score it, leave a bundle."""

import sys

if __name__ == "__main__":  # before the imports below, which take seconds that `--print-config` need not wait for
    from sottovoce.cli.main import main

    sys.exit(main(["fit", *sys.argv[1:]]))

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from sottovoce.config.recipe import load
from sottovoce.device import on_device
from sottovoce.errors import ConfigError, MissingError
from sottovoce.evaluation.records import Record, read_results, score_all, write_results
from sottovoce.evaluation.reports.results import results_table
from sottovoce.lightning_modules.bundle import frozen, write_bundle, write_card
from sottovoce.lightning_modules.curriculum import read_trained, stage_folder, train_stages
from sottovoce.lightning_modules.distributed import check_trainer, is_rank_zero
from sottovoce.lightning_modules.run import Run, prepare_run
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.paths import resolve
from sottovoce.scoring.judging import judged, label_awareness
from sottovoce.scoring.predict import predict
from sottovoce.scoring.text_retention import BEFORE, retention_after, retention_before


def fit(config: str, overrides: Sequence[str] = ()) -> None:
    """Train all stages, score, write the bundle, print the table. The same command again goes on where it stopped."""
    console = Console(quiet=not is_rank_zero())
    recipe = load(config, overrides)
    scores, node = recipe.folder / "evaluation", recipe.evaluation

    # prepare
    run = prepare_run(recipe, console)
    before = frozen(run.module) if is_rank_zero() else {}
    if node.retention and is_rank_zero():
        retention_before(run.module.llm, resolve(node.retention), scores, batch_size=node.batch_size)

    # train
    best = train_stages(run)
    if not is_rank_zero():  # the others are done; what is left is written by one
        return
    if best is not None:
        run.module.load_trained(read_trained(best), str(best))
    if frozen(run.module) != before:
        raise ConfigError("a frozen part has changed in training; this is a defect of Sottovoce, please report it")

    # leave the result, and score it
    bundle = recipe.folder / "bundle" if best else None
    if bundle:
        write_bundle(bundle, run.module, [])  # whatever the scoring comes to
    records = score(run, recipe.name, scores)
    if bundle:
        write_card(bundle, run.module, records)
    report(run, records, bundle)


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
            console.print(f"  {fault}", markup=False, highlight=False)
    for name, count in skipped_steps(run).items():
        file = stage_folder(run.recipe, name) / "skipped.jsonl"
        console.print(f"stage {name}: {count} steps left out, loss or gradient not finite ({file})", highlight=False)
    console.print(f"scores  {folder / 'evaluation' / 'results.md'}", highlight=False)
    if bundle is None:  # nothing was trained that a bundle would hold
        return
    size = sum(file.stat().st_size for file in bundle.iterdir()) / 1e6
    console.print(f"bundle  {bundle} ({size:.1f} MB)", highlight=False)
    test = run.data.splits["test"].utterances
    if test:
        console.print(f"try     sottovoce chat {bundle} --audio {test[0].audio}", highlight=False, soft_wrap=True)


def skipped_steps(run: Run) -> dict[str, int]:
    """Stages in which steps were left out, and how many."""
    files = {name: stage_folder(run.recipe, name) / "done.json" for name in run.recipe.stages}
    told = {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.is_file()}
    return {name: one["skipped"] for name, one in told.items() if one.get("skipped")}


def evaluate(folder: str, stage: str | None, overrides: Sequence[str] = ()) -> None:
    """Score the best checkpoint of one stage of a run, beside the run's own scores."""
    file = Path(folder) / "recipe.yaml"
    if not file.is_file():
        raise MissingError(f"{folder} is not a run: there is no recipe.yaml in it. `sottovoce fit` makes one")
    recipe = load(file, overrides)
    name = stage or list(recipe.stages)[-1]
    if name not in recipe.stages:
        raise ConfigError(f"--stage {name}: the run's stages are {', '.join(recipe.stages)}")
    best = stage_folder(recipe, name) / "best.ckpt"
    if not best.is_file():
        raise MissingError(f"{best} is not there: stage {name!r} of this run has not been trained")
    run = prepare_run(recipe, Console())
    run.module.load_trained(read_trained(best), str(best))
    records = score(run, f"{recipe.name}/{name}", recipe.folder / "evaluation" / name)
    run.console.print(results_table(records))


def dry_run(config: str, overrides: Sequence[str]) -> None:
    """Build the recipe on the meta device and print what trains and what is frozen; nothing is downloaded."""
    recipe = load(config, overrides)
    check_trainer(recipe)
    with torch.device("meta"):
        module = SpeechLLM(recipe)
        module.encoder.build()
        module.llm.build()
    table = Table(title=f"{recipe.name}: what trains, what is frozen")
    for column in ("part", "type", "parameters", ""):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    learns = recipe.trains_encoder
    table.add_row("encoder", _shown(recipe.encoder), f"{count(module.encoder):,}", "trains" if learns else "frozen")
    for name, slot in recipe.slots.items():
        learns = any(name in (node.train or recipe.slots) for node in recipe.stages.values())
        table.add_row(
            f"adapter {name}",
            _shown(slot.adapter),
            f"{count(module.adapters[name]):,}",
            "trains" if learns else "frozen",
        )
    tuned = sum(module.llm.get_parameter(name).numel() for name in module.llm.trainable_names)
    told = f"{tuned:,} train" if tuned else "frozen"
    table.add_row("llm", f"{recipe.llm.checkpoint} ({recipe.llm.dtype})", f"{count(module.llm):,}", told)
    if module.auxiliary_head and recipe.auxiliary_head:
        table.add_row(
            "auxiliary_head",
            f"at layer {recipe.auxiliary_head.layer}",
            f"{count(module.auxiliary_head):,}",
            "trains, then dropped",
        )
    table.add_row("all", "", f"{count(module):,}", f"{_trained(module):,} train")
    Console().print(table)


def _trained(module: SpeechLLM) -> int:
    """Parameters that some stage trains."""
    names: set[str] = set()
    for stage in module.recipe.stages:
        module.start_stage(stage, 1)
        names |= {name for name, weight in module.named_parameters() if weight.requires_grad}
    return sum(module.get_parameter(name).numel() for name in names)


def count(module: nn.Module) -> int:
    """Parameters, each once."""
    return sum(weight.numel() for weight in module.parameters())


def _shown(node: dict[str, object]) -> str:
    knobs = ", ".join(f"{key}={value}" for key, value in node.items() if key != "type")
    return f"{node['type']}({knobs})"
