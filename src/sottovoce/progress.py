"""Progress of long work: bars on a terminal, elsewhere a line in the log every 30 seconds."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import length_hint
from types import TracebackType
from typing import ClassVar, TypeVar

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from typing_extensions import Self

T = TypeVar("T")
Clock = Callable[[], float]  # seconds
EVERY = 30.0  # seconds between two lines
REFRESH = 0.5  # seconds between two looks at what a bar tells
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Task:
    """Something that is done so many times, `total`, if that is known; `unit` is one of it, such as step."""

    name: str
    total: float | None
    unit: str
    clock: Clock
    done: float = 0
    bars: rich.progress.Progress | None = None  # that show it; None: it is told in lines
    mute: bool = False
    _shown: rich.progress.TaskID | None = None
    _mark: tuple[float, float] | None = None  # when the first one was done, and how many were then
    _written: float = field(default=-1, init=False)  # how many were done by the last line
    _last: float = field(init=False)  # when something of it was last shown

    def __post_init__(self) -> None:
        self._last = self.clock()
        if self.bars is not None:
            self._shown = self.bars.add_task(self.name, total=self.total, completed=int(self.done), told="")

    def advance(self, count: float = 1, tell: Callable[[], str] | None = None) -> None:
        """So many more are done. `tell` says more about it, and is only called when that is shown."""
        self.done += count
        now = self.clock()
        if self._mark is None:
            self._mark = now, self.done
        if self.bars is not None and self._shown is not None:
            self.bars.update(self._shown, completed=self.done)
            if tell and now - self._last >= REFRESH:
                self._last = now
                self.bars.update(self._shown, told=tell())
        elif now - self._last >= EVERY:
            self._last = now
            self._write(tell() if tell else "", now)

    def end(self, tell: Callable[[], str] | None = None) -> None:
        """All is done. A task that took less than a line's time leaves none."""
        if self.bars is None and self._written not in (-1, self.done):
            self._write(tell() if tell else "", self.clock())

    def _write(self, told: str, now: float) -> None:
        self._written = self.done
        if not self.mute:
            _log.info(self.line(told, now))

    def line(self, told: str, now: float) -> str:
        """Such as `joint 120/588 loss 0.195 lr 1.4e-3 0.8 s/step 6:14 left`."""
        total = "" if self.total is None else f"/{self.total:.0f}"
        words = [f"{self.name} {self.done:.0f}{total}", told]
        began, before = self._mark or (now, self.done)
        if self.done > before and now > began:
            pace = (now - began) / (self.done - before)  # seconds each
            each = f"{pace:.2g}" if pace < 10 else f"{pace:.0f}"
            many = f"{1 / pace:.0f} {self.unit}s/s"
            words.append(f"{each} s/{self.unit}" if pace >= 0.01 or self.unit == "step" else many)
            if self.total is not None and self.done < self.total:
                words.append(f"{duration((self.total - self.done) * pace)} left")
        return " ".join(word for word in words if word)


class Progress:
    """How far tasks are. Those that begin within another's block are shown below its tasks.

    Args:
        console: whose terminal has the bars; a quiet one shows nothing. None: standard output.
        transient: bars go away at the end.
        bars: false: lines even on a terminal.
        clock: seconds that only grow.
    """

    _live: ClassVar[rich.progress.Progress | None] = None  # rich can show one thing at a time

    def __init__(
        self, console: Console | None = None, *, transient: bool = False, bars: bool = True,
        clock: Clock = time.monotonic,
    ) -> None:  # fmt: skip
        self.console, self.transient, self.clock = console or Console(), transient, clock
        self.bars = bars and (self.console.is_terminal or self.console.is_jupyter) and not self.console.quiet
        self._owns = self._open = False

    def __enter__(self) -> Self:
        self._open = True
        if self.bars and Progress._live is None:
            columns = (
                TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[told]}"), TimeElapsedColumn(), TimeRemainingColumn(compact=True),
            )  # fmt: skip
            live = rich.progress.Progress(
                *columns, console=self.console, transient=self.transient, redirect_stderr=sys.stderr.isatty()
            )
            live.start()
            Progress._live, self._owns = live, True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        if self._owns and Progress._live is not None:
            Progress._live.stop()
            Progress._live, self._owns = None, False

    def start(self, name: str, total: float | None = None, unit: str = "item", done: float = 0) -> Task:
        """Begin a task, of which so many are done already."""
        bars = Progress._live if self.bars and self._open else None
        return Task(name, total, unit, self.clock, done, bars, self.console.quiet)

    def track(
        self, sequence: Iterable[T], total: float | None = None, description: str = "working", unit: str = "item"
    ) -> Iterator[T]:
        """The items of a sequence, each of which is done when the next one is asked for."""
        task = self.start(description, total if total is not None else length_hint(sequence) or None, unit)
        for item in sequence:
            yield item
            task.advance()
        task.end()


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours, minutes and seconds: 6:14, 30:06:14."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short(number: float) -> str:
    """Three digits, without those of an exponent that say nothing: 0.195, 1.4e-3."""
    mantissa, e, exponent = f"{number:.3g}".partition("e")
    if not e and 0 < abs(number) < 0.01:
        mantissa, e, exponent = f"{number:.2e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def track(
    sequence: Iterable[T], description: str, total: float | None = None, unit: str = "item",
    console: Console | None = None,
) -> Iterator[T]:  # fmt: skip
    """The items of a sequence, with a display of its own; see `Progress.track`."""
    with Progress(console) as progress:
        yield from progress.track(sequence, total, description, unit)
