"""A diagnosis as a table of the terminal, a Markdown page, and a picture of bars for each task."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from sottovoce.analysis.stage_losses import StageLosses
from sottovoce.analysis.verdicts import THRESHOLDS, TaskDiagnosis
from sottovoce.evaluation.metrics import Score
from sottovoce.evaluation.reports.plots import COLOURS, canvas

ENCODER, ADAPTER, LLM = COLOURS[0], COLOURS[1], COLOURS[2]


class Bar(NamedTuple):
    """One measure of a task: `score` is as reported, `error` says that less is better."""

    name: str
    colour: str
    score: Score
    error: bool = False


def bars_of(d: TaskDiagnosis) -> Iterator[Bar]:
    """All measures of a task, from the encoder to the LLM's answers."""
    error, what = d.kind == "asr", "words" if d.kind == "asr" else "probe"
    if d.decoder:
        yield Bar("encoder's own decoder", ENCODER, d.decoder, True)
    for name, score in d.frames.items():
        layers = ", ".join(map(str, sorted(set(d.best_layers))))
        told = {"last": "last layer", "best": f"best layer ({layers})"}.get(name, f"heard by {name}")
        yield Bar(f"{what}: {told}", ENCODER, score)
    for name, score in d.tokens.items():
        yield Bar(f"{what}: tokens of {name}", ADAPTER, score)
    for name, score in d.readings.items():
        yield Bar(f"nearest words: {name}", ADAPTER, score)
    if d.answers:
        yield Bar("LLM, from speech", LLM, d.answers, error)
    if d.topline:
        yield Bar("LLM, from text", LLM, d.topline, error)


def diagnosis_table(found: Sequence[TaskDiagnosis], losses: StageLosses | None) -> Table:
    """Tasks side by side: a row a measure."""
    table = Table("", *(f"{d.task} ({d.test})" for d in found), title="percent, chance in brackets; error rates ↓")
    for name, cells in _grid(found, intervals=False).items():
        table.add_row(name, *(cells.get(d.task, "") for d in found))
    if losses:
        table.caption = _stage(losses)
    return table


def diagnosis_page(
    found: Sequence[TaskDiagnosis], losses: StageLosses | None, source: str, pictures: Mapping[str, str]
) -> str:
    """The same in Markdown, with the sentences, what was left out, and the thresholds."""
    lines = ["# Diagnosis", "", f"Of `{source}`.", ""]
    lines += [f"- **{d.task}**: {d.sentence}" for d in found]
    lines += ["", "In percent, with the 95 % interval, and chance in brackets; of error rates (↓) less is better.", ""]
    lines += [f"| | {' | '.join(d.task for d in found)} |", f"|---|{'---:|' * len(found)}"]
    for name, cells in _grid(found).items():
        lines.append(f"| {name} | {' | '.join(cells.get(d.task, '') for d in found)} |")
    lines += ["", _stage(losses), ""] if losses else [""]
    for d in found:
        lines += [f"## {d.task}", ""]
        lines += [f"![{d.task}]({pictures[d.task]})", ""] if d.task in pictures else []
        told = [f"{d.test} test utterances, {d.train} to learn from; carried by {', '.join(d.carriers)}", *d.notes]
        told += (
            [f"{100 * d.told:.0f} % of the texts of the topline have the label in them"] if d.told is not None else []
        )
        told += [f"left out, {what}: {why}" for what, why in d.left_out.items()]
        lines += [f"- {one}" for one in told] + [""]
    known = ", ".join(f"{name} {value:g}" for name, value in THRESHOLDS.items())
    lines += [f"Thresholds (`analysis/verdicts.py`): {known}.", ""]
    return "\n".join(lines)


def _grid(found: Sequence[TaskDiagnosis], *, intervals: bool = True) -> dict[str, dict[str, str]]:
    """Measure -> task -> cell, in the order of the parts."""
    grid: dict[str, dict[str, str]] = {"verdict": {d.task: d.verdict for d in found}}
    for d in found:
        for bar in bars_of(d):
            name = "best layer" if "best layer" in bar.name else bar.name
            grid.setdefault(name.removeprefix("words: ").removeprefix("probe: "), {})[d.task] = _cell(bar, intervals)
        for side, known in d.loss.items():
            for source, value in known.items():
                grid.setdefault(f"nats, {side}: {source}", {})[d.task] = f"{value:.3f}"
    ends = [name for name in grid if name.startswith("LLM")] + [name for name in grid if name.startswith("nats")]
    return {name: grid[name] for name in [n for n in grid if n not in ends] + ends}


def _cell(bar: Bar, interval: bool) -> str:
    score = bar.score
    ends = f" [{100 * score.low:.1f}, {100 * score.high:.1f}]" if interval else ""
    chance = f" ({100 * score.baseline:.0f})" if score.baseline is not None else ""
    return f"{100 * score.value:.1f}{ends}{chance}{' ↓' * bar.error}"


def _stage(losses: StageLosses) -> str:
    parts = [
        ("training, end", losses.train_final),
        ("validation, end", losses.val_final),
        ("validation, best", losses.val_best),
        ("gap", losses.gap),
    ]
    told = ", ".join(f"{name} {value:.3f}" for name, value in parts if value is not None)
    at = f" (step {losses.best_step})" if losses.best_step is not None else ""
    return f"loss of the stage, nats a token: {told}{at}"


def task_picture(d: TaskDiagnosis, file: Path) -> None:
    """Draw every measure of a task as a bar with its interval and its chance, as PNG; error rates as what is right.

    Raises:
        MissingError: matplotlib is not installed.
    """
    bars = list(bars_of(d))
    with canvas(file, 6.5, 0.9 + 0.3 * max(1, len(bars))) as figure:
        axes = figure.subplots()
        for at, bar in enumerate(bars):
            value, low, high = (bar.score.value, bar.score.low, bar.score.high)
            if bar.error:
                value, low, high = (max(0.0, 1 - each) for each in (value, high, low))
            axes.barh(at, value, color=bar.colour, height=0.7)
            axes.plot([low, high], [at, at], color="0.25", linewidth=1.2)
            if not bar.error and bar.score.baseline is not None:
                axes.plot([bar.score.baseline] * 2, [at - 0.45, at + 0.45], color="black", linestyle=":", linewidth=1.2)
        axes.set_yticks(range(len(bars)), [f"{bar.name} (1 - {d.metric})" if bar.error else bar.name for bar in bars])
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_title(f"{d.task}: {d.verdict}", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(xlabel="share (dotted: chance)")
