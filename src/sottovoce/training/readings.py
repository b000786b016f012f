"""Readings: the ways in which a recipe gives rows to the LLM, in training, in scoring and for targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sottovoce.config.recipe import Recipe, used_tasks
from sottovoce.data.examples import carriers
from sottovoce.data.own_attribute import build_task
from sottovoce.data.tasks import AttributeTask, Task
from sottovoce.data.utterance import Utterance


@dataclass(frozen=True, eq=False)
class Reading:
    """One way in which rows are given to the LLM: a task, and what may fill each slot.

    The answer is the row's target, or up to `target_max_new_tokens` where the LLM makes it; where `generates`, up to
    `max_new_tokens` in scoring.
    A `teacher` reading is the one that makes targets: text in all slots, for rows without one.
    """

    where: str  # what of the recipe reads so
    name: str  # of the task
    task: Task
    slots: Mapping[str, str]  # slot -> the text equivalent to its speech
    sources: Mapping[str, Sequence[str]]  # slot -> speech, text, none
    generates: bool = False
    teacher: bool = False
    tag: str | None = None

    def serves(self, utterance: Utterance) -> bool:
        """Whether a row is ever read so."""
        named = utterance.only is None or self.name in utterance.only
        served = named and self.task.serves(utterance, self.slots.values())
        return served and not (self.teacher and self.task.target(utterance) is not None)


def stage_readings(recipe: Recipe, tasks: Mapping[str, Task], stage: str) -> list[Reading]:
    """How a stage reads the rows that it trains and validates on, and how their targets are made."""
    node, slots = recipe.stages[stage], {name: slot.text for name, slot in recipe.slots.items()}
    read = []
    for name, weight in node.tasks.items():
        task = tasks[name]
        carrying = carriers(task.relies_on, slots, recipe.carries)
        drawn = tuple(source for source, share in (node.err or {"speech": 1.0}).items() if share > 0)
        sources = {slot: ("speech",) if slot in carrying else drawn for slot in slots}
        if weight > 0:
            read += [Reading(f"stages.{stage}", name, task, slots, sources), *_teacher(name, task, slots)]
    return read


def scored_readings(recipe: Recipe, tasks: Mapping[str, Task]) -> list[Reading]:
    """How the scoring reads the test side: every task under every choice of slots."""
    slots = {name: slot.text for name, slot in recipe.slots.items()} | recipe.evaluation.text
    emotion = tasks.get("emotion") if recipe.cascade else None
    tag = max(emotion.choices, key=len) if isinstance(emotion, AttributeTask) else None
    read = []
    for name in recipe.evaluation.tasks or used_tasks(recipe):
        knobs = recipe.evaluation.task_overrides.get(name)
        task = tasks[name] if knobs is None else build_task(name, {**recipe.tasks[name], **knobs})
        for mode in recipe.modes:
            fills = {slot: {"both": "speech", "text": "text"}.get(mode, "speech" if slot == mode else "none")
                     for slot in slots}  # fmt: skip
            sources = {slot: (source,) for slot, source in fills.items()}
            read.append(Reading("evaluation", name, task, slots, sources, True, tag=None if mode == "text" else tag))
        read += _teacher(name, task, slots)
    return read


def _teacher(name: str, task: Task, slots: Mapping[str, str]) -> list[Reading]:
    texts = dict.fromkeys(slots, ("text",))
    return [Reading("targets", name, task, slots, texts, generates=True, teacher=True)] if task.generated else []
