"""Progress of a stage: a bar on a terminal, elsewhere a line every 30 seconds."""

from typing import Any

import lightning as L
from rich.console import Console

from sottovoce.progress import Progress, Task, short


class StageProgress(L.Callback):
    """Shows steps, loss and learning rate of a stage, such as `joint 120/588 loss 0.195 lr 1.4e-3 0.8 s/step`."""

    def __init__(self, name: str, console: Console, *, bars: bool = True) -> None:
        self.name, self.console, self.bars = name, console, bars
        self._progress: Progress | None = None
        self._steps: Task | None = None
        self._validation: Task | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._progress = Progress(self.console, bars=self.bars).__enter__()
            total = trainer.num_training_batches / trainer.accumulate_grad_batches
            self._steps = self._progress.start(self.name, total, "step", trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._steps is not None and trainer.global_step > self._steps.done:
            self._steps.advance(trainer.global_step - self._steps.done, lambda: _told(trainer))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._progress is not None:
            self._validation = self._progress.start(f"{self.name}, validation", sum(trainer.num_val_batches), "batch")

    def on_validation_batch_end(self, *_: Any) -> None:
        if self._validation is not None:
            self._validation.advance()

    def on_validation_end(self, *_: Any) -> None:
        if self._validation is not None:
            self._validation.end()
            self._validation = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._steps is not None:
            self._steps.end(lambda: _told(trainer))

    def teardown(self, *_: Any, **__: Any) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = self._steps = self._validation = None

    def on_exception(self, *_: Any) -> None:
        self.teardown()


def _told(trainer: L.Trainer) -> str:
    """What a line says of the last step; it fetches numbers from the GPU."""
    found = trainer.callback_metrics
    words = [f"{word} {short(float(found[key]))}" for key, word in NAMES.items() if key in found]
    rates = dict.fromkeys(short(group["lr"]) for each in trainer.optimizers for group in each.param_groups)
    return " ".join([*words, f"lr {'/'.join(rates)}"] if rates else words)


NAMES = {"train/loss": "loss", "val/loss": "val"}
