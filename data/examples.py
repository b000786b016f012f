"""Examples, the rows of a batch: an utterance, a task in one wording, a cut of the dialogue, a source for each slot.

Every choice is a function of the seed, the epoch and the utterance's id, and of nothing else: a run that is resumed,
or read by several workers, draws the same examples.
"""

import random
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sottovoce.data.batch_sampler import Rows
from sottovoce.data.few_shot import few_shot_turns
from sottovoce.data.tasks import Task, style_caption, task_of
from sottovoce.data.utterance import Turn, Utterance
from sottovoce.errors import AudioError, ManifestError
from sottovoce.frames import Frames

InstructionRole = Literal["system", "user"]
Draw = Callable[[Utterance, int, int], "Example | None"]  # (utterance, epoch, number of the draw) -> example


@dataclass(frozen=True)
class Example:
    """One row of a batch."""

    utterance: Utterance
    task: str
    instruction: str
    context: tuple[Turn, ...]
    sources: Mapping[str, str]  # slot of the spoken turns -> what fills it: speech, text or none
    trains: frozenset[str]  # the slots whose adapters learn from this row; the others are frozen for it
    target: str | None  # None until the run's LLM has made it
    place: InstructionRole = "system"  # where the instruction stands: a system turn, or the beginning of the spoken one
    teacher: str | None = None  # the system prompt for making the target
    tag: str | None = None  # a label that a cascade writes before the speech


@dataclass(frozen=True)
class ExampleSampler:
    """How examples are drawn in a stage."""

    tasks: Mapping[str, Task]  # by name
    weights: Mapping[str, float]  # how often each task is drawn, of those that an utterance is good for
    slots: Mapping[str, str]  # slot -> the text that is equivalent to its speech, caption or transcript
    trains: frozenset[str]  # the slots whose adapters learn in this stage
    err: Mapping[str, float] | None  # source -> weight, for slots that do not carry the task; None: speech everywhere
    seed: int  # of the run
    stage: str  # its name, which is mixed into the seed, so that stages draw apart
    cut: bool = True  # whether dialogues are cut at varying points (training) or taken whole (scoring)
    place: InstructionRole = "system"
    barred: Mapping[str, frozenset[str]] = field(default_factory=dict)  # task -> ids of examples without a target
    carries: Mapping[str, frozenset[str]] = field(default_factory=dict)  # slot -> linguistic, paralinguistic
    per_task: bool = False  # whether utterances come once for each task, see `training.stage_rows`

    def __call__(self, utterance: Utterance, epoch: int, number: int) -> Example | None:
        """An example, None where no task can use the utterance; `number` tells apart draws in one `epoch`, from 0."""
        rng, name = self.draw_task(utterance, epoch, number)
        if name is None:
            return None
        task = task_of(self.tasks, name, utterance)
        context = utterance.context
        if self.cut:
            utterance, context = cut(utterance, rng, anywhere=name == "dialogue", barred=self.barred.get(name, ()))
        sources, trains = self._slots(task, utterance, rng)
        instruction = rng.choice(instructions(task, utterance))
        context = (*few_shot_turns(task, instruction, self.place), *context)
        return Example(
            utterance, name, instruction, context, sources, trains, task.target(utterance), self.place, task.teacher
        )

    def draw_task(self, utterance: Utterance, epoch: int, number: int) -> tuple[random.Random, str | None]:
        """The task of an example, None where none can use the utterance; and what all else of it is drawn with."""
        row = f"{utterance.id}/{utterance.only}" if self.per_task else utterance.id
        rng = random.Random(f"{self.seed}/{self.stage}/{epoch}/{number}/{row}")
        possible = self.possible(utterance)
        return rng, rng.choices(possible, [self.weights[task] for task in possible])[0] if possible else None

    def possible(self, utterance: Utterance) -> list[str]:
        """The tasks of the stage that an utterance can serve: its manifest allows them, and it has their labels."""
        only = utterance.only
        named = (name for name, weight in self.weights.items() if weight > 0 and (only is None or name in only))
        texts = self.slots.values()
        able = [name for name in named if task_of(self.tasks, name, utterance).serves(utterance, texts)]
        return [name for name in able if self._has_end(utterance, name)]

    def _has_end(self, utterance: Utterance, task: str) -> bool:
        """Whether one of an utterance's examples of a task is not barred."""
        if not (barred := self.barred.get(task)):
            return True
        ends = ends_of(utterance) if self.cut and task == "dialogue" else [len(utterance.context)]
        return any(id_at(utterance, end) not in barred for end in ends)

    def _slots(self, task: Task, utterance: Utterance, rng: random.Random) -> tuple[dict[str, str], frozenset[str]]:
        """Equivalence Replacement Regularization (Wang et al., ICME 2025, section III-C, stage 2).

        The slots that carry the task get their speech and learn; any other gets its own speech, the equivalent text or
        nothing, and its adapter is frozen. Where the text is unknown, speech and nothing share its weight.
        """
        if self.err is None:
            return dict.fromkeys(self.slots, "speech"), self.trains
        carrying = carriers(task.relies_on, self.slots, self.carries)
        sources = {}
        for slot, text in self.slots.items():
            weights = {key: weight for key, weight in self.err.items() if key != "text" or slot_text(utterance, text)}
            replaced = rng.choices(list(weights), list(weights.values()))[0]
            sources[slot] = "speech" if slot in carrying else replaced
        return sources, carrying & self.trains


