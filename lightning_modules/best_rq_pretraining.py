"""Self-supervised pre-training of the Conformer: from folders of speech to an encoder that a recipe can name."""

import json
import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sottovoce.config.best_rq import PretrainRecipe, load
from sottovoce.data.batch_sampler import BatchSampler
from sottovoce.data.manifest import listed
from sottovoce.encoders import ENCODERS
from sottovoce.encoders.best_rq import BestRQ, CodeLoss, Masking, RandomQuantizer, unigram_baseline
from sottovoce.encoders.conformer import ConformerEncoder
from sottovoce.encoders.log_mel import log_mel
from sottovoce.io import atomic_write
from sottovoce.lightning_modules.callbacks import NonFiniteGuard, ResumeCheckpoint, propagate_nonfinite
from sottovoce.lightning_modules.checkpointing import LAST, latest, read_checkpoint
from sottovoce.lightning_modules.trackers import Trackers, check_logging, opened
from sottovoce.lightning_modules.tracking import StageProgress, StepLog
from sottovoce.lightning_modules.trainer import adamw, build_trainer, is_rank_zero, loader, train_to_end
from sottovoce.lightning_modules.trainer_settings import check_trainer, seconds_of
from sottovoce.progress import track
from sottovoce.training.best_rq_data import Batch, Clip, Crops, Speech, read_splits
from sottovoce.training.run_folder import only_run, open_folder

_log = logging.getLogger(__name__)
MEASURED = 1000  # clips, whose log-mels say what is usual


