"""`python -m lightning_modules.fit --config conf/quickstart.yaml`: train a recipe, score it, leave a bundle."""

import sys

if __name__ == "__main__":  # before the imports below, which take seconds that `--print-config` need not wait for
    from sottovoce.cli.main import main

    sys.exit(main(["fit", *sys.argv[1:]]))

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Column, Table
from torch import nn

from sottovoce.config.recipe import Recipe, load
from sottovoce.errors import ConfigError, MissingError
from sottovoce.hub import bundle_of, on_hub
from sottovoce.lightning_modules.bundle import check_shapes, write_bundle
from sottovoce.lightning_modules.card import write_card
from sottovoce.lightning_modules.curriculum import read_trained, train_stages
from sottovoce.lightning_modules.own_callbacks import own_callbacks
from sottovoce.lightning_modules.preflight import check_devices, check_room, check_sides, unscored
from sottovoce.lightning_modules.run import Run, example_sampler_of, frozen_fingerprints, prepare_run
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.lightning_modules.trackers import Trackers, check_logging, opened
from sottovoce.lightning_modules.trainer import is_rank_zero
from sottovoce.lightning_modules.trainer_settings import check_trainer, is_sharded, is_trial
from sottovoce.paths import resolve
from sottovoce.training.run_folder import only_run
from sottovoce.training.splits import build_tasks, read_splits
from sottovoce.training.stage_rows import check_draws

_log = logging.getLogger(__name__)


def fit(config: str, overrides: Sequence[str] = ()) -> None:
    """Train all stages, score, write the bundle, print the table. The same command again goes on where it stopped."""
    recipe = load(config, overrides)
    check_logging(recipe.logging)
    with only_run(recipe.folder) if is_rank_zero() else nullcontext(), opened(recipe) as trackers:
        _fit(recipe, trackers)


def _fit(recipe: Recipe, trackers: Trackers) -> None:
    console = Console(quiet=not is_rank_zero())
    scores, node = recipe.folder / "evaluation", recipe.evaluation
    trial = is_trial(recipe)

    # prepare
    run = prepare_run(recipe, console)
    run.trackers = trackers
    before = frozen_fingerprints(run.module) if is_rank_zero() else {}
    if node.retention and is_rank_zero() and not trial:
        from sottovoce.scoring.text_retention import retention_before

        retention_before(run.module.llm, resolve(node.retention), scores, batch_size=node.batch_size)
    untuned = None
    if node.voicebench:
        from sottovoce.scoring.voicebench import untuned_weights

        untuned = untuned_weights(run)

    # train
    best = train_stages(run)
    if trial:
        told = "trainer.fast_dev_run: every stage has been tried; nothing was kept or scored, and there is no bundle"
        _log.info(told)
        return
    if not is_rank_zero():  # what is left is written by one; the others give answers to score
        _help(run, best)
        return
    if best is not None:
        run.module.load_trained(read_trained(best), str(best))
    if frozen_fingerprints(run.module) != before:
        told = "a frozen part has changed in training; this is a defect of Sottovoce, please report it"
        raise ConfigError(told, code="mismatch")

    # leave the result, and score it
    from sottovoce.scoring.evaluate import report, score  # takes seconds, for which training need not wait

    bundle = recipe.folder / "bundle" if best or recipe.untuned else None
    if bundle:
        write_bundle(bundle, run.module, [])  # whatever the scoring comes to
    records = score(run, recipe.name, scores, untuned=untuned)
    if bundle:
        write_card(bundle, run.module, records)
    trackers.log_scores(records)
    report(run, records, bundle)


def _help(run: Run, best: Path | None) -> None:
    """Answer a share of the test side, where the LLM is at hand and the first process asks for no more than answers."""
    alone = run.recipe.cascade or is_sharded(run.recipe.trainer)
    if alone or (best is not None and not best.is_file()):  # on a disk that is not shared
        return
    from sottovoce.scoring.evaluate import help_to_score

    if best is not None:
        run.module.load_trained(read_trained(best), str(best))
    help_to_score(run, run.recipe.folder / "evaluation")


