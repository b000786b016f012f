"""How well the ear hears: scores with their intervals, records of them, and tables."""

from sottovoce.evaluation.awareness import AWARENESS_JUDGES, AwarenessJudge, labelled
from sottovoce.evaluation.judges import awareness, conversation, exemplar  # noqa: F401  (registers them)
from sottovoce.evaluation.judges.llm import JUDGES, Judge, Reply, Verdict
from sottovoce.evaluation.metrics import SLOTS, Prediction, Score
from sottovoce.evaluation.records import Record, read_predictions, read_results, score_all, write_results
from sottovoce.evaluation.reports.results import results_markdown, results_table

__all__ = [
    "AWARENESS_JUDGES",
    "JUDGES",
    "SLOTS",
    "AwarenessJudge",
    "Judge",
    "Prediction",
    "Record",
    "Reply",
    "Score",
    "Verdict",
    "labelled",
    "read_predictions",
    "read_results",
    "results_markdown",
    "results_table",
    "score_all",
    "write_results",
]
