"""Answers about speakers, scored over all parts together, with intervals that resample speakers."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from speakers import AGE, EMOTION, GENDER

from sottovoce.evaluation.bootstrap import bootstrap, mean_of_ratios
from sottovoce.evaluation.metrics import Prediction, balanced_accuracy

BASELINE, UNTRAINED, TRAINED = "log-mel + pitch", "Conformer, random", "Conformer, BEST-RQ"
TOLD = "adapter, the LLM's words"
SYSTEMS = (BASELINE, UNTRAINED, TRAINED, TOLD)
REFERENCES = {EMOTION: 0.49, AGE: 0.72, GENDER: 0.92}  # logistic regression, as the data's README has it


class Answers(NamedTuple):
    """What the probe of one system said of the speakers of one part."""

    task: str
    system: str
    part: int
    layer: int | None  # of a Conformer, from 0
    predictions: tuple[Prediction, ...]


class Result(NamedTuple):
    """Balanced accuracy of one system on all speakers that were tested; the interval resamples speakers."""

    task: str
    system: str
    value: float
    low: float
    high: float
    chance: float
    clips: int
    speakers: int
    parts: dict[int, float]
    layers: dict[int, int | None]


def results_of(answers: Sequence[Answers]) -> list[Result]:
    """Score the parts of each task and system together."""
    keys = dict.fromkeys((one.task, one.system) for one in answers)
    return [result([one for one in answers if (one.task, one.system) == key]) for key in keys]


def result(answers: Sequence[Answers]) -> Result:
    """Score what one system said in all parts of one task."""
    predictions = [prediction for one in answers for prediction in one.predictions]
    score, by_speaker = balanced_accuracy(predictions), recalls_by_speaker(predictions)
    low, high = bootstrap(by_speaker, mean_of_ratios)
    parts = {one.part: balanced_accuracy(one.predictions).value for one in answers}
    layers = {one.part: one.layer for one in answers}
    first, chance = answers[0], 1 / (by_speaker.shape[1] // 2)
    return Result(
        first.task, first.system, score.value, low, high, chance, len(predictions), len(by_speaker), parts, layers
    )


def recalls_by_speaker(predictions: Sequence[Prediction]) -> NDArray[np.float64]:
    """(speakers, 2 * classes): how many clips of each class a speaker has of which the class was found, then of all."""
    classes, speakers = (
        sorted({str(value) for value in column}) for column in zip(*map(_truth, predictions), strict=True)
    )
    counts = np.zeros((len(speakers), 2, len(classes)))
    for prediction in predictions:
        label, speaker = _truth(prediction)
        counts[speakers.index(speaker), :, classes.index(label)] += (prediction.predicted == label, 1)
    return counts.reshape(len(speakers), -1)


def _truth(prediction: Prediction) -> tuple[str, str]:
    return str(prediction.label), str(prediction.speaker)


def write(runs: Path, results: Sequence[Result]) -> None:
    """Print the table and keep it, and the numbers."""
    (runs / "results.json").write_text(json.dumps([result._asdict() for result in results], indent=2) + "\n", "utf-8")
    head, lines = ("task", "speakers", "clips", "chance", "reference", *SYSTEMS), [*lines_of(results)]
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    note = "Balanced accuracy on unheard speakers, in percent, with the 95 % interval over speakers."
    page = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    (runs / "results.md").write_text(f"# Linear probes of real speech\n\n{note}\n\n{page}\n", "utf-8")
    table = Table(title="Linear probes of real speech", caption=note)
    for name in head:
        table.add_column(name, justify="left" if name == "task" else "right")
    for line in lines:
        table.add_row(*line)
    console = Console()
    console.print(table)
    console.print(f"written: {runs / 'results.md'}, {runs / 'results.json'}", highlight=False)


def lines_of(results: Sequence[Result]) -> Iterator[list[str]]:
    for task in dict.fromkeys(result.task for result in results):
        of_task = {result.system: result for result in results if result.task == task}
        one, reference = of_task[BASELINE], f"{100 * REFERENCES[task]:.0f}"
        cells = [_cell(of_task.get(system)) for system in SYSTEMS]
        yield [task, str(one.speakers), str(one.clips), f"{100 * one.chance:.1f}", reference, *cells]


def _cell(found: Result | None) -> str:
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}-{100 * found.high:.1f}]" if found else "-"
