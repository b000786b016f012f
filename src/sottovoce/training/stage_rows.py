"""Rows of a stage: its utterances, or each of them once for each of its tasks; and how often a task is drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from sottovoce.config.recipe import Recipe
from sottovoce.config.sections import ALL, StageConfig
from sottovoce.data.examples import ExampleSampler
from sottovoce.data.utterance import Utterance
from sottovoce.errors import ManifestError
from sottovoce.training.splits import LazySplit, Split

_GROUPS = 100  # of rows that batches mix evenly: the work grows with them


class UtterancePerTask(Dataset[Utterance]):
    """Utterances once for each of their tasks, which is then the only one that a row may serve."""

    def __init__(self, utterances: Sequence[Utterance], rows: NDArray[np.int64], tasks: Sequence[str]) -> None:
        self.utterances, self.rows, self.tasks = utterances, rows, tasks  # rows: (rows, 2) utterance, task

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Utterance:
        number, task = self.rows[row].tolist()
        utterance: Utterance = replace(self.utterances[number], only=(self.tasks[task],))
        return utterance


@dataclass(frozen=True)
class StageRows:
    """What batches of a stage are laid out by."""

    utterances: Sequence[Utterance]
    seconds: NDArray[np.float32]  # (rows,)
    weights: NDArray[np.float64]  # (rows,) how often an epoch sees each
    groups: NDArray[np.int64] | Callable[[int], NDArray[np.int64]]  # (rows,) what batches mix evenly, by epoch


def stage_rows(split: Split, stage: StageConfig, drawing: ExampleSampler, *, training: bool) -> StageRows:
    """The rows of a side of the data in a stage.

    With `tasks_per_utterance: all` an utterance is a row for each task that it serves, which an epoch has as often as
    the weights of both say. Where lines are not read yet, it is one for each task of its manifest.
    """
    seconds, groups = split.seconds, split.groups(drawing)
    weights = split.stage_weights(stage, drawing, training=training)
    if stage.tasks_per_utterance != ALL:
        by_epoch = partial(_drawn, split, groups, drawing, stage.draws if training else 1)
        return StageRows(split.utterances, seconds, weights, groups if isinstance(split, LazySplit) else by_epoch)
    tasks = list(stage.tasks)
    number = {name: at for at, name in enumerate(tasks)}
    pairs = [(at, number[task]) for at, served in enumerate(split.served(drawing)) for task in served]
    rows = np.array(pairs, np.int64).reshape(-1, 2)
    utterance, task = rows.T
    often = np.array(list(stage.tasks.values()), np.float64) if training else np.ones(len(tasks))
    utterances = cast(Sequence[Utterance], UtterancePerTask(split.utterances, rows, tasks))
    weights, groups = weights[utterance] * often[task], groups[utterance] * len(tasks) + task
    return StageRows(utterances, seconds[utterance], weights, groups)


def _drawn(
    split: Split, groups: NDArray[np.int64], drawing: ExampleSampler, draws: int, epoch: int
) -> NDArray[np.int64]:
    """(utterances,) groups by the tasks that an epoch draws, too: of a small one, chance would be no even mix."""
    tasks = [sorted(filter(None, (drawing.draw_task(u, epoch, k)[1] for k in range(draws)))) for u in split.utterances]
    keys = [(group, *drawn) for group, drawn in zip(groups.tolist(), tasks, strict=True)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if len(numbers) > _GROUPS:  # so many draws an utterance that chance mixes them
        return groups
    return np.array([numbers[key] for key in keys], np.int64)


class Draws(NamedTuple):
    """How often a task or a part of the data is drawn in a stage."""

    utterances: int  # that serve it
    draws: int  # of all epochs, as many as are to be expected


def count_draws(split: Split, stage: StageConfig, drawing: ExampleSampler) -> tuple[dict[str, Draws], dict[str, Draws]]:
    """By task, and by part for the parts that the stage weights; 0 for those that nobody serves.

    Where lines are not read yet, every line counts that its manifest lets serve a task.
    """
    tasks = {name: [0, 0.0] for name, weight in stage.tasks.items() if weight > 0}
    parts = {name: [0, 0.0] for name, weight in (stage.parts or {}).items() if weight > 0}
    weights = split.stage_weights(stage, drawing, training=True).tolist()
    for weight, part, served in zip(weights, split.parts(), split.served(drawing), strict=True):
        if not (weight and served):
            continue
        shares = {task: stage.tasks[task] for task in served}
        often = stage.epochs * weight * stage.draws
        often /= 1 if stage.tasks_per_utterance == ALL else sum(shares.values())
        for task, share in shares.items():
            tasks[task][0] += 1
            tasks[task][1] += often * share
        if part in parts:
            parts[part][0] += 1
            parts[part][1] += often * sum(shares.values())
    by_task, by_part = ({k: Draws(int(n), round(d)) for k, (n, d) in x.items()} for x in (tasks, parts))
    return by_task, by_part


def check_draws(name: str, recipe: Recipe, split: Split, drawing: ExampleSampler) -> str:
    """How often each task and part of the training side is drawn in a stage, as a line.

    Raises:
        ManifestError: no utterance serves one of them; at `stages.NAME.tasks.TASK`, or `parts.PART`.
    """
    stage = recipe.stages[name]
    tasks, parts = count_draws(split, stage, drawing)
    here = {node.name for node in recipe.data.train}  # others are parts of the validation side
    parts = {part: found for part, found in parts.items() if part in here}
    for key, counted in (("tasks", tasks), ("parts", parts)):
        if unserved := [what for what, found in counted.items() if not found.utterances]:
            told = (
                f"stage {name!r}: no utterance of 'train' that has a weight serves {', '.join(unserved)}: look at the "
            )
            told += "manifests' labels, and at `tasks`, `weight` and `parts` in the recipe; 0 switches it off"
            raise ManifestError(told, code="empty", where=f"stages.{name}.{key}.{unserved[0]}")
    shown = [f"{what} {draws:,} ({served:,})" for what, (served, draws) in tasks.items()]
    shown += [f"part {what} {draws:,} ({served:,})" for what, (served, draws) in parts.items()]
    most = ", at most" if isinstance(split, LazySplit) else ""
    return f"stage {name}, draws in {stage.epochs} epochs (utterances){most}: {', '.join(shown)}"
