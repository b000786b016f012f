"""`python -m tests.faults`: do to a training what machines do, and print what was lost. `--short` is what CI runs."""

import argparse
import datetime
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # sums depend on it in their last bits, and threads do not survive a fork

import torch

from sottovoce.cli.main import silence_libraries
from tests.faults import disks, numbers, processes
from tests.faults.bench import Bench
from tests.faults.checks import Row
from tests.faults.world import make_world

Case = Callable[[Bench], "Row | Iterable[Row]"]


def chosen(short: bool, kills: int) -> dict[str, Case]:
    """Every case by name, with how often it is done."""
    return {
        "killed": lambda bench: processes.killed(bench, 3 if short else kills),
        "warned": lambda bench: processes.warned(bench, 1 if short else 4),
        "full": disks.disk_full,
        "damaged": disks.damaged,
        "reader": processes.reader_killed,
        "gone": disks.clip_gone,
        "loss": lambda bench: numbers.one_nan(bench, "loss"),
        "gradient": lambda bench: numbers.one_nan(bench, "gradient"),
        "losses": lambda bench: numbers.stays_broken(bench, "loss"),
        "weights": lambda bench: numbers.stays_broken(bench, "weight"),
        "ranks": lambda bench: processes.rank_dies(bench, 1 if short else 4),
    }


def main() -> int:
    """Print the table; exit with 1 if something did not hold."""
    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--short", action="store_true", help="each fault seldom; for CI")
    parser.add_argument("--only", nargs="*", help="cases by name", choices=list(chosen(True, 0)))
    parser.add_argument("--jobs", type=int, default=2, help="cases that are done at once")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--keep", type=Path, help="a folder to work in, which is left; its whole run is used again")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    silence_libraries()
    with tempfile.TemporaryDirectory() as home:
        bench = Bench(make_world((arguments.keep or Path(home)).absolute()), arguments.seed)
        cases = chosen(arguments.short, arguments.kills)
        rows = all_done({n: cases[n] for n in cases if n in (arguments.only or cases)}, bench, arguments.jobs)
    if arguments.json:
        arguments.json.write_text(json.dumps({name: [asdict(row) for row in part] for name, part in rows.items()}))
    print(table([row for part in rows.values() for row in part], arguments.seed))
    return int(any(row.faults for part in rows.values() for row in part))


def all_done(cases: dict[str, Case], bench: Bench, jobs: int) -> dict[str, list[Row]]:
    """The rows of every case; so many at once, each in a process that is forked from this one."""
    waiting, running = list(cases), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            sys.stderr.flush()
            if not (pid := os.fork()):
                _do(name, cases[name], bench)
            running[pid] = name
        pid, status = os.wait()
        if status:
            raise RuntimeError(f"{running[pid]} itself has failed, see above")
        del running[pid]
    files = {name: bench.world.folder / f"{name}.rows" for name in cases}
    return {name: [Row(**row) for row in json.loads(file.read_text())] for name, file in files.items()}


def _do(name: str, case: Case, bench: Bench) -> None:
    """In its own process: do a case, with draws of its own, and leave its rows in a file."""
    status = 1
    try:
        bench.draw_for(name)
        made = case(bench)
        rows = [made] if isinstance(made, Row) else list(made)
        (bench.world.folder / f"{name}.rows").write_text(json.dumps([asdict(row) for row in rows]))
        print(f"{name}: {'; '.join(f for row in rows for f in row.faults) or 'held'}", file=sys.stderr)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def table(rows: list[Row], seed: int) -> str:
    """In Markdown."""
    lines = ["| what was done | times | how it ended | what was lost | held |", "|---|---:|---|---|---|"]
    lines += [f"| {r.done} | {r.times} | {r.ended} | {r.lost} | {'no' if r.faults else 'yes'} |" for r in rows]
    caption = f"seed {seed}, {datetime.date.today()}, torch {torch.__version__}, {os.cpu_count()} CPU cores"
    return "\n".join([*lines, "", caption])


if __name__ == "__main__":
    sys.exit(main())
