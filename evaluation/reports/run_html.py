"""A run as one page that opens from disk: scores with intervals, confusions, learning curves, answers with audio."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sottovoce.errors import MissingError
from sottovoce.evaluation.metrics import Measure, Prediction
from sottovoce.evaluation.records import GENERATED, Record, is_wrong, scores_due
from sottovoce.evaluation.reports.pages import NO_PLOTS, data_uri, render
from sottovoce.evaluation.reports.plots import COLOURS, Bar, Panel, interval_plot
from sottovoce.evaluation.reports.results import (
    NATS,
    POINTS,
    in_order,
    label_of,
    order_of,
    shown,
    shown_range,
    speakers_note,
)
from sottovoce.evaluation.reports.run_plots import Confusion, Curve, confusion_plot, curve_plot
from sottovoce.evaluation.reports.tables import Cell, Grid

SHOWN = 20  # wrong answers of a task
NONE = "none"  # an answer that names no label, or several
LEGEND = (
    "In percent; nats and points of judges as they are. [ ] is the 95 % interval of a bootstrap: what other test sets "
    "of this size might have scored."
)


@dataclass
class RunReport:
    """What a page of a run is made of."""

    name: str
    records: Sequence[Record]
    predictions: Sequence[Prediction]
    curves: Mapping[str, Sequence[Sequence[Curve]]] = field(default_factory=dict)  # stage -> panels of curves
    sounds: Mapping[str, str] = field(default_factory=dict)  # `audio` of a prediction -> address for a player
    recipe: str = ""
    made: str = ""  # when, by which version and commit


def run_html(report: RunReport) -> str:
    """One HTML file, which needs nothing but itself and clips that it refers to; tables alone without matplotlib."""
    rows = [p for p in report.predictions if not p.unscored]
    confusions, panels = confusions_of(rows), list(score_panels(rows))
    try:
        plots = {slots: data_uri(confusion_plot(each)) for slots, each in confusions.items()}
        curves = data_uri(curve_plot(report.curves)) if report.curves else ""
        scores, missing = data_uri(interval_plot(panels)) if panels else "", ""
    except MissingError:
        plots, curves, scores, missing = {}, "", "", NO_PLOTS
    return render(
        "run.html",
        name=report.name,
        made=report.made,
        notes=list(dict.fromkeys(f"{r.task}, {r.slots}: {r.notes}" for r in report.records if r.notes)),
        missing=missing,
        legend=" ".join([LEGEND, resampled(report.records, panels)]),
        score_plot=scores,
        scores=score_table(report.records),
        confusions=list(plots.items()),
        curve_plot=curves,
        wrong=list(_wrong(report, rows)),
        others=list(_others(report)),
        recipe=report.recipe,
    )


def resampled(records: Sequence[Record], panels: Sequence[Panel]) -> str:
    """What the intervals are over, in words: those of the table, and of the picture."""
    note = speakers_note(record.speakers for record in records)
    table = f"In the table, {note}." if note else "In the table utterances are resampled, as if all were independent."
    if any(bar.other for panel in panels for bar in panel.bars):
        told = "In the picture the thick line resamples speakers, the pale one below it utterances; where the thick one"
        return f"{table} {told} is longer, speakers differ, and the pale one is too narrow."
    return f"{table} Speakers are not known: of few of them the intervals are too narrow."


def score_table(records: Sequence[Record]) -> Grid:
    """A row for each metric of each task, a column for each choice of slots."""
    ordered = list(in_order(records))
    slots = list(dict.fromkeys(record.slots for record in ordered))
    cells: dict[tuple[str, str], dict[str, Record]] = {}
    for record in ordered:
        cells.setdefault((record.task, record.metric), {})[record.slots] = record
    rows = []
    for (task, metric), found in cells.items():
        own = [_cell(found[name]) if name in found else Cell() for name in slots]
        first = next(iter(found.values()))
        baseline = Cell() if first.baseline is None else Cell(shown(metric, first.baseline))
        rows.append(((task, label_of(metric)), [*own, baseline, Cell(str(first.n))]))
    return Grid("Scores", ("task", "score"), [*slots, "baseline", "n"], rows)


def _cell(record: Record) -> Cell:
    return Cell(shown(record.metric, record.value), f"[{shown_range(record.metric, record.low, record.high)}]")


def score_panels(rows: Sequence[Prediction]) -> Iterator[Panel]:
    """A panel for each score, a bar for each choice of slots; below the interval over speakers that over utterances."""
    due: dict[tuple[str, str], dict[str, Measure]] = {}
    for each in scores_due(rows) if rows else ():
        if each.name != "accuracy":  # balanced says it better
            due.setdefault((each.task, each.name), {})[each.slots] = each.metric.measure(each.rows)
    names = sorted({slots for found in due.values() for slots in found}, key=lambda slots: order_of(("", "", slots)))
    for (task, metric), found in sorted(due.items(), key=lambda each: order_of((*each[0], ""))):
        share = metric not in NATS and not metric.startswith(POINTS)
        bars = [
            _bar(name, found.get(name), COLOURS[at % len(COLOURS)], 100 if share else 1)
            for at, name in enumerate(names)
        ]
        yield Panel(f"{task}: {label_of(metric)}" + (", %" if share else ""), bars)


def _bar(name: str, measure: Measure | None, colour: str, scale: float) -> Bar:
    if measure is None:
        return Bar(name)
    score = measure.score()
    value = (scale * score.value, scale * score.low, scale * score.high)
    if not score.speakers:
        return Bar(name, value, colour=colour)
    alone = measure._replace(speakers=()).score()
    return Bar(name, value, colour=colour, other=(scale * alone.low, scale * alone.high))


def confusions_of(rows: Sequence[Prediction]) -> dict[str, list[Confusion]]:
    """Choice of slots -> a matrix for each attribute; `text`, which hears nothing, comes last."""
    parts: dict[str, dict[str, list[Prediction]]] = {}
    for row in rows:
        if row.label is not None and row.task not in (*GENERATED, "asr"):
            parts.setdefault(row.slots, {}).setdefault(row.title, []).append(row)
    order = sorted(parts, key=lambda slots: (slots != "both", slots == "text"))
    return {slots: [_confusion(title, each) for title, each in parts[slots].items()] for slots in order}


def _confusion(title: str, rows: Sequence[Prediction]) -> Confusion:
    right = sorted({str(row.label) for row in rows})
    told = {NONE if row.predicted is None else row.predicted for row in rows}
    answered = [*right, *sorted(told - {*right, NONE}), *([NONE] if NONE in told else [])]
    counts = np.zeros((len(right), len(answered)), np.intp)
    for row in rows:
        counts[right.index(str(row.label)), answered.index(NONE if row.predicted is None else row.predicted)] += 1
    return Confusion(title, right, answered, counts)


def _heard(rows: Sequence[Prediction]) -> list[Prediction]:
    """The rows of one choice of slots: `both`, or where that was not asked the first."""
    names = list(dict.fromkeys(row.slots for row in rows))
    chosen = "both" if "both" in names else next(iter(names), "")
    return [row for row in rows if row.slots == chosen]


def wrong_rows(rows: Sequence[Prediction]) -> dict[str, tuple[list[Prediction], int]]:
    """Task -> its wrong rows under all slots together, and how many can be right or wrong."""
    judged = [(row, is_wrong(row)) for row in _heard(rows)]
    titles = dict.fromkeys(row.title for row, wrong in judged if wrong is not None)
    return {
        title: (
            [row for row, wrong in judged if row.title == title and wrong],
            sum(row.title == title and wrong is not None for row, wrong in judged),
        )
        for title in titles
    }


def _wrong(report: RunReport, rows: Sequence[Prediction]) -> Iterator[tuple[str, int, int, list[dict[str, Any]]]]:
    for task, (found, total) in wrong_rows(rows).items():
        if found:
            yield task, len(found), total, [_row(report, row) for row in found[:SHOWN]]


def _others(report: RunReport) -> Iterator[tuple[str, int, list[dict[str, Any]]]]:
    """Replies and other answers that are neither right nor wrong."""
    parts: dict[str, list[Prediction]] = {}
    for row in _heard(report.predictions):
        if is_wrong(row) is None:
            parts.setdefault(row.title, []).append(row)
    for task, rows in parts.items():
        yield task, len(rows), [_row(report, row) for row in rows[:SHOWN]]


def shown_audio(report_rows: Sequence[Prediction]) -> list[str]:
    """The clips that a page of these predictions plays, in its order."""
    rows = [p for p in report_rows if not p.unscored]
    wrong = [row for found, _ in wrong_rows(rows).values() for row in found[:SHOWN]]
    parts: dict[str, list[Prediction]] = {}
    for row in _heard(report_rows):
        if is_wrong(row) is None:
            parts.setdefault(row.title, []).append(row)
    rest = [row for rows in parts.values() for row in rows[:SHOWN]]
    return list(dict.fromkeys(row.audio for row in [*wrong, *rest] if row.audio))


def _row(report: RunReport, row: Prediction) -> dict[str, Any]:
    right = row.label if row.label is not None and row.task not in GENERATED else row.target
    return {
        "id": row.id,
        "sound": report.sounds.get(row.audio or "", ""),
        "text": "" if row.text is None else row.text,
        "right": right,
        "answer": row.response,
        "slots": row.slots,
        "speaker": row.speaker or "",
    }