def carriers(relies_on: str, slots: Iterable[str], carries: Mapping[str, Collection[str]]) -> frozenset[str]:
    """The slots that carry what a task relies on, all where none does; a slot that says nothing, its own name."""
    named = frozenset(slot for slot in slots if relies_on in carries.get(slot, (slot,)))
    return named or frozenset(slots)


def instructions(task: Task, utterance: Utterance) -> list[str]:
    """The wordings that may stand before an utterance; before a written turn none: it is asked as users ask an LLM."""
    return task.instructions() if utterance.audio else [""]


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


def ends_of(utterance: Utterance) -> list[int]:
    """How many turns of its context a dialogue may be cut to: before an earlier spoken turn of the user, or all."""
    spoken = (i for i, turn in enumerate(utterance.context) if turn.audio and turn.role == "user" and turn.caption)
    return [*spoken, len(utterance.context)]


def id_at(utterance: Utterance, end: int) -> str:
    """The id of a dialogue that is cut to `end` turns of its context."""
    return utterance.id if end == len(utterance.context) else f"{utterance.id}@{end}"


def cut(
    utterance: Utterance, rng: random.Random, *, anywhere: bool, barred: Collection[str] = ()
) -> tuple[Utterance, tuple[Turn, ...]]:
    """A dialogue cut at a varying point, with a context of varying length.

    The end is the utterance itself or, with `anywhere`, an earlier spoken turn of the user whose words and style are
    known; the beginning is any user turn before it, or the assistant's that opens the dialogue. (Section IV-A: samples
    by truncating conversations at midpoints.) It does not end where its id would be a `barred` one.
    """
    context = utterance.context
    ends = [end for end in ends_of(utterance) if id_at(utterance, end) not in barred]
    end = rng.choice(ends) if anywhere else len(context)
    if end < len(context):
        turn, ready = context[end], utterance.response or utterance.responses.get("dialogue")
        assert turn.audio is not None
        utterance = replace(
            utterance, id=id_at(utterance, end), audio=turn.audio, text=turn.text, labels={}, caption=turn.caption,
            context=context[:end], response=context[end + 1].text if ready else None,
            responses={}, category=None, answers={},
        )  # fmt: skip
    starts = [i for i in range(end + 1) if i in (0, end) or context[i].role == "user"]
    return utterance, context[rng.choice(starts) : end]


Read = Callable[[Path], Tensor]  # an audio file -> (samples,) waveform or (frames, dim) encoder output
STAND_INS = 64  # utterances that are tried in the place of a batch of which none can be used
NOTHING = Frames(torch.zeros(0, 0), torch.zeros(0, dtype=torch.long))  # the audio of a batch that is all text


class StepTotals(NamedTuple):
    """What all batches of one process hold that an optimizer step adds up: their mean is over these."""

    tokens: int  # of responses
    categories: int  # rows with a category of PE-FT


@dataclass
class Batch:
    """Rows and the clips they speak of."""

    examples: list[Example]
    clips: dict[Path, int]  # the row of `audio` that a file is
    audio: Frames  # each clip once: waveforms (clips, samples), or encoder outputs (clips, frames, dim) from the cache
    skipped: list[str] = field(default_factory=list)  # what of its utterances cannot be used
    counts: bool = True  # one that does not keeps its process in step with the others, which have rows left
    step: StepTotals | None = None  # where a step adds up several batches
    speech: Mapping[Hashable, Tensor] | None = None  # in place of `audio`: (tokens, llm_dim) by placeholder

    @property
    def ids(self) -> list[str]:
        """The utterance of each row."""
        return [example.utterance.id for example in self.examples]

    def to(self, device: torch.device, **_: object) -> "Batch":
        """Lightning moves batches by this method."""
        return replace(self, audio=self.audio.to(device))


def spoken_clips(examples: Iterable[Example]) -> Iterator[Path]:
    """The clips of examples of which some slot wants the speech."""
    for example in (each for each in examples if "speech" in each.sources.values()):
        yield from filter(None, (example.utterance.audio, *(turn.audio for turn in example.context)))


