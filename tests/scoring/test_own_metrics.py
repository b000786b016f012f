"""Metrics of one's own: answers get values, their mean is a score like others, and what fails costs that score only."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.errors import refused
from tests.helpers.runs import quiet_run

from sottovoce.config import recipe as recipes
from sottovoce.evaluation.metrics import Prediction
from sottovoce.evaluation.own_metrics import own_metrics, titled, with_values
from sottovoce.evaluation.paired_bootstrap import Estimate
from sottovoce.evaluation.records import Record, read_predictions, read_results, score_all
from sottovoce.evaluation.reports.compare import is_better
from sottovoce.evaluation.reports.results import label_of
from sottovoce.lightning_modules.bundle import _with_code
from sottovoce.scoring.evaluate import score
from sottovoce.scoring.provenance import is_scored

MINE = """
class Length:
    '''Characters of an answer over a scale.'''
    def __init__(self, *, scale: float = 10.0):
        self.scale = scale
    def __call__(self, prediction):
        return None if prediction.label == "male" else len(prediction.response) / self.scale
class Broken:
    def __call__(self, prediction):
        return prediction.nothing
class Endless:
    def __call__(self, prediction):
        return float("inf")
"""


def said(number: int, response: str, **changes: Any) -> Prediction:
    one = Prediction(f"u{number}", "asr", "both", "", response, "a b", speaker=f"s{number}")
    return replace(one, **changes)


def scored(tree: dict[str, Any], folder: Path) -> list[Record]:
    run = quiet_run(tree)
    run.module.start_stage("joint", 1)
    return score(run, "mine", folder)


@pytest.fixture
def measured(tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    own = {"length": {"metric": {"type": "./mine.py:Length", "scale": 4.0}, "tasks": ["asr"], "better": "lower"}}
    node = {"batch_size": 9, "max_new_tokens": 2, "tasks": ["asr", "gender"], "slots": ["both"], "metrics": own}
    return {**tree, "evaluation": node}


def test_the_mean_is_of_answers_that_have_a_value_with_an_interval_over_speakers() -> None:
    answers = [said(i, "x" * i) for i in range(1, 9)] + [said(9, "none", label="male"), said(10, "", task="gender")]
    valued = with_values(answers, "length ↓", lambda p: None if p.label else len(p.response) / 10, ["asr"])
    ((name, metric),) = own_metrics(valued).items()
    found = metric([p for p in valued if p.task == "asr"])
    assert (name, found.value, found.n, found.speakers) == ("length ↓", 0.45, 8, 8)
    assert found.low < 0.45 < found.high and "1" in found.notes
    assert valued[-1].values is None and label_of(name) == name


def test_a_run_reports_them_beside_its_own(measured: dict[str, Any], tmp_path: Path) -> None:
    records = scored(measured, tmp_path / "scores")
    found = {(record.task, record.metric): record.value for record in records}
    answers = [p for p in read_predictions(tmp_path / "scores") if p.task == "asr"]
    title = titled("length", "lower")
    assert found["asr", title] == pytest.approx(sum(len(p.response) / 4 for p in answers) / len(answers), abs=1e-6)
    assert ("gender", title) not in found and ("asr", "wer") in found
    again = score_all("mine", read_predictions(tmp_path / "scores"))
    assert {(r.task, r.metric): r.value for r in again} == found
    assert {(r.task, r.metric): r.value for r in read_results(tmp_path / "scores")} == found


def test_another_metric_or_code_is_another_evaluation(measured: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(measured["output_dir"]) / measured["name"] / "evaluation"
    scored(measured, folder)
    assert is_scored(recipes.parse(measured))
    (tmp_path / "mine.py").write_text(MINE.replace("len(", "2 * len("))
    assert not is_scored(recipes.parse(measured))
    assert "length ↓" in {record.metric for record in scored(measured, folder)}
    assert is_scored(recipes.parse(measured))


@pytest.mark.parametrize("kind", ["Broken", "Endless"])
def test_one_that_fails_costs_its_own_score(
    kind: str, measured: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured["evaluation"]["metrics"]["bad"] = {"metric": {"type": f"./mine.py:{kind}"}}
    names = {record.metric for record in scored(measured, tmp_path / "scores")}
    assert names == {"wer", "accuracy", "balanced_accuracy", "length ↓"}
    assert "evaluation.metrics.bad" in caplog.text


@pytest.mark.parametrize(
    ("code", "where", "metrics"),
    [
        ("unknown-name", "metrics.x.tasks", {"x": {"metric": {"type": "./mine.py:Length"}, "tasks": ["asrr"]}}),
        ("conflict", "metrics.wer", {"wer": {"metric": {"type": "./mine.py:Length"}}}),
        ("conflict", "metrics.a/b", {"a/b": {"metric": {"type": "./mine.py:Length"}}}),
        ("unknown-name", "metrics.x.metric.type", {"x": {"metric": {"type": "./mine.py:Lenght"}}}),
        ("not-found", "metrics.x.metric.type", {"x": {"metric": {"type": "./none.py:Length"}}}),
        ("unknown-key", "metrics.x.metric.scales", {"x": {"metric": {"type": "./mine.py:Length", "scales": 1}}}),
        ("bad-value", "metrics.x.better", {"x": {"metric": {"type": "./mine.py:Length"}, "better": "bigger"}}),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_before_training(
    code: Any, where: str, metrics: dict[str, Any], measured: dict[str, Any]
) -> None:
    measured["evaluation"]["metrics"] = metrics
    with refused(code, where):
        recipes.parse(measured)


def test_a_bundle_names_none(measured: dict[str, Any], tmp_path: Path) -> None:
    """Or who only asks it something would have to consent to run its code."""
    tree, code = _with_code(recipes.parse(measured), tmp_path)
    assert tree["evaluation"]["metrics"] == {} and code == []


def test_compare_knows_which_values_are_better() -> None:
    fewer = Estimate(-0.2, np.full(9, -0.2), 10, {1: -0.2})
    found = {name: is_better(name, fewer) for name in ("length ↓", "length ↑", "wer", "accuracy")}
    assert found == {"length ↓": True, "length ↑": False, "wer": True, "accuracy": False}
