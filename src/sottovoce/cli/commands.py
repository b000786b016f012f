"""What each command takes, and what it runs; that is imported when it is called, since it takes seconds."""

import argparse
from collections.abc import Callable
from typing import TypeAlias

Parser: TypeAlias = argparse.ArgumentParser
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # argparse has no public name for it


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        "sottovoce", description="An ear for how things are said, for LLMs that stay frozen."
    )
    commands = whole.add_subparsers(metavar="command", required=True)
    for add in (_runs, _bundles, _data):
        add(commands)
    return whole


def _runs(commands: Commands) -> None:
    """What trains, scores and compares."""
    fit = _command(commands, "fit", "train a recipe, stage by stage, score it, and leave a bundle", _fit)
    _takes_recipe(fit, "conf/quickstart.yaml", "stages.joint.lr=1e-4")
    _may_trust(fit)

    estimate = _command(commands, "estimate", "predict memory, hours and file sizes of a recipe for `fit`", _estimate)
    estimate.add_argument("--config", required=True, help="the recipe, such as conf/dual_adapter.yaml")
    estimate.add_argument("--gpu", help="h100, h200, a100, l40s, rtx4090, or `here`: this machine, by trying it")
    estimate.add_argument("--utterances", type=int, help="suppose so many, instead of reading the recipe's manifests")
    estimate.add_argument("--seconds", type=float, default=5.0, help="mean length of those; 5 if absent")
    estimate.add_argument("overrides", nargs="*", metavar="key=value", help="such as trainer.devices=8")
    _may_trust(estimate)

    pretrain = _command(commands, "pretrain", "pre-train a speech encoder on audio alone, by BEST-RQ", _pretrain)
    _takes_recipe(pretrain, "conf/best_rq.yaml", "steps=1000")

    evaluate = _command(commands, "evaluate", "score a stage of a run again", _evaluate)
    evaluate.add_argument("folder", help="of the run, such as runs/quickstart")
    evaluate.add_argument("--stage", help="whose best checkpoint; the last if absent")
    evaluate.set_defaults(overrides=[])
    _may_trust(evaluate)

    judge = _command(commands, "judge", "let the judges of a finished run's recipe score its replies", _judge)
    judge.add_argument("folder", help="of the run, such as runs/dual_adapter")
    judge.add_argument("overrides", nargs="*", metavar="key=value", help="such as evaluation.judges.qwen=null")

    table = _command(commands, "table", "train or reuse every system of a paper's table, and compare them", _table)
    table.add_argument("config", help="such as conf/speech_emotion_llama/table.yaml")
    table.add_argument("overrides", nargs="*", metavar="key=value", help="such as seeds=[1]")
    _may_trust(table, "trust_remote_code")

    compare = _command(commands, "compare", "finished runs side by side, on the same utterances", _compare)
    compare.add_argument("runs", nargs="+", help="folders, such as runs/pe_ft/seed-*/selective runs/pe_ft/seed-*/full")
    compare.add_argument("--out", help="folder of comparison.html and comparison.csv; beside the runs if absent")
    compare.add_argument("--against", help="the system that the others are held against; the first if absent")

    analyze = _command(commands, "analyze", "where in a bundle's LLM the voice is, and where the meaning", _analyze)
    analyze.add_argument("bundle", help="folder, such as runs/quickstart/bundle")
    analyze.add_argument("--config", required=True, help="what is asked, such as conf/analysis.yaml")
    analyze.add_argument("overrides", nargs="*", metavar="key=value", help="such as limit=200")
    _may_trust(analyze, "trust_remote_code")


