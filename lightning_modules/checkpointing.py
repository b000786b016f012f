"""Checkpoint files: written whole with a digest, checked when read, and the latest one that is not damaged."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from sottovoce import checkpoint_digest
from sottovoce.errors import BundleError, CheckpointError, brief
from sottovoce.io import atomic_open, file_lock

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
_log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes sealed checkpoints beside their place and renames them.

    Lightning writes to the system's folder for temporary files and moves them from there, which is a copy where that
    folder lies on another disk: a run that is killed then leaves half a checkpoint under the name of a whole one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_open(Path(path)) as stream:
            checkpoint_digest.save(checkpoint, stream)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path))


class BestCheckpoint(ModelCheckpoint):
    """The checkpoint of the best validation; a run whose folder was moved knows which one that was.

    The best is the lowest (`mode` min) or highest (max) of the metric `monitor`.
    """

    def __init__(self, file: Path, monitor: str = "val/loss", mode: Literal["min", "max"] = "min") -> None:
        super().__init__(
            file.parent, file.stem, monitor=monitor, mode=mode, save_weights_only=True, auto_insert_metric_name=False,
            enable_version_counter=False, save_on_train_epoch_end=False,
        )  # fmt: skip

    @property
    def best(self) -> float | None:
        """The metric's best value so far."""
        return None if self.best_model_score is None else float(self.best_model_score)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning forgets the best score where the folder is another one."""
        before = str(state_dict["dirpath"])

        def here(value: Any) -> Any:
            return str(self.dirpath) + value.removeprefix(before) if str(value).startswith(before) else value

        state = {key: here(value) for key, value in state_dict.items()}
        super().load_state_dict({**state, "best_k_models": {here(k): v for k, v in state["best_k_models"].items()}})


def write_checkpoints_atomically(trainer: L.Trainer) -> None:
    """Let one process, or the first of several, write whole files. Strategies that write shards do as they do."""
    if isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | DeepSpeedStrategy):
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def read_checkpoint(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """All that a checkpoint holds; `CheckpointError` if it is missing or not what was written. Nothing is executed.

    With `mapped`, tensors stay on the disk until they are used.
    """
    try:
        checkpoint_digest.check(path)
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        return content
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not there", code="not-found", where=path) from None
    except Exception as error:  # zip, pickle and torch each have errors of their own
        told = f"{path} is damaged: {(str(error) or type(error).__name__).splitlines()[0]}"
        raise CheckpointError(told, where=path) from None


def latest(folder: Path) -> Path | None:
    """The checkpoint that a run goes on from; None where there is none yet.

    A damaged one is named and set aside for the one before it. Which of them a run goes on from changes how long it
    takes, and nothing else.

    Raises:
        CheckpointError: there are checkpoints, and not one is whole.
    """
    if not any((folder / name).exists() for name in (LAST, PREVIOUS)):
        return None
    with file_lock(folder):  # one process sets aside what the others then do not find
        return _whole(folder)


def _whole(folder: Path) -> Path | None:
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
            _log.warning(f"{fault}. It is set aside as {aside.name}; {file.name} is whole")
        return file
    if faults:
        told = "; ".join(str(fault) for _, fault in faults)
        told += f". No whole checkpoint is left: move {folder} away to train this stage from its beginning"
        raise CheckpointError(told, where=folder, faults=[fault for _, fault in faults])
    return None


def with_prefixes(prefixes: Iterable[str], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a state dict whose names begin with one of these."""
    return {key: value for key, value in weights.items() if key.startswith(tuple(prefixes))}


def part_of(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights of a submodule, by their names within it."""
    return {key.removeprefix(f"{name}."): value for key, value in with_prefixes([f"{name}."], weights).items()}


def check_fit(asked: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], source: object) -> None:
    """Raises `BundleError` where weights, name -> shape, are not those that a recipe asks for, told by slots first."""
    mine, theirs = (", ".join(sorted(_slots(names))) or "none" for names in (asked, found))
    told = f"its slots are {theirs}, this recipe has {mine}" if mine != theirs else ""
    for name in {**asked, **found} if not told else ():
        ours, there = (str(tuple(shapes[name])) if name in shapes else "absent" for shapes in (asked, found))
        if ours != there:
            told = f"{name} is {there} in it and {ours} in this recipe"
            break
    if told:
        raise BundleError.at(source, "mismatch", f"its trained weights do not fit this recipe: {told}")


def _slots(names: Iterable[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("adapters.")}


def load_trained(
    module: nn.Module, weights: Mapping[str, Tensor], parts: Sequence[str], needed: Collection[str], source: str
) -> None:
    """Give a module's parts their trained weights, named as in a checkpoint.

    Every weight of a needed part must be there, and none that belongs to no part. What does not fit is a `BundleError`
    about `source`.
    """
    strays = [name for name in weights if not name.startswith(tuple(f"{part}." for part in parts))]
    if strays:
        raise BundleError.at(source, "mismatch", f"{', '.join(strays[:3])} is no weight of anything that trains")
    try:
        for name in parts:
            own, found = getattr(module, name), part_of(weights, name)
            if own is None or not (found or name in needed):
                continue
            if hasattr(own, "load_trained"):
                own.load_trained(found)
            else:
                check_fit(shapes_of(name, own.state_dict()), shapes_of(name, found), source)
                own.load_state_dict(found)
    except RuntimeError as error:
        told = brief(" ".join(str(error).split()))
        raise BundleError.at(source, "mismatch", f"its weights do not fit this recipe: {told}") from None


def shapes_of(part: str, weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Shapes of a submodule's weights, by their names in a checkpoint."""
    return {f"{part}.{name}": value.shape for name, value in weights.items()}


def frozen_may_be_absent(module: nn.Module, keys: Any) -> None:
    """Keep loading strict where it matters: every weight that trains must be there, frozen ones need not."""
    prefixes = cast(Any, module).trained_prefixes
    keys.missing_keys[:] = [key for key in keys.missing_keys if key.startswith(prefixes)]
