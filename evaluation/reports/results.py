"""Scores as a table that a person reads: one row a metric, one column a choice of slots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from sottovoce.errors import SottovoceError
from sottovoce.evaluation.metrics import SLOTS

if TYPE_CHECKING:  # records are written with the help of this module
    from sottovoce.evaluation.records import Record

TASKS = ("asr", "gender", "pitch", "tempo", "energy", "emotion", "age", "dialogue", "response", "caption")
METRICS = {  # as the report names them, with the direction that is better
    "wer": "WER ↓",
    "cer": "CER ↓",
    "mer": "MER ↓",
    "hallucinated": "hallucinated ↓",
    "accuracy": "accuracy ↑",
    "balanced_accuracy": "balanced ↑",
    **{f"rouge_{kind}": f"ROUGE-{kind.upper()} ↑" for kind in "12l"},
    "emotion_fit": "fits ↑",
    "pa_score": "PA-score ↑",
    "pa_rate": "PA-rate ↑",
    "right_before": "right before ↑",
    "right": "right ↑",
    "right_change": "change ↑",
    "nats_before": "nats before ↓",
    "nats": "nats ↓",
    "nats_change": "nats change ↓",
    **{
        f"{name}{key}": f"{label}{when} ↑"
        for name, label in (("score", "score"), ("rating", "rating (1-5)"))
        for key, when in (("_before", " before"), ("", ""), ("_change", " change"))
    },
    **{"panda": "PANDA ↑", "judged": "judged right ↑"},
    **{f"{kind}_prompt": f"{kind}, prompts ↑" for kind in ("strict", "loose")},
    **{f"{kind}_each": f"{kind}, each ↑" for kind in ("strict", "loose")},
    "cs_content": "CS content ↑",
    "cs_style": "CS style ↑",
    **{f"egs_c{number}": f"EGS C{number} ↑" for number in range(1, 5)},
    "quality": "quality (1-10) ↑",
    "emotion": "emotion (1-10) ↑",
    "bert_score": "BERTScore ↑",
    "judge_quality": "quality (1-10) ↑",
    "judge_emotion": "emotion (1-10) ↑",
    "probe": "linear probe ↑",
}
MEANING = {  # of each metric, for `sottovoce list`
    "wer": "asr (`metric: wer`, the default): wrong, missing and inserted words over reference words",
    "cer": "asr (`metric: cer`): the same of characters, without white space",
    "mer": "asr (`metric: mer`): of characters in scripts without spaces, and of words in others",
    "hallucinated": "asr: clips without speech (an empty `text`) on which something is said",
    "accuracy": "attributes: right labels, over utterances",
    "balanced_accuracy": "attributes: right labels, mean over classes",
    "rouge_1": "response, caption: words shared with the target",
    "rouge_2": "response, caption: pairs of words shared with the target",
    "rouge_l": "dialogue, response, caption: longest common subsequence with the target",
    "emotion_fit": "dialogue: replies nearest to the one that is due to the speaker's emotion",
    "pa_score": "paired data: mean of -1, 0, +1, for replies that suit the speaker",
    "pa_rate": "paired data: replies that suit the speaker",
    "right_before": "text prompts: right answers before training",
    "right": "text prompts: right answers after training",
    "right_change": "text prompts: the difference",
    "nats_before": "text prompts: loss of a token before training",
    "nats": "text prompts: loss of a token after training",
    "nats_change": "text prompts: the difference",
    **{
        f"{name}{key}": f"VoiceBench: {told}{when}"
        for name, told in (("score", "what the overall score is the mean of"), ("rating", "mean rating by the judge"))
        for key, when in (("_before", ", before training"), ("", ""), ("_change", ": the difference"))
    },
    "panda": "VoiceBench: answers of SD-QA that give the reference",
    "judged": "VoiceBench: answers of SD-QA that the judge finds right",
    **{f"{kind}_prompt": f"VoiceBench: prompts of IFEval that are followed, {kind}" for kind in ("strict", "loose")},
    **{f"{kind}_each": f"VoiceBench: instructions of IFEval that are followed, {kind}" for kind in ("strict", "loose")},
    "cs_content": "judge `conversation`: content",
    "cs_style": "judge `conversation`: style",
    **{f"egs_c{number}": f"judge `conversation`: EGS, criterion {number}" for number in range(1, 5)},
    "quality": "judge `llm` or `rule`: quality",
    "emotion": "judge `llm` or `rule`: fit to the emotion",
    "bert_score": "table of systems: BERTScore F1",
    "judge_quality": "table of systems: quality",
    "judge_emotion": "table of systems: fit to the emotion",
    "probe": "table of systems: linear probe of the emotion on speech tokens",
}
NATS = ("nats_before", "nats", "nats_change")  # a response token; no shares
POINTS = ("cs_", "egs_", "judge_", "quality/", "emotion/", "rating")  # of a judge
ERROR_RATES = ("wer", "cer", "mer")
CANNOT_SAY = 0.5  # an error rate from text above this: the LLM, not what it hears, is at fault
LEGEND = (
    "In percent (nats: as they are), with the 95 % interval. baseline: a guess that hears nothing. accuracy: the "
    "paper's WA. balanced: the mean over classes. PA: replies that suit the speaker. CS (1-5), EGS (1-10): points."
)


def in_order(records: Iterable[Record]) -> list[Record]:
    """By system, then task, metric and slots as the report has them; names that it does not know come after."""
    return sorted(records, key=lambda record: (record.system, *order_of((record.task, record.metric, record.slots))))


def order_of(score: tuple[str, str, str]) -> tuple[tuple[int, str], ...]:
    """The place of a score, (task, metric, slots), in a report."""
    return tuple(_rank(name, known) for name, known in zip(score, (TASKS, METRICS, SLOTS), strict=True))


def label_of(metric: str) -> str:
    """A metric as tables name it; `cs_content/qwen` is a score by the judge that the recipe calls qwen.

    What stands behind an error rate is its normalizer: `cer/basic`, and the English one of `wer`.
    """
    name, _, judge = ("wer/english" if metric == "wer" else metric).partition("/")
    label = METRICS.get(name, name)
    words, _, arrow = label.rpartition(" ")
    return f"{words} ({judge}) {arrow}" if judge and words else label


def results_table(records: Sequence[Record]) -> Table:
    """For the terminal, at most 100 columns wide; several systems stand one below the other.

    An error, here and in `results_markdown`: two records share system, task, metric and slots.
    """
    page = Table.grid()
    for system, group in _systems(records).items():
        page.add_row(_terminal(system, group))
    return page


def results_markdown(records: Sequence[Record]) -> str:
    """The same for `results.md`: a heading, a table and the notes of each system."""
    parts = ["# Results", LEGEND]
    for system, group in _systems(records).items():
        slots = _slots(group)
        table = [_line("task", "metric", *slots, "baseline", "n"), _line("---", "---", *["---:"] * (len(slots) + 2))]
        table += [_line(*row) for row in _rows(group)]
        parts += [f"## {system}", "\n".join(table)]
        parts += ["\n".join(f"- {note}" for note in notes)] if (notes := _notes(group)) else []
    return "\n\n".join(parts) + "\n"


def _terminal(system: str, records: Sequence[Record]) -> Table:
    caption = "\n".join(escape(line) for line in [LEGEND, *_notes(records)])
    table = Table(
        title=escape(system), caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False
    )
    for name in ("task", "metric"):
        table.add_column(name)
    for name in (*_slots(records), "base-\nline", "n"):
        table.add_column(escape(name), justify="right")
    rows = _rows(records)
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        spans = (span.replace("-", "-\n") if len(span) > 1 else span for span in row[-2:])  # narrow
        table.add_row(
            *map(escape, (row[0], _narrow(row[1]), *row[2:-2], *spans)),
            end_section=after is not None and after[0] != row[0],
        )
    return table


def _narrow(label: str) -> str:
    """A normalizer on a line of its own."""
    name, _, rest = label.partition(" (")
    return f"{name}{rest[-2:]}\n({rest[:-2]}" if rest and name in ("WER", "CER", "MER") else label


def _systems(records: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    seen = set()
    for record in in_order(records):
        key = (record.system, record.task, record.metric, record.slots)
        if key in seen:
            message = f"two records of {' '.join(key)}; give the systems different names"
            raise SottovoceError(message, code="conflict", where=record.system)
        seen.add(key)
        groups.setdefault(record.system, []).append(record)
    return groups


def _slots(records: Iterable[Record]) -> list[str]:
    """Those that were scored: of the paper's four, and the recipe's own."""
    found = {record.slots for record in records}
    return [*filter(found.__contains__, SLOTS), *sorted(found - set(SLOTS))]


def _rows(records: Sequence[Record]) -> list[list[str]]:
    """Task, metric, a cell for each choice of slots, baseline and n."""
    lines: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        lines.setdefault((record.task, record.metric), {})[record.slots] = record
    columns = _slots(records)
    return [_row(task, metric, by_slots, columns) for (task, metric), by_slots in lines.items()]


def _row(task: str, metric: str, by_slots: dict[str, Record], columns: Sequence[str]) -> list[str]:
    cells = [_cell(by_slots[slots]) if slots in by_slots else "-" for slots in columns]
    baselines = sorted(record.baseline for record in by_slots.values() if record.baseline is not None)
    baseline = _span([_percent(value) for value in baselines])
    n = _span([str(count) for count in sorted(record.n for record in by_slots.values())])
    return [task, label_of(metric), *cells, baseline, n]


def _cell(record: Record) -> str:
    return f"{shown(record.metric, record.value)} [{shown_range(record.metric, record.low, record.high)}]"


def shown_range(metric: str, *ends: float) -> str:
    """`1.0-2.0`; where an end is negative, `-1.0 to 2.0`."""
    low, high = (shown(metric, end) for end in ends)
    return f"{low} to {high}" if "-" in low + high else f"{low}-{high}"


def shown(metric: str, number: float) -> str:
    """A number as tables have it: shares in percent."""
    if metric.startswith(POINTS):
        return f"{number:.2f}"
    if metric == "bert_score":  # whose values lie close together
        return f"{100 * number:.2f}"
    return f"{number:.3f}" if metric in NATS else _percent(number)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".replace("100.0", "100")  # a full score needs no decimal, and the terminal is narrow


def _span(ordered: Sequence[str]) -> str:
    """One text where all slots agree, the range where they do not."""
    if not ordered:
        return "-"
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]}-{ordered[-1]}"


def _notes(records: Iterable[Record]) -> list[str]:
    records = list(records)
    lines = [f"{record.task}, {record.slots}: {record.notes}" for record in records if record.notes]
    lines += [_topline_note(record) for record in records if _cannot_say(record)]
    lines += [note] if (note := speakers_note(record.speakers for record in records)) else []
    return list(dict.fromkeys(lines))  # both accuracies of a task say the same


def _cannot_say(record: Record) -> bool:
    """Whether it is the error rate of an LLM that reads the words and does not say them."""
    rate = record.metric.partition("/")[0]
    return record.slots == "text" and rate in ERROR_RATES and record.value > CANNOT_SAY


def _topline_note(record: Record) -> str:
    value = shown(record.metric, record.value)
    told = f"{record.task}, text: {value} %: this LLM cannot say these words even when it reads them"
    return f"{told}; `sottovoce diagnose RUN` looks into it"


def speakers_note(speakers: Iterable[int]) -> str:
    """What intervals are over, given the number of speakers of each; empty where none is known."""
    counts = sorted(set(speakers))
    if not counts or not counts[-1]:
        return ""
    span = _span([str(count) for count in counts if count])
    return f"intervals: over {span} speakers, with all that each says{'' if counts[0] else ', or over rows'}"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _rank(name: str, known: Iterable[str]) -> tuple[int, str]:
    order, base = list(known), name.partition(" (")[0].partition("/")[0]  # a part of the test side, a judge
    return (order.index(base) if base in order else len(order), name)
