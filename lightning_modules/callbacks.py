"""Callbacks of a training: resume checkpoints, the guard against non-finite steps, throughput, skipped rows."""

import json
import logging
import math
import resource
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor
from torch.nn.utils import get_total_norm

from sottovoce.errors import ManifestError, SottovoceError, TrainingError
from sottovoce.io import atomic_write
from sottovoce.lightning_modules.checkpointing import PREVIOUS
from sottovoce.signals import WARNINGS, Terminated

MAX_SKIPS = 3  # steps that may be left out one after another; more say that it is not the data
MAX_SKIPS_SCALED = 20  # with fp16, whose scale begins too high on purpose and is halved each time
_MAXRSS = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of `ru_maxrss`
_log = logging.getLogger(__name__)
_REMEDY = "lower the stage's lr, or train in bfloat16 or float32"


class ResumeCheckpoint(Checkpoint):
    """Keeps the checkpoint that a killed run goes on from, and the one before it; stops at a cluster's warning.

    Where a validation is due the checkpoint waits for its end: Lightning would skip that validation after a resume, and
    the best checkpoint could be another one. Another is written a step before, so that a validation that is broken off
    costs one step. After a validation in the last step, or one that ends the stage, none is needed.

    A warning (SIGTERM) waits for the end of the step, which is then checkpointed. With several processes one that is
    warned stops all of them at the same step. Beside `file`, a folder's `last.ckpt`, `previous.ckpt` will stand.

    At `deadline`, in seconds of `time.monotonic`, it stops in the same way, but never without a step more than before.
    """

    def __init__(self, file: Path, every: int, deadline: float = math.inf) -> None:
        self.file, self.every, self.deadline, self.warned = file, every, deadline, False

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """A run may go on with its steps in other shares: Lightning counts batches, where steps are what is done."""
        before, now = checkpoint.get("accumulate_grad_batches", 1), trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            done = counts["processed"]  # the others lag or lead by one
            counts.update({name: done // before * now + count - done for name, count in counts.items()})

    def on_train_start(self, trainer: L.Trainer, *_: object) -> None:
        """Lightning's own handler would talk to other processes at any time. It puts back the old ones at the end."""
        if threading.current_thread() is threading.main_thread():
            for number in WARNINGS:
                signal.signal(number, self._warn)

    def _warn(self, *_: object) -> None:
        self.warned = True

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        due, step, together = trainer.val_check_batch, trainer.global_step, trainer.accumulate_grad_batches
        assert due is not None  # the recipe's stages say when to validate, in steps
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready % together:
            return  # gradients of half a step are in no checkpoint
        due = int(due) // together
        warned, validates = self.agreed(trainer, self.warned), step % due == 0
        late = not validates and step < self._steps(trainer) and self._late(trainer)
        if not validates and (warned or late or step % self.every == 0 or (step + 1) % due == 0):
            self._save(trainer, module)
        self._leave(warned, late)  # before a validation, which may take longer than a cluster waits

    def on_validation_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        """Several processes may have different numbers of these batches, and cannot agree before the end."""
        self._leave(self.warned and trainer.world_size == 1)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if 0 < trainer.global_step < self._steps(trainer) and not trainer.should_stop:
            warned, late = self.agreed(trainer, self.warned), self._late(trainer)
            self._save(trainer, module)
            self._leave(warned, late)

    def agreed(self, trainer: L.Trainer, told: bool) -> bool:
        """Whether any process has been told to stop: all of them must leave at the same step."""
        if trainer.world_size == 1:
            return told
        return bool(trainer.strategy.reduce_boolean_decision(told, all=False))

    def _late(self, trainer: L.Trainer) -> bool:
        return self.deadline < math.inf and self.agreed(trainer, time.monotonic() > self.deadline)

    def _steps(self, trainer: L.Trainer) -> float:
        return trainer.num_training_batches / trainer.accumulate_grad_batches

    def _leave(self, warned: bool, late: bool = False) -> None:
        if warned or late:
            raise Terminated(*[] if warned else ["the time that trainer.max_time gives"])

    def _save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if getattr(trainer, "fast_dev_run", False):
            return
        check_weights(module, trainer.global_step)
        if trainer.is_global_zero and self.file.exists():
            previous = self.file.with_name(PREVIOUS)
            if previous.is_dir():
                shutil.rmtree(previous)
            self.file.replace(previous)
        trainer.strategy.barrier()
        trainer.save_checkpoint(self.file)


def check_weights(module: L.LightningModule, step: int) -> None:
    """Raises TrainingError where a weight that learns is not finite; no checkpoint shall hold it."""
    bad = [name for name, weight in module.named_parameters() if weight.requires_grad and not weight.isfinite().all()]
    if bad:
        told = f"step {step}: {len(bad)} weights are not finite any more, such as {bad[0]}. The last checkpoint is "
        raise TrainingError(f"{told}from before; {_REMEDY}", code="nonfinite", where=bad[0])


def ignore_signals(worker: int) -> None:
    """For processes that read audio: a cluster warns them, too, but the one that trains decides when they stop."""
    for number in WARNINGS:
        signal.signal(number, signal.SIG_IGN)
    pl_worker_init_function(worker)  # what Lightning gives a loader that has no function of its own


class NonFiniteGuard(Callback):
    """Leaves out an optimizer step whose loss or gradient is not finite.

    Weights and the optimizer's state stay as they were, on every rank. The order of the data and the learning rate go
    on as if the step had been made. Who was in the batch is written to `file`, `skipped.jsonl`: the rows whose own loss
    was not finite, or all. Messages call this part of the run `stage`.

    Raises:
        TrainingError: too many steps in a row would be left out, or a validation's loss is not finite.
    """

    def __init__(self, file: Path, stage: str) -> None:
        self.file, self.stage = file, stage
        self.skipped: list[dict[str, Any]] = []
        self.in_a_row = 0
        self.lost: list[str] = []  # of this validation

    def state_dict(self) -> dict[str, Any]:
        """Kept in checkpoints, so that a step that is made again is not counted again."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = list(state_dict["skipped"]), int(state_dict["in_a_row"])

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        self.batch = batch

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """After the gradients of all ranks have been added up and unscaled, before they are clipped."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        norm = get_total_norm(gradients := [weight.grad for weight in weights if weight.grad is not None])
        if gradients:  # DeepSpeed keeps them to itself
            pl_module.log("train/grad_norm", norm)
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
            why = f"stage {self.stage}, step {trainer.global_step}: the validation loss is not finite; utterances: "
            why += f"{told}. Leave them out, {_REMEDY}"
            raise TrainingError(why, code="nonfinite", where=f"stages.{self.stage}")
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
        if self.in_a_row >= (MAX_SKIPS if scaler is None else MAX_SKIPS_SCALED):
            told += f". It is step {self.in_a_row} in a row ({self.file} has all), so it is not one clip. Weights are "
            raise TrainingError(f"{told}as before them; {_REMEDY}", code="nonfinite", where=f"stages.{self.stage}")
        if scaler is None:
            _log.warning(f"{told}. The step is left out")


def _suspects(module: Any, batch: Any) -> tuple[str, list[str]]:
    """What is not finite, and whose: the rows whose own loss is not; or all, if each is finite, or is not known."""
    names, losses = batch.ids, module.row_losses
    rows = losses.isfinite().tolist() if isinstance(losses, Tensor) else [True] * len(names)
    bad = list(dict.fromkeys(name for name, good in zip(names, rows, strict=True) if not good))
    return ("loss", bad) if bad else ("gradient", list(dict.fromkeys(names)))


def propagate_nonfinite(loss: Tensor) -> Tensor:
    """The same loss; if it is not finite, every weight that it depends on gets a gradient that is not, either."""
    return loss * (1 + 0 * loss.detach())


class ThroughputMeter(L.Callback):
    """Measures training steps on this rank, for `report`.

    A step lasts from the end of the one before to its own end, so that waiting for data counts; validation does not.
    The first step is left out, since kernels are chosen and caches filled in it. Only steps of this process are known:
    of a stage that was killed and goes on, those after it went on.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._mark: float | None = None
        self._device: torch.device | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._device = pl_module.device
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches:
            return
        if self._device is not None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # or only the launching of kernels would be timed
        now = time.perf_counter()
        if self._mark is not None:
            self.seconds.append(now - self._mark)
        self._mark = now

    def on_validation_end(self, *_: Any) -> None:
        if self._mark is not None:
            self._mark = time.perf_counter()

    def report(self) -> dict[str, float]:
        """`seconds_per_step`, the median, if there were two steps; and `peak_memory_mb`, in 10^6 bytes.

        Memory on a GPU is what tensors took of it during the stage; on a CPU, what the whole process has taken so far.
        """
        pace = {"seconds_per_step": median(self.seconds)} if self.seconds else {}
        on_gpu = self._device is not None and self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) if on_gpu else peak_memory()
        return {**pace, "peak_memory_mb": peak / 1e6}


def peak_memory() -> int:
    """The most memory that this process has taken so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS


class SkippedRows(Callback):
    """Adds what batches of the training side have left out to a run's faults."""

    def __init__(self, faults: list[SottovoceError]) -> None:
        self.faults, self.named = faults, {str(fault) for fault in faults}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
        for problem in batch.skipped:
            if problem not in self.named:  # each epoch finds it again
                self.named.add(problem)
                self.faults.append(ManifestError(problem, code="damaged", where="data.train"))
