"""Wall time of `make quickstart` after installation, this build against another, each by its own recipe.

    python benchmarks/quickstart_speed.py --against ../before [--rounds 1] [--threads 2]

The sides take turns. A round is what the Makefile runs, with nothing prepared: speech is made and encoded, three stages
train, the scores are written, and the bundle answers one clip. Seconds of the clock, of the CPU in brackets, and the
scores with both slots of the last round. Run it alone: minutes a round and side.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from shared import read, table

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("wer", "balanced_accuracy", "emotion_fit", "rouge_l")


class Taken(NamedTuple):
    wall: float  # seconds
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="another checkout")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    sides = {"this build": ROOT, "the other": arguments.against.resolve()}
    taken: dict[str, list[Taken]] = {name: [] for name in sides}
    scores: dict[str, dict[tuple[str, str], float]] = {}
    for _ in range(arguments.rounds):
        for name, root in sides.items():
            with tempfile.TemporaryDirectory() as folder:
                taken[name].append(quickstart(root, Path(folder), arguments.threads))
                results = read(Path(folder) / "runs" / "quickstart" / "evaluation" / "results.json")
            both = [row for row in results if row["slots"] == "both" and row["metric"] in METRICS]
            scores[name] = {(row["task"], row["metric"]): row["value"] for row in both}
            print(name, *(f"{seconds:.0f} s" for seconds in taken[name][-1]), flush=True)
    middle = {name: Taken(*map(statistics.median, zip(*rounds, strict=True))) for name, rounds in taken.items()}
    here, there = middle.values()
    rows: list[list[str]] = [
        ["seconds", *(f"{side.wall:.0f} ({side.cpu:.0f})" for side in (here, there)),
         f"{here.wall / there.wall:.2f} ({here.cpu / there.cpu:.2f})"],
    ]  # fmt: skip
    rows += [
        [" ".join(row), *(f"{100 * side[row]:.1f}" for side in scores.values()), ""] for row in scores["this build"]
    ]
    print(table(["quickstart", *sides, "ratio"], rows))


def quickstart(root: Path, folder: Path, threads: int) -> Taken:
    """Train, score and ask in an empty folder."""
    place = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "OMP_NUM_THREADS": str(threads)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()

    def sottovoce(*words: str) -> None:
        subprocess.run([sys.executable, *words], cwd=root, env=place, check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)  # fmt: skip

    paths = f"data.cache={folder}/cache", f"output_dir={folder}/runs"
    sottovoce("-m", "lightning_modules.fit", "--config", "conf/quickstart.yaml", *paths)
    clip = next((folder / "cache" / "corpora").glob("*-test-*")) / "audio" / "00000.wav"
    chat = "import sys; from sottovoce.cli.main import main; sys.exit(main(sys.argv[1:]))"
    sottovoce("-c", chat, "chat", f"{folder}/runs/quickstart/bundle", "--once", "--audio", str(clip))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Taken(time.monotonic() - began, cpu)


if __name__ == "__main__":
    main()
