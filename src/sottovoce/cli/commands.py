"""Commands of the program: the name of each, its function, its arguments and its help."""

from typing import Any, TypeAlias

TRUST = "llm.trust_remote_code"  # the key that --trust-remote-code sets, in recipes of `fit`

Argument: TypeAlias = tuple[tuple[str, ...], dict[str, Any]]  # of a command, as argparse's `add_argument` takes it


def arg(*names: str, **options: Any) -> Argument:
    return names, options


class Command:
    """A command: its function as `module:name`, called with those arguments that it has parameters for.

    `loader` reads a recipe, for --print-config; for --dry-run there is a `dry_run` in the module of `call`. `trust` is
    the key of the recipe that lets code of a checkpoint run.
    """

    def __init__(
        self, name: str, call: str, help: str, *words: Argument, loader: str = "", trust: str = "", device: bool = False
    ) -> None:
        self.name, self.call, self.help, self.words = name, call, help, words
        self.loader, self.trust, self.device = loader, trust, device


def _overrides(example: str) -> Argument:
    return arg("overrides", nargs="*", metavar="key=value", help=f"such as {example}")


def _config(example: str) -> Argument:
    return arg("--config", required=True, help=f"the recipe, such as {example}")


_BUNDLE = arg("bundle", help="folder of a bundle or a run, such as runs/quickstart, or org/name[@revision] of the hub")
_MANIFEST, _OUT = arg("manifest"), arg("--out", required=True, help="the manifest to write")
_ROOT = arg("--root", metavar="DIR", help="where its paths of clips start; its own folder if absent")
_ALLOW = arg("--allow", action="append", default=[], metavar="DIR", help="clips may lie there, too")

KINDS = (  # of components
    "encoder", "adapter", "task", "corpus", "synthesizer", "engine", "judge", "awareness_judge", "metric",
)  # fmt: skip

