"""Numbers that are not finite never reach a weight: the step is left out, counted and named, or the run stops."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import Tensor
from torch.nn.utils import get_total_norm

from sottovoce.errors import TrainingError
from sottovoce.io import atomic_write

IN_A_ROW = 3  # steps that may be left out one after another; more say that it is not the data
IN_A_ROW_SCALED = 20  # with fp16, whose scale begins too high on purpose and is halved each time


class NonFiniteGuard(Callback):
    """Leaves out an optimizer step whose loss or gradient is not finite.

    Weights and the optimizer's state stay as they were, on every rank. The order of the data and the learning rate go
    on as if the step had been made. Who was in the batch is written to `skipped.jsonl`: the rows whose own loss was not
    finite, or all.

    Args:
        file: `skipped.jsonl`; written only if a step is left out.
        stage: what messages call this part of the run.
        console: to say so.

    Raises:
        TrainingError: in training, when too many steps in a row would be left out, or a validation's loss is not
            finite.
    """

    def __init__(self, file: Path, stage: str, console: Console) -> None:
        self.file, self.stage, self.console = file, stage, console
        self.skipped: list[dict[str, Any]] = []
        self.in_a_row = 0
        self.lost: list[str] = []  # of this validation

    def state_dict(self) -> dict[str, Any]:
        """Kept in checkpoints, so that a step that is made again is not counted again."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = list(state_dict["skipped"]), int(state_dict["in_a_row"])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batch = batch

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """After the gradients of all ranks have been added up and unscaled, before they are clipped."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        good = bool(norm.isfinite())
        if trainer.world_size > 1:  # where ranks hold shards, one may see what the others do not
            good = bool(trainer.strategy.reduce_boolean_decision(good, all=True))
        if good:
            self.in_a_row = 0
            return
        for weight in weights:
            weight.grad = None  # an optimizer passes over a weight without a gradient, decay and moments included
        self.in_a_row += 1
        self._note(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        what, names = _suspects(pl_module, batch)
        self.lost += names if what == "loss" else []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the checkpoint of this validation is written, which would otherwise be called the best or not."""
        loss = trainer.callback_metrics.get("val/loss")
        if loss is not None and not loss.isfinite():
            told = ", ".join(dict.fromkeys(self.lost)) or "not known"
            raise TrainingError(
                f"stage {self.stage}, step {trainer.global_step}: the validation loss is not finite; utterances: "
                f"{told}. Leave them out, lower the stage's lr, or train in bfloat16 or float32"
            )
        self.lost = []

    def _note(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        what, names = _suspects(module, self.batch)
        everyone: list[tuple[str, list[str]]] = [(what, names)] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(everyone, (what, names))
        if losses := [told for told in everyone if told[0] == "loss"]:
            what, everyone = "loss", losses
        names = [name for _, part in everyone for name in part]
        step = trainer.global_step + 1
        self.skipped.append({"step": step, "not finite": what, "utterances": names})
        if trainer.is_global_zero:
            atomic_write(self.file, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in self.skipped))
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        told = f"stage {self.stage}, step {step}: the {what} is not finite; utterances: {', '.join(names)}"
        if self.in_a_row >= (IN_A_ROW if scaler is None else IN_A_ROW_SCALED):
            raise TrainingError(
                f"{told}. It is step {self.in_a_row} in a row ({self.file} has all), so it is not one clip. Weights "
                "are as before them; lower the stage's lr, or train in bfloat16 or float32"
            )
        if scaler is None:
            self.console.print(f"{told}. The step is left out", markup=False, highlight=False, soft_wrap=True)


def _suspects(module: Any, batch: Any) -> tuple[str, list[str]]:
    """What is not finite, and whose: the rows whose own loss is not; or all, if each is finite, or is not known."""
    names, losses = module.names(batch), module.row_losses
    rows = losses.isfinite().tolist() if isinstance(losses, Tensor) else [True] * len(names)
    bad = list(dict.fromkeys(name for name, good in zip(names, rows, strict=True) if not good))
    return ("loss", bad) if bad else ("gradient", list(dict.fromkeys(names)))


def propagate_nonfinite(loss: Tensor) -> Tensor:
    """The same loss; if it is not finite, every weight that it depends on gets a gradient that is not, either."""
    return loss * (1 + 0 * loss.detach())
