"""Whisper in float32, in bfloat16, and kept as float16 or int8: what linear probes of recorded people tell by each.

    python benchmarks/encoder_precision.py --data DIR --whisper FILE [--every 3] [--layers 1 2 3 4 5 6]

DIR as in recorded_people.py; of the readers' clips every third is taken, of the actors' all. A probe is of mean and
deviation over time of one layer, in the five parts of recorded_people.py, so that everybody is tested once, unheard.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_speech import DIGITS, PARTS, read
from recorded_people import ACTORS, LABELS, READERS, Sides, layer_frames, statistics, whisper_encoder
from rich.progress import track
from shared import table

from sottovoce.encoders.cache_formats import CacheDtype
from sottovoce.encoders.feature_dtypes import packed, unpacked
from sottovoce.evaluation.linear_probe import probe
from sottovoce.evaluation.metrics import Prediction, balanced_accuracy

WAYS = ("float32", "multiplied in bfloat16", "kept as float16", "kept as int8")


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
    encoders = {dtype: whisper_encoder(str(arguments.whisper), dtype) for dtype in ("float32", "bfloat16")}
    known: dict[str, dict[str, Any]] = {way: {} for way in WAYS}  # (layers, 2 * dim) by clip
    for clip in track(clips, "encoding clips"):
        exact, rounded = (layer_frames(encoder, arguments.data / clip) for encoder in encoders.values())
        if exact is None or rounded is None:
            continue
        for way, frames in zip(WAYS, (exact, rounded, kept_as("float16", exact), kept_as("int8", exact)), strict=True):
            known[way][clip] = statistics(frames, encoders["float32"].depth)
    sides = [Sides(data, part) for part in PARTS]
    rows = []
    for layer in arguments.layers:
        first, *others = (known[way] for way in WAYS)
        answers = {task: [told(of, sides, task, layer) for of in known.values()] for task in LABELS}
        for number, (way, of) in enumerate(zip(WAYS[1:], others, strict=True), 1):
            off = statistics_off(first, of, layer)
            cells = [cell(each[0], each[number]) for each in answers.values()]
            rows.append((layer, way, f"{100 * off:.2f}", *cells))
    print(f"{len(known['float32'])} clips, {time.strftime('%Y-%m-%d')}; balanced accuracy by float32, by this (answers")
    print("that differ)\n")
    print(table(("layer", "frames", "statistics, % off", *LABELS), rows, words=2))


def kept_as(dtype: CacheDtype, frames: torch.Tensor) -> torch.Tensor:
    """As the feature cache gives them back."""
    return unpacked(packed("", frames, dtype), dtype)


def statistics_off(exact: dict[str, Any], other: dict[str, Any], layer: int) -> float:
    """Mean over clips of the relative distance."""
    of = ((exact[clip][layer - 1], other[clip][layer - 1]) for clip in exact)
    return float(np.mean([np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in of]))


def cell(exact: list[Prediction], other: list[Prediction]) -> str:
    differ = sum(a.predicted != b.predicted for a, b in zip(exact, other, strict=True))
    one, two = (f"{100 * balanced_accuracy(each).value:.1f}" for each in (exact, other))
    return f"{one}, {two} ({differ} of {len(exact)})"


def told(known: dict[str, Any], sides: list[Sides], task: str, layer: int) -> list[Prediction]:
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
