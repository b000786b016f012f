"""What a bundle is asked: its tasks by name, those that it has learned, and choices of its slots."""

import warnings
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

from sottovoce.config.recipe import Recipe
from sottovoce.config_tree import read_tree
from sottovoce.data.few_shot import few_shot_turns
from sottovoce.data.own_attribute import build_task
from sottovoce.data.tasks import TASKS, Task
from sottovoce.errors import ConfigError, MissingError, nearest
from sottovoce.hub import bundle_folder
from sottovoce.lightning_modules.bundle import RECIPE
from sottovoce.llms.chat_template import ChatTurn
from sottovoce.training.spoken_prompt import instructed

REPLIES = ("response", "dialogue")  # tasks of which one is asked where nobody names a task
BOTH = "both"


class UntrainedTaskWarning(UserWarning):
    """A bundle is asked something that it was never trained on."""


def learned_tasks(recipe: Recipe) -> list[str]:
    """The tasks that the stages of a recipe train, and those of the bundle that it began from, where that is there."""
    own = [name for stage in recipe.stages.values() for name, weight in stage.tasks.items() if weight > 0]
    with suppress(MissingError):
        if recipe.init_from and (before := bundle_folder(recipe.init_from, cached=True) / RECIPE).is_file():
            stages = (read_tree(before).get("stages") or {}).values()
            own += [name for stage in stages if stage for name in stage.get("tasks") or {}]
    return list(dict.fromkeys(own))


def default_task(recipe: Recipe) -> str:
    """A reply, where the recipe has one; else its only task; else a reply, which it has not learned."""
    learned = learned_tasks(recipe)
    replies = [name for name in REPLIES if name in learned or name in recipe.tasks]
    return next(iter(replies), learned[0] if len(learned) == 1 else "dialogue")


def task_called(recipe: Recipe, name: str | None, where: str = "task") -> Task:
    """A task as a recipe has it, of its `default_task` if None; warns of one that its stages did not train.

    Raises:
        ConfigError: there is no such task; at `where`.
    """
    name = name or default_task(recipe)
    if name not in recipe.tasks and name not in TASKS.names():
        raise ConfigError(f"{where} {name}:{nearest(name, TASKS.names())}", code="unknown-name", where=where)
    learned = learned_tasks(recipe)
    if not recipe.untuned and name not in learned:  # a finished model's checkpoint does not say what it has learned
        told = f"this bundle was not trained on {name!r}: its answers to that mean nothing. It has learned "
        warnings.warn(f"{told}{', '.join(learned) or 'no task'}", UntrainedTaskWarning, stacklevel=4)
    return build_task(name, recipe.tasks.get(name, {}))


class Question(NamedTuple):
    """What is asked of speech, in words; and the task that asks it, None for a question of one's own."""

    instruction: str
    task: Task | None


def question(recipe: Recipe, task: str | None, ask: str | None, where: str = "task") -> Question:
    """The question in words: one's own, or the first wording of a task; ConfigError for both at once."""
    if ask is not None and task is not None:
        raise ConfigError.at(where, "conflict", "a task has its own wording: give a task, or a question of your own")
    if ask is not None:
        return Question(ask, None)
    found = task_called(recipe, task, where)
    return Question(found.instructions()[0], found)


def opening(recipe: Recipe, instruction: str) -> tuple[list[ChatTurn], list[str]]:
    """What a prompt begins with, and what stands at the beginning of the user's own turn.

    The few-shot examples of a task belong to each of its wordings.
    """
    system, before = instructed(instruction, recipe.instructions)
    turns = [ChatTurn("system", (said,)) for said in system]
    tasks = [build_task(name, node) for name, node in recipe.tasks.items() if node.get("shots")]
    if asked := next((task for task in tasks if instruction in task.instructions()), None):
        turns += [ChatTurn(t.role, (t.text,)) for t in few_shot_turns(asked, instruction, recipe.instructions)]
    return turns, before


def chosen_slots(slots: str | Sequence[str], known: Collection[str], where: str = "slots") -> tuple[str, ...]:
    """The slots that take speech, in the order of a spoken turn: `both` for all, or some by name.

    Raises:
        ConfigError: there is no such slot, or none is named; at `where`.
    """
    named = [slots] if isinstance(slots, str) else list(slots)
    for name in named:
        if name not in (BOTH, *known):
            told = f"{where}: the model has no slot {name!r}.{nearest(str(name), [BOTH, *known])}"
            raise ConfigError(told, code="unknown-name", where=where)
    if not named:
        raise ConfigError.at(where, "empty", f"name some of {', '.join(known)}, or {BOTH}")
    return tuple(known) if BOTH in named else tuple(slot for slot in known if slot in named)
