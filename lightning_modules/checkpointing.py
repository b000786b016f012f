"""Where a run goes on after it was killed, warned, or found a damaged file: its last checkpoint, or the one before."""

import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from rich.console import Console

from sottovoce import checkpoint_digest
from sottovoce.errors import CheckpointError, TrainingError
from sottovoce.io import atomic_open
from sottovoce.locks import file_lock
from sottovoce.signals import WARNINGS, Terminated

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes sealed checkpoints beside their place and renames them.

    Lightning writes to the system's folder for temporary files and moves them from there, which is a copy where that
    folder lies on another disk: a run that is killed then leaves half a checkpoint under the name of a whole one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_open(Path(path)) as stream:
            checkpoint_digest.save(checkpoint, stream)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path))


def write_checkpoints_atomically(trainer: L.Trainer) -> None:
    """Let one process, or the first of several, write whole files. Strategies that write shards do as they do."""
    if isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | DeepSpeedStrategy):
        trainer.strategy.checkpoint_io = WholeCheckpoints()


def read_checkpoint(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """All that a checkpoint holds, if it is what was written; nothing in it is executed.

    Args:
        path: the file.
        mapped: leave tensors on the disk until they are used.

    Raises:
        CheckpointError: the file is missing, cut off or changed.
    """
    try:
        checkpoint_digest.check(path)
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        return content
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not there") from None
    except Exception as error:  # zip, pickle and torch each have errors of their own
        raise CheckpointError(f"{path} is damaged: {(str(error) or type(error).__name__).splitlines()[0]}") from None


def latest(folder: Path, console: Console) -> Path | None:
    """The checkpoint that a run goes on from; None where there is none yet.

    A damaged one is named and set aside for the one before it. Which of them a run goes on from changes how long it
    takes, and nothing else.

    Raises:
        CheckpointError: there are checkpoints, and not one is whole.
    """
    if not any((folder / name).exists() for name in (LAST, PREVIOUS)):
        return None
    with file_lock(folder):  # one process sets aside what the others then do not find
        return _whole(folder, console)


def _whole(folder: Path, console: Console) -> Path | None:
    faults: list[tuple[Path, CheckpointError]] = []
    for file in (folder / LAST, folder / PREVIOUS):
        if file.is_dir():
            return file  # shards, which their engine reads and checks
        if not file.is_file():
            continue
        try:
            read_checkpoint(file, mapped=True)
        except CheckpointError as error:
            faults.append((file, error))
            continue
        for damaged, fault in faults:
            aside = damaged.with_name(f"{damaged.name}.damaged")
            damaged.replace(aside)
            console.print(f"{fault}. It is set aside as {aside.name}; {file.name} is whole", soft_wrap=True)
        return file
    if faults:
        told = "; ".join(str(fault) for _, fault in faults)
        raise CheckpointError(f"{told}. No whole checkpoint is left: delete {folder} to train from its beginning")
    return None


class ResumeCheckpoint(Checkpoint):
    """Keeps the checkpoint that a killed run goes on from, and the one before it; stops at a cluster's warning.

    Where a validation is due the checkpoint waits for its end: Lightning would skip that validation after a resume, and
    the best checkpoint could be another one. Another is written a step before, so that a validation that is broken off
    costs one step. After a validation in the last step none is needed, since the stage is over.

    A warning (SIGTERM) waits for the end of the step, which is then checkpointed. With several processes one that is
    warned stops all of them at the same step.

    Args:
        file: `last.ckpt` of a folder; `previous.ckpt` will stand beside it.
        every: steps between checkpoints.
    """

    def __init__(self, file: Path, every: int) -> None:
        self.file, self.every, self.warned = file, every, False

    def on_train_start(self, trainer: L.Trainer, *_: object) -> None:
        """Lightning's own handler would talk to other processes in the middle of whatever this one is doing.

        Lightning puts back the handlers of before when training ends.
        """
        if threading.current_thread() is threading.main_thread():
            for number in WARNINGS:
                signal.signal(number, self._warn)

    def _warn(self, *_: object) -> None:
        self.warned = True

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        due, step = trainer.val_check_batch, trainer.global_step
        assert due is not None  # the recipe's stages say when to validate, in steps
        warned, validates = self.agreed(trainer), step % int(due) == 0
        if not validates and (warned or step % self.every == 0 or (step + 1) % int(due) == 0):
            self._save(trainer, module)
        self._leave(warned)  # before a validation, which may take longer than a cluster waits

    def on_validation_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        """Several processes may have different numbers of these batches, and cannot agree before the end."""
        self._leave(self.warned and trainer.world_size == 1)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if 0 < trainer.global_step < trainer.num_training_batches:
            warned = self.agreed(trainer)
            self._save(trainer, module)
            self._leave(warned)

    def agreed(self, trainer: L.Trainer) -> bool:
        """Whether any process has been warned: all of them must leave at the same step."""
        if trainer.world_size == 1:
            return self.warned
        return bool(trainer.strategy.reduce_boolean_decision(self.warned, all=False))

    def _leave(self, warned: bool) -> None:
        if warned:
            raise Terminated

    def _save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
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
        raise TrainingError(
            f"step {step}: {len(bad)} weights are not finite any more, such as {bad[0]}. The last checkpoint is from "
            "before; lower the stage's lr, or train in bfloat16 or float32"
        )


def ignore_signals(worker: int) -> None:
    """For processes that read audio: a cluster warns them, too, but the one that trains decides when they stop."""
    for number in WARNINGS:
        signal.signal(number, signal.SIG_IGN)
    pl_worker_init_function(worker)  # what Lightning gives a loader that has no function of its own
