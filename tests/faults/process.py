"""Runs commands in processes that are forked from this one, which has done the slow imports once.

This process must not train: threads and autograd do not survive a fork.
"""

import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sottovoce.cli.main import main
from sottovoce.lightning_modules import fit as _run  # noqa: F401  (what every child would import)
from sottovoce.lightning_modules import speech_llm
from tests.faults.world import Command

Sabotage = Callable[[], None]
PATIENCE = 600.0  # seconds after which a process is said to hang


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: the signal), its output, and when."""

    code: int
    output: str
    at: float

    @property
    def error(self) -> str:
        """The last line of its output, which is its error if it had one."""
        return self.output.strip().splitlines()[-1] if self.output.strip() else ""

    @property
    def plain(self) -> bool:
        """Whether it ended with one line for its user, and no traceback."""
        return self.code == 2 and self.error.startswith("sottovoce: ") and "Traceback" not in self.output


def fit(command: Command, *sabotage: Sabotage) -> Ended:
    """Run a command to its end, whatever that is."""
    return wait([start(command, sabotage)])[0]


def fit_on_two(command: Command, *sabotage: Sequence[Sabotage]) -> list[Ended]:
    """Run a command in two processes that train together; `sabotage` is for the first and for the second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    done = [*sabotage, *([()] * (2 - len(sabotage)))]
    return wait([start(command, done[rank], {**shared, "LOCAL_RANK": str(rank)}) for rank in (0, 1)])


def start(command: Command, sabotage: Sequence[Sabotage] = (), environment: Mapping[str, str] | None = None) -> "Child":
    """Fork a process that runs the command."""
    log = command.ledger.with_name(f"{command.name}.{time.monotonic_ns()}.log")
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, log)
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update(environment or {})
        torch.set_num_threads(1)
        write_down(command)
        for act in sabotage:
            act()
        code = main(["fit", "--config", str(command.config)])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@dataclass(frozen=True)
class Child:
    pid: int
    log: Path


def wait(children: Sequence[Child], patience: float = PATIENCE) -> list[Ended]:
    """Wait for all; one that takes too long is killed, and its code is -9 as for any that was."""
    ended: dict[int, Ended] = {}
    deadline = time.monotonic() + patience
    while len(ended) < len(children):
        for child in children:
            if child.pid in ended:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                output = child.log.read_text() if child.log.is_file() else ""
                ended[child.pid] = Ended(os.waitstatus_to_exitcode(status), output, time.monotonic())
            elif time.monotonic() > deadline:
                os.kill(child.pid, 9)
        time.sleep(0.02)
    return [ended[child.pid] for child in children]


_ledger = -1  # of this process, if it is a child


def note(**entry: Any) -> None:
    """Write a line to the ledger, in one call, so that no kill can tear it."""
    os.write(_ledger, (json.dumps({**entry, "at": time.monotonic()}) + "\n").encode())


def write_down(command: Command) -> None:
    """Let the training step note its stage, step, rank, and each row's utterance and task."""
    global _ledger
    _ledger = os.open(command.ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    note(start=os.getpid())
    step = speech_llm.SpeechLLM.training_step

    def noted(self: speech_llm.SpeechLLM, batch: Any, number: int) -> torch.Tensor:
        rows = [[row.utterance.id, row.task, sorted(row.sources.items())] for row in batch.examples]
        note(stage=stage_of(self), step=self.global_step, rank=self.global_rank, rows=rows)
        return step(self, batch, number)

    speech_llm.SpeechLLM.training_step = noted  # type: ignore[method-assign]


def stage_of(module: speech_llm.SpeechLLM) -> str:
    """The name of the stage that a module trains."""
    return next(name for name, node in module.recipe.stages.items() if node is module.node)
