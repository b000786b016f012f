"""What a manifest's length costs: until the first batch, for each batch, and in memory.

    python benchmarks/million_lines.py --lines 1000 1000000

Lines name a hundred clips of a second over and over, so that what is measured is the manifest and not the disk
(`data.validate: lazy`). Memory is what the process has taken more at most, so shorter manifests come first.
"""

import argparse
import json
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from sottovoce.data.audio import load_audio
from sottovoce.data.batch_sampler import BatchSampler
from sottovoce.data.examples import ExampleSampler, LazyExamples
from sottovoce.data.lazy_manifest import LazyManifest
from sottovoce.data.manifest import Root
from sottovoce.data.tasks import TASKS

CLIPS, BATCH, BATCHES = 100, 48, 100
EMOTIONS = ("happy", "sad")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=[1000, 1_000_000])
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {time.strftime('%Y-%m-%d')}, batches of {BATCH}, wall / CPU")
    print("| lines | file, MB | first batch, s | a batch, ms | memory, MB |\n|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(CLIPS):
            soundfile.write(folder / f"{number}.wav", 0.1 * np.random.default_rng(number).standard_normal(16000), 16000)
        for count in sorted(arguments.lines):
            path = write(folder, count)
            print(measured(path, count), flush=True)
            path.unlink()


def write(folder: Path, count: int) -> Path:
    """A manifest of so many lines of some 200 bytes."""
    path = folder / "manifest.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            record = {
                "id": f"utterance-{number:08d}", "audio": f"{number % CLIPS}.wav", "speaker": f"s{number % 997}",
                "text": "the train is late and we will miss the play tonight", "seconds": 1.0,
                "labels": {"emotion": EMOTIONS[number % 2], "gender": "female", "pitch": "high"},
            }  # fmt: skip
            stream.write(json.dumps(record) + "\n")
    return path


def measured(path: Path, count: int) -> str:
    """A row of the table."""
    tasks = {name: TASKS.build({"type": name}) for name in ("asr", "emotion")}
    slots = {"linguistic": "transcript"}
    drawing = ExampleSampler(tasks, dict.fromkeys(tasks, 1.0), slots, frozenset(slots), None, 0, "joint")
    before, wall, cpu = peak(), time.perf_counter(), time.process_time()
    choices = {"emotion": EMOTIONS, "gender": ("male", "female"), "pitch": ("low", "normal", "high")}
    lines = LazyManifest(path, choices, Root(path.parent))
    sampler = BatchSampler(lines.seconds, np.ones(count, np.float32), BATCH, 3, seed=0)
    data = LazyExamples(
        lines, drawing, 1, lambda example: example, lambda clip: torch.from_numpy(load_audio(clip)), skip=False
    )
    order = iter(sampler)
    data[next(order)]
    first = time.perf_counter() - wall, time.process_time() - cpu
    wall, cpu = time.perf_counter(), time.process_time()
    done = sum(1 for rows, _ in zip(order, range(BATCHES), strict=False) if data[rows])
    each = (time.perf_counter() - wall) / done * 1000, (time.process_time() - cpu) / done * 1000
    times = f"{first[0]:.2f} / {first[1]:.2f} | {each[0]:.1f} / {each[1]:.1f}"
    return f"| {count:,} | {path.stat().st_size / 1e6:.0f} | {times} | {peak() - before} |"


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    main()
