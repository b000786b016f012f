"""What a table of systems is made of: their recipes, who judges, and what was published."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from sottovoce.config import recipe as recipes
from sottovoce.config.recipe import Recipe
from sottovoce.config.schema import checked
from sottovoce.config_tree import read_tree
from sottovoce.errors import ConfigError, nearest
from sottovoce.evaluation import JUDGES
from sottovoce.evaluation.reports.compare import COLUMNS
from sottovoce.llms import ENGINES


@dataclass
class SystemConfig:
    """A row: its recipe, beside the table's own file, and what the paper reports, `[value, half of the interval]`."""

    title: str = MISSING
    recipe: str = MISSING
    probe: bool = True  # whether its speech tokens are its own; those of a cascade are its baseline's
    paper: dict[str, list[float]] = field(default_factory=dict)  # by column


@dataclass
class BertScoreConfig:
    """The model whose vectors are compared; null in the recipe: no BERTScore."""

    checkpoint: str = MISSING
    layer: int | None = None


@dataclass
class TableRecipe:
    """Everything a table needs. It is written to `runs/<name>/`."""

    name: str = MISSING
    seeds: list[int] = MISSING
    systems: dict[str, SystemConfig] = MISSING  # in the order of the rows; trained in this order, too
    judge: dict[str, Any] = MISSING  # a component node
    engine: dict[str, Any] | None = None  # whom a judge asks that asks somebody
    bert_score: BertScoreConfig | None = None
    probe_train: int = 800  # utterances of the training side that the linear probe learns from
    picture: list[str] = field(default_factory=list)  # systems whose speech tokens are drawn, of the first seed
    output_dir: str = "runs"
    trust_remote_code: bool = False  # of the systems' LLMs; by the command line alone

    @property
    def folder(self) -> Path:
        return Path(self.output_dir) / self.name


def load(path: Path, overrides: Iterable[str] = ()) -> TableRecipe:
    """Read a table's recipe and check it, and every system's recipe for every seed, before anything is trained.

    Raises:
        ConfigError: with what is wrong, and where.
    """
    table = checked(TableRecipe, read_tree(path, overrides), str(path))
    faults = [
        *_unknown(path, "picture", table.picture, table.systems),
        *(
            fault
            for name, system in table.systems.items()
            for fault in _unknown(path, f"systems.{name}.paper", system.paper, COLUMNS)
        ),
    ]
    if not table.seeds or not table.systems:
        faults.append(f"{path}: a table needs at least one seed and one system")
    if faults:
        raise ConfigError("\n".join(faults))
    table.judge = JUDGES.check(table.judge, f"{path}: judge")
    table.engine = table.engine and ENGINES.check(table.engine, f"{path}: engine")
    for name, system in table.systems.items():
        system.recipe = str(path.parent / system.recipe)
        _check_runs(path, name, [system_recipe(table, name, seed) for seed in table.seeds])
    return table


def system_recipe(table: TableRecipe, name: str, seed: int) -> Recipe:
    """The recipe of one system with one seed."""
    return recipes.load(table.systems[name].recipe, overrides_for(table, seed))


def overrides_for(table: TableRecipe, seed: int) -> list[str]:
    """What a table says to each recipe."""
    trusted = ["llm.trust_remote_code=true"] if table.trust_remote_code else []
    return [f"seed={seed}", f"output_dir={table.output_dir}", *trusted]


def _unknown(path: Path, where: str, names: Iterable[str], known: Iterable[str]) -> list[str]:
    known = list(known)
    return [f"{path}: {where}: unknown {name!r}.{nearest(name, known)}" for name in names if name not in known]


def _check_runs(path: Path, name: str, made: list[Recipe]) -> None:
    if len({recipe.name for recipe in made}) < len(made):
        raise ConfigError(
            f"{path}: systems.{name}: all seeds would share the folder {made[0].folder}: write the seed into the "
            'name of its recipe (name: "…/seed-${seed}/…"), or take one seed'
        )
    for recipe in made:
        asked = recipe.evaluation.tasks or recipes.used_tasks(recipe)
        lacking = [task for task in ("response", "emotion") if task not in asked]
        if lacking:
            raise ConfigError(f"{path}: systems.{name}: its evaluation lacks the task {lacking[0]!r}")
