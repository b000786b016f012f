"""Few-shot examples of a task: written turns that stand before the one that is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sottovoce.data.utterance import Turn

if TYPE_CHECKING:
    from sottovoce.data.examples import InstructionRole
    from sottovoce.data.tasks import Task


def few_shot_turns(task: Task, instruction: str, place: InstructionRole) -> tuple[Turn, ...]:
    """The written turns of a task's few-shot examples, instructed as the turn that is asked; none without a wording."""
    before = f"{instruction} " if place == "user" else ""
    shots = (task.shots or {}).items() if instruction else ()
    return tuple(turn for asked, answer in shots for turn in (Turn("user", before + asked), Turn("assistant", answer)))
