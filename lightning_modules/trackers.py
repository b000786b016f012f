"""Trackers of a run: TensorBoard, Weights & Biases and MLflow, checked early and opened once for all stages."""

import inspect
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

from sottovoce.config.best_rq import PretrainRecipe
from sottovoce.config.logging_config import LoggingConfig
from sottovoce.config.recipe import Recipe
from sottovoce.errors import ConfigError, MissingError, first_line, nearest
from sottovoce.io import atomic_write
from sottovoce.lightning_modules.loggers import KINDS, Sample, Status, Tracker
from sottovoce.lightning_modules.trainer import is_rank_zero

if TYPE_CHECKING:  # it takes seconds
    from sottovoce.evaluation.records import Record

IDS = "trackers.json"  # in a run's folder: the ids under which trackers know it
TAKE: dict[str, tuple[type, str | None]] = {  # who takes the arguments of a tracker
    "tensorboard": (TensorBoardLogger, "torch.utils.tensorboard:SummaryWriter"),
    "wandb": (WandbLogger, "wandb:init"),
    "mlflow": (MLFlowLogger, None),
}


def check_logging(node: LoggingConfig) -> None:
    """Whether every tracker that a recipe names is installed and takes its arguments; nothing is opened.

    Raises:
        MissingError: its package is not installed.
        ConfigError: it takes no such argument; or W&B knows nobody who logs.
    """
    for name, arguments in node.chosen.items():
        where = f"logging.{name}"
        if find_spec(name) is None:
            why = f"{name} is not installed: pip install 'sottovoce[{name}]'"
            raise MissingError.at(where, "unavailable", why)
        logger, further = TAKE[name]
        takers = [logger, resolve_name(further)] if further else [logger]
        known = {key for taker in takers for key in inspect.signature(taker).parameters}
        for key in arguments.keys() - known:
            told = f"{where}.{key}: its logger takes no {key!r}.{nearest(key, known - {'self', 'kwargs'})}"
            raise ConfigError(told, code="unknown-key", where=f"{where}.{key}")
    if "wandb" in node.chosen:
        _check_login(node.chosen["wandb"])


def _check_login(arguments: dict[str, Any]) -> None:
    """At a terminal W&B asks who logs: now, and not when all clips have been encoded."""
    import wandb

    mode = arguments.get("mode") or os.environ.get("WANDB_MODE") or "online"
    if mode not in ("online", "shared") or arguments.get("offline") or arguments.get("anonymous"):
        return
    try:
        known, why = wandb.login(), ""
    except wandb.Error as error:
        known, why = False, f": {first_line(error)}"
    if not known:
        told = f"nobody is logged in{why}. `wandb login`, WANDB_API_KEY, or WANDB_MODE=offline"
        raise ConfigError.at("logging.wandb", "unavailable", told)


@dataclass
class Trackers:
    """The trackers of a run in this process; none where another process speaks for all.

    They are opened when the first stage begins, and know a run that goes on by what is in its folder.
    """

    recipe: Recipe | PretrainRecipe | None = None  # None: there are none
    loggers: list[Tracker] = field(default_factory=list)
    steps: int = 0  # of the stages so far

    @property
    def on(self) -> bool:
        """Whether there is one."""
        return self.recipe is not None and bool(self.recipe.logging.chosen) and is_rank_zero()

    def begin_stage(self, first: int, done: int) -> list[Tracker]:
        """The loggers of a stage that begins at step `first` of the run, and has made `done` steps.

        Raises:
            ConfigError: a tracker cannot be opened, such as one whose server does not answer.
        """
        if self.on and not self.loggers:
            self._open(first, done)
        for logger in self.loggers:
            logger.begin_stage(first, done)
        return self.loggers

    def _open(self, first: int, done: int) -> None:
        assert self.recipe is not None
        file = self.recipe.folder / IDS
        known: dict[str, str | None] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        for name, arguments in self.recipe.logging.chosen.items():
            try:
                logger = KINDS[name](self.recipe.folder, self.recipe.name, known.get(name), **arguments)
                logger.begin_stage(first, done)
                self.loggers.append(logger)
                if name not in known:
                    logger.log_recipe(self.recipe.plain())
                known[name] = logger.known_as()
            except Exception as error:  # whatever the tracker's library raises
                why = f"it cannot be opened: {type(error).__name__}: {first_line(error)}"
                raise ConfigError.at(f"logging.{name}", "unavailable", why) from error
        atomic_write(file, json.dumps(known, indent=2) + "\n")

    def log_samples(self, samples: Sequence[Sample], step: int) -> None:
        """Answers after so many steps of the stage at hand."""
        for logger in self.loggers:
            logger.log_samples(samples, step)

    def log_scores(self, records: Sequence["Record"]) -> None:
        """Scores of the test side, as test/SLOTS/TASK/METRIC at the last step."""
        scores = {f"test/{r.slots}/{_plain(r.task)}/{_plain(r.metric)}": r.value for r in records}
        for logger in self.loggers if scores else []:
            logger.begin_stage(self.steps, 0)
            logger.log_metrics(scores, 0)

    def close(self, status: Status) -> None:
        """The run is over, or has stopped."""
        for logger in self.loggers:
            logger.close(status)
        self.loggers = []


@contextmanager
def opened(recipe: Recipe | PretrainRecipe) -> Iterator[Trackers]:
    """The trackers of a run, closed when the block ends; an error in it is told to them."""
    trackers = Trackers(recipe)
    try:
        yield trackers
    except BaseException:
        trackers.close("failed")
        raise
    trackers.close("success")


def _plain(name: str) -> str:
    """A name of a part in brackets without what MLflow refuses."""
    return re.sub(r"[^\w/. -]", "_", name)
