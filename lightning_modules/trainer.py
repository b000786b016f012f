"""The one Lightning Trainer, for stages and for pre-training: arguments of a recipe, callbacks, checkpoints, errors."""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from rich.console import Console
from torch import nn
from torch.distributed import DistError
from torch.utils.data import DataLoader

from sottovoce.config.best_rq import PretrainRecipe
from sottovoce.config.sections import StageConfig
from sottovoce.errors import ConfigError, MissingError, SottovoceError, TrainingError
from sottovoce.lightning_modules.callbacks import ResumeCheckpoint, ignore_signals
from sottovoce.lightning_modules.checkpointing import write_checkpoints_atomically
from sottovoce.signals import Terminated

_READER = re.compile(r"DataLoader worker \(pid\(?s?\)? ?(?P<pid>[\d, ]+)\) (?P<fate>.*)")
_CAUGHT = re.compile(r"^Caught \w+ in DataLoader worker process")
_PARTED = re.compile(r"closed by peer|reset by peer|broken pipe|gloo|nccl|connection refused", re.IGNORECASE)
_GOES_ON = "The same command goes on from the last checkpoint"
OWN = ("max_time", "limit_train_batches", "overfit_batches")  # what Lightning is not told, since we do it ourselves
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
_DEFAULTS: dict[str, Any] = {"accelerator": "auto", "devices": 1, "log_every_n_steps": 10}


def build_trainer(
    chosen: dict[str, Any], folder: Path, callbacks: list[Callback], loggers: Sequence[Logger] = (), **own: Any
) -> L.Trainer:
    """A Trainer whose one epoch is the whole training: its sampler goes through all epochs, so a place is one number.

    `chosen` is the recipe's `trainer`; `own` are further arguments of lightning.Trainer, which a recipe may not set.
    Metrics go to `folder`, and to `loggers`. An argument that Lightning does not take, or a strategy that cannot be,
    is a `ConfigError`.
    """
    chosen = {**_DEFAULTS, **chosen, "enable_progress_bar": False}  # see `StageProgress`: all is one epoch to Lightning
    if profiler := chosen.get("profiler"):  # with a file of its own, since Lightning's notices are not shown
        chosen["profiler"] = PROFILERS[profiler](dirpath=folder, filename="profile")
    try:
        trainer = L.Trainer(
            **trainer_arguments(chosen), max_epochs=1, num_sanity_val_steps=0, use_distributed_sampler=False,
            enable_model_summary=False, callbacks=[*callbacks, LearningRateMonitor("step")],
            logger=[CSVLogger(folder, name="metrics"), *loggers], **own,
        )  # fmt: skip
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError.at("trainer", "bad-value", f"Lightning refuses these arguments: {error}") from None
    if getattr(trainer.strategy, "_start_method", "popen") != "popen":  # `auto` in a notebook
        why = "a notebook can train with one device alone: start the command `fit` for more"
        raise ConfigError.at("trainer.devices", "conflict", why)
    write_checkpoints_atomically(trainer)
    return trainer


def tell_profile(trainer: L.Trainer, console: Console) -> None:
    """Where the profiler's report lies, which is pages long."""
    profiler: Any = trainer.profiler  # type: ignore[attr-defined]  # set by a connector
    folder = Path(str(getattr(profiler, "dirpath", None) or "."))
    for file in sorted(folder.glob("fit-profile*")) if type(profiler) in PROFILERS.values() else ():
        console.print(f"profile  {file}", markup=False, highlight=False, soft_wrap=True)


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
    if checkpoint.agreed(trainer, checkpoint.warned):
        raise Terminated


