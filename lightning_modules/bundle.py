"""The deliverable: what was trained as safetensors, the recipe, a model card, and fingerprints of encoder and LLM."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sottovoce import __version__
from sottovoce.config.recipe import Recipe, load
from sottovoce.errors import BundleError, brief
from sottovoce.io import atomic_folder, atomic_write, file_sha256
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.training.run_folder import environment
from sottovoce.training.slot_layers import layer_weights

if TYPE_CHECKING:
    from sottovoce.evaluation.records import Record

WEIGHTS, RECIPE, PRINTS, CARD = "trained.safetensors", "recipe.yaml", "fingerprints.json", "README.md"
TRAINED = "trained"  # in PRINTS, SHA-256 of WEIGHTS


def write_bundle(folder: Path, module: SpeechLLM, records: Sequence["Record"]) -> Path:
    """Write all that another machine needs, beside the frozen parts, to answer speech; replaces what is there."""
    weights = {name: value.detach().cpu().contiguous() for name, value in module.trained().items()}
    with atomic_folder(folder) as draft:
        save_file(weights, draft / WEIGHTS)
        atomic_write(draft / RECIPE, OmegaConf.to_yaml({**module.recipe.plain(), "callbacks": []}))  # code
        prints = {**fingerprints(module), TRAINED: file_sha256(draft / WEIGHTS)}
        atomic_write(draft / PRINTS, json.dumps(prints, indent=2) + "\n")
        write_card(draft, module, records)
    return folder


def fingerprints(module: SpeechLLM) -> dict[str, str]:
    """Digests of encoder and LLM, which a bundle's adapters need as they are."""
    return {"encoder": module.encoder.fingerprint(), "llm": module.llm.fingerprint()}


def bundle_weights(folder: Path) -> dict[str, Tensor]:
    """What a bundle's run has trained, named as in a checkpoint; `BundleError` if the file is missing or damaged."""
    try:
        told = json.loads((folder / PRINTS).read_text("utf-8")).get(TRAINED)  # bundles of older versions have none
        if told not in (None, file_sha256(folder / WEIGHTS)):
            raise ValueError("it has changed since it was written")
        weights = load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors has several errors for a broken file, such as KeyError for a dtype
        raise _damaged(folder / WEIGHTS, error) from None
    for name, value in weights.items():
        if not value.is_floating_point() or not value.float().isfinite().all():
            raise _damaged(folder / WEIGHTS, f"{brief(name, 100)}: finite floats are needed, found {value.dtype}")
    return weights


def _damaged(file: Path, why: object) -> BundleError:
    return BundleError(f"{file} cannot be read: {brief(why, 300)}", code="damaged", where=file)


def _check_shapes(recipe: Recipe, folder: Path) -> None:
    """The file's adapters against the recipe's, before any memory is taken that a wrong number would fill."""
    if recipe.untuned:  # they come with the checkpoint
        return
    with torch.device("meta"):
        asked = {f"adapters.{name}": w.shape for name, w in SpeechLLM(recipe).adapters.state_dict().items()}
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:  # type: ignore[no-untyped-call]
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except Exception as error:  # see `bundle_weights`
        raise _damaged(folder / WEIGHTS, error) from None
    for name, shape in asked.items():
        if found.get(name) != tuple(shape):
            there = f"has {found[name]}" if name in found else "lacks it"
            why = f"its trained weights do not fit this recipe: {name} is {tuple(shape)} there, and the file {there}"
            raise BundleError.at(folder / WEIGHTS, "mismatch", why)


def read_bundle(folder: Path, overrides: Sequence[str] = ()) -> SpeechLLM:
    """Load a bundle and the frozen parts that it was trained with; nothing in it is executed.

    Args:
        folder: of the bundle.
        overrides: such as `llm.checkpoint=/path/to/folder`, where the frozen parts lie elsewhere.

    Raises:
        BundleError: a file is missing or damaged, or a frozen part is another one than in training.
        MissingError: a frozen part cannot be reached.
    """
    absent = [name for name in (WEIGHTS, RECIPE, PRINTS) if not (folder / name).is_file()]
    if absent:
        told = f"{folder} is not a bundle: {', '.join(absent)} is not there. A run leaves one in runs/<name>/bundle"
        raise BundleError(told, code="not-found", where=folder)
    recipe = load(folder / RECIPE, overrides)
    try:
        expected = json.loads((folder / PRINTS).read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise _damaged(folder / PRINTS, error) from None
    if not isinstance(expected, dict):
        raise _damaged(folder / PRINTS, "a JSON object is needed")
    _check_shapes(recipe, folder)
    module = SpeechLLM(recipe)
    module.load_trained(bundle_weights(folder), str(folder / WEIGHTS))
    module.configure_model()
    found = fingerprints(module)
    for part, checkpoint in (("encoder", recipe.encoder.get("checkpoint")), ("llm", recipe.llm.checkpoint)):
        if found[part] != expected.get(part):
            told = f"{folder}: its adapters were trained with another {part} than {checkpoint}: fingerprint "
            told += f"{str(expected.get(part))[:12]} in the bundle, {found[part][:12]} here. Point {part}.checkpoint "
            told += "at the one of the training run; adapters make no sense to any other"
            raise BundleError(told, code="mismatch", where=f"{part}.checkpoint")
    return module.eval()


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


def write_card(folder: Path, module: SpeechLLM, records: Sequence["Record"]) -> None:
    """Write a bundle's model card: what it is made of, how it is used, and its scores."""
    from sottovoce.evaluation.reports.results import results_markdown  # brings all of the metrics along

    recipe, here = module.recipe, environment()
    adapters = "\n".join(
        f"| {name} | {slot.adapter['type']} | {sum(p.numel() for p in module.adapters[name].parameters()):,} |"
        for name, slot in recipe.slots.items()
    )
    stages = "\n".join(
        f"- `{name}`: {dict(node.tasks)}, ERR {node.err or 'none'}" for name, node in recipe.stages.items()
    )
    stages = stages or "none: nothing was trained, and this folder has no weights of its own"
    card = f"""# {recipe.name}

Speech adapters for a frozen LLM, trained with Sottovoce {__version__}
(commit {here["commit"]}, seed {recipe.seed}).

- speech encoder (frozen): `{recipe.encoder}`
- LLM (frozen): `{recipe.llm.checkpoint}` in {recipe.llm.dtype}

| slot | adapter | parameters |
|---|---|---:|
{adapters}
{_layers(module)}
Stages, in order:
{stages}

## Use

    sottovoce chat THIS_FOLDER --audio question.wav

## Results

{results_markdown(records) if records else "Not scored."}
"""
    atomic_write(folder / CARD, card)