def _bundles(commands: Commands) -> None:
    """What is done with a result."""
    chat = _command(commands, "chat", "ask a bundle something by voice", _chat)
    chat.add_argument("bundle", help="folder, such as runs/quickstart/bundle")
    chat.add_argument("--audio", action="append", default=[], help="an audio file; several are turns one after another")
    chat.add_argument("--task", help="whose instruction the model is given; a reply if absent")
    chat.add_argument("--instruction", help="instead of a task's own wording")
    chat.add_argument("--once", action="store_true", help="answer and stop, even at a terminal")
    chat.add_argument("overrides", nargs="*", metavar="key=value", help="such as llm.checkpoint=/path")
    _may_trust(chat)

    export = _command(commands, "export", "write what a run has trained in its checkpoint's own format", _export)
    export.add_argument("bundle", help="folder, such as runs/quickstart/bundle")
    export.add_argument("--out", required=True, help="the folder to write, which plain transformers then opens")
    export.add_argument("overrides", nargs="*", metavar="key=value", help="such as llm.checkpoint=/path")
    _may_trust(export)

    _command(commands, "list", "show every registered component with its knobs and defaults", _list)

    schema = _command(commands, "schema", "print the JSON Schema of a kind of recipe, for editors", _schema)
    schema.add_argument("kind", choices=["fit", "pretrain", "paired", "analyze", "table"], help="whose recipes")


def _data(commands: Commands) -> None:
    """What makes and prepares data, and the demo."""
    prepare = _command(commands, "prepare", "turn a published corpus into manifests", _prepare)
    prepare.add_argument("corpus", help="such as librispeech; `sottovoce list` shows all of them and their knobs")
    prepare.add_argument("--source", help="the folder that the corpus was unpacked in")
    prepare.add_argument("--out", required=True, help="folder of the manifests, such as manifests/librispeech")
    prepare.add_argument("overrides", nargs="*", metavar="key=value", help="knobs of the corpus: seed=1")

    label = _command(commands, "label", "add pitch, energy and tempo labels to a manifest, by measuring", _label)
    label.add_argument("manifest")
    label.add_argument("--out", required=True, help="the manifest to write")
    label.add_argument("--allow", action="append", default=[], metavar="DIR", help="clips may lie there, too")

    shards = _command(commands, "shards", "pack a manifest and its clips into tar files (Lhotse Shar)", _shards)
    shards.add_argument("manifest")
    shards.add_argument("--out", required=True, help="the folder to write; its manifest.jsonl is what a recipe names")
    shards.add_argument("--size", type=int, default=1000, help="clips a tar file")
    shards.add_argument("--allow", action="append", default=[], metavar="DIR", help="clips may lie there, too")

    targets = _command(commands, "targets", "let an LLM write the targets of a manifest", _targets)
    targets.add_argument("manifest")
    targets.add_argument("--out", required=True, help="the manifest to write")
    targets.add_argument("--kind", choices=["response", "plain", "caption"], default="response")
    targets.add_argument(
        "--engine", default="local", help="who answers; `sottovoce list` shows engines and their knobs"
    )
    targets.add_argument("--max-new-tokens", type=int, default=256)
    targets.add_argument("overrides", nargs="*", metavar="key=value", help="knobs of the engine: checkpoint=/path")
    _may_trust(targets, "trust_remote_code")

    paired = _command(commands, "paired", "speak the same texts as each kind of speaker, with right answers", _paired)
    paired.add_argument("--config", required=True, help="the recipe, such as conf/paired_data_demo.yaml")
    paired.add_argument("--dry-run", action="store_true", help="check the recipe and say what it asks for")
    paired.add_argument("--print-config", action="store_true", help="print the whole resolved recipe and stop")
    paired.add_argument("overrides", nargs="*", metavar="key=value", help="such as out=paired")
    _may_trust(paired, "writer.engine.trust_remote_code")

    demo = _command(commands, "demo", "make the embedded default anew", _demo)
    demo.add_argument("action", choices=["pretrain"])
    demo.add_argument("--part", choices=["encoder", "conformer", "llm", "llm_deep", "all"], default="all")
    demo.add_argument("--out", default="demo/backbones")


def _may_trust(command: Parser, key: str = "llm.trust_remote_code") -> None:
    """Only the command line can let code of a checkpoint run: a recipe or a bundle may come from somebody else."""
    told = f"run Python code that comes with the LLM's checkpoint; the same as {key}=true"
    command.add_argument("--trust-remote-code", dest="trusted", action="store_const", const=key, help=told)


