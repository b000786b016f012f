"""How well the ear hears: scores with their intervals, records of them, and tables."""

from undertone.rooms import one_copy

one_copy(__name__)

from undertone.evaluation import awareness_llm, conversation, rule_judge  # noqa: F401  (registers them)
from undertone.evaluation.awareness import AWARENESS_JUDGES, AwarenessJudge, labelled
from undertone.evaluation.judge import JUDGES, Judge, Reply, Verdict
from undertone.evaluation.metrics import SLOTS, Prediction, Score
from undertone.evaluation.records import Record, read_predictions, read_results, score_all, write_results
from undertone.evaluation.report import results_markdown, results_table

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
