"""CPU time of the command line's start: `--help`, and `--print-config` of the quickstart.

    python benchmarks/startup.py [--against DIR] [--runs 7]

With another checkout in DIR, whose .venv/bin/python is used, the two are measured in turns; the last column is the
ratio of the medians.
"""

import argparse
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {"--help": ["--help"], "--print-config": ["--config", "conf/quickstart.yaml", "--print-config"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--runs", type=int, default=7, help="of each command in each checkout, after one that warms up")
    arguments = parser.parse_args()
    checkouts = {ROOT: sys.executable}
    if arguments.against:
        checkouts[arguments.against.absolute()] = str(arguments.against.absolute() / ".venv/bin/python")
    print(f"CPU time in seconds, median of {arguments.runs} runs\n")
    print(f"| python -m lightning_modules.fit | {' | '.join(str(root) for root in checkouts)} | ratio |")
    print(f"|---|{'---:|' * (len(checkouts) + 1)}")
    for name, words in COMMANDS.items():
        seconds: dict[Path, list[float]] = {root: [] for root in checkouts}
        for _ in range(arguments.runs + 1):
            for root, python in checkouts.items():
                seconds[root].append(cpu_seconds(root, [python, "-m", "lightning_modules.fit", *words]))
        medians = [statistics.median(taken[1:]) for taken in seconds.values()]
        print(f"| {name} | {' | '.join(f'{median:.2f}' for median in medians)} | {medians[0] / medians[-1]:.2f} |")


def cpu_seconds(root: Path, command: list[str]) -> float:
    """User and system time of a command that is run in `root`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
