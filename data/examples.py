"""Examples, the rows of a batch: an utterance, a task in one wording, a cut of the dialogue, a source for each slot.

Every choice is a function of the seed, the epoch and the utterance's id, and of nothing else: a run that is resumed,
or read by several workers, draws the same examples.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sottovoce.data.tasks import Task, style_caption
from sottovoce.data.utterance import Turn, Utterance

InstructionRole = Literal["system", "user"]
Draw = Callable[[Utterance, int, int], "Example | None"]  # (utterance, epoch, number of the draw) -> example


@dataclass(frozen=True)
class Example:
    """One row of a batch.

    `sources` says for each slot of the spoken turns what fills it: speech, text or none. `trains` names the slots whose
    adapters learn from this row; the others are frozen for it. `target` is None until the run's LLM has made it.
    `place` is the turn that the instruction stands in: a system turn, or the spoken turn, before its slots. `teacher`
    is the system prompt for making the target. `tag` is a label that a cascade writes before the speech.
    """

    utterance: Utterance
    task: str
    instruction: str
    context: tuple[Turn, ...]
    sources: Mapping[str, str]
    trains: frozenset[str]
    target: str | None
    place: InstructionRole = "system"
    teacher: str | None = None
    tag: str | None = None


def carriers(task: Task, slots: Sequence[str]) -> frozenset[str]:
    """The slots that carry what a task relies on: the one of that name, or all where there is none."""
    return frozenset([task.relies_on]) & frozenset(slots) or frozenset(slots)


@dataclass(frozen=True)
class ExampleSampler:
    """How examples are drawn in a stage.

    Args:
        tasks: by name.
        weights: how often each task is drawn, of those that an utterance is good for.
        slots: slot -> the text that is equivalent to its speech, caption or transcript.
        trains: the slots whose adapters learn in this stage.
        err: source -> weight, for the slots that do not carry the task; None: speech everywhere, all learn.
        seed: of the run; `stage` is mixed in, so that stages draw apart.
        stage: name of the stage.
        cut: whether dialogues are cut at varying points (training) or taken whole (scoring).
        place: see `Example`.
    """

    tasks: Mapping[str, Task]
    weights: Mapping[str, float]
    slots: Mapping[str, str]
    trains: frozenset[str]
    err: Mapping[str, float] | None
    seed: int
    stage: str
    cut: bool = True
    place: InstructionRole = "system"

    def __call__(self, utterance: Utterance, epoch: int, number: int) -> Example | None:
        """Draw an example, or None for an utterance that no task of this stage can use.

        Args:
            utterance: whose example.
            epoch: counted from 0 within the stage.
            number: of several draws of one utterance in one epoch.
        """
        rng = random.Random(f"{self.seed}/{self.stage}/{epoch}/{number}/{utterance.id}")
        possible = self.possible(utterance)
        if not possible:
            return None
        name = rng.choices(possible, [self.weights[task] for task in possible])[0]
        task = self.tasks[name]
        if self.cut:
            utterance, context = cut(utterance, rng, anywhere=name == "dialogue")
        else:
            context = utterance.context
        sources, trains = self._slots(task, utterance, rng)
        return Example(
            utterance, name, rng.choice(task.instructions()), context, sources, trains, task.target(utterance),
            self.place, task.teacher,
        )  # fmt: skip

    def possible(self, utterance: Utterance) -> list[str]:
        """The tasks of the stage that an utterance can serve: its manifest allows them, and it has their labels."""
        only = utterance.only
        named = (name for name, weight in self.weights.items() if weight > 0 and (only is None or name in only))
        return [name for name in named if self.tasks[name].available(utterance)]

    def _slots(self, task: Task, utterance: Utterance, rng: random.Random) -> tuple[dict[str, str], frozenset[str]]:
        """Equivalence Replacement Regularization (Wang et al., ICME 2025, section III-C, stage 2).

        The slot that carries the task gets its speech and learns; any other gets its own speech, the equivalent text or
        nothing, and its adapter is frozen for this example.
        """
        if self.err is None:
            return dict.fromkeys(self.slots, "speech"), self.trains
        carrying = carriers(task, list(self.slots))
        sources = {}
        for slot, text in self.slots.items():
            weights = {
                source: weight for source, weight in self.err.items() if source != "text" or slot_text(utterance, text)
            }
            replaced = rng.choices(list(weights), list(weights.values()))[0]
            sources[slot] = "speech" if slot in carrying else replaced
        return sources, carrying & self.trains


def slot_text(turn: Utterance | Turn, text: str) -> str | None:
    """The text that stands for a spoken turn in a slot: `caption`, `transcript`, or `tagged` transcript.

    A tag is the emotion in angle brackets before the words (Kang et al., 2024, section III-A): "<sad> It broke."
    """
    if text == "transcript":
        return turn.text
    if text == "tagged":
        emotion = turn.labels.get("emotion") if isinstance(turn, Utterance) else None
        return f"<{emotion}> {turn.text}" if emotion and turn.text else turn.text
    return style_caption(turn) if isinstance(turn, Utterance) else turn.caption


def cut(utterance: Utterance, rng: random.Random, *, anywhere: bool) -> tuple[Utterance, tuple[Turn, ...]]:
    """A dialogue cut at a varying point, with a context of varying length.

    The end is the utterance itself or, with `anywhere`, an earlier spoken turn of the user whose words and style are
    known; the beginning is any user turn before it, or the assistant's that opens the dialogue. (Section IV-A: samples
    by truncating conversations at midpoints.)
    """
    context = utterance.context
    ends = [i for i, turn in enumerate(context) if turn.audio and turn.role == "user" and turn.caption]
    end = rng.choice([*ends, len(context)]) if anywhere else len(context)
    if end < len(context):
        turn, ready = context[end], utterance.response or utterance.responses.get("dialogue")
        assert turn.audio is not None
        utterance = replace(
            utterance, id=f"{utterance.id}@{end}", audio=turn.audio, text=turn.text, labels={}, caption=turn.caption,
            context=context[:end], response=context[end + 1].text if ready else None,
            responses={}, category=None, answers={},
        )  # fmt: skip
    starts = [i for i in range(end + 1) if i in (0, end) or context[i].role == "user"]
    return utterance, context[rng.choice(starts) : end]