class Pretraining(L.LightningModule):
    """BEST-RQ under Lightning: loss, validation and optimizer."""

    trained_prefixes = ("best_rq.",)  # what a checkpoint holds: with the quantizer's numbers, which were measured

    def __init__(self, recipe: PretrainRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        encoder = ENCODERS.build(recipe.encoder)
        assert isinstance(encoder, ConformerEncoder)  # the recipe has been checked
        self.row_losses = None  # the loss is known of all clips together alone
        quantizer, masking = RandomQuantizer(**asdict(recipe.quantizer)), Masking(**asdict(recipe.masking))
        self.best_rq = BestRQ(encoder, quantizer, masking)

    def configure_model(self) -> None:
        """Give the Conformer its first weights. Lightning calls this more than once; it is idempotent."""
        self.best_rq.encoder.load()

    def loss(self, batch: Batch) -> CodeLoss:
        out: CodeLoss = self.best_rq(*batch.audio, batch.mask)
        return out

    def training_step(self, batch: Batch, number: int) -> Tensor:
        """The mean over hidden frames and codebooks of all ranks (not a mean of the ranks' means)."""
        self._seed(self.global_step)
        out = self.loss(batch)
        count = torch.tensor(float(out.targets.numel()), device=self.device)
        everywhere = self.trainer.strategy.reduce(count, reduce_op="sum").clamp(min=1)
        loss: Tensor = out.total * self.trainer.world_size / everywhere  # strategies average gradients over ranks
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.mask))
        self.log("train/accuracy", out.hits / max(out.targets.numel(), 1), prog_bar=True, batch_size=len(batch.mask))
        return propagate_nonfinite(loss)

    def on_validation_epoch_start(self) -> None:
        books, codes, _ = self.best_rq.quantizer.codebooks.shape
        self._sums, self._counts = torch.zeros(3, dtype=torch.float64), torch.zeros(books, codes, dtype=torch.long)

    def validation_step(self, batch: Batch, number: int) -> None:
        self._seed(-1 - number)  # the same noise each time
        out = self.loss(batch)
        self._sums += torch.tensor([out.total.item(), out.hits.item(), out.targets.numel()], dtype=torch.float64)
        for counts, codes in zip(self._counts, out.targets.cpu().unbind(-1), strict=True):
            counts += torch.bincount(codes, minlength=len(counts))

    def on_validation_epoch_end(self) -> None:
        reduce = self.trainer.strategy.reduce
        total, hits, asked = reduce(self._sums.to(self.device), reduce_op="sum").tolist()
        self.log("val/loss", total / max(asked, 1), prog_bar=True)
        self.log("val/accuracy", hits / max(asked, 1), prog_bar=True)
        loss, accuracy = unigram_baseline(reduce(self._counts.to(self.device), reduce_op="sum"))
        self.log_dict({"val/blind_loss": loss, "val/blind_accuracy": accuracy})

    def _seed(self, step: int) -> None:
        """Noise and dropout: the same when resumed."""
        torch.manual_seed(hash((self.recipe.seed, step, self.global_rank)))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return adamw(self.recipe.trainer, self.trainable_parameters(), self.recipe, self.recipe.steps)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Encoder and heads."""
        return [weight for weight in self.parameters() if weight.requires_grad]


def pretrain(config: str, overrides: Sequence[str]) -> Path:
    """Pre-train, validate, and write `runs/<name>/encoder`, which is returned: a `checkpoint` of a `conformer`.

    The same command again goes on where it stopped, and ends in the same weights, bit for bit on one CPU.
    """
    recipe = load(config, overrides)
    check_trainer(recipe)
    check_logging(recipe.logging)
    console = Console(quiet=not is_rank_zero())
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its notices are not about the recipe
    with only_run(recipe.folder) if is_rank_zero() else nullcontext():
        open_folder(recipe.folder, recipe.plain())
        if not (recipe.folder / "done.json").is_file():
            with opened(recipe) as trackers:
                train(recipe, console, trackers)
        report(recipe, console)
    return recipe.folder / "encoder"


def dry_run(config: str, overrides: Sequence[str]) -> None:
    """Build the recipe on the meta device and print what trains; no clip is read."""
    recipe = load(config, overrides)
    check_trainer(recipe)
    check_logging(recipe.logging)
    with torch.device("meta"):
        module = Pretraining(recipe)
        module.best_rq.encoder.build()
    title, parameters = f"{recipe.name}: what trains, what is frozen", Column("parameters", justify="right")
    table, best_rq = Table("part", "numbers", parameters, "", title=title), module.best_rq
    rows = (
        ("encoder", recipe.encoder, best_rq.encoder.parameters(), "trains, is kept"),
        ("heads", {"dim": best_rq.encoder.dim}, best_rq.heads.parameters(), "train, are dropped"),
        ("quantizer", asdict(recipe.quantizer), best_rq.quantizer.buffers(), "random, frozen"),
    )
    for part, numbers, weights, fate in rows:
        shown = ", ".join(f"{key}={value}" for key, value in numbers.items() if key != "type")
        table.add_row(part, shown, f"{sum(weight.numel() for weight in weights):,}", fate)
    Console().print(table)


def begin(recipe: PretrainRecipe) -> Pretraining:
    """The module with the weights that training starts from: a function of the recipe's seed."""
    L.seed_everything(recipe.seed, workers=True, verbose=False)
    module = Pretraining(recipe)
    module.configure_model()
    return module.train()  # an encoder is born in eval mode, and Lightning leaves modes alone


def train(recipe: PretrainRecipe, console: Console, trackers: Trackers | None = None) -> None:
    """All steps, or those that a killed run has left; then the encoder and the last validation's scores."""
    speech = read_splits(recipe.data, lambda rows, total: track(rows, "reading clips", total, "clip", console))
    if speech.faults:
        _log.warning(f"left out, {len(speech.faults)} in all:\n{listed(speech.faults)}")
    module, resume = begin(recipe), latest(recipe.folder)
    if resume is None:  # a checkpoint has them
        measure(recipe, module, speech.train, console)
    limit = recipe.trainer.get("max_time")
    deadline = math.inf if limit is None else time.monotonic() + seconds_of(limit)
    resumable = ResumeCheckpoint(recipe.folder / LAST, recipe.checkpoint_every, deadline)
    guard = NonFiniteGuard(recipe.folder / "skipped.jsonl", recipe.name)
    done_steps = int(read_checkpoint(resume, mapped=True)["global_step"]) if resume else 0
    bars = recipe.trainer.get("enable_progress_bar") is not False
    callbacks = [guard, resumable, StepLog(), StageProgress(recipe.name, console, bars=bars)]
    loggers = trackers.begin_stage(0, done_steps) if trackers else []
    trainer = build_trainer(
        recipe.trainer, recipe.folder, callbacks, loggers, val_check_interval=min(recipe.validate_every, recipe.steps),
        gradient_clip_val=recipe.grad_clip, default_root_dir=recipe.folder,
    )  # fmt: skip
    training = training_loader(recipe, speech.train, trainer, done_steps)
    validation = validation_loader(recipe, speech.validation, trainer)
    _announce(recipe, speech)
    train_to_end(trainer, module, training, validation, resume, resumable)
    scores = trainer.validate(module, validation, verbose=False)[0]
    if trainer.is_global_zero:
        module.best_rq.encoder.save(recipe.folder / "encoder")
        done = {"steps": recipe.steps, "skipped": len(guard.skipped), **scores}
        atomic_write(recipe.folder / "done.json", json.dumps(done, indent=2) + "\n")
    trainer.strategy.barrier()