COMMANDS = (
    Command(
        "fit", "lightning_modules.fit:fit", "train a recipe, stage by stage, score it, and leave a bundle",
        _config("conf/quickstart.yaml"), _overrides("stages.joint.lr=1e-4"),
        loader="config.recipe:load", trust=TRUST,
    ),
    Command(
        "estimate", "estimation.estimate:command", "predict memory, hours and file sizes of a recipe for `fit`",
        _config("conf/dual_adapter.yaml"),
        arg("--gpu", help="h100, h200, a100, l40s, rtx4090, or `here`: this machine, by trying it"),
        arg("--utterances", type=int, help="suppose so many, instead of reading the recipe's manifests"),
        arg("--seconds", type=float, default=5.0, help="mean length of those; 5 if absent"),
        _overrides("trainer.devices=8"), trust=TRUST,
    ),
    Command(
        "pretrain", "lightning_modules.best_rq_pretraining:pretrain",
        "pre-train a speech encoder on audio alone, by BEST-RQ",
        _config("conf/best_rq.yaml"), _overrides("steps=1000"), loader="config.best_rq:load",
    ),
    Command(
        "evaluate", "scoring.evaluate:evaluate", "score a run again, or a bundle on data of one's own",
        arg("folder", help="of a run or a bundle, such as runs/quickstart; or org/name of the hub"),
        arg("--stage", help="of a run: whose best checkpoint; the last if absent"),
        arg("--test", action="append", default=[], metavar="FILE", help="a manifest that the bundle answers"),
        arg("--task", action="append", default=[], help="with --test: what is asked; all of its tasks if absent"),
        arg("--out", help="with --test: folder of predictions.jsonl and scores"),
        _overrides("evaluation.batch_size=8"), trust=TRUST, device=True,
    ),
    Command(
        "judge", "scoring.judging:command", "let the judges of a finished run's recipe score its replies",
        arg("folder", help="of the run, such as runs/dual_adapter"), _overrides("evaluation.judges.qwen=null"),
        device=True,
    ),
    Command(
        "table", "comparison.table:table", "train or reuse every system of a paper's table, and compare them",
        arg("config", help="such as conf/speech_emotion_llama/table.yaml"), _overrides("seeds=[1]"),
        trust="trust_remote_code",
    ),
    Command(
        "sweep", "comparison.sweep:sweep", "train a recipe with each of several values, and compare the runs",
        arg("config", help="the recipe, such as conf/quickstart.yaml"),
        arg("--dry-run", action="store_true", help="check each recipe, and print what would be trained"),
        arg("--trials", type=int, help="as many runs, whose values Optuna proposes; a grid if absent"),
        _overrides("stages.joint.lr=1e-3,3e-4 seed=1,2, or 'stages.joint.lr=1e-4..1e-2 log'"), trust=TRUST,
    ),
    Command(
        "compare", "comparison.compare:compare", "finished runs side by side, on the same utterances",
        arg("runs", nargs="+", help="folders, such as runs/pe_ft/seed-*/selective runs/pe_ft/seed-*/full"),
        arg("--out", help="folder of comparison.html and comparison.csv; beside the runs if absent"),
        arg("--against", help="the system that the others are held against; the first if absent"),
    ),
    Command(
        "analyze", "analysis.analyze:analyze", "layer-wise analyses of a bundle's LLM: where voice and meaning are",
        _BUNDLE, arg("--config", required=True, help="such as conf/analysis.yaml"), _overrides("limit=200"),
        trust="trust_remote_code", device=True,
    ),
    Command(
        "diagnose", "analysis.diagnose:diagnose", "is it the encoder, the adapter or the LLM: a verdict on each task",
        arg("folder", help="of a run or a bundle, such as runs/quickstart; or org/name of the hub"),
        arg("--stage", help="of a run: whose best checkpoint; the last if absent"),
        arg("--tasks", "--task", action="append", default=[], metavar="TASK", help="such as asr,emotion; absent: all"),
        arg("--limit", type=int, default=600, help="test utterances a task, and four times as many to learn by; 600"),
        arg("--test", action="append", default=[], metavar="FILE", help="a manifest in place of the run's test side"),
        arg("--out", help="folder of diagnosis.json, diagnosis.md and a picture a task; RUN/diagnosis if absent"),
        _overrides("llm.checkpoint=/path"), trust=TRUST, device=True,
    ),
    Command(
        "chat", "serving.chat:chat", "ask a bundle something by voice",
        _BUNDLE,
        arg("--audio", action="append", default=[], help="an audio file; several are turns one after another"),
        arg("--task", help="whose instruction the model is given; a reply if absent"),
        arg("--instruction", help="instead of a task's own wording"),
        arg("--once", action="store_true", help="answer and stop: --audio, or words on standard input"),
        _overrides("llm.checkpoint=/path"), trust=TRUST, device=True,
    ),
    Command(
        "serve", "serving.http.command:serve", "an OpenAI-compatible chat endpoint that hears, for programs",
        _BUNDLE,
        arg("--host", default="127.0.0.1", help="address to listen on; 127.0.0.1, this machine alone, if absent"),
        arg("--port", type=int, default=8000, help="8000 if absent; 0: any that is free"),
        arg("--name", help="of the model, as clients call it; that of its recipe if absent"),
        arg("--task", help="whose instruction requests without one get; a reply if absent"),
        arg("--instruction", help="instead of a task's own wording"),
        arg("--batch-size", type=int, default=8, help="requests that are answered together; 8"),
        arg("--queue", type=int, default=64, help="requests that may wait beside them; more are refused (429); 64"),
        arg("--max-seconds", type=float, default=120.0, help="of audio in a request; 120"),
        arg("--max-request-mb", type=float, default=25.0, help="MiB of a request; 25"),
        arg("--max-new-tokens", type=int, default=200, help="of an answer, where a request does not say; 200"),
        arg("--timeout", type=float, default=120.0, help="seconds from a request to the end of its answer; 120"),
        arg("--api-key", action="store_true",
            help="ask clients for a key: that in SOTTOVOCE_API_KEY, or one that is asked for here"),
        arg("--engine", choices=["local", "vllm"], default="local", help="where the LLM runs: here, or in --url"),
        arg("--url", help="of a vLLM server with that LLM and --enable-prompt-embeds: http://localhost:8000/v1"),
        arg("--served-model", help="as the vLLM server calls it, where it has several"),
        arg("--url-key-env", metavar="VARIABLE", help="environment variable with the key of the vLLM server"),
        _overrides("llm.checkpoint=/path"), trust=TRUST, device=True,
    ),
    Command(
        "demo", "webpage.command:demo", "open a page on which a bundle is spoken to, in the browser",
        _BUNDLE,
        arg("--against", metavar="BUNDLE", help="a second bundle, which answers beside it: frozen and tuned"),
        arg("--example", action="append", default=[], metavar="FILE", help="a clip to offer; absent: of the run's own"),
        arg("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; 127.0.0.1"),
        arg("--port", type=int, help="the first free one from 7860 on if absent"),
        arg("--no-browser", action="store_false", dest="browser", help="print the address, and open nothing"),
        _overrides("llm.checkpoint=/path"), trust=TRUST, device=True,
    ),
    Command(
        "predict", "serving.predict:predict", "answers of a bundle to files, folders and manifests, as a table",
        _BUNDLE, arg("inputs", nargs="+", metavar="FILE",
            help="audio files, folders of them, manifests (.jsonl); also key=value, such as llm.checkpoint=/path"),
        arg("--task", action="append", default=[], help="what is asked, such as age; several are rows of their own"),
        arg("--ask", help="a question of your own, in place of a task"),
        arg("--slots", default="both", help="which take speech: both (all), or names joined by commas"),
        arg("--probabilities", action="store_true", help="of each label, too"),
        arg("--out", help=".csv, .jsonl or .json; printed as CSV if absent; exit code 2 if a clip was unreadable"),
        arg("--batch-size", type=int, default=8), arg("--max-new-tokens", type=int, default=200),
        trust=TRUST, device=True,
    ),
    Command(
        "show", "scoring.show:show", "answers of a run, with clip, words and what would be right; or its page",
        arg("folder", help="of a run, or of scores, such as runs/quickstart"),
        arg("--task", action="append", default=[], help="whose answers, such as age; all if absent"),
        arg("--slots", help="which took speech; both if absent"),
        arg("--wrong", action="store_true", help="the wrong ones alone"),
        arg("--limit", type=int, default=20, help="answers, at most; 20"),
        arg("--html", action="store_true", help="write report.html: scores, confusions, curves, answers with audio"),
    ),
    Command(
        "export", "serving.export:command", "write what a run has trained for other programs, such as transformers",
        _BUNDLE, arg("--out", "--to", required=True, help="the folder to write, which plain transformers then opens"),
        arg("--dtype", choices=["float32", "bfloat16", "float16"], help="of all weights; the checkpoint's if absent"),
        arg("--lora", action="store_true", help="the LoRA alone, as a folder that peft opens"),
        arg("--format", choices=["native", "plain", "pt2", "onnx"], default="native",
            help="native: the checkpoint's own; plain: a folder with adapters and a loader; pt2, onnx: graphs"),
        _overrides("llm.checkpoint=/path"), trust=TRUST,
    ),
    Command(
        "push", "serving.push:push", "upload a bundle to the hub of Hugging Face, as others may have it",
        _BUNDLE, arg("repository", metavar="org/name", help="made if it is not there"),
        arg("--private", action="store_true", help="make it one that only its members see"),
        arg("--revision", metavar="BRANCH", help="made if it is not there; main if absent"),
        arg("--license", metavar="ID", help="as the hub calls it, such as apache-2.0"),
        arg("--language", action="append", default=[], metavar="CODE", help="that it was trained on, such as en"),
        _overrides("llm.checkpoint=org/model, where a part lies on this machine"),
    ),
    Command(
        "schema", "cli.recipe_schema:print_schema", "print the JSON Schema of a kind of recipe, for editors",
        arg("kind", choices=["fit", "pretrain", "paired", "analyze", "table"], help="whose recipes"),
    ),
    Command(
        "list", "cli.components:list_components", "show every registered component with its knobs",
        arg("kind", nargs="?", choices=KINDS, help="absent: all"),
        arg("--json", action="store_true", dest="as_json", help="for programs"),
    ),
    Command(
        "cache", "cli.cache:command", "show what lies in a cache, how large it is and whose, or delete it",
        arg("folder", nargs="?", default=".cache/sottovoce", help="`data.cache`; .cache/sottovoce if absent"),
        arg("--clean", action="store_true", help="delete it, after a question"),
        arg("--older", type=float, metavar="DAYS", help="with --clean: what nobody has used for so long"),
        arg("--yes", action="store_true", help="with --clean: without a question"),
    ),
    Command(
        "completion", "cli.completion:print_completion", "print a script by which a shell completes commands",
        arg("shell", choices=["bash", "zsh", "fish"], help='eval "$(sottovoce completion bash)" in ~/.bashrc'),
    ),
    Command(
        "prepare", "generation.prepare:prepare", "turn a published corpus into manifests",
        arg("corpus", help="such as librispeech; `sottovoce list` shows all of them and their knobs"),
        arg("--source", help="the folder that the corpus was unpacked in"),
        arg("--download", action="store_true", help="what is not there yet, into --source, where a program can"),
        arg("--mirror", metavar="URL", help="with --download: in place of the corpus's own server"),
        arg("--out", required=True, help="folder of the manifests, such as manifests/librispeech"),
        _overrides("seed=1, a knob of the corpus, or hold_out='{test: [SPEAKER]}' of any"),
    ),
    Command(
        "manifest", "generation.manifest:manifest", "turn data in another format into manifests",
        arg("source", help="a file, a folder, or a dataset on the hub of Hugging Face"),
        arg("--out", required=True, help="folder of the manifests, such as manifests/mine"),
        arg("--format", metavar="KIND", help="csv, json, messages, nemo, lhotse, kaldi, datasets or audiofolder"),
        *(arg(f"--{key}", metavar="COLUMN", help=f"the column that is `{key}`")
          for key in ("audio", "text", "speaker", "caption", "response", "id")),
        arg("--column", action="append", default=[], metavar="KEY=COLUMN", help="of another key, such as start=begin"),
        arg("--label", action="append", default=[], metavar="ATTRIBUTE=COLUMN", help="such as age=age_group"),
        arg("--map", action="append", default=[], metavar="ATTRIBUTE:VALUE=LABEL",
            help="such as age:kid=child or age:0-12=child; without a label: none"),
        arg("--root", metavar="DIR", help="where relative paths of clips start; beside the source if absent"),
        arg("--split", help="of a dataset: this one alone"), arg("--subset", help="of a dataset: its configuration"),
        arg("--split-column", metavar="COLUMN", help="names each row's split; `split` if absent"),
        arg("--split-by", metavar="KEY", help="make splits by it, such as speaker, each of whom is on one side"),
        arg("--validation", type=float, default=0.0, metavar="SHARE", help="with --split-by, such as 0.1"),
        arg("--test", type=float, default=0.0, metavar="SHARE", help="with --split-by, such as 0.1"),
        arg("--seed", type=int, default=0, help="of --split-by; 0"),
    ),
    Command(
        "label", "cli.main:label", "add pitch, energy and tempo labels to a manifest, by measuring",
        _MANIFEST, _OUT, _ROOT, _ALLOW,
        arg("--workers", type=int, default=1, help="processes that measure"),
    ),
    Command(
        "shards", "cli.main:shards", "pack a manifest and its clips into tar files (Lhotse Shar)",
        _MANIFEST,
        arg("--out", required=True, help="the folder to write; its manifest.jsonl is what a recipe names"),
        arg("--size", type=int, default=1000, help="clips a tar file"),
        _ROOT, _ALLOW,
    ),
    Command(
        "targets", "generation.targets:targets", "let an LLM write the targets of a manifest, or take them of a table",
        _MANIFEST, _OUT,
        arg("--kind", choices=["response", "plain", "caption", "answers"], default="response"),
        arg("--prompt", help="a file in place of the paper's prompt; {transcript} and {emotion} are filled in"),
        arg("--engine", default="local", help="who answers; `sottovoce list` shows engines and their knobs"),
        arg("--max-new-tokens", type=int, default=256),
        _overrides("checkpoint=/path, a knob of the engine"), trust="trust_remote_code", device=True,
    ),
    Command(
        "speak", "generation.spoken_texts:speak_texts", "make speech of texts: clips, and a manifest of them",
        arg("texts", help="a file with a text a line"),
        arg("--out", required=True, help="folder of the clips and of manifest.jsonl"),
        arg("--synthesizer", default="espeak", help="who speaks; `sottovoce list` shows all and their knobs"),
        arg("--voice", action="append", required=True, metavar="LABEL=VOICE,…", help="such as female=heart,kore"),
        arg("--attribute", default="gender", help="whose labels these are; gender if absent"),
        arg("--each", type=int, default=1, help="voices that say a text; 1 if absent"),
        arg("--seed", type=int, default=0), arg("--workers", type=int, default=1),
        _overrides("model=kokoro-v1.0.onnx, a knob of the synthesizer"),
    ),
    Command(
        "paired", "generation.paired:paired", "speak the same texts as each kind of speaker, with right answers",
        _config("conf/paired_data_demo.yaml"), _overrides("out=paired"),
        loader="generation.paired_config:load", trust="writer.engine.trust_remote_code", device=True,
    ),
)  # fmt: skip
