"""Evaluation: metrics with intervals, judges, records, layer-wise analyses, reports."""

from typing import TYPE_CHECKING

from sottovoce.registry import Registry, lazy_attributes

if TYPE_CHECKING:
    from sottovoce.evaluation.awareness import AwarenessJudge, labelled
    from sottovoce.evaluation.judges.base import Judge, Reply, Verdict
    from sottovoce.evaluation.metrics import SLOTS, Prediction, Score
    from sottovoce.evaluation.own_metrics import OwnMetric
    from sottovoce.evaluation.records import Record, read_predictions, read_results, score_all, write_results
    from sottovoce.evaluation.reports.results import results_markdown, results_table

_JUDGES = "sottovoce.evaluation.judges"
JUDGES: "Registry[Judge]" = Registry(
    "judge", {"llm": f"{_JUDGES}.llm", "rule": f"{_JUDGES}.exemplar", "conversation": f"{_JUDGES}.llm"}
)
AWARENESS_JUDGES: "Registry[AwarenessJudge]" = Registry(
    "awareness_judge", {"llm": f"{_JUDGES}.awareness", "rule": "sottovoce.evaluation.awareness"}
)
OWN_METRICS: "Registry[OwnMetric]" = Registry("own_metric")  # none of ours: by path, import path or entry point
__all__ = [
    "AWARENESS_JUDGES", "JUDGES", "OWN_METRICS", "SLOTS", "AwarenessJudge", "Judge", "OwnMetric", "Prediction",
    "Record", "Reply", "Score", "Verdict", "labelled", "read_predictions", "read_results", "results_markdown",
    "results_table", "score_all", "write_results",
]  # fmt: skip
__getattr__ = lazy_attributes(
    __name__,
    {
        **dict.fromkeys(("AwarenessJudge", "labelled"), "awareness"),
        **dict.fromkeys(("Judge", "Reply", "Verdict"), "judges.base"),
        "OwnMetric": "own_metrics",
        **dict.fromkeys(("SLOTS", "Prediction", "Score"), "metrics"),
        **dict.fromkeys(("Record", "read_predictions", "read_results", "score_all", "write_results"), "records"),
        **dict.fromkeys(("results_markdown", "results_table"), "reports.results"),
    },
)