def collate(examples: list[Example], read: Read) -> Batch:
    """Read every clip that some slot of some row wants as speech."""
    clips = {path: row for row, path in enumerate(dict.fromkeys(spoken_clips(examples)))}
    rows = [read(path) for path in clips]
    return Batch(examples, clips, Frames.pad(rows) if rows else NOTHING)


@dataclass(eq=False)
class Examples(Dataset[Batch]):
    """Indexed by what `BatchSampler` yields."""

    utterances: Sequence[Utterance]
    draw: Draw
    draws: int  # of an utterance in an epoch
    finish: Callable[[Example], Example] | None  # gives an example its target; None where every task has its own
    read: Read
    count: Callable[[Example], int] | None = None  # tokens of its response
    stand_in: Tensor | None = None  # audio as `read` gives it, for batches without: processes make the same calls

    def examples(self, rows: Rows) -> list[Example]:
        """The examples of a batch, without their audio."""
        drawn = [self.draw(self.utterances[row], rows.epoch, k) for row in rows.numbers for k in range(self.draws)]
        return [example for example in drawn if example is not None]

    def complete(self, examples: list[Example]) -> list[Example]:
        """The examples with their targets."""
        return [self.finish(example) for example in examples] if self.finish else examples

    def __getitem__(self, rows: Rows) -> Batch:
        batch = self.batch(self.complete(self.examples(rows)), self.read)
        return replace(batch, counts=rows.counts, step=self.totals(rows))

    def batch(self, examples: list[Example], read: Read) -> Batch:
        """Examples with their clips, or a stand-in for clips where they have none."""
        batch = collate(examples, read)
        if batch.clips or self.stand_in is None:
            return batch
        return replace(batch, audio=Frames.pad([self.stand_in]))

    def totals(self, rows: Rows) -> StepTotals | None:
        """Of all batches of the step that these rows are part of; None where they are all of it."""
        if rows.step is None or self.count is None:
            return None
        examples = self.usable(Rows(rows.epoch, rows.step))
        return StepTotals(sum(map(self.count, examples)), sum(bool(e.utterance.category) for e in examples))

    def usable(self, rows: Rows) -> list[Example]:
        """Complete examples of these rows."""
        return self.complete(self.examples(rows))


@dataclass(eq=False)
class LazyExamples(Examples):
    """Examples of utterances that nobody has checked before: a line or a clip may turn out to be faulty."""

    skip: bool = field(kw_only=True)  # leave those out of their batch, which names them; else the first ends the run
    check: Callable[[Utterance], None] | None = None  # raises ManifestError where the LLM cannot read an utterance

    def examples(self, rows: Rows) -> list[Example]:
        """See `Examples`; raises ManifestError where a line is faulty, or the LLM cannot read it."""
        if self.check is not None:
            for row in rows.numbers:
                self.check(self.utterances[row])
        return super().examples(rows)

    def usable(self, rows: Rows) -> list[Example]:
        """See `Examples`; without those whose line is faulty. Whether their clips can be read is not known yet."""
        kept: list[Example] = []
        for number in rows.numbers:
            with suppress(ManifestError):
                kept += super().usable(Rows(rows.epoch, [number]))
        return kept

    def __getitem__(self, rows: Rows) -> Batch:
        kept: list[Example] = []
        clips: dict[Path, Tensor] = {}
        skipped: list[str] = []
        for number in rows.numbers:
            try:
                drawn = self.complete(self.examples(Rows(rows.epoch, [number])))
                part = collate(drawn, self.read)
            except (ManifestError, AudioError) as error:
                if not self.skip:
                    raise
                skipped.append(str(error))
                continue
            kept += drawn
            clips |= zip(part.clips, part.audio.rows(), strict=True)
        if not kept:
            return replace(self._stand_in(rows, skipped), skipped=skipped, step=self.totals(rows))
        batch = self.batch(kept, clips.__getitem__)
        return replace(batch, skipped=skipped, counts=rows.counts, step=self.totals(rows))

    def _stand_in(self, rows: Rows, skipped: list[str]) -> Batch:
        """The next utterance that can be used, in a batch that does not count: of the one that was wanted none can."""
        first = rows.numbers[-1] + 1
        for number in range(first, first + STAND_INS):
            try:
                if drawn := self.complete(self.examples(Rows(rows.epoch, [number % len(self.utterances)]))):
                    return replace(self.batch(drawn, self.read), counts=False)
            except (ManifestError, AudioError):
                pass  # it is named when its own batch comes
        why = f", such as: {skipped[0]}" if skipped else ": no task of the stage can use what they hold"
        tried = f"of the {len(rows.numbers)} utterances of a batch and of {STAND_INS} after them"
        raise ManifestError(f"{tried} not one can be used{why}", code="empty", where="data.train")
