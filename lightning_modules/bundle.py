"""The deliverable: what was trained as safetensors, the recipe, a model card, and fingerprints of encoder and LLM."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any, cast

import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sottovoce.adapters import ADAPTERS, Adapter
from sottovoce.config.recipe import Recipe, load
from sottovoce.config_tree import Tree, read_tree
from sottovoce.data.tasks import TASKS
from sottovoce.encoders import ENCODERS
from sottovoce.errors import BundleError, brief
from sottovoce.hub import BUNDLE_FILES, OWN, bundle_of
from sottovoce.io import atomic_folder, atomic_write, file_sha256
from sottovoce.lightning_modules.card import CODE, write_card
from sottovoce.lightning_modules.checkpointing import check_fit, shapes_of
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.own_parts import names_in, origin

if TYPE_CHECKING:
    from sottovoce.evaluation.records import Record

WEIGHTS, RECIPE, PRINTS, CARD = BUNDLE_FILES
TRAINED = "trained"  # in PRINTS, SHA-256 of WEIGHTS


def write_bundle(folder: Path, module: SpeechLLM, records: Sequence["Record"]) -> Path:
    """Write all that another machine needs, beside the frozen parts, to answer speech; replaces what is there."""
    weights = {name: value.detach().cpu().contiguous() for name, value in module.trained().items()}
    with atomic_folder(folder) as draft:
        save_file(weights, draft / WEIGHTS)
        tree, code = _with_code(module.recipe, draft)
        atomic_write(draft / RECIPE, OmegaConf.to_yaml(tree))
        prints = {**fingerprints(module), TRAINED: file_sha256(draft / WEIGHTS), **({CODE: code} if code else {})}
        atomic_write(draft / PRINTS, json.dumps(prints, indent=2) + "\n")
        write_card(draft, module, records)
        make_readable(draft)
    return folder


def make_readable(folder: Path) -> None:
    """Let everybody read a folder's files, whatever the library that wrote them thinks (safetensors: its owner)."""
    for file in folder.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


def _with_code(recipe: Recipe, draft: Path) -> tuple[Tree, list[dict[str, str]]]:
    """The recipe with its parts of one's own in `draft`, where their files are copied, and where parts come from.

    That is of each a file's or module's SHA-256, or a plug-in's package and version.
    """
    plain: Tree = {**recipe.plain(), "callbacks": []}  # those were for training, and metrics for its scores
    plain["evaluation"] = {**plain["evaluation"], "metrics": {}}
    copied: dict[str, str] = {}
    for name in dict.fromkeys(names_in(plain)):
        place, _, attribute = name.rpartition(":")
        if place.endswith(".py"):
            (draft / OWN).mkdir(exist_ok=True)
            target = draft / OWN / Path(place).name
            if target.exists() and file_sha256(target) != file_sha256(Path(place)):
                target = target.with_stem(f"{target.stem}_{file_sha256(Path(place))[:8]}")
            copyfile(place, target)
            copied[name] = f"./{OWN}/{target.name}:{attribute}"
    named = [(str(recipe.encoder["type"]), ENCODERS.group)]
    named += [(str(slot.adapter["type"]), ADAPTERS.group) for slot in recipe.slots.values()]
    named += [(str(node["type"]), TASKS.group) for node in recipe.tasks.values()]
    named += [(name, "") for name in names_in(plain)]
    origins = [made for name, group in named if (made := origin(name, group))]
    unique = list({made["type"]: {**made, "type": copied.get(made["type"], made["type"])} for made in origins}.values())
    return cast(Tree, renamed(plain, copied)), unique


def renamed(node: Any, names: Mapping[str, str]) -> Any:
    """A tree with other names for some of its `type`s."""
    if isinstance(node, list):
        return [renamed(value, names) for value in node]
    if not isinstance(node, dict):
        return node
    tree = {key: renamed(value, names) for key, value in node.items()}
    return {**tree, "type": names.get(tree["type"], tree["type"])} if isinstance(tree.get("type"), str) else tree


def check_code(folder: Path) -> None:
    """`BundleError` where a file of a bundle's own parts has changed since it was written, or nothing tells."""
    code = read_prints(folder).get(CODE)
    for part in code if isinstance(code, list) else []:
        place = str(part.get("type")).rpartition(":")[0] if isinstance(part, dict) else ""
        if place.startswith(f"./{OWN}/") and (file := folder / place).is_file() and file_sha256(file) != part["sha256"]:
            raise _damaged(file, "it has changed since the bundle was written")


def read_prints(folder: Path) -> dict[str, Any]:
    """A bundle's fingerprints and where its code comes from; `BundleError` where they cannot be read."""
    try:
        found = json.loads((folder / PRINTS).read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise _damaged(folder / PRINTS, error) from None
    if not isinstance(found, dict):
        raise _damaged(folder / PRINTS, "a JSON object is needed")
    return found


def consent(bundle: Path) -> str:
    """The option that whoever opens a bundle must give, after a space; empty where it has no code of its own."""
    return " --allow-code" if any(names_in(read_tree(bundle / RECIPE))) else ""


def fingerprints(module: SpeechLLM) -> dict[str, str]:
    """Digests of encoder and LLM, which a bundle's adapters need as they are."""
    return {"encoder": module.encoder.fingerprint(), "llm": module.llm.fingerprint()}


def bundle_weights(bundle: str | Path) -> dict[str, Tensor]:
    """What a bundle's run has trained, named as in a checkpoint; `BundleError` if the file is missing or damaged."""
    folder = bundle_of(bundle)
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


def check_shapes(module: SpeechLLM, folder: Path, *, begins: bool = False) -> None:
    """A bundle's adapters against the module's, before any memory is taken that a wrong number would fill.

    `begins`: the module begins from them; adapters whose weights come with their checkpoint need none.
    """
    if not begins and module.recipe.untuned:
        return
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:  # type: ignore[no-untyped-call]
            names = [name for name in file.keys() if name.startswith("adapters.")]
            found = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except Exception as error:  # see `bundle_weights`
        raise _damaged(folder / WEIGHTS, error) from None
    if begins and not found and all(cast(Adapter, each).pretrained for each in module.adapters.values()):
        return
    check_fit(shapes_of("adapters", module.adapters.state_dict()), found, folder / WEIGHTS)


def read_bundle(bundle: str | Path, overrides: Sequence[str] = ()) -> SpeechLLM:
    """Load a bundle and the frozen parts that it was trained with.

    Code that it names is executed only by consent, see `own_parts`.

    Args:
        bundle: folder, or `org/name[@revision]` of the hub.
        overrides: such as `llm.checkpoint=/path/to/folder`, where the frozen parts lie elsewhere.

    Raises:
        BundleError: a file is missing or damaged, or a frozen part is another one than in training.
        ConfigError: it names code, and nobody has consented.
        MissingError: a frozen part cannot be reached, or no hub has the bundle.
    """
    folder = bundle_of(bundle)
    absent = [name for name in (WEIGHTS, RECIPE, PRINTS) if not (folder / name).is_file()]
    if absent:
        told = f"{bundle} is not a bundle: {', '.join(absent)} is not there. A run leaves one in runs/<name>/bundle"
        raise BundleError(told, code="not-found", where=bundle)
    expected = read_prints(folder)
    check_code(folder)
    recipe = load(folder / RECIPE, overrides, own=False)
    with torch.device("meta"):
        check_shapes(SpeechLLM(recipe), folder)
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
