"""A bundle's model card: front matter as the hub reads it, parts, use, data, scores, limits, citation."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]

from sottovoce import __version__
from sottovoce.config.recipe import SPLITS, Recipe, used_tasks
from sottovoce.encoders.whisper import HUB_PREFIX, PUBLISHED
from sottovoce.hub import BUNDLE_FILES
from sottovoce.io import atomic_write
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.paths import is_local
from sottovoce.training.run_folder import environment
from sottovoce.training.slot_layers import layer_weights

if TYPE_CHECKING:
    from sottovoce.evaluation.records import Record

_, _, PRINTS, CARD = BUNDLE_FILES
CODE = "code"  # in PRINTS, where parts come from that are not ours
HERE = "THIS_BUNDLE"  # its name, until it is pushed and has one
UNKNOWN = "unknown"  # as the hub calls a licence that nobody has stated
PIPELINE = "audio-text-to-text"  # of the hub's tasks
_HUB_TASKS = {"asr": "automatic-speech-recognition", "dialogue": PIPELINE, "response": PIPELINE, "caption": PIPELINE}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_FENCE = "---\n"

_LIMITS = """It answers what it was trained on, about speech that is like its training data. Age, gender and emotion are
guesses about how a voice sounds, and no facts about a person; they are worse for people whom the data lacks, and are no
ground for a decision about anybody. The replies are the LLM's, with that LLM's own errors and limits. Encoder and LLM
come from their own publishers, under their own licences."""

_CITATION = """    @software{sottovoce,
      title = {Sottovoce: speech adapters for frozen LLMs},
      author = {{The Sottovoce authors}},
      version = {%s},
    }

Please cite the papers of the methods, too, and those of the encoder, the LLM and the data."""


def write_card(folder: Path, module: SpeechLLM, records: Sequence["Record"]) -> None:
    """Write a bundle's model card; nothing in it is a path of this machine."""
    from sottovoce.evaluation.reports.results import results_markdown  # brings all of the metrics along

    recipe, here = module.recipe, environment()
    prints = folder / PRINTS
    code = json.loads(prints.read_text("utf-8")).get(CODE, []) if prints.is_file() else []
    body = f"""# {recipe.name}

Speech adapters for a frozen LLM, trained with Sottovoce {__version__}
(commit {here["commit"]}, seed {recipe.seed}).

- speech encoder{_frozen(recipe.trains_encoder)}: {_encoder(recipe)}
- LLM{_frozen(recipe.trains_llm)}: `{shown_name(recipe.llm.checkpoint)}` in {recipe.llm.dtype}

| slot | adapter | parameters |
|---|---|---:|
{_adapters(module)}
{_layers(module)}{_packages(code)}
## Use

    sottovoce chat {HERE} --audio question.wav

```python
import sottovoce as sv

model = sv.load("{HERE}")
print(model("question.wav"{_first_task(recipe)}))
```

## Training

{_data(recipe)}

{_stages(recipe)}

## Results

{results_markdown(records).replace("# ", "## ") if records else "Not scored."}

## Limits

{_LIMITS}

## Citation

{_CITATION % __version__}
"""
    atomic_write(folder / CARD, with_metadata(metadata(recipe, records), body))


def metadata(recipe: Recipe, records: Sequence["Record"]) -> dict[str, Any]:
    """The front matter of a card, by the hub's own keys; of the scores those in which every slot has speech."""
    bases = base_models(recipe)
    return {
        "license": UNKNOWN,
        "library_name": "sottovoce",
        "pipeline_tag": PIPELINE,
        **({"base_model": bases, "base_model_relation": "adapter"} if bases else {}),
        "tags": ["sottovoce", "speech", "speech-llm", "paralinguistics", *used_tasks(recipe)],
        **_model_index(recipe, records),
    }


def base_models(recipe: Recipe) -> list[str]:
    """The hub's names of LLM and encoder; of one that comes from elsewhere there is none."""
    encoder, llm = str(recipe.encoder.get("checkpoint", "")), recipe.llm.checkpoint
    named = [llm, HUB_PREFIX + encoder if recipe.encoder["type"] == "whisper" and encoder in PUBLISHED else encoder]
    return list(dict.fromkeys(name for name in named if _HUB_ID.fullmatch(name) and not is_local(name)))


def with_metadata(fields: dict[str, Any], body: str) -> str:
    """A card of front matter and text."""
    return f"{_FENCE}{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}{_FENCE}\n{body}"


def parted(card: str) -> tuple[dict[str, Any], str]:
    """Front matter and text of a card; no fields where it has none, or none that can be read."""
    if card.startswith(_FENCE) and len(parts := card.split(_FENCE, 2)) == 3:
        try:
            fields = yaml.safe_load(parts[1])
        except yaml.YAMLError:
            fields = None
        if isinstance(fields, dict):
            return fields, parts[2].lstrip("\n")
    return {}, card


