"""The folder of a run: it holds one recipe, and what that recipe ran on."""

import json
from pathlib import Path

from omegaconf import OmegaConf

from undertone.errors import ConfigError
from undertone.lightning_modules.environment import environment
from undertone.tree import Tree, read_tree

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
        file.write_text(OmegaConf.to_yaml(recipe), "utf-8")
    (folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n", "utf-8")


def _whatever_it_runs_on(recipe: Tree) -> str:
    """A recipe without what says how a step's work is spread; of a curriculum, where each checkpoint says the rest."""
    if "stages" not in recipe:
        return OmegaConf.to_yaml(recipe)
    stages = {name: {**node, "batch": None} for name, node in recipe["stages"].items()}
    return OmegaConf.to_yaml({**recipe, "trainer": None, "stages": stages})


def check_folder(folder: Path, recipe: Tree) -> None:
    """Raises ConfigError where the folder holds a run of another recipe.

    The same recipe may go on with other processes: on another machine, by another strategy, in other shares of a batch.
    """
    file = folder / RECIPE
    if file.is_file() and _whatever_it_runs_on(read_tree(file)) != _whatever_it_runs_on(recipe):
        raise ConfigError(
            f"{folder} holds a run of another recipe (compare {file}): name this one otherwise (name=...), "
            "or delete the folder to begin again"
        )
