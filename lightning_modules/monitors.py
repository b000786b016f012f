"""What a stage watches: scores of answers in validation, and early stopping."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from rich.console import Console

from sottovoce.config.sections import LOSS, StageConfig
from sottovoce.data.examples import Example, Read, collate
from sottovoce.data.tasks import Task, task_of
from sottovoce.errors import ManifestError
from sottovoce.evaluation.metrics import Prediction
from sottovoce.evaluation.reports.results import METRICS
from sottovoce.lightning_modules.run import Run
from sottovoce.training.splits import LazySplit
from sottovoce.training.spoken_prompt import dialogue_of


def monitored(stage: StageConfig) -> tuple[str, Literal["min", "max"]]:
    """The metric that a stage's best checkpoint is chosen by, as it is logged, and which of its values is best."""
    if stage.monitor in (None, LOSS):
        return "val/loss", "min"
    score = str(stage.monitor).split("/")[1]
    return f"val/{stage.monitor}", "max" if METRICS[score].endswith("↑") else "min"


@dataclass(eq=False)  # Lightning has callbacks in sets
class ValidationScores(L.Callback):
    """Answers the same few examples of each task in every validation; `val/<task>/<score>` is logged.

    Processes share the examples, and each has all answers in the end. `predictions` are those of the last validation.
    """

    examples: Sequence[Example]
    tasks: dict[str, Task]
    slots: dict[str, str]
    read: Read
    batch_size: int
    max_new_tokens: int
    predictions: Sequence[Prediction] = ()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        from sottovoce.evaluation.records import scores_due  # late: it takes seconds to import

        mine = list(enumerate(self.examples))[trainer.global_rank :: trainer.world_size]
        found: list[list[tuple[int, Prediction]]] = [self._answers(pl_module, mine)]
        if trainer.world_size > 1:
            found = found * trainer.world_size
            torch.distributed.all_gather_object(found, found[0])
        self.predictions = [answer for _, answer in sorted((pair for part in found for pair in part), key=_number)]
        for due in scores_due(self.predictions):
            value = due.metric.measure(due.rows).value
            pl_module.log(f"val/{due.task}/{due.name}", value, rank_zero_only=False)

    def _answers(self, module: Any, mine: Sequence[tuple[int, Example]]) -> list[tuple[int, Prediction]]:
        found = []
        for start in range(0, len(mine), self.batch_size):
            part = mine[start : start + self.batch_size]
            batch = collate([example for _, example in part], self.read).to(module.device)
            chats = [dialogue_of(example, self.slots) for _, example in part]
            responses = module.generate(batch, chats, self.max_new_tokens)
            found += [(n, self._prediction(e, text)) for (n, e), text in zip(part, responses, strict=True)]
        return found

    def _prediction(self, example: Example, response: str) -> Prediction:
        utterance = example.utterance
        task = task_of(self.tasks, example.task, utterance)
        return Prediction(
            utterance.id, example.task, "both", example.instruction, response, example.target or "",
            label=None if task.generated else task.label(utterance), predicted=task.parse(response),
            speaker=utterance.speaker, metric=task.rate,
        )  # fmt: skip


def _number(pair: tuple[int, Prediction]) -> int:
    return pair[0]


def validation_scores(run: Run, stage: str) -> ValidationScores | None:
    """Those of a stage, None where it wants none.

    Raises:
        ManifestError: no utterance of the validation side has what the monitored task needs.
    """
    node, split = run.recipe.stages[stage], run.data.splits["validation"]
    size = node.batch_size or run.recipe.evaluation.batch_size
    if not (count := node.answered * size):
        return None
    examples: list[Example] = []
    for task in (name for name, weight in node.tasks.items() if weight > 0):
        sampler = replace(run.example_sampler(None, cut=False), weights={task: 1.0})
        able = [u for u in split.utterances if (u.only is None or task in u.only) and sampler.possible(u)]
        step = max(1.0, len(able) / count)
        chosen = [able[int(i * step)] for i in range(min(count, len(able)))]
        drawn = [e for e in (sampler(u, 0, 0) for u in chosen) if e is not None]
        if run.tasks[task].generated and not isinstance(split, LazySplit):
            with run.progress() as progress:
                made = run.targets.make(run.module.llm, drawn, progress)
            kept = [e for e in drawn if (e.task, e.utterance.id) not in made.rejected]
            drawn = [run.targets.complete(e) for e in kept]
        drawn = [replace(e, sources=dict.fromkeys(e.sources, "speech"), trains=frozenset()) for e in drawn]
        if not drawn and str(node.monitor).partition("/")[0] == task:
            told = f"no utterance of 'validation' has what {task} needs, whose score stages.{stage}.monitor names"
            raise ManifestError(told, code="empty", where=f"stages.{stage}.monitor")
        examples += drawn
    most = run.recipe.evaluation.max_new_tokens
    return ValidationScores(examples, run.tasks, run.slots, run.audio_reader.read, size, most)


class StopEarly(EarlyStopping):
    """Ends a stage after `patience` validations without a better one; `told` says so when it has."""

    told = ""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self.stopped_epoch or self.wait_count >= self.patience:
            best = float(self.best_score)
            self.told = f"stopped at step {trainer.global_step}: {self.patience} validations without a better "
            self.told += f"{self.monitor} than {best:.4g}"


def early_stopping(stage: StageConfig) -> list[StopEarly]:
    """Of a stage with `patience`."""
    if stage.patience is None:
        return []
    monitor, mode = monitored(stage)
    return [StopEarly(monitor, patience=stage.patience, mode=mode, check_on_train_epoch_end=False)]


def tell_early_stop(callbacks: Sequence[StopEarly], stage: str, console: Console) -> None:
    for callback in callbacks:
        if callback.told:
            console.print(f"stage {stage}: {callback.told}", markup=False, highlight=False, soft_wrap=True)
