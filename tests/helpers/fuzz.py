"""`python -m tests.helpers.fuzz --inputs 100000 --seed 0`: hostile input by the thousand, tried.

Each kind of input is tried in a process of its own, which may crash, hang or fill its memory without ending the rest.
"""

import argparse
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SHARES = {"manifests": 0.7, "audio": 0.28, "bundles": 0.015, "recipes": 0.005}  # by what one costs
HANG = 300.0  # seconds without the next input, after which a process is ended
SLOW = 20.0  # seconds of CPU for one input that count as a finding
MEMORY = 1500  # MB that one input may take
CEILING = 12_000  # MB of address space, where a process's own attempts end


@dataclass
class Tally:
    """What came of the inputs of one kind; `findings` are numbers of inputs and what went wrong with each."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    slowest: float = 0.0  # seconds of CPU
    memory: int = 0  # MB above what the process had at its start
    findings: list[tuple[int, str]] = field(default_factory=list)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.inputs + other.inputs, self.read + other.read, self.refused + other.refused,
            max(self.slowest, other.slowest), max(self.memory, other.memory), [*self.findings, *other.findings],
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=SHARES, help="one kind alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--only", type=int, help="one input of --kind again, here and now")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"  # a checkpoint that only the hub could have is not there
    if arguments.only is not None:
        print(attempt(arguments.kind, arguments.seed, [arguments.only], None))
        return 0
    tallies = {}
    for kind, share in ({arguments.kind: 1.0} if arguments.kind else SHARES).items():
        count, jobs = round(arguments.inputs * share), arguments.jobs
        edges = [count * job // jobs for job in range(jobs + 1)]
        with ThreadPoolExecutor(jobs) as pool:
            parts = pool.map(lambda a, b, kind=kind: supervise(kind, arguments.seed, a, b), edges[:-1], edges[1:])
            tallies[kind] = reduce(Tally.__add__, parts)
        print(f"{kind}: {tallies[kind].inputs} done", file=sys.stderr, flush=True)
    print(table(tallies))
    return int(any(tally.findings for tally in tallies.values()))


def attempt(kind: str, seed: int, numbers: Iterable[int], parent: Connection | None) -> Tally:
    """Try inputs in this process, which tells its parent of each before it is tried, and of the tally so far."""
    from tests.helpers.hostile import Audio, Manifests, outcome
    from tests.helpers.hostile_models import Bundles, Recipes

    tried: Any = {"recipes": Recipes, "bundles": Bundles, "manifests": Manifests, "audio": Audio}[kind]
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        tested, begin = tried(Path(folder) / "work"), peak()
        if parent:
            resource.setrlimit(resource.RLIMIT_AS, (CEILING << 20, CEILING << 20))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders talk a lot
        for number in numbers:
            if parent:
                parent.send((number, tally))
            rng = random.Random(f"{seed}/{kind}/{number}")
            made, before, started = tested.make(rng), peak(), time.process_time()
            try:
                was_read = outcome(tested, made, rng)
                tally.read += was_read
                tally.refused += not was_read
            except Exception as error:
                if parent is None:
                    raise
                last = traceback.extract_tb(error.__traceback__)[-1]
                told = f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
                tally.findings.append((number, told[:400]))
            taken = time.process_time() - started
            tally.slowest, tally.memory = max(tally.slowest, taken), max(tally.memory, peak() - begin)
            if taken > SLOW:
                tally.findings.append((number, f"took {taken:.0f} s"))
            if peak() - before > MEMORY:
                tally.findings.append((number, f"took {peak() - before} MB"))
            tally.inputs += 1
    if parent:
        parent.send((-1, tally))
    return tally


def peak() -> int:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def supervise(kind: str, seed: int, start: int, stop: int) -> Tally:
    """Try inputs from `start` to `stop` in processes that may die; after a death the next one goes on behind it."""
    whole, context = Tally(), get_context("spawn")
    while start < stop:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=attempt, args=(kind, seed, range(start, stop), theirs))
        process.start()
        theirs.close()
        at, part, ended = start, Tally(), "hung"
        while ours.poll(HANG):
            try:
                at, part = ours.recv()
            except EOFError:
                ended = ""
                break
        if ended:
            process.kill()
        process.join()
        if ended or at >= 0:
            part.findings.append((at, ended or f"died with {process.exitcode}"))
            part.inputs += 1
        whole, start = whole + part, stop if at < 0 else at + 1
    return whole


def table(tallies: dict[str, Tally]) -> str:
    lines = [
        "| input | tried | read | refused with a message | anything else | slowest, s of CPU | memory, MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, t in tallies.items():
        numbers = f"{t.inputs:,} | {t.read:,} | {t.refused:,} | {len(t.findings)} | {t.slowest:.2f} | {t.memory}"
        lines.append(f"| {kind} | {numbers} |")
    found = [f"{kind} {number}: {what}" for kind, t in tallies.items() for number, what in t.findings]
    return "\n".join([*lines, *found[:200]])


if __name__ == "__main__":
    raise SystemExit(main())
