"""The folder of a run: it holds one recipe, and what that recipe ran on."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from sottovoce.config_tree import Tree, read_tree
from sottovoce.errors import ConfigError, MissingError
from sottovoce.io import atomic_write

RECIPE, DATA = "recipe.yaml", "data.json"


def open_folder(folder: Path, recipe: Tree) -> None:
    """Make the run's folder, or find in it the run that is to go on; errors as in `check_folder`."""
    check_folder(folder, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / RECIPE
    if not file.is_file():  # another process may be reading it
        atomic_write(file, OmegaConf.to_yaml(recipe), shared=True)
    atomic_write(folder / "environment.json", json.dumps(environment(), indent=2) + "\n", shared=True)


def recipe_file(folder: Path) -> Path:
    """The recipe of a run; MissingError where the folder is none."""
    if not (file := folder / RECIPE).is_file():
        raise MissingError(f"{folder} is not a run: there is no {RECIPE} in it. `sottovoce fit` makes one", where=file)
    return file


def check_data(folder: Path, sides: Mapping[str, Iterable[object]]) -> None:
    """See that a run that goes on goes on with the data that it began with: which, how long, how often.

    The order of a stage is a function of these. With others, examples would come twice or not at all, unnoticed.

    Raises:
        ConfigError: one of the sides, which say what each split has in its order, has changed.
    """
    file = folder / DATA
    lines = {name: "".join(f"{row}\n" for row in rows) for name, rows in sides.items()}
    found = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in lines.items()}
    if not file.is_file():
        atomic_write(file, json.dumps(found, indent=2) + "\n", shared=True)
        return
    began = json.loads(file.read_text("utf-8"))
    if changed := [name for name in found if found[name] != began.get(name)]:
        told = (
            f"the data of {', '.join(changed)} are not those that this run began with: a manifest was changed, or "
            "other clips are left out. Put them back, name this run otherwise (name=...), or delete the folder"
        )
        raise ConfigError.at(folder, "mismatch", told)


def _whatever_it_runs_on(recipe: Tree) -> str:
    """A recipe without what says how a step's work is spread; of a curriculum, where each checkpoint says the rest.

    What is null is left out, so that a run goes on after an update that brought an option.
    """
    if "stages" in recipe:
        stages = {name: {**node, "batch_size": None} for name, node in recipe["stages"].items()}
        recipe = {**recipe, "trainer": None, "stages": stages}
    return OmegaConf.to_yaml(_without_nulls(recipe))


def _without_nulls(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_nulls(value) for key, value in tree.items() if value is not None}
    return [_without_nulls(value) for value in tree] if isinstance(tree, list) else tree


def check_folder(folder: Path, recipe: Tree) -> None:
    """A ConfigError where the folder holds a run of another recipe.

    The same recipe may go on with other processes: on another machine, by another strategy, in other shares of a batch.
    """
    file = folder / RECIPE
    if file.is_file() and _whatever_it_runs_on(read_tree(file)) != _whatever_it_runs_on(recipe):
        told = "name this one otherwise (name=...), or delete the folder to begin again"
        message = f"{folder} holds a run of another recipe (compare {file}): {told}"
        raise ConfigError(message, code="mismatch", where=folder)


PACKAGES = ("sottovoce", "torch", "lightning", "transformers", "openai-whisper", "torchmetrics", "jiwer", "deepspeed")


def environment() -> dict[str, object]:
    """Everything beside the recipe and the data that a number may depend on."""
    cpu = platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "changed files": len((_git("status", "--porcelain") or "").splitlines()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def _git(*arguments: str) -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output(
            ["git", *arguments], cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True, timeout=10
        ).strip()
    return None
