"""Progress in a log: what a line says, and when one is written."""

import io
import logging
from collections.abc import Iterator

import pytest
from rich.console import Console

from sottovoce.progress import Progress, duration, short


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, items: Iterator[int], seconds: float) -> None:
        """So long for each item."""
        for _ in items:
            self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def in_a_file() -> Console:
    return Console(file=io.StringIO())


def test_a_line_every_thirty_seconds_and_a_last_one(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sottovoce")
    with Progress(in_a_file(), clock=clock) as progress:
        clock.wait(progress.track(range(70), description="encoding clips", unit="clip"), 2.0)
    assert caplog.messages == [
        "encoding clips 15/70 2 s/clip 1:50 left", "encoding clips 30/70 2 s/clip 1:20 left",
        "encoding clips 45/70 2 s/clip 0:50 left", "encoding clips 60/70 2 s/clip 0:20 left",
        "encoding clips 70/70 2 s/clip",
    ]  # fmt: skip


def test_a_line_of_a_stage(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """As the documents show it; what a step tells is asked for when a line is due, and else not."""
    caplog.set_level(logging.INFO, "sottovoce")
    asked = 0

    def tell() -> str:
        nonlocal asked
        asked += 1
        return f"loss {short(0.19513)} lr {short(0.0014)}"

    with Progress(in_a_file(), clock=clock) as progress:
        steps = progress.start("joint", 588, "step", done=82)
        for _ in range(38):
            clock.now += 0.8
            steps.advance(1, tell)
    assert caplog.messages == ["joint 120/588 loss 0.195 lr 1.4e-3 0.8 s/step 6:14 left"] and asked == 1


def test_what_is_short_or_quiet_leaves_no_line(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sottovoce")
    with Progress(in_a_file(), clock=clock) as progress:
        clock.wait(progress.track(range(10)), 2.9)
    with Progress(Console(file=io.StringIO(), quiet=True), clock=clock) as progress:
        clock.wait(progress.track(range(10)), 290)
    assert not caplog.messages


def test_fast_items_are_counted_by_the_second(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sottovoce")
    with Progress(in_a_file(), clock=clock) as progress:
        clock.wait(progress.track((i for i in range(32_000)), description="reading", unit="clip"), 1 / 1024)
    assert caplog.messages[0] == "reading 30720 1024 clips/s"


def test_on_a_terminal_there_are_bars_and_one_display(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sottovoce")
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with Progress(console, clock=clock) as outer:
        for _ in outer.track(range(2), description="table"):
            with Progress(console, clock=clock) as inner:
                task = inner.start("joint", 4, "step")
                clock.now += 40
                task.advance(2, lambda: "loss 0.5")
    assert not caplog.messages
    assert all(word in screen.getvalue() for word in ("table", "joint", "2/4", "loss 0.5"))


def test_lines_on_a_terminal_whose_bars_are_off(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sottovoce")
    with Progress(Console(file=io.StringIO(), force_terminal=True), bars=False, clock=clock) as progress:
        clock.wait(progress.track(range(2)), 31)
    assert caplog.messages[0].startswith("working 1/2")


def test_times_and_numbers() -> None:
    assert [duration(s) for s in (0, 59.6, 374, 108_374)] == ["0:00", "1:00", "6:14", "30:06:14"]
    found = [short(n) for n in (0.195123, 1.4e-3, 1e-5, 0.0, 12.3456, 123456.0, 0.05)]
    assert found == ["0.195", "1.4e-3", "1e-5", "0", "12.3", "1.23e5", "0.05"]
