"""A bundle as the page asks it: one clip, one question, one at a time; no word of Gradio."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from sottovoce.data.tasks import AttributeTask
from sottovoce.encoders.log_mel import SAMPLE_RATE
from sottovoce.errors import AudioError, SottovoceError, first_line, printable
from sottovoce.serving.audio_input import waveform
from sottovoce.serving.model import Answer, Model, Slots
from sottovoce.serving.questions import BOTH, default_task, question
from sottovoce.training.slot_layers import layer_weights
from sottovoce.training.splits import build_tasks


class Asked(NamedTuple):
    """What is asked: a task by name, or a question of one's own, in whose place the task stands back."""

    task: str | None = None
    own: str | None = None

    @property
    def wanted(self) -> tuple[str | None, str | None]:
        """`task` and `ask`, as a `Model` takes them: one of them at most."""
        own = (self.own or "").strip()
        return (None, own) if own else (self.task, None)


class Told(NamedTuple):
    """An answer, and the probabilities of an attribute's labels; None for what has no labels."""

    answer: Answer
    shares: dict[str, float] | None


class Listener:
    """One model, whose answers are asked for by many browsers, and given one after another.

    Every method takes the file of a clip, None where there is none yet, and raises `AudioError` for a clip that is
    absent, broken, silent, or longer than the recipe's `data.max_seconds`, and `SottovoceError` for what else the model
    refuses.

    Args:
        model: which answers.
        name: what the page calls it; the recipe's name if absent.

    Attributes:
        name: see above.
        tasks: what can be asked by name.
        attributes: those of them that are choices among labels.
        slots: names, in the order of a spoken turn.
    """

    def __init__(self, model: Model, name: str | None = None) -> None:
        self.model, self.name, self.slots = model, name or model.recipe.name, model.slots
        built = build_tasks(model.recipe)
        self.tasks = model.tasks or tuple(built) or (default_task(model.recipe),)
        self.attributes = tuple(name for name in self.tasks if isinstance(built.get(name), AttributeTask))
        self._lock = Lock()  # not an RLock: a stream may be closed by another thread than it was begun in

    @property
    def parts(self) -> str:
        """What it is made of, in a line, without folders of this machine."""
        recipe = self.model.recipe
        encoder = recipe.encoder.get("checkpoint") or recipe.encoder["type"]
        tuned = "frozen" if recipe.llm.tuning.method == "frozen" else f"tuned: {recipe.llm.tuning.method}"
        named = [Path(str(part)) for part in (encoder, recipe.llm.checkpoint)]
        shown = [path.name if path.is_absolute() else str(path).removeprefix("sottovoce:") for path in named]
        return f"encoder {shown[0]}, LLM {shown[1]} ({tuned}), on {self.model.device}"

    def wording(self, asked: Asked) -> str:
        """The question as the LLM reads it."""
        return question(self.model.recipe, *asked.wanted).instruction

    def stream(self, file: str | None, asked: Asked) -> Iterator[str]:
        """The answer as far as it has come, longer each time, from nothing on; the last is the whole."""
        clip, (task, own), said = self._clip(file), asked.wanted, ""
        yield said
        with self._lock:
            for piece in self.model.stream(clip, task, ask=own, sample_rate=self.model.sample_rate):
                said += piece
                yield said

    def tell(self, file: str | None, asked: Asked, slots: Slots = BOTH) -> Told:
        """The answer with speech in these slots alone."""
        clip, (task, own), rate = self._clip(file), asked.wanted, self.model.sample_rate
        with self._lock:
            answer = self.model(clip, task, ask=own, slots=slots, sample_rate=rate)
            labelled = task in self.attributes
            shares = self.model.probabilities(clip, task, slots=slots, sample_rate=rate) if labelled else None
        return Told(answer, shares)

    def without_each(self, file: str | None, asked: Asked, off: Sequence[str]) -> Iterator[tuple[str, Told]]:
        """The answer with all slots, then with each slot of `off` switched off alone, and what was off ("" first)."""
        yield "", self.tell(file, asked)
        for name in off:
            if left := [slot for slot in self.slots if slot != name]:
                yield name, self.tell(file, asked, left)

    def probabilities(self, file: str | None) -> Iterator[tuple[str, dict[str, float]]]:
        """Each attribute, and label -> probability."""
        clip, rate = self._clip(file), self.model.sample_rate
        for task in self.attributes:
            with self._lock:
                shares = self.model.probabilities(clip, task, sample_rate=rate)
            yield task, shares

    def heard(self, file: str | None) -> Tensor:
        """The clip as (samples,) at the rate of log-mel spectrograms."""
        return self._clip(file, SAMPLE_RATE)

    def layers(self) -> dict[str, dict[int, float]]:
        """Slot -> layer of the encoder -> weight."""
        return layer_weights(self.model.module.slot_layers, self.model.module.adapters)

    def _clip(self, file: str | None, rate: int | None = None) -> Tensor:
        if not file:
            raise AudioError("there is no clip yet: record one, upload one, or take an example", code="missing-key")
        return waveform(file, rate or self.model.sample_rate, max_seconds=self.model.recipe.data.max_seconds)


def told_plainly(error: Exception, file: str | None) -> str:
    """An error in words for the page, without the folder in which the page keeps its clips.

    Errors that are not the user's to mend are raised anew, to be logged where the page was started.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return f"the memory of the device is too small for this: {first_line(error)}"
    if not isinstance(error, SottovoceError):
        raise error
    return printable(error).replace(str(file), Path(file).name) if file else printable(error)
