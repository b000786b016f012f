"""Whisper in bfloat16 against float32 on recorded people: its frames, and what linear probes tell by them.

    python benchmarks/encoder_precision.py --data DIR --whisper FILE [--every 3] [--layers 1 2 3 4 5 6]

DIR as in recorded_people.py; of the readers' clips every third is taken, of the actors' all. A probe is of mean and
deviation over time of one layer, in the five parts of recorded_people.py, so that everybody is tested once, unheard.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from real_speech import DIGITS, PARTS, read
from recorded_people import ACTORS, LABELS, READERS, Features, Sides
from rich.progress import track
from shared import table

from sottovoce.evaluation.linear_probe import probe
from sottovoce.evaluation.metrics import Prediction, balanced_accuracy

DTYPES = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "whisper"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = {name: read(arguments.data, name) for name in (*READERS, ACTORS, DIGITS)}
    lines = [(name, row) for name in (*READERS, ACTORS) for row in data[name]]
    clips = [row["audio"] for i, (name, row) in enumerate(lines) if name == ACTORS or i % arguments.every == 0]
    features = {dtype: Features(arguments, dtype) for dtype in DTYPES}
    for clip in track(clips, "encoding clips"):
        for dtype in DTYPES:
            features[dtype].of({"id": clip, "audio": clip})
    exact, rounded = (
        {clip: statistics for clip, statistics in features[dtype].known.items() if statistics is not None}
        for dtype in DTYPES
    )
    sides = [Sides(data, part) for part in PARTS]
    rows = []
    for layer in arguments.layers:
        off = [relative(rounded[clip][layer - 1], exact[clip][layer - 1]) for clip in exact]
        cells = []
        for task in LABELS:
            (one, other) = (told(of, sides, task, layer) for of in (exact, rounded))
            differ = sum(a.predicted != b.predicted for a, b in zip(one, other, strict=True))
            scores = [f"{100 * balanced_accuracy(each).value:.1f}" for each in (one, other)]
            cells += [", ".join(scores), f"{differ} of {len(one)}"]
        rows.append((layer, f"{100 * np.mean(off):.2f}", *cells))
    print(f"{len(exact)} clips, {time.strftime('%Y-%m-%d')}")
    head = [word for task in LABELS for word in (f"{task}, float32, bfloat16", "answers that differ")]
    print(table(("layer", "statistics, % off", *head), rows))


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def told(known: dict[str, np.ndarray], sides: list[Sides], task: str, layer: int) -> list[Prediction]:
    """What probes of a layer say of everybody who is tested, in one order."""
    predictions: list[Prediction] = []
    for side in sides:
        heard = [line for lines in (*side.train.values(), *side.validation.values()) for line in lines]
        tested = [line for lines in side.test.values() for line in lines]
        rows = [(line, held) for held, lines in ((False, heard), (True, tested)) for line in lines]
        rows = [(line, held) for line, held in rows if task in line["labels"] and line["id"] in known]
        if any(held for _, held in rows):
            x = np.stack([known[line["id"]][layer - 1] for line, _ in rows])
            labels, who = ([line["labels"][task] for line, _ in rows], [line["speaker"] for line, _ in rows])
            held_out = np.array([held for _, held in rows])
            predictions += probe(x, labels, who, held_out=held_out, strengths=(1e-2,)).predictions
    return predictions


if __name__ == "__main__":
    main()
