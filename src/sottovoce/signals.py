"""A cluster's warning before it kills: a command unwinds, and the same command goes on later."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EXIT = 128 + signal.SIGTERM  # 143, by which shells, Kubernetes and SLURM know a process that SIGTERM has ended
# SIGUSR1 is what SLURM scripts for Lightning ask for (--signal=USR1@120).
WARNINGS = (signal.SIGTERM, *([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else []))


class Terminated(BaseException):
    """A warning has come, or what the argument names; not an error that anybody should catch."""


@contextmanager
def handle_sigterm() -> Iterator[None]:
    """Within this block a warning raises `Terminated` wherever the main thread is, as Ctrl-C does."""

    def leave(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, leave) for number in WARNINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
