"""The recipe of a table of systems: their recipes, who judges, and what was published."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sottovoce.config import recipe as recipes
from sottovoce.config.recipe import Recipe
from sottovoce.config.sections import Published
from sottovoce.config.sources import Sources
from sottovoce.config_model import (
    BaseRecipe,
    Count,
    Float,
    Int,
    Node,
    config_class,
    fault,
    located,
    unknown,
    without_nulls,
)
from sottovoce.errors import ConfigError
from sottovoce.evaluation import JUDGES
from sottovoce.evaluation.reports.compare import COLUMNS
from sottovoce.llms import ENGINES


@config_class
class SystemConfig:
    """A row: its recipe, and what the paper reports."""

    title: str
    recipe: str = Field(description="a file, relative to the table's own")
    overrides: list[str] | None = Field(
        default=None, description="of its recipe; its run then lies in the table's folder"
    )
    probe: bool = Field(default=True, description="its speech tokens are its own, not its baseline's")
    paper: dict[str, list[Float]] = Field(default={}, description="column -> [value, half of the interval]")
    published: Published = Field(default={}, description="in place of the recipe's; with overrides always")


@config_class
class ProbeConfig:
    """Utterances of the linear probe, the same for all systems; no speaker on both sides."""

    train: Sources = Field(min_length=1, description="manifests with emotion labels")
    test: Sources = Field(min_length=1, description="the same, of other speakers")


@config_class
class BertScoreConfig:
    """The model whose vectors are compared; null in the recipe: no BERTScore."""

    checkpoint: str
    layer: Int | None = None


@config_class
class TableRecipe(BaseRecipe):
    """Everything a table needs. It is written to the folder `name` under `output_dir`."""

    groups = ("systems",)

    name: str
    seeds: Annotated[list[Int], Field(min_length=1)]
    systems: Annotated[dict[str, SystemConfig], Field(min_length=1), without_nulls(SystemConfig)] = Field(
        description="trained in this order; null leaves one out"
    )
    overrides: list[str] = Field(default=[], description="of every system's recipe, before its own")
    judge: Annotated[Node, JUDGES] | None = Field(
        default=None, description="a component; null: the recipes' own scores alone"
    )
    engine: Annotated[Node, ENGINES] | None = Field(default=None, description="of a judge that asks an LLM")
    bert_score: BertScoreConfig | None = None
    probe: ProbeConfig | None = Field(default=None, description="null: train and test of each system's recipe")
    probe_train: Annotated[Count, Field(le=50_000)] = Field(default=800, description="training utterances of the probe")
    picture: list[str] = Field(default=[], description="systems whose speech tokens are drawn, of the first seed")
    output_dir: str = "runs"
    trust_remote_code: bool = Field(default=False, description="of the systems' LLMs; by the command line alone")

    @property
    def folder(self) -> Path:
        return Path(self.output_dir) / self.name

    def locate(self, folder: Path) -> None:
        """See `BaseRecipe`."""
        for node in (*self.probe.train, *self.probe.test) if self.probe else ():
            node.locate(folder)

    def conflicts(self) -> Iterator[ConfigError]:
        """See `BaseRecipe`."""
        for side in ("train", "test") if self.probe else ():
            for i, node in enumerate(getattr(self.probe, side)):
                yield from node.conflicts(f"probe.{side}[{i}]")
        yield from unknown("picture", self.picture, self.systems, "system")
        if self.judge is None:
            for key in ("engine", "bert_score", "probe", "picture"):
                if getattr(self, key):
                    yield fault("conflict", key, "a table without `judge` has the recipes' own scores alone")
        for name, system in self.systems.items():
            yield from unknown(f"systems.{name}.paper", system.paper, COLUMNS, "column")


def load(path: Path, overrides: Iterable[str] = ()) -> TableRecipe:
    """Read a table's recipe and check it, and every system's recipe for every seed, before anything is trained."""
    table = TableRecipe.load(path, overrides)
    folders: dict[Path, str] = {}
    for name, system in table.systems.items():
        system.recipe = str(path.parent / system.recipe)
        made = [system_recipe(table, name, seed) for seed in table.seeds]
        for error in _run_conflicts(made, judged=table.judge is not None):
            raise ConfigError.of(located(error, f"systems.{name}", str(path)))
        if (other := folders.setdefault(made[0].folder, name)) != name:
            told = f"its runs would lie in {made[0].folder}, as those of {other}: give it `overrides` or another recipe"
            raise ConfigError.of(located(fault("conflict", "recipe", told), f"systems.{name}", str(path)))
    return table


def system_recipe(table: TableRecipe, name: str, seed: int) -> Recipe:
    return recipes.load(table.systems[name].recipe, overrides_for(table, name, seed))


def overrides_for(table: TableRecipe, name: str, seed: int) -> list[str]:
    """What a table says to the recipe of a system.

    With overrides a recipe is another system than that which its `published` is about, and so has the row's own alone.
    """
    system = table.systems[name]
    words = [*table.overrides, *(system.overrides or [])]
    if system.overrides is not None:
        words.append(f"name={table.name}/seed-{seed}/{name}")
    if system.overrides or system.published:
        words += ["published=null", f"published={json.dumps(system.published)}"]
    trusted = ["llm.trust_remote_code=true"] if table.trust_remote_code else []
    return [*words, f"seed={seed}", f"output_dir={table.output_dir}", *trusted]


def _run_conflicts(made: list[Recipe], *, judged: bool) -> Iterator[ConfigError]:
    if len({recipe.name for recipe in made}) < len(made):
        told = f"all seeds would share the folder {made[0].folder}: write the seed into the name of its recipe "
        yield fault("conflict", "recipe", told + '(name: "…/seed-${seed}/…"), or take one seed')
    for recipe in made if judged else ():
        asked = recipe.evaluation.tasks or recipes.used_tasks(recipe)
        for task in ("response", "emotion"):
            if task not in asked:
                yield fault("conflict", "recipe", f"its evaluation lacks the task {task!r}")