def dry_run(config: str, overrides: Sequence[str]) -> None:
    """Build the recipe on the meta device and print what trains and what is frozen; nothing is downloaded.

    Where its manifests are there, they are read: each stage's draws are counted, and the disk's room.

    Raises:
        SottovoceError: `fit` would refuse the recipe, its callbacks or its data, or the disk has too little room. That
            devices are not here is told, since a recipe may be looked at elsewhere.
    """
    recipe = load(config, overrides)
    check_trainer(recipe)
    own_callbacks(recipe)
    check_logging(recipe.logging)
    with torch.device("meta"):
        module = SpeechLLM(recipe)
        module.encoder.build()
        module.llm.build()
    tuned = sum(module.llm.get_parameter(name).numel() for name in module.llm.trainable_names)
    rows: list[tuple[str, str, nn.Module, str]] = [
        ("encoder", _shown(recipe.encoder), module.encoder, "trains" if recipe.trains_encoder else "frozen")
    ]
    for name, slot in recipe.slots.items():
        learns = any(name in (node.train or recipe.slots) for node in recipe.stages.values())
        told = "trains" if learns else "frozen"
        rows.append((f"adapter {name}", _shown(slot.adapter), module.adapters[name], told))
    told = f"{tuned:,} train" if tuned else "frozen"
    rows.append(("llm", f"{recipe.llm.checkpoint} ({recipe.llm.dtype})", module.llm, told))
    if module.auxiliary_head and (head := recipe.auxiliary_head):
        rows.append(("auxiliary_head", f"at layer {head.layer}", module.auxiliary_head, "trains, then dropped"))
    if module.ctc_head:
        told = "trains" if module.compressed else "trains, then dropped"
        rows.append(("ctc_head", "", module.ctc_head, told))
    rows.append(("all", "", module, f"{_trained(module):,} train"))
    title, parameters = f"{recipe.name}: what trains, what is frozen", Column("parameters", justify="right")
    table = Table("part", "type", parameters, "", title=title)
    for part, kind, weights, told in rows:
        table.add_row(part, kind, f"{sum(weight.numel() for weight in weights.parameters()):,}", told)
    Console().print(table)
    if module.llm.passed_over:
        Console().print(module.llm.passed_over, highlight=False)
    _print_beginning(recipe, module, Console())
    _print_draws(recipe, module, Console())


def _print_beginning(recipe: Recipe, module: SpeechLLM, console: Console) -> None:
    """See that the bundle that the run begins from fits, if it is here; nothing is fetched."""
    if recipe.init_from and not on_hub(recipe.init_from):
        if (folder := bundle_of(recipe.init_from)).is_dir():
            check_shapes(module, folder, begins=True)
        else:
            told = f"here `fit` would stop: init_from: there is no bundle {recipe.init_from}"
            console.print(told, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _print_draws(recipe: Recipe, module: SpeechLLM, console: Console) -> None:
    """How often each stage draws its tasks, or why that is not known yet; disk, devices, and notes on the data."""
    told = ["draws of tasks: not counted, since the recipe names no manifests"] if recipe.stages else []
    stops: list[str] = []
    if recipe.stages and any(recipe.sources()):
        try:
            data, tasks = read_splits(recipe), build_tasks(recipe)
            for note in data.notes:
                _log.warning(note)
            train = data.splits["train"]
            check_sides(recipe, data, tasks, list(recipe.stages))
            drawings = {name: example_sampler_of(recipe, tasks, name, cut=True) for name in recipe.stages}
            told = [check_draws(name, recipe, train, drawing) for name, drawing in drawings.items()]
            told += [note for note in (unscored(recipe, data, tasks), check_room(recipe, module, data)) if note]
        except MissingError as error:
            told, stops = [], [f"draws of tasks are not counted, since there is no {error.where}"]
    for check in (
        partial(_check_template, recipe, module),
        partial(check_devices, recipe.trainer, compiles=recipe.compile),
    ):
        try:
            check()
        except (ConfigError, MissingError) as error:
            stops.append(str(error))
    for line in told:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in stops:
        text = f"here `fit` would stop: {line}"
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _check_template(recipe: Recipe, module: SpeechLLM) -> None:
    """`SottovoceError` where the tokenizer of an LLM that is here has no chat template; others if it is not whole."""
    if (folder := resolve(recipe.llm.checkpoint)).is_dir():
        tokenizer = module.llm.read_tokenizer(folder)
        if not tokenizer.chat_template:
            module.llm.chat_format(tokenizer, ())  # refuses it


def _trained(module: SpeechLLM) -> int:
    """Parameters that some stage trains."""
    names: set[str] = set()
    for stage in module.recipe.stages:
        module.start_stage(stage, 1)
        names |= {name for name, weight in module.named_parameters() if weight.requires_grad}
    return sum(module.get_parameter(name).numel() for name in names)


def _shown(node: dict[str, object]) -> str:
    knobs = ", ".join(f"{key}={value}" for key, value in node.items() if key != "type")
    return f"{node['type']}({knobs})"
