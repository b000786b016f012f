"""Records of scores, and the files of a run's `evaluation` folder."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from sottovoce.errors import MissingError, SottovoceError
from sottovoce.evaluation.awareness import AWARENESS, can_fit, emotion_fit, groups
from sottovoce.evaluation.metrics import (
    DECIMALS,
    Metric,
    Prediction,
    accuracy,
    balanced_accuracy,
    error_rate,
    hallucination_rate,
    is_silent,
)
from sottovoce.evaluation.normalizers import NORMALIZERS, rate_of
from sottovoce.evaluation.own_metrics import own_metrics
from sottovoce.evaluation.reports.results import in_order, results_markdown
from sottovoce.evaluation.text_similarity import ROUGE, rouge_l
from sottovoce.io import atomic_write


@dataclass(frozen=True)
class Record:
    """One score of one system: a line of `results.json`, where all but `notes` is kept.

    `value`, `low`, `high` (the 95 % interval) and `baseline` are shares, 1 is 100 %; of judges (`cs_content/<judge>`)
    they are points. `n` counts utterances; the interval is over `speakers`, or over utterances where that is 0. A
    `task` may have a part of the test side in brackets.
    """

    system: str
    task: str
    metric: str
    slots: str
    value: float
    low: float
    high: float
    n: int
    baseline: float | None
    notes: str = ""
    speakers: int = 0


KEYS = tuple(field.name for field in fields(Record) if field.name != "notes")  # of each record in results.json

GENERATED = ("dialogue", "response", "caption")  # tasks whose targets are texts of the LLM's own
OPTIONAL = (
    "category",
    "topic",
    "judge",
    "awareness",
    "source",
    "unscored",
    "metric",
    "audio",
    "text",
    "values",
)  # keys of a prediction that older runs lack


def score_all(system: str, predictions: Sequence[Prediction]) -> list[Record]:
    """Every metric of every task, for each choice of slots apart, in the order of the report.

    `asr` gets the error rate that its predictions name, and the rate of hallucinations where clips have no speech;
    `dialogue` ROUGE-L, `response` and `caption` ROUGE-1, -2 and -L, and all three the emotion's fit where rows have
    rivals; every other task is an attribute and gets both accuracies. What has values by metrics of one's own gets
    their means. Replies with a category also get PA-score and PA-rate, as a task of the category's name (see
    `awareness.groups`).

    Raises:
        SottovoceError: there are no predictions; a row lacks what its metric needs.
    """
    if not predictions:
        message = f"score_all: system {system!r} has no predictions to score; is the test set empty?"
        raise SottovoceError(message, code="empty", where=system)
    due = scores_due(predictions)
    return in_order(Record(system, d.task, d.name, d.slots, **d.metric(d.rows)._asdict()) for d in due)


class Due(NamedTuple):
    """A score that is to be made: the metric called `name`, of these rows."""

    task: str
    name: str
    slots: str
    metric: Metric
    rows: list[Prediction]


def scores_due(predictions: Sequence[Prediction]) -> list[Due]:
    """All that predictions are good for, see `score_all`; `rows` keep their order."""
    parts: dict[tuple[str, str, str | None], list[Prediction]] = {}
    predictions = [prediction for prediction in predictions if not prediction.unscored]
    for prediction in predictions:
        parts.setdefault((prediction.title, prediction.slots, prediction.metric), []).append(prediction)
    due = []
    for (title, slots, _), rows in parts.items():
        due += [Due(title, name, slots, metric, rows) for name, metric in _metrics(rows).items()]
        due += [Due(title, name, slots, metric, rows) for name, metric in own_metrics(rows).items()]
        felt = [row for row in rows if row.category is None]  # the rivals of others are no replies to emotions
        if rows[0].task in GENERATED and any(map(can_fit, felt)):
            due.append(Due(title, "emotion_fit", slots, emotion_fit, felt))
    silent: dict[tuple[str, str], list[Prediction]] = {}
    for p in predictions:
        if p.task == "asr" and is_silent(p):
            silent.setdefault((p.title, p.slots), []).append(p)
    due += [Due(title, "hallucinated", slots, hallucination_rate, rows) for (title, slots), rows in silent.items()]
    aware = groups(predictions)
    return [*due, *(Due(g.name, name, g.slots, metric, g.rows) for g in aware for name, metric in AWARENESS.items())]


def is_wrong(prediction: Prediction) -> bool | None:
    """Whether an answer is not the right one; None for a reply or a caption, which nothing says of it alone.

    Of `asr`: whether an error is left after normalising; of paired data: whether the reply was judged to suit the
    speaker.
    """
    if prediction.unscored:
        return None
    if prediction.task == "asr":
        normalize = NORMALIZERS[rate_of(prediction.metric or "wer")[1]]
        return normalize(prediction.response).split() != normalize(prediction.target).split()
    if prediction.task in GENERATED or prediction.category is not None:
        return None if prediction.awareness is None else prediction.awareness < 1
    return None if prediction.label is None else prediction.predicted != prediction.label


def write_results(folder: Path, records: Sequence[Record], predictions: Sequence[Prediction]) -> None:
    """Write `predictions.jsonl`, `results.md` and, last, `results.json` into `folder`.

    Each file appears whole or not at all; whoever finds `results.json` finds the others of the same run.
    """
    lines = "".join(_line(asdict(prediction)) + "\n" for prediction in predictions)
    texts = (lines, results_markdown(records), _json(in_order(records)))  # all of them, before a file is touched
    for name, text in zip(("predictions.jsonl", "results.md", "results.json"), texts, strict=True):
        atomic_write(folder / name, text)


def read_results(folder: Path) -> list[Record]:
    """The records of a run, without their notes, from `results.json`; errors where it is missing or damaged."""
    file = folder / "results.json"
    rows = _parse(_read(file), str(file))
    if not isinstance(rows, list):
        raise SottovoceError.at(file, "damaged", f"expected a list of records, found {type(rows).__name__}")
    return [Record(**_checked(row, KEYS, f"{file}: record {i}", ["speakers"])) for i, row in enumerate(rows, 1)]


def read_predictions(folder: Path) -> list[Prediction]:
    """The predictions of a run, from `predictions.jsonl`; errors name the line that is none, or the missing file."""
    file, keys = folder / "predictions.jsonl", [field.name for field in fields(Prediction)]
    lines = ((f"{file}:{i}", line) for i, line in enumerate(_read(file).split("\n"), 1) if line)
    return [Prediction(**_checked(_parse(line, where), keys, where, OPTIONAL)) for where, line in lines]


def _metrics(rows: Sequence[Prediction]) -> dict[str, Metric]:
    """Of one task, whose rows share the error rate that they name."""
    task, rate = rows[0].task, rows[0].metric
    if task == "asr":
        return {} if all(map(is_silent, rows)) else {rate or "wer": error_rate(rate or "wer")}
    if task in GENERATED:
        return {"rouge_l": rouge_l} if task == "dialogue" else ROUGE  # each paper reports its own
    return {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy}


def _json(records: Sequence[Record]) -> str:
    named = ([key for key in KEYS if key != "speakers" or record.speakers] for record in records)
    rows = [_line({key: _rounded(getattr(r, key)) for key in keys}) for r, keys in zip(records, named, strict=True)]
    return "[\n  " + ",\n  ".join(rows) + "\n]\n" if rows else "[]\n"


def _rounded(value: Any) -> Any:
    return round(value, DECIMALS) if isinstance(value, float) else value


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def _read(file: Path) -> str:
    if not file.is_file():
        message = f"{file} does not exist; point at the `evaluation` folder of a run that was scored"
        raise MissingError(message, where=file)
    return file.read_text(encoding="utf-8")


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SottovoceError.at(where, "damaged", f"not JSON: {error}") from None


def _checked(row: Any, keys: Iterable[str], where: str, absent: Collection[str] = ()) -> dict[str, Any]:
    """The row, if it has these keys and no others; those in `absent` it may lack."""
    expected = list(keys)
    if not isinstance(row, dict) or set(row) | set(absent) != set(expected):
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise SottovoceError.at(where, "damaged", f"expected the keys {', '.join(expected)}; found {found}")
    return row