def measure(recipe: PretrainRecipe, module: Pretraining, clips: Sequence[Clip], console: Console) -> None:
    """Tell the quantizer mean and deviation of `MEASURED` clips, evenly from the whole list; each process by itself."""
    some = clips[:: ceil(len(clips) / MEASURED)]
    crops = Crops(some, recipe.data.crop_seconds, Masking(), recipe.seed, "measured")
    cut = (crops.draw(clip, 0)[0] for clip in track(some, "measuring", unit="clip", console=console))
    module.best_rq.quantizer.fit_normalization(log_mel(x[None], torch.tensor([len(x)])).x[0] for x in cut)


def training_loader(recipe: PretrainRecipe, clips: Sequence[Clip], trainer: L.Trainer, start: int) -> DataLoader[Any]:
    """This rank's batches of all steps from `start` on; epochs follow one another until there are enough."""
    epochs = ceil(recipe.steps * recipe.batch_size * trainer.world_size / len(clips))
    return _loader(recipe, "train", clips, trainer, epochs, start, recipe.steps)


def validation_loader(recipe: PretrainRecipe, clips: Sequence[Clip], trainer: L.Trainer) -> DataLoader[Any]:
    """This rank's batches of every clip once."""
    return _loader(recipe, "validation", clips, trainer, epochs=1)


def _loader(
    recipe: PretrainRecipe, side: str, clips: Sequence[Clip], trainer: L.Trainer, epochs: int, start: int = 0,
    most: int | None = None,
) -> DataLoader[Any]:  # fmt: skip
    crops = Crops(clips, recipe.data.crop_seconds, Masking(**asdict(recipe.masking)), recipe.seed, side)
    lengths = [min(clip.seconds, recipe.data.crop_seconds) for clip in clips]
    sampler = BatchSampler(
        lengths, np.ones(len(clips)), recipe.batch_size, epochs, recipe.seed, trainer.global_rank, trainer.world_size,
        start, max_steps=most,
    )  # fmt: skip
    return loader(crops, sampler, recipe.data.num_workers)


def _announce(recipe: PretrainRecipe, speech: Speech) -> None:
    _log.info(f"{recipe.name}: {recipe.steps:,} steps")
    for what, clips in (("learns from", speech.train), ("held out", speech.validation)):
        hours = sum(clip.seconds for clip in clips) / 3600
        _log.info(f"{what}: {len(clips):,} clips, {hours:.2f} h")


def report(recipe: PretrainRecipe, console: Console) -> None:
    """The end of a run: how well it names what it cannot hear, and how to use it."""
    done = json.loads((recipe.folder / "done.json").read_text("utf-8"))
    console.print(
        f"{done['steps']:,} steps. Hidden frames of held-out clips: loss {done['val/loss']:.3f}, codes named rightly "
        f"{done['val/accuracy']:.1%}; a guess that hears nothing and knows how frequent each code is: "
        f"{done['val/blind_loss']:.3f}, {done['val/blind_accuracy']:.1%}",
        highlight=False,
    )
    knobs = {**recipe.encoder, "checkpoint": str(recipe.folder / "encoder")}
    knobs.pop("dropout")
    node = ", ".join(f"{key}: {value}" for key, value in knobs.items())
    console.print(f"use it in a recipe as\n  encoder: {{{node}}}", highlight=False, markup=False, soft_wrap=True)