def adamw(
    trainer: Mapping[str, Any], weights: list[nn.Parameter], node: StageConfig | PretrainRecipe, steps: int,
    parts: Mapping[str, list[nn.Parameter]] | None = None,
) -> OptimizerLRSchedulerConfig:  # fmt: skip
    """AdamW over weights, with the schedule that a recipe or stage of so many steps asks for.

    `trainer` are the recipe's settings; `parts` those weights by part, in the same order, for a stage that has a
    learning rate for each. One call moves all weights (`fused`), but in mixed precision, where Lightning refuses to
    clip gradients of such an optimizer.
    """
    groups: Any = weights
    highest = max(node.lr.values()) if isinstance(node.lr, dict) else node.lr
    if isinstance(node.lr, dict) and parts is not None:
        rates = {part: node.lr.get(part, highest) for part in parts}
        groups = [{"params": parts[part], "lr": rate, "name": part} for part, rate in rates.items()]
    betas, fused = (node.betas[0], node.betas[1]), str(trainer.get("precision") or 32).startswith("32")
    eps = node.eps if isinstance(node, StageConfig) else 1e-8
    optimizer = torch.optim.AdamW(groups, highest, betas, eps, node.weight_decay, fused=fused)
    factor = partial(lr_factor, schedule=node.lr_schedule, warmup_steps=node.warmup_steps, steps=steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def lr_factor(step: int, *, schedule: str, warmup_steps: int, steps: int) -> float:
    """Share of the learning rate at a step: up from 0 in the warm-up, then `constant`, or down to 0 at `steps`.

    As transformers' `get_scheduler`, whose import takes seconds: it reads PEFT and bitsandbytes.
    """
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    left = max(0, steps - step) / max(1, steps - warmup_steps)
    return left if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))


def loader(data: Any, sampler: Any, num_workers: int) -> DataLoader[Any]:
    """Batches as a sampler lays them out, read by this process or by others that a cluster's warning does not stop."""
    return DataLoader(data, batch_size=None, sampler=sampler, num_workers=num_workers, worker_init_fn=ignore_signals)


@contextmanager
def readable_errors(trainer: L.Trainer) -> Iterator[None]:
    """Around `fit`: errors that are no fault of the program leave it as one line.

    Raises:
        KeyboardInterrupt: somebody pressed Ctrl-C.
        ConfigError: Lightning cannot do what the recipe's `trainer` says with these data.
        TrainingError: a process that reads audio has died, or another process of the run.
        SottovoceError: one that happened while audio was read, without the traceback that PyTorch wraps it in.
    """
    try:
        yield
    except SystemExit:  # how Lightning ends when it is interrupted
        raise KeyboardInterrupt from None
    except MisconfigurationException as error:  # what shows only beside the data, such as a share of them that is none
        raise ConfigError.at("trainer", "bad-value", f"Lightning cannot train so: {error}") from None
    except SottovoceError as error:
        if not _CAUGHT.match(str(error)):
            raise
        last = str(error).strip().splitlines()[-1]
        raise type(error)(last.partition(": ")[2] or last) from None
    except RuntimeError as error:
        if reader := _READER.search(str(error)):
            told = f"a process that reads audio (pid {reader['pid'].strip()}) has died: {reader['fate'].strip()} Often "
            told += f"memory has run out: lower data.num_workers. {_GOES_ON}"
            raise TrainingError(told, code="died", where="data.num_workers") from None
        if trainer.world_size > 1 and (isinstance(error, DistError) or _PARTED.search(str(error))):
            told = f"process {trainer.global_rank} of {trainer.world_size}: another process of this run has ended, so "
            told += f"this one cannot go on ({str(error).splitlines()[0][:200]}). What ended it stands above; if "
            told += f"nothing does, it was killed, often because memory ran out. {_GOES_ON}"
            raise TrainingError(told, code="died", where="trainer.devices") from None
        raise


def is_rank_zero() -> bool:
    """Whether this process speaks for all: there is no other, or it has rank 0 of those that were started together."""
    started_as = next((os.environ[key] for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if key in os.environ), "0")
    return started_as == "0" and (getattr(rank_zero_only, "rank", None) or 0) == 0  # Lightning looks when imported


def trainer_arguments(trainer: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `lightning.Trainer`; DeepSpeed's strategies are replaced by our own of the same name.

    Raises:
        MissingError: DeepSpeed is not installed.
    """
    name = str(trainer.get("strategy", "auto"))
    trainer = {key: value for key, value in trainer.items() if key not in OWN}
    if not name.startswith("deepspeed"):
        return trainer
    precision = str(trainer.get("precision") or "32-true")
    precision = {"32": "32-true", "bf16": "bf16-mixed"}.get(precision, precision)
    if trainer.get("accelerator") == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when DeepSpeed is first imported
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        why = f"{name} needs DeepSpeed: pip install deepspeed"
        raise MissingError.at("trainer.strategy", "unavailable", why) from error
    from sottovoce.lightning_modules.deepspeed_strategy import ZeRO

    knobs = StrategyRegistry[name]["init_params"]
    rest = {key: value for key, value in trainer.items() if key != "precision"}
    return {**rest, "strategy": ZeRO(precision, **knobs)}
