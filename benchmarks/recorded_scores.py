"""The table of recorded_people.py: scores with intervals over speakers, and paired differences of systems."""

from collections.abc import Iterator, Sequence

from shared import table

from sottovoce.evaluation.metrics import Prediction
from sottovoce.evaluation.paired_bootstrap import Estimate, Key, estimate
from sottovoce.evaluation.records import Record, scores_due

ROWS = [
    ("asr", "wer"),
    ("asr (digits)", "wer"),
    *((task, "balanced_accuracy") for task in ("age", "gender", "emotion")),
]
SLOTS = ("both", "paralinguistic", "linguistic")


def shown(score: Record | Estimate, sign: str = "") -> str:
    return f"{100 * score.value:{sign}.1f} [{100 * score.low:{sign}.1f} to {100 * score.high:{sign}.1f}]"


def results(answers: dict[str, list[Prediction]], references: Sequence[tuple[str, str, str]]) -> str:
    """Markdown: each task by every system and choice of slots, what it stands against, and paired differences."""
    lines, measured = [], {system: estimates(predictions) for system, predictions in answers.items()}
    first = next(iter(answers))
    for system, found in measured.items():
        lines += _lines_of(system, {key: shown(score) for key, score in found.items()})
        if system != first:
            gaps = {key: score - measured[first][key] for key, score in found.items() if key in measured[first]}
            lines += _lines_of(f"{system}, less {first}", {key: shown(gap, "+") for key, gap in gaps.items()})
    lines += [(task, system, score, "", "") for task, system, score in references]
    lines.sort(key=lambda line: [task for task, _ in ROWS].index(line[0]))
    return table(("task", "system", *SLOTS), lines, words=2) + "\n"


def estimates(predictions: Sequence[Prediction]) -> dict[Key, Estimate]:
    """Scores with intervals over speakers; rows by utterance, so that two systems' are in the same order."""
    return {
        Key(due.task, due.name, due.slots): estimate({0: due.metric.measure(sorted(due.rows, key=lambda row: row.id))})
        for due in scores_due(predictions) if (due.task, due.name) in ROWS
    }  # fmt: skip


def _lines_of(system: str, cells_of: dict[Key, str]) -> Iterator[tuple[str, ...]]:
    for task, metric in ROWS:
        cells = [cells_of.get(Key(task, metric, slots), "") for slots in SLOTS]
        if any(cells):
            yield task, system, *cells
