"""Losses of a stage, from the CSV files that its training left."""

import csv
from pathlib import Path
from typing import NamedTuple

LAST = 10  # logged values of the training loss whose mean is its final one: single batches differ a lot


class StageLosses(NamedTuple):
    """Nats a response token, over all tasks of a stage; None where nothing was logged."""

    train_final: float | None
    val_final: float | None
    val_best: float | None
    best_step: int | None

    @property
    def gap(self) -> float | None:
        """Validation less training, at the end."""
        if self.val_final is None or self.train_final is None:
            return None
        return self.val_final - self.train_final


def read_stage_losses(folder: Path) -> StageLosses | None:
    """Losses of the stage with this folder; None where there are none. A stage that was resumed has several files."""
    curves: dict[str, dict[int, float]] = {"train/loss": {}, "val/loss": {}}
    files = folder.glob("metrics/version_*/metrics.csv")
    for file in sorted(files, key=lambda file: int(file.parent.name.rpartition("_")[2])):
        with file.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                for name, curve in curves.items():
                    if row.get(name):
                        curve[int(row["step"])] = float(row[name])
    train, val = ([value for _, value in sorted(curve.items())] for curve in curves.values())
    if not train and not val:
        return None
    tail = train[-LAST:]
    best = min(val, default=None)
    at = next((step for step, value in sorted(curves["val/loss"].items()) if value == best), None)
    return StageLosses(sum(tail) / len(tail) if tail else None, val[-1] if val else None, best, at)
