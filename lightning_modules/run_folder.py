"""The folder of a run: it holds one recipe, and what that recipe ran on."""

import json
from pathlib import Path

from omegaconf import OmegaConf

from undertone.errors import ConfigError
from undertone.files import write_whole
from undertone.lightning_modules.environment import environment
from undertone.tree import Tree

RECIPE = "recipe.yaml"


def open_folder(folder: Path, recipe: Tree) -> None:
    """Make the run's folder, or find in it the run that is to go on.

    Raises:
        ConfigError: the folder holds a run of another recipe.
    """
    check_folder(folder, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / RECIPE
    if not file.is_file():  # another process may be reading it
        write_whole(file, OmegaConf.to_yaml(recipe))
    write_whole(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")


def check_folder(folder: Path, recipe: Tree) -> None:
    """Raises ConfigError where the folder holds a run of another recipe."""
    file = folder / RECIPE
    if file.is_file() and file.read_text("utf-8") != OmegaConf.to_yaml(recipe):
        raise ConfigError(
            f"{folder} holds a run of another recipe (compare {file}): name this one otherwise (name=...), "
            "or delete the folder to begin again"
        )
