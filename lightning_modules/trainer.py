"""The one Lightning Trainer, for stages and for pre-training: arguments of a recipe, callbacks, checkpoints, errors."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch.distributed import DistError
from torch.utils.data import DataLoader

from sottovoce.errors import ConfigError, SottovoceError, TrainingError
from sottovoce.lightning_modules.callbacks import ResumeCheckpoint, ignore_signals
from sottovoce.lightning_modules.checkpointing import write_checkpoints_atomically
from sottovoce.lightning_modules.distributed import trainer_arguments
from sottovoce.signals import Terminated

_READER = re.compile(r"DataLoader worker \(pid\(?s?\)? ?(?P<pid>[\d, ]+)\) (?P<fate>.*)")
_CAUGHT = re.compile(r"^Caught \w+ in DataLoader worker process")
_PARTED = re.compile(r"closed by peer|reset by peer|broken pipe|gloo|nccl|connection refused", re.IGNORECASE)
_DEFAULTS: dict[str, Any] = {"accelerator": "auto", "devices": 1, "log_every_n_steps": 10}


def build_trainer(chosen: dict[str, Any], folder: Path, callbacks: list[Callback], **own: Any) -> L.Trainer:
    """A Trainer whose one epoch is the whole training: its sampler goes through all epochs, so a place is one number.

    Args:
        chosen: the recipe's `trainer`, keyword arguments of lightning.Trainer.
        folder: of the metrics.
        callbacks: beside the progress bar.
        own: further arguments, which a recipe may not set.

    Raises:
        ConfigError: an argument that Lightning does not take, or a strategy that cannot be.
    """
    chosen = {**_DEFAULTS, **chosen}
    shown = [RichProgressBar(leave=True)] if chosen.get("enable_progress_bar", True) else []
    try:
        trainer = L.Trainer(
            **trainer_arguments(chosen),
            max_epochs=1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_model_summary=False,
            callbacks=[*callbacks, LearningRateMonitor("step"), *shown],
            logger=CSVLogger(folder, name="metrics"),
            **own,
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(
            f"trainer: Lightning refuses these arguments: {error}", code="bad-value", where="trainer"
        ) from None
    write_checkpoints_atomically(trainer)
    return trainer


def train_to_end(
    trainer: L.Trainer, module: L.LightningModule, training: DataLoader[Any], validation: DataLoader[Any],
    resume: Path | None, checkpoint: ResumeCheckpoint,
) -> None:  # fmt: skip
    """Train from the beginning or from a checkpoint; errors that are no fault of the program are one line.

    Raises:
        KeyboardInterrupt: somebody pressed Ctrl-C.
        Terminated: a cluster has warned, in the last validation or since.
        TrainingError: another process of the run has died.
    """
    with readable_errors(trainer):
        trainer.fit(module, training, validation, ckpt_path=resume, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if checkpoint.agreed(trainer):
        raise Terminated


def loader(data: Any, sampler: Any, num_workers: int) -> DataLoader[Any]:
    """Batches as a sampler lays them out, read by this process or by others that a cluster's warning does not stop."""
    return DataLoader(data, batch_size=None, sampler=sampler, num_workers=num_workers, worker_init_fn=ignore_signals)


@contextmanager
def readable_errors(trainer: L.Trainer) -> Iterator[None]:
    """Around `fit`: errors that are no fault of the program leave it as one line.

    Raises:
        KeyboardInterrupt: somebody pressed Ctrl-C.
        TrainingError: a process that reads audio has died, or another process of the run.
        SottovoceError: one that happened while audio was read, without the traceback that PyTorch wraps it in.
    """
    try:
        yield
    except SystemExit:  # how Lightning ends when it is interrupted
        raise KeyboardInterrupt from None
    except SottovoceError as error:
        if not _CAUGHT.match(str(error)):
            raise
        last = str(error).strip().splitlines()[-1]
        raise type(error)(last.partition(": ")[2] or last) from None
    except RuntimeError as error:
        if reader := _READER.search(str(error)):
            raise TrainingError(
                f"a process that reads audio (pid {reader['pid'].strip()}) has died: {reader['fate'].strip()} Often "
                "memory has run out: lower data.num_workers. The same command goes on from the last checkpoint",
                code="died",
                where="data.num_workers",
            ) from None
        if trainer.world_size > 1 and (isinstance(error, DistError) or _PARTED.search(str(error))):
            raise TrainingError(
                f"process {trainer.global_rank} of {trainer.world_size}: another process of this run has ended, so "
                f"this one cannot go on ({str(error).splitlines()[0][:200]}). What ended it stands above; if nothing "
                "does, it was killed, often because memory ran out. The same command goes on from the last checkpoint",
                code="died",
                where="trainer.devices",
            ) from None
        raise
