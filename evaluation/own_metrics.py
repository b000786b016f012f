"""Metrics of one's own: a value for each answer, and the mean of them with its interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial, update_wrapper
from typing import Protocol

from sottovoce.errors import ConfigError
from sottovoce.evaluation.metrics import Measure, Metric, Prediction, mean_measure
from sottovoce.own_parts import told

ARROWS = {"higher": "↑", "lower": "↓"}  # which is better


class OwnMetric(Protocol):
    """A callable that gives one answer its value, a share (1 is 100 %); None where the answer has none.

    It is built with the knobs of its node in `evaluation.metrics`: the keyword-only parameters of its `__init__`.
    """

    def __call__(self, prediction: Prediction) -> float | None: ...


def with_values(
    predictions: Sequence[Prediction], name: str, metric: OwnMetric, tasks: Sequence[str]
) -> list[Prediction]:
    """Predictions of these tasks, or of all if there are none, with their value by a metric; the others as they were.

    Raises:
        ConfigError: about `evaluation.metrics.<name>`: the metric fails, or gives what is no finite number.
    """
    return [_valued(p, name, metric) if not p.unscored and (not tasks or p.task in tasks) else p for p in predictions]


def titled(name: str, better: str) -> str:
    """A metric as reports, records and predictions name it, with the direction that is better."""
    return f"{name} {ARROWS[better]}"


def own_metrics(rows: Sequence[Prediction]) -> Mapping[str, Metric]:
    """The metrics that some of these predictions have a value by."""
    return {name: _metric(name) for name in dict.fromkeys(name for row in rows for name in row.values or {})}


def _valued(prediction: Prediction, name: str, metric: OwnMetric) -> Prediction:
    where = f"evaluation.metrics.{name.partition(' ')[0]}"
    try:
        value = metric(prediction)
        value = None if value is None else float(value)
    except Exception as error:  # of the user's code
        why = f"the metric fails on the answer {prediction.id} of {prediction.task}: {told(error)}"
        raise ConfigError.at(where, "damaged", why) from error
    if value is None:
        return prediction
    if not math.isfinite(value):
        why = f"the metric gives {value} for the answer {prediction.id} of {prediction.task}"
        raise ConfigError.at(where, "bad-value", why)
    return replace(prediction, values={**(prediction.values or {}), name: value})


def _metric(name: str) -> Metric:
    measure = partial(_mean, name)
    update_wrapper(measure, _mean)
    return Metric(measure)


def _mean(name: str, predictions: Sequence[Prediction]) -> Measure:
    """The mean of the answers that have a value."""
    rows = [row for row in predictions if name in (row.values or {})]
    values = [(row.values or {})[name] for row in rows]
    without = len(predictions) - len(rows)
    notes = f"{without} answers without a value" if without else ""
    return mean_measure(values, None, notes, [row.speaker for row in rows])
