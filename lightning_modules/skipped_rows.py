"""Utterances that turned out to be faulty when they were drawn: counted and named, as those that were found before."""

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from sottovoce.data.manifest import Fault


class SkippedRows(Callback):
    """Adds what batches of the training side have left out to a run's faults."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        self.named = {fault.problem for fault in faults}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
        for problem in batch.left_out:
            if problem not in self.named:  # each epoch finds it again
                self.named.add(problem)
                self.faults.append(Fault(Path("data.train"), 0, None, problem))
