"""Loggers that follow a whole run: Lightning's, with steps numbered over all stages, and with samples of answers."""

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import soundfile
import torch
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from numpy.typing import NDArray
from omegaconf import OmegaConf

PROJECT = "sottovoce"
Status: TypeAlias = Literal["success", "failed"]


class Sample(NamedTuple):
    """An utterance and what the model says to it."""

    name: str
    task: str
    instruction: str
    target: str
    answer: str
    audio: NDArray[np.float32] | None  # (samples,)
    sample_rate: int

    def markdown(self) -> str:
        """For trackers that show texts."""
        parts = {"asked": self.instruction, "target": self.target, "answer": self.answer}
        return "  \n".join(f"**{name}**: {text}" for name, text in parts.items() if text)


class Tracker(Logger):
    """What a logger of Lightning's needs to follow a whole run: `first` is the step at which the stage begins."""

    first = 0

    def begin_stage(self, first: int, done: int) -> None:
        """The next metrics are of a stage that begins at step `first` of the run, and has made `done` steps."""
        self.first = first

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """As Lightning calls it: `step` is one of the stage. Its epochs say nothing: a stage is one to Lightning."""
        kept = {name: value for name, value in metrics.items() if name != "epoch"}
        parent: Any = super()
        if kept:
            parent.log_metrics(kept, None if step is None else step + self.first)

    def log_recipe(self, recipe: dict[str, Any]) -> None:
        """The whole recipe, as hyperparameters, once for a run."""
        self.log_hyperparams(recipe)

    def log_samples(self, samples: Sequence[Sample], step: int) -> None:
        """Answers after so many steps of the stage."""

    def known_as(self) -> str | None:
        """The id by which the tracker knows the run, so that it goes on; None: by its folder."""
        return None

    def close(self, status: Status) -> None:
        """The run is over, or has stopped."""
        self.finalize(status)


class TensorBoard(Tracker, TensorBoardLogger):
    """Event files in `tensorboard` of the run's folder, unless the arguments say otherwise."""

    def __init__(self, folder: Path, name: str, known: str | None, **arguments: Any) -> None:
        own: dict[str, Any] = {"save_dir": folder, "name": "", "version": "tensorboard", "default_hp_metric": False}
        TensorBoardLogger.__init__(self, **own | arguments)
        self._heard: set[str] = set()

    def begin_stage(self, first: int, done: int) -> None:
        """Steps that a killed run has logged and that are now made again are purged."""
        super().begin_stage(first, done)
        if self._experiment is None:
            self._kwargs["purge_step"] = first + done

    def log_recipe(self, recipe: dict[str, Any]) -> None:
        """For the page of hyperparameters, whose runs are told apart by val/loss; and as text."""
        from torch.utils.tensorboard.summary import hparams

        values = {key: value for key, value in _leaves(recipe) if isinstance(value, bool | int | float | str)}
        writer = self.experiment
        made: Any = hparams
        for summary in made(values, {"val/loss": 0.0}):
            writer._get_file_writer().add_summary(summary)
        text = OmegaConf.to_yaml(recipe)
        writer.add_text("recipe", "".join(f"    {line}\n" for line in text.splitlines()), self.first)

    def log_samples(self, samples: Sequence[Sample], step: int) -> None:
        """Text each time, audio once."""
        for sample in samples:
            name = f"samples/{sample.task}/{sample.name}"
            self.experiment.add_text(name, sample.markdown(), self.first + step)
            if sample.audio is not None and sample.name not in self._heard:
                self._heard.add(sample.name)
                wave = torch.from_numpy(sample.audio)[None]
                self.experiment.add_audio(f"samples/{sample.name}", wave, self.first + step, sample.sample_rate)


class Wandb(Tracker, WandbLogger):
    """A run of Weights & Biases; its own environment variables hold, such as WANDB_MODE=offline."""

    def __init__(self, folder: Path, name: str, known: str | None, **arguments: Any) -> None:
        own: dict[str, Any] = {"name": name, "save_dir": folder, "id": known or uuid.uuid4().hex[:8]}
        own["project"] = os.environ.get("WANDB_PROJECT", PROJECT)
        WandbLogger.__init__(self, **own | arguments)
        self._heard: set[str] = set()

    def log_samples(self, samples: Sequence[Sample], step: int) -> None:
        """A table each time; audio once, and not in the table: offline runs keep its files outside of their folder."""
        import wandb

        rows = [[s.task, s.name, s.instruction, s.target, s.answer] for s in samples]
        self.log_table("samples", ["task", "id", "asked", "target", "answer"], rows, step=step)
        new = {s.name: s for s in samples if s.audio is not None and s.name not in self._heard}
        self._heard |= new.keys()
        heard: dict[str, Any] = {
            f"samples/{name}": wandb.Audio(s.audio, sample_rate=s.sample_rate, caption=name)
            for name, s in new.items()
            if s.audio is not None
        }
        self.log_metrics(heard, step)

    def known_as(self) -> str | None:
        return str(self.experiment.id)

    def close(self, status: Status) -> None:
        super().close(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)


class MLflow(Tracker, MLFlowLogger):
    """A run of MLflow: of the server in MLFLOW_TRACKING_URI or `tracking_uri`, else of a database beside the runs."""

    def __init__(self, folder: Path, name: str, known: str | None, **arguments: Any) -> None:
        runs = folder.parent.absolute()
        own: dict[str, Any] = {"run_name": name, "experiment_name": PROJECT, "run_id": known}
        if os.environ.get("MLFLOW_TRACKING_URI"):  # Lightning reads it when it is imported
            own["tracking_uri"] = os.environ["MLFLOW_TRACKING_URI"]
        else:  # MLflow itself has left plain files
            own |= {"tracking_uri": f"sqlite:///{runs}/mlflow.db", "artifact_location": (runs / "mlartifacts").as_uri()}
        MLFlowLogger.__init__(self, **own | arguments)
        self._heard: set[str] = set()

    def log_recipe(self, recipe: dict[str, Any]) -> None:
        """Its values as parameters, the first 250 characters of each; and whole, as a file."""
        super().log_recipe(recipe)
        self.experiment.log_text(self.run_id, OmegaConf.to_yaml(recipe), "recipe.yaml")

    def log_samples(self, samples: Sequence[Sample], step: int) -> None:
        """Artifacts: a page each time, audio once."""
        page = "\n\n".join(f"## {s.task}: {s.name}\n\n{s.markdown()}" for s in samples)
        self.experiment.log_text(self.run_id, f"{page}\n", f"samples/step-{self.first + step:07}.md")
        for sample in samples:
            if sample.audio is not None and sample.name not in self._heard:
                self._heard.add(sample.name)
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder) / f"{sample.name.replace('/', '_')}.wav"
                    soundfile.write(file, sample.audio, sample.sample_rate)
                    self.experiment.log_artifact(self.run_id, str(file), "samples/audio")

    def known_as(self) -> str | None:
        return self.run_id


KINDS: dict[str, Callable[..., Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}


def _leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Key -> value of a tree, lists as text."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, str(tree) if isinstance(tree, list) else tree
