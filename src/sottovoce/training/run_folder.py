"""The folder of a run: it holds one recipe, and what that recipe ran on."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from sottovoce.config_tree import Tree, read_tree
from sottovoce.errors import ConfigError
from sottovoce.io import atomic_write

RECIPE, DATA = "recipe.yaml", "data.json"


def open_folder(folder: Path, recipe: Tree) -> None:
    """Make the run's folder, or find in it the run that is to go on.

    Raises:
        ConfigError: the folder holds a run of another recipe.
    """
    check_folder(folder, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / RECIPE
    if not file.is_file():  # another process may be reading it
        atomic_write(file, OmegaConf.to_yaml(recipe), shared=True)
    atomic_write(folder / "environment.json", json.dumps(environment(), indent=2) + "\n", shared=True)


def check_data(folder: Path, sides: Mapping[str, Iterable[object]]) -> None:
    """See that a run that goes on goes on with the data that it began with: which, how long, how often.

    The order of a stage is a function of these. With others, examples would come twice or not at all, unnoticed.

    Args:
        folder: of the run.
        sides: what each split has, in its order.

    Raises:
        ConfigError: a split has changed.
    """
    file = folder / DATA
    found = {name: _digest(rows) for name, rows in sides.items()}
    if not file.is_file():
        atomic_write(file, json.dumps(found, indent=2) + "\n", shared=True)
        return
    began = json.loads(file.read_text("utf-8"))
    if changed := [name for name in found if found[name] != began.get(name)]:
        raise ConfigError(
            f"{folder}: the data of {', '.join(changed)} are not those that this run began with: a manifest was "
            "changed, or other clips are left out. Put them back, name this run otherwise (name=...), or delete the "
            "folder",
            code="mismatch",
            where=folder,
        )


def _digest(rows: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row}\n".encode())
    return digest.hexdigest()


def _whatever_it_runs_on(recipe: Tree) -> str:
    """A recipe without what says how a step's work is spread; of a curriculum, where each checkpoint says the rest.

    What is null is left out, so that a run goes on after an update that brought an option.
    """
    if "stages" in recipe:
        stages = {
            name: {**node, "batch_size": None, "accumulate_grad_batches": None}
            for name, node in recipe["stages"].items()
        }
        recipe = {**recipe, "trainer": None, "stages": stages}
    return OmegaConf.to_yaml(_without_nulls(recipe))


def _without_nulls(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_nulls(value) for key, value in tree.items() if value is not None}
    return [_without_nulls(value) for value in tree] if isinstance(tree, list) else tree


def check_folder(folder: Path, recipe: Tree) -> None:
    """Raises ConfigError where the folder holds a run of another recipe.

    The same recipe may go on with other processes: on another machine, by another strategy, in other shares of a batch.
    """
    file = folder / RECIPE
    if file.is_file() and _whatever_it_runs_on(read_tree(file)) != _whatever_it_runs_on(recipe):
        raise ConfigError(
            f"{folder} holds a run of another recipe (compare {file}): name this one otherwise (name=...), "
            "or delete the folder to begin again",
            code="mismatch",
            where=folder,
        )


PACKAGES = ("sottovoce", "torch", "lightning", "transformers", "openai-whisper", "torchmetrics", "jiwer", "deepspeed")


def environment() -> dict[str, object]:
    """Everything beside the recipe and the data that a number may depend on."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "changed files": len((_git("status", "--porcelain") or "").splitlines()),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
