"""CPU time of the command line's start: `--help`, `--print-config` of the quickstart, and its first training step.

    python benchmarks/startup.py [--against DIR] [--runs 7]

Another checkout in DIR is measured in turns, with the packages of this environment; the last column is the ratio of the
medians. Before its first step a run reads and checks all manifests and finds every clip in the cache: each checkout
prepares its own once (minutes), where it has not. One thread.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST_STEP = """
import os, sys
from sottovoce.cli.main import main
from sottovoce.lightning_modules.speech_llm import SpeechLLM
SpeechLLM.training_step = lambda *_: os._exit(0)
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) or 1)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--runs", type=int, default=7, help="of each command in each checkout, after one that warms up")
    arguments = parser.parse_args()
    checkouts = [ROOT] + ([arguments.against.resolve()] if arguments.against else [])
    print(f"CPU time in seconds, median of {arguments.runs} runs\n")
    print(f"| quickstart | {' | '.join(str(root) for root in checkouts)} | ratio |")
    print(f"|---|{'---:|' * (len(checkouts) + 1)}")
    with tempfile.TemporaryDirectory() as folder:
        fit, config = ["-m", "lightning_modules.fit"], ["--config", "conf/quickstart.yaml"]
        first = Path(folder) / "first_step.py"
        first.write_text(FIRST_STEP)
        commands = {
            "--help": [*fit, "--help"],
            "--print-config": [*fit, *config, "--print-config"],
            "first step": [str(first), "fit", *config],
        }
        for name, words in commands.items():
            seconds: dict[Path, list[float]] = {root: [] for root in checkouts}
            for _ in range(arguments.runs + 1):
                for root in checkouts:
                    runs = [f"output_dir={folder}/{root.name}"] if name == "first step" else []
                    seconds[root].append(cpu_seconds(root, [sys.executable, *words, *runs]))
            medians = [statistics.median(taken[1:]) for taken in seconds.values()]
            print(f"| {name} | {' | '.join(f'{median:.2f}' for median in medians)} | {medians[0] / medians[-1]:.2f} |")


def cpu_seconds(root: Path, command: list[str]) -> float:
    """User and system time of a command that is run in `root`, with its code."""
    place = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=root, env=place, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
