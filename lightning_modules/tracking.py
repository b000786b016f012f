"""What a training shows and logs: progress; losses by task and by slot, throughput, memory, samples of answers."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any, NamedTuple

import lightning as L
import torch
from rich.console import Console
from torch import Tensor

from sottovoce.data.audio import load_audio
from sottovoce.data.examples import Example, collate
from sottovoce.data.utterance import Utterance
from sottovoce.errors import SottovoceError
from sottovoce.lightning_modules.callbacks import peak_memory
from sottovoce.lightning_modules.loggers import Sample
from sottovoce.lightning_modules.run import Run
from sottovoce.progress import Progress, Task, short
from sottovoce.training.spoken_prompt import dialogue_of

TRIED = 1000  # utterances among which samples are looked for
NAMES = {"train/loss": "loss", "val/loss": "val"}  # metric -> what a line of progress calls it


class Sums(NamedTuple):
    """Loss (nats) and response tokens by what is told apart, and tokens that the LLM has read."""

    losses: dict[str, tuple[float, int]]
    read: int
    seconds: float  # of audio


class RowSums:
    """Sums over the rows of batches, of which nothing is fetched from a GPU before `take`."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []  # of batches, (rows,)
        self._rows: list[tuple[list[str], int]] = []  # what each row belongs to, and its response tokens
        self._lengths: list[Tensor] = []  # of clips, (clips,)
        self._read = 0

    def add(self, module: Any, batch: Any, *, slots: bool) -> None:
        """A batch through which the module has just gone; one that does not count adds nothing."""
        if not getattr(batch, "counts", True):
            return
        if getattr(batch, "clips", True):
            frames = batch.audio.x.dim() == 3  # encoder outputs, from the cache
            self._lengths.append(batch.audio.lengths / _per_second(module, frames=frames))
        examples = getattr(batch, "examples", ())
        self._read += sum(read for _, read in getattr(module, "row_tokens", ()))
        if not examples or not isinstance(module.row_losses, Tensor) or not module.node.response_weight:
            return
        self._losses.append(module.row_losses.detach())
        for example, (tokens, _) in zip(examples, module.row_tokens, strict=True):
            sources = [f"{slot}/{source}" for slot, source in example.sources.items()] if slots else []
            self._rows.append(([example.task, *sources], tokens))

    def take(self, world_size: int) -> Sums:
        """The sums over all processes, which must all ask for them; begins anew."""
        losses: defaultdict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        found = torch.cat(self._losses).tolist() if self._losses else []
        seconds = float(torch.cat(self._lengths).sum()) if self._lengths else 0.0
        mine = [(key, loss, tokens) for (keys, tokens), loss in zip(self._rows, found, strict=True) for key in keys]
        everyone = [(mine, self._read, seconds)] * world_size
        if world_size > 1:
            torch.distributed.all_gather_object(everyone, everyone[0])
        for rows, _, _ in everyone:
            for key, loss, tokens in rows:
                losses[key] = losses[key][0] + loss, losses[key][1] + tokens
        self._losses, self._rows, self._lengths, read = [], [], [], sum(part[1] for part in everyone)
        self._read = 0
        return Sums(dict(losses), read, sum(part[2] for part in everyone))


def _per_second(module: Any, *, frames: bool) -> float:
    """Frames or samples of a second of sound."""
    encoder = module.encoder if hasattr(module, "encoder") else module.best_rq.encoder
    return float(encoder.frame_rate if frames else encoder.sample_rate)


class StepLog(L.Callback):
    """Logs sums over all processes, every `log_every_n_steps` steps and after validations.

    `train/<task>/loss`, `train/<slot>/<source>/loss` and `val/<task>/loss` (nats a response token), and of training
    `tokens_per_second` (that the LLM has read), `audio_seconds_per_second`, `seconds_per_step` and `peak_memory_mb`
    (10^6 bytes that tensors took of this process's GPU in the stage; on a CPU the whole process so far).
    """

    def __init__(self) -> None:
        self._training, self._validation = RowSums(), RowSums()
        self._began = self._paused = 0.0
        self._steps = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began, self._steps = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        self._training.add(pl_module, batch, slots=True)
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches:
            return
        self._steps += 1
        if not trainer._logger_connector.should_update_logs:
            return
        sums = self._training.take(trainer.world_size)
        now = time.perf_counter()
        spent = max(now - self._began, 1e-9)
        metrics = {f"train/{key}/loss": loss / max(tokens, 1) for key, (loss, tokens) in sums.losses.items()}
        metrics |= {
            "train/audio_seconds_per_second": sums.seconds / spent, "train/seconds_per_step": spent / self._steps,
            "train/peak_memory_mb": _peak(pl_module.device) / 1e6,
        }  # fmt: skip
        if sums.read:
            metrics["train/tokens_per_second"] = sums.read / spent
        self._log(trainer, metrics)
        self._began, self._steps = now, 0

    def on_validation_start(self, *_: Any) -> None:
        self._paused = time.perf_counter()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._validation.add(pl_module, batch, slots=False)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        losses = self._validation.take(trainer.world_size).losses
        self._log(trainer, {f"val/{key}/loss": loss / max(tokens, 1) for key, (loss, tokens) in losses.items()})

    def on_validation_end(self, *_: Any) -> None:
        self._began += time.perf_counter() - self._paused  # which is no training

    def _log(self, trainer: L.Trainer, metrics: dict[str, float]) -> None:
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # as Lightning numbers what modules log
        for logger in trainer.loggers if metrics else []:
            logger.log_metrics(metrics, step)


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


class AnswerSamples(L.Callback):
    """Answers the same few utterances after every validation, in the first process, for trackers."""

    def __init__(self, run: Run, examples: Sequence[Example]) -> None:
        self.run, self.examples = run, examples

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        module: Any = pl_module
        run, found = self.run, []
        rate = module.encoder.sample_rate
        for example in self.examples:  # one at a time: they are few, and of any length
            batch = collate([example], run.audio_reader.read).to(module.device)
            chats = [dialogue_of(example, run.slots)]
            [answer] = module.generate(batch, chats, run.recipe.evaluation.max_new_tokens)
            clip = example.utterance.clip
            target = example.target or ""
            audio = load_audio(clip, rate, silent=True)
            told = str(answer)  # W&B takes no kind of text but text itself, such as one that was cut
            found.append(Sample(example.utterance.id, example.task, example.instruction, target, told, audio, rate))
        run.trackers.log_samples(found, trainer.fit_loop.epoch_loop._batches_that_stepped)


def samples_of(run: Run, stage: str, count: int) -> list[Example]:
    """Spoken utterances of the validation side, the tasks of a stage by turns, each with all of its slots heard."""
    weights = {task: weight for task, weight in run.recipe.stages[stage].tasks.items() if weight > 0}
    some = list(_readable(run, TRIED))
    found: list[Example] = []
    for task, number in zip(cycle(weights), range(count), strict=False):
        sampler = replace(run.example_sampler(None, cut=False), weights={task: 1.0})
        able = [u for u in some if (u.only is None or task in u.only) and sampler.possible(u)]
        drawn = sampler(able[number % len(able)], 0, 0) if able else None
        found += [drawn] if drawn is not None else []
    return found


def _readable(run: Run, most: int) -> Iterator[Utterance]:
    """The first spoken utterances of the validation side."""
    utterances = run.data.splits["validation"].utterances
    for number in range(min(most, len(utterances))):
        try:
            utterance = utterances[number]
        except SottovoceError:  # of a lazy manifest: it is told when it is drawn
            continue
        if utterance.audio:
            yield utterance


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
