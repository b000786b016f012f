"""Attributes of one's own, tasks by the names of a recipe, and the labels that attributes may have."""

from collections.abc import Mapping, Sequence
from typing import Any

from sottovoce.data.tasks import PROMPTS, TASKS, Age, AttributeTask, Emotion, Energy, Gender, Pitch, Task, Tempo
from sottovoce.errors import ConfigError
from sottovoce.templates import Template, read_wordings

OURS = (Gender, Pitch, Tempo, Energy, Age, Emotion)


@TASKS.register("attribute")
class OwnAttribute(AttributeTask):
    """An attribute of one's own, by the key of this task in `tasks`, such as `accent`.

    Args:
        choices: the labels to choose from; two or more.
        ask: the question, or several; may say {choices}. General ones if absent.
        says: the answer to learn, with {label} in it; "The accent is {label}." if absent.
        prompts: a file of questions, in place of `ask`.
        words: see `AttributeTask`.
    """

    name = "attribute"

    def __init__(
        self, *, choices: tuple[str, ...], ask: str | list[str] | None = None, says: str | None = None,
        prompts: str | None = None, words: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        if ask and prompts:
            told = "the questions come from `ask` or from the file `prompts`, not from both"
            raise ConfigError(told, code="conflict", where=f"tasks.{self.name}.ask")
        self._ask = [ask] if isinstance(ask, str) else ask
        self._spoken = self.name.replace("_", " ")
        sentence = says or f"The {self._spoken} is {{label}}."
        super().__init__(choices=choices, prompts=prompts, sentence=sentence, words=words)

    def _read_wordings(self, prompts: str | None, fields: Mapping[str, str]) -> list[str]:
        if self._ask:
            return [Template(text, fields, where=f"tasks.{self.name}.ask").fill(fields) for text in self._ask]
        if prompts:
            return super()._read_wordings(prompts, fields)
        return read_wordings(PROMPTS / "attribute.txt", {**fields, "attribute": self._spoken})


def build_task(name: str, node: Mapping[str, Any]) -> Task:
    """The task that a recipe calls `name`: of that type, or of the `type` of its node.

    Raises:
        ConfigError: knobs are wrong; or a type of ours that is no attribute has another name than its own, by which it
            is scored.
    """
    knobs = TASKS.check({"type": name, **node}, f"tasks.{name}")
    kind = str(knobs.pop("type"))
    made = TASKS.get(kind)
    if kind in TASKS and kind != name and not issubclass(made, AttributeTask):
        told = f"{kind} is scored by its name: call it so"
        raise ConfigError.at(f"tasks.{name}.type", "conflict", told)
    task = made.__new__(made)
    if made.name != name:
        task.__dict__["name"] = name  # before knobs are checked: messages and wordings tell it
    made.__init__(task, **knobs)
    return task


def attribute_names(tasks: Mapping[str, Task]) -> list[str]:
    """Attributes that utterances may have labels of: ours, those among some tasks, and plug-ins that may be some."""
    ours = [made.name for made in OURS]
    own = [name for name, task in tasks.items() if isinstance(task, AttributeTask)]
    return list(dict.fromkeys([*ours, *own, *(name for name in TASKS.plugins() if name not in tasks)]))


def choices_of(tasks: dict[str, Task]) -> dict[str, Sequence[str]]:
    """The labels that each attribute may have, by the recipe's tasks; by a task's defaults where it is not used.

    Those of a plug-in that the recipe does not name may be any: it is not imported.
    """
    choices: dict[str, Sequence[str]] = {}
    for name in attribute_names(tasks):
        if name not in tasks and name in TASKS.plugins():
            choices[name] = _Any()
        elif isinstance(task := tasks.get(name) or TASKS.build({"type": name}), AttributeTask):
            choices[name] = task.choices
    return choices


class _Any(tuple[str, ...]):
    """Choices that hold every label."""

    def __contains__(self, label: object) -> bool:
        return True
