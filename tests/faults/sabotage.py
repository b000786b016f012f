"""Faults that are injected into a run, in its own process, at moments that a seed has drawn."""

import io
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sottovoce.lightning_modules.speech_llm import SpeechLLM
from tests.faults.process import Sabotage, note, stage_of


class Moment(NamedTuple):
    """So many calls of Python functions after the beginning of a step of a stage."""

    stage: str
    step: int
    calls: int = 0


def at(moment: Moment, act: Callable[[], None]) -> Sabotage:
    """Do something at a moment, once; at the beginning of the next step where a run is past it, or has fewer calls."""

    def install() -> None:
        step, left, waits = SpeechLLM.training_step, [moment.calls], [True]

        def once() -> None:
            sys.setprofile(None)
            waits[0] = False
            act()

        def count(frame: Any, event: str, argument: Any) -> None:
            if event == "call":
                left[0] -= 1
                if left[0] < 0:
                    once()

        def watched(self: SpeechLLM, batch: Any, number: int) -> Any:
            order = list(self.recipe.stages)
            here, there = (order.index(stage_of(self)), self.global_step), (order.index(moment.stage), moment.step)
            if waits[0] and here == there:
                sys.setprofile(count)
            elif waits[0] and here > there:
                once()
            return step(self, batch, number)

        SpeechLLM.training_step = watched  # type: ignore[method-assign]

    return install


def counted() -> None:
    """Note at every step how many Python functions were called since the one before."""
    step, calls = SpeechLLM.training_step, [0]

    def count(frame: Any, event: str, argument: Any) -> None:
        calls[0] += event == "call"

    def watched(self: SpeechLLM, batch: Any, number: int) -> Any:
        sys.setprofile(None)
        note(calls=calls[0])
        calls[0] = 0
        sys.setprofile(count)
        return step(self, batch, number)

    SpeechLLM.training_step = watched  # type: ignore[method-assign]


def send(number: signal.Signals) -> Callable[[], None]:
    """Send this process a signal, and say when."""

    def act() -> None:
        note(sent=number.name)
        os.kill(os.getpid(), number)

    return act


def on_call(owner: Any, name: str, around: Callable[..., AbstractContextManager[None]], number: int = 1) -> Sabotage:
    """Run the `number`-th call of a function within a context, which is made of the call's arguments."""

    def install() -> None:
        original, left = getattr(owner, name), [number]

        def patched(*arguments: Any, **keywords: Any) -> Any:
            left[0] -= 1
            with nullcontext() if left[0] else around(*arguments):
                return original(*arguments, **keywords)

        setattr(owner, name, patched)

    return install


def before(owner: Any, name: str, act: Callable[[], None], number: int = 1) -> Sabotage:
    """Do something when a function is called for the `number`-th time, before it does its work."""

    @contextmanager
    def around(*_: Any) -> Iterator[None]:
        act()
        yield

    return on_call(owner, name, around, number)


def full(owner: Any, name: str, size: Callable[..., int], number: int = 1) -> Sabotage:
    """Limit files to `size` bytes while a function is called for the `number`-th time."""
    return on_call(owner, name, lambda *arguments: _limit(size(*arguments)), number)


def torn(moment: Moment, share: float) -> Sabotage:
    """Kill this process in the first checkpoint that it writes from a moment on, when a share of it is written.

    A share of 1 or more: when all is written, but it has not got its name yet.
    """

    def act() -> None:
        def half(content: Any, stream: Any) -> None:
            whole = io.BytesIO()
            save(content, whole)
            stream.write(whole.getvalue()[: int(share * whole.tell())])
            stream.flush()
            note(sent="SIGKILL", torn=share)
            os.kill(os.getpid(), signal.SIGKILL)

        save = torch.save
        torch.save = half

    return at(moment, act)


@contextmanager
def _limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def kill_readers() -> None:
    """Kill the processes that read audio. Of one alone the run may have all that it needs already."""
    readers = multiprocessing.active_children()
    assert readers
    for reader in readers:
        reader.kill()


def hide(file: Path) -> Callable[[], None]:
    """Take a file away."""
    return lambda: file.rename(file.with_suffix(".hidden"))


def broken(stage: str, steps: range, what: str) -> Sabotage:
    """In these steps, make the first row's loss NaN, or one number of a gradient, or of a weight, infinite.

    Every step notes the sums of the weights with which it begins.
    """

    def install() -> None:
        loss, step = SpeechLLM.loss, SpeechLLM.training_step

        def here(self: SpeechLLM) -> bool:
            return self.training and stage_of(self) == stage and self.global_step in steps

        def spoiled(self: SpeechLLM, batch: Any) -> Any:
            out = loss(self, batch)
            if what != "loss" or not here(self):
                return out
            rows = out.per_row * torch.tensor([float("nan"), *[1.0] * (len(out.per_row) - 1)])
            return out._replace(per_row=rows, total=rows.sum())

        def noted(self: SpeechLLM, batch: Any, number: int) -> Any:
            weights = [float(weight.sum()) for weight in self.trainable_parameters()]
            note(stage=stage_of(self), begins=self.global_step, weights=weights)
            return step(self, batch, number)

        def after(self: SpeechLLM) -> None:
            if what == "gradient" and here(self):
                gradient = self.trainable_parameters()[0].grad
                assert gradient is not None
                gradient.view(-1)[0] = float("inf")

        def end(self: SpeechLLM, *_: Any) -> None:
            if what == "weight" and stage_of(self) == stage and self.global_step - 1 in steps:
                with torch.no_grad():
                    self.trainable_parameters()[0].view(-1)[0] = float("inf")

        SpeechLLM.loss, SpeechLLM.training_step = spoiled, noted  # type: ignore[method-assign]
        SpeechLLM.on_after_backward, SpeechLLM.on_train_batch_end = after, end  # type: ignore[method-assign]

    return install
