"""`python -m tests.helpers.fuzz --inputs 100000 --seed 0`: hostile input by the thousand, tried.

Each kind of input is tried in a process of its own, which may crash, hang or fill its memory without ending the rest.
"""

import argparse
import faulthandler
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import reduce
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=SHARES, help="one kind alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--only", type=int, help="one input of --kind again, here and now")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        print(worked(arguments.kind, arguments.seed, [arguments.only], None))
        return 0
    if arguments.worker:
        start, stop, log = int(arguments.worker[0]), int(arguments.worker[1]), Path(arguments.worker[2])
        worked(arguments.kind, arguments.seed, range(start, stop), log)
        return 0
    shares = {arguments.kind: 1.0} if arguments.kind else SHARES
    tallies = {}
    for kind, share in shares.items():
        tallies[kind] = together(kind, arguments.seed, round(arguments.inputs * share), arguments.jobs)
        print(f"{kind}: {tallies[kind].inputs} done", file=sys.stderr, flush=True)
    print(table(tallies))
    return int(any(tally.findings for tally in tallies.values()))


def worked(kind: str, seed: int, numbers: range | list[int], log: Path | None) -> Tally:
    """Try inputs in this process. The log names each before it is tried, and holds the tally so far."""
    from tests.helpers.hostile import Audio, Manifests, outcome

    if kind in ("recipes", "bundles"):
        from tests.helpers.hostile_models import Bundles, Recipes

        tried: Any = {"recipes": Recipes, "bundles": Bundles}[kind]
    else:
        tried = {"manifests": Manifests, "audio": Audio}[kind]

    faulthandler.enable()
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        tested = tried(Path(folder) / "work")
        begin = peak()
        if log:
            resource.setrlimit(resource.RLIMIT_AS, (CEILING << 20, CEILING << 20))
        for number in numbers:
            note(log, number, tally)
            rng = random.Random(f"{seed}/{kind}/{number}")
            made, before, started = tested.make(rng), peak(), time.process_time()
            try:
                was_read = outcome(tested, made, rng)
                tally.read += was_read
                tally.refused += not was_read
            except Exception as error:
                if log is None:
                    raise
                last = traceback.extract_tb(error.__traceback__)[-1]
                tally.findings.append(
                    (number, f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"[:400])
                )
            taken = time.process_time() - started
            tally.slowest, tally.memory = max(tally.slowest, taken), max(tally.memory, peak() - begin)
            if taken > SLOW:
                tally.findings.append((number, f"took {taken:.0f} s"))
            if peak() - before > MEMORY:
                tally.findings.append((number, f"took {peak() - before} MB"))
            tally.inputs += 1
    note(log, -1, tally)
    return tally


def note(log: Path | None, number: int, tally: Tally) -> None:
    if log:
        draft = log.with_suffix(".tmp")
        draft.write_text(json.dumps([number, asdict(tally)]), "utf-8")
        draft.replace(log)


def peak() -> int:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def together(kind: str, seed: int, count: int, jobs: int) -> Tally:
    """Try `count` inputs, in so many processes side by side."""
    edges = [count * job // jobs for job in range(jobs + 1)]
    with ThreadPoolExecutor(jobs) as pool:
        parts = pool.map(lambda start, stop: supervised(kind, seed, start, stop), edges[:-1], edges[1:])
        return reduce(joined, parts)


def supervised(kind: str, seed: int, start: int, count: int) -> Tally:
    """Try inputs from `start` to `count` in processes that may die; after a death the next one goes on behind it."""
    whole = Tally()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.json"
        while start < count:
            log.unlink(missing_ok=True)
            ended = attended(kind, seed, start, count, log)
            at, told = json.loads(log.read_text("utf-8")) if log.is_file() else (start, asdict(Tally()))
            part = Tally(**told)
            if ended:
                part.findings.append((at, ended))
                part.inputs += 1
            whole = joined(whole, part)
            start = count if not ended else at + 1
    return whole


def attended(kind: str, seed: int, start: int, stop: int, log: Path) -> str:
    """Run one process to its end; what ended it, if it was not the end of the work."""
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}  # a checkpoint that only the hub could have is not there
    command = [sys.executable, "-m", "tests.helpers.fuzz", "--kind", kind, "--seed", str(seed)]
    command += ["--worker", str(start), str(stop), str(log)]
    said = log.with_suffix(".err")  # decoders talk a lot: a pipe that nobody reads would stop them
    with said.open("wb") as stream:
        process = subprocess.Popen(command, stderr=stream, env=offline)
    changed, seen = time.monotonic(), ""
    while process.poll() is None:
        time.sleep(0.5)
        now = log.read_text("utf-8") if log.is_file() else ""
        if now != seen:
            changed, seen = time.monotonic(), now
        if time.monotonic() - changed > HANG:
            process.kill()
            process.wait()
            return "hung"
    told = said.read_text("utf-8", "replace")
    return "" if process.returncode == 0 else f"died with {process.returncode}: {told[-300:]}"


def joined(a: Tally, b: Tally) -> Tally:
    return Tally(
        a.inputs + b.inputs, a.read + b.read, a.refused + b.refused, max(a.slowest, b.slowest), max(a.memory, b.memory),
        [*a.findings, *b.findings],
    )  # fmt: skip


def table(tallies: dict[str, Tally]) -> str:
    lines = [
        "| input | tried | read | refused with a message | anything else | slowest, s of CPU | memory, MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, t in tallies.items():
        lines.append(
            f"| {kind} | {t.inputs:,} | {t.read:,} | {t.refused:,} | {len(t.findings)} | {t.slowest:.2f} | {t.memory} |"
        )
    found = [f"{kind} {number}: {what}" for kind, t in tallies.items() for number, what in t.findings]
    return "\n".join([*lines, *found[:200]])


if __name__ == "__main__":
    raise SystemExit(main())
