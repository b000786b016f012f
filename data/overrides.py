"""Overrides: tasks and captions of one manifest's utterances, so that several languages train together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sottovoce.data.own_attribute import attribute_names, build_task
from sottovoce.data.tasks import TASKS, AttributeTask, Task
from sottovoce.errors import ConfigError
from sottovoce.paths import resolve
from sottovoce.templates import Template, uncommented_lines


class Captions:
    """Captions of one language: a file of sentences with attributes in braces, the fullest first, `#` for comments.

    Raises:
        ConfigError: the file cannot be read, holds no sentence, or names an unknown attribute.
    """

    def __init__(self, file: str, tasks: Mapping[str, Task]) -> None:
        lines = [(n, line.strip()) for n, line in uncommented_lines(resolve(file)) if line.strip()]
        attributes = attribute_names(tasks)
        self._templates = [Template(line, attributes, where=f"{file}:{n}") for n, line in lines]
        if not lines:
            raise ConfigError.at(file, "empty", "there is no caption in it; write at least one, one a line")
        self._tasks = tasks

    def fill(self, labels: Mapping[str, str]) -> str | None:
        """The first sentence for which all labels are known, with the words of the tasks; None where there is none."""
        for template in self._templates:
            if template.names <= labels.keys():
                return template.fill({name: self._word(name, labels[name]) for name in template.names})
        return None

    def _word(self, name: str, label: str) -> str:
        task = self._tasks.get(name)
        return task.word(label) if isinstance(task, AttributeTask) else label


@dataclass(frozen=True)
class Overrides:
    """What the tasks of one manifest's utterances have of their own, by the recipe."""

    tasks: Mapping[str, Task]
    captions: Captions | None

    @classmethod
    def of(
        cls, nodes: Mapping[str, dict[str, Any]], knobs: Mapping[str, dict[str, Any]], captions: str | None
    ) -> "Overrides | None":
        """Tasks of a recipe with other knobs, and a file of captions; None where there is neither."""
        if not knobs and captions is None:
            return None
        tasks = {name: _built(name, {**nodes[name], **own}) for name, own in knobs.items()}
        every = {**{name: build_task(name, node) for name, node in nodes.items()}, **tasks}
        return cls(tasks, Captions(captions, every) if captions else None)


def _built(name: str, node: dict[str, Any]) -> Task:
    try:
        return build_task(name, TASKS.filled(node))
    except ConfigError as error:
        fault = (error.faults or (error,))[0]
        rest = str(fault.where).removeprefix(f"tasks.{name}").strip(".")
        where = f"task_overrides.{name}.{rest}".rstrip(".")
        raise ConfigError(str(fault), code=fault.code or "bad-value", where=where) from None