def shown_name(checkpoint: str) -> str:
    """A checkpoint's name; of one that lies on this machine, its last part alone."""
    return Path(checkpoint).name if is_local(checkpoint) else checkpoint


def _model_index(recipe: Recipe, records: Sequence["Record"]) -> dict[str, Any]:
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    from sottovoce.evaluation.reports.results import label_of, shown

    results = []
    for record in records:
        if record.slots != "both":
            continue
        task, _, part = record.task.partition(" (")  # see `Prediction.title`
        part = part.rstrip(")")
        name = f"test side of {recipe.name}" + (f", {part}" if part else "")
        results.append(
            EvalResult(
                task_type=_HUB_TASKS.get(task, "audio-classification"), task_name=task, dataset_name=name,
                dataset_type=f"{recipe.name}-test", dataset_split="test", metric_type=record.metric,
                metric_name=f"{task}: {label_of(record.metric)}", dataset_config=part or None,
                metric_value=float(shown(record.metric, record.value)),
            )
        )  # fmt: skip
    return {"model-index": eval_results_to_model_index(recipe.name, results)} if results else {}


def _frozen(trains: bool) -> str:
    return " (trained in part or whole, in this folder)" if trains else " (frozen)"


def _encoder(recipe: Recipe) -> str:
    knobs = {key: shown_name(value) if isinstance(value, str) else value for key, value in recipe.encoder.items()}
    return f"`{knobs}`"


def _adapters(module: SpeechLLM) -> str:
    counts = {name: sum(p.numel() for p in adapter.parameters()) for name, adapter in module.adapters.items()}
    slots = module.recipe.slots.items()
    return "\n".join(f"| {name} | {shown_name(str(slot.adapter['type']))} | {counts[name]:,} |" for name, slot in slots)


def _layers(module: SpeechLLM) -> str:
    """The table of what each slot hears of the encoder's layers; nothing where all hear the last one."""
    if module.layers == (module.encoder.depth,):
        return ""
    weights = layer_weights(module.slot_layers, module.adapters)
    cells = {name: [f"{mine[n]:.3f}" if n in mine else "" for n in module.layers] for name, mine in weights.items()}
    rows = [f"| {name} | {' | '.join(each)} |\n" for name, each in cells.items()]
    head = f"| weight of layer | {' | '.join(map(str, module.layers))} |\n|---|{'---:|' * len(module.layers)}\n"
    told = f"Of the encoder's {module.encoder.depth} layers a slot hears the sum, weighted as learned:"
    return f"\n{told}\n\n{head}{''.join(rows)}"


def _packages(code: Sequence[dict[str, str]]) -> str:
    """The packages that plug-ins come from, and files in the bundle that would run."""
    lines = [f"- `{part['type']}`: {_source(part)}\n" for part in code]
    return f"\nParts that are not Sottovoce's own:\n\n{''.join(lines)}" if lines else ""


def _source(part: dict[str, str]) -> str:
    if "package" in part:
        return f"the package `{part['package']}` {part['version']}, which must be installed"
    return "code that runs with `--allow-code` alone" + (
        f" (SHA-256 {part['sha256'][:16]})" if "sha256" in part else ""
    )


def _first_task(recipe: Recipe) -> str:
    """A task to ask for, where the recipe has learned no replies."""
    tasks = used_tasks(recipe)
    return "" if {"dialogue", "response"} & {*tasks} or not tasks else f', "{tasks[0]}"'


def _data(recipe: Recipe) -> str:
    if corpus := recipe.data.corpus:
        return f"Data: the corpus `{ {key: value for key, value in corpus.items() if not is_local(str(value))} }`."
    lines = [f"- {split}: {', '.join(names)}" for split in SPLITS if (names := list(_sources(recipe, split)))]
    return "Data:\n\n" + "\n".join(lines) if lines else "Data: none is named in the recipe."


def _sources(recipe: Recipe, split: str) -> Iterator[str]:
    for source in getattr(recipe.data, split):
        weight = f" (weight {source.weight:g})" if source.weight != 1 else ""
        yield f"`{shown_name(source.place)}`{weight}"


def _stages(recipe: Recipe) -> str:
    lines = [f"- `{name}`: {dict(node.tasks)}, ERR {node.err or 'none'}" for name, node in recipe.stages.items()]
    return "\n".join(["Stages, in order:", "", *lines]) if lines else (
        "Stages: none; nothing was trained, and this folder has no weights of its own."
    )  # fmt: skip
