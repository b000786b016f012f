"""`python -m tests.faults`: do to a training what machines do, and print what was lost. `--short` is what CI runs."""

import argparse
import datetime
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # sums depend on it in their last bits, and threads do not survive a fork

import torch

from tests.faults import disks, numbers, processes
from tests.faults.bench import Bench
from tests.faults.checks import Row
from tests.faults.world import make_world
from undertone.lightning_modules.cli import quiet

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
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument(
        "--keep", type=Path, help="a folder to work in, which is left; its undisturbed run is used again"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    with tempfile.TemporaryDirectory() as home:
        bench = Bench(make_world((arguments.keep or Path(home)).absolute()), arguments.seed)
        rows: dict[str, list[Row]] = {}
        for name, case in chosen(arguments.short, arguments.kills).items():
            if arguments.only and name not in arguments.only:
                continue
            made = case(bench)
            rows[name] = [made] if isinstance(made, Row) else list(made)
            print(
                f"{name}: {'; '.join(f for row in rows[name] for f in row.faults) or 'held'}",
                file=sys.stderr,
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps({name: [asdict(row) for row in part] for name, part in rows.items()}))
    print(table([row for part in rows.values() for row in part], arguments.seed))
    return int(any(row.faults for part in rows.values() for row in part))


def table(rows: list[Row], seed: int) -> str:
    """In Markdown."""
    lines = ["| what was done | times | how it ended | what was lost | held |", "|---|---:|---|---|---|"]
    lines += [f"| {r.done} | {r.times} | {r.ended} | {r.lost} | {'no' if r.faults else 'yes'} |" for r in rows]
    told = f"seed {seed}, {datetime.date.today()}, torch {torch.__version__}, {os.cpu_count()} CPU cores"
    return "\n".join([*lines, "", told])


if __name__ == "__main__":
    sys.exit(main())