def _command(commands: Commands, name: str, text: str, run: Callable[[argparse.Namespace], None]) -> Parser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def _takes_recipe(command: Parser, config: str, override: str) -> None:
    command.add_argument("--config", required=True, help=f"the recipe, such as {config}")
    command.add_argument(
        "--dry-run", action="store_true", help="build on the meta device and count parameters; no weights needed"
    )
    command.add_argument("--print-config", action="store_true", help="print the whole resolved recipe and stop")
    command.add_argument("overrides", nargs="*", metavar="key=value", help=f"such as {override}")


def _fit(arguments: argparse.Namespace) -> None:
    if arguments.print_config:
        from sottovoce.config.recipe import print_config

        print_config(arguments.config, arguments.overrides)
        return
    from sottovoce.lightning_modules.fit import dry_run, fit

    (dry_run if arguments.dry_run else fit)(arguments.config, arguments.overrides)


def _estimate(arguments: argparse.Namespace) -> None:
    from sottovoce.estimation.estimate import command

    command(arguments.config, arguments.gpu, arguments.utterances, arguments.seconds, arguments.overrides)


def _pretrain(arguments: argparse.Namespace) -> None:
    from sottovoce.lightning_modules.best_rq_pretraining import dry_run, pretrain, print_config

    action = dry_run if arguments.dry_run else print_config if arguments.print_config else pretrain
    action(arguments.config, arguments.overrides)


def _evaluate(arguments: argparse.Namespace) -> None:
    from sottovoce.lightning_modules.fit import evaluate

    evaluate(arguments.folder, arguments.stage, arguments.overrides)


def _judge(arguments: argparse.Namespace) -> None:
    from sottovoce.scoring.judging import command

    command(arguments.folder, arguments.overrides)


def _table(arguments: argparse.Namespace) -> None:
    from sottovoce.comparison.table import table

    table(arguments.config, arguments.overrides)


def _compare(arguments: argparse.Namespace) -> None:
    from sottovoce.comparison.compare import compare

    compare(arguments.runs, arguments.out, arguments.against)


def _analyze(arguments: argparse.Namespace) -> None:
    from sottovoce.analysis.analyze import analyze

    analyze(arguments.bundle, arguments.config, arguments.overrides)


def _chat(arguments: argparse.Namespace) -> None:
    from sottovoce.serving.chat import chat

    chat(arguments)


def _list(arguments: argparse.Namespace) -> None:
    from sottovoce.cli.components import print_components

    print_components()


def _schema(arguments: argparse.Namespace) -> None:
    from sottovoce.cli.recipe_schema import print_schema

    print_schema(arguments.kind)


def _label(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from sottovoce.data.acoustic_labels import label_manifest

    allow = [Path(folder) for folder in arguments.allow]
    print(label_manifest(Path(arguments.manifest), Path(arguments.out), allow=allow))


def _shards(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from sottovoce.data.tar_shards import write_shards

    allow = [Path(folder) for folder in arguments.allow]
    print(write_shards(Path(arguments.manifest), Path(arguments.out), size=arguments.size, allow=allow))


def _targets(arguments: argparse.Namespace) -> None:
    from sottovoce.generation.targets import targets

    targets(arguments)


def _paired(arguments: argparse.Namespace) -> None:
    from sottovoce.generation.paired import dry_run, paired, print_config

    action = dry_run if arguments.dry_run else print_config if arguments.print_config else paired
    action(arguments.config, arguments.overrides)


def _prepare(arguments: argparse.Namespace) -> None:
    from sottovoce.generation.prepare import prepare

    prepare(arguments)


def _export(arguments: argparse.Namespace) -> None:
    from sottovoce.serving.export import command

    command(arguments)


def _demo(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from sottovoce.demo import pretrain_conformer, pretrain_encoder, pretrain_llm, pretrain_llm_deep

    parts = {
        "encoder": pretrain_encoder, "conformer": pretrain_conformer, "llm": pretrain_llm, "llm_deep": pretrain_llm_deep
    }  # fmt: skip
    for name, part in parts.items():
        if arguments.part in (name, "all"):
            print(part.pretrain(Path(arguments.out)))
