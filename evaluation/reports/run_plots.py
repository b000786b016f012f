"""Plots of one run: confusion matrices and learning curves, as SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sottovoce.evaluation.reports.plots import COLOURS, COLUMNS, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHED = 0.1  # of the running mean that stands over a noisy curve, the weight of each new value


class Confusion(NamedTuple):
    """How often each right label was answered by which: `counts` is (right, answered)."""

    title: str
    right: Sequence[str]
    answered: Sequence[str]
    counts: NDArray[np.intp]


class Curve(NamedTuple):
    """Values of one metric by optimizer step."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


def confusion_plot(matrices: Sequence[Confusion]) -> bytes:
    """Draw confusion matrices side by side: counts in the cells, shares of each row as colours.

    Raises:
        MissingError: matplotlib is not installed.
    """
    columns = min(COLUMNS, len(matrices))
    rows = math.ceil(len(matrices) / columns)
    most = max(len(each.answered) for each in matrices)
    side = max(2.6, 1.2 + 0.42 * most)  # inches
    target = io.BytesIO()
    with canvas(target, side * columns, side * 0.95 * rows) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for matrix in matrices:
            _confusion(next(axes), matrix)
        for spare in axes:
            spare.set_axis_off()
    return target.getvalue()


def _confusion(axes: Axes, matrix: Confusion) -> None:
    shares = matrix.counts / matrix.counts.sum(1, keepdims=True).clip(1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix.counts):
        colour = "white" if shares[row, column] > 0.6 else "black" if count else "0.7"
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(matrix.answered)), list(matrix.answered), rotation=35, ha="right")
    axes.set_yticks(range(len(matrix.right)), list(matrix.right))
    axes.set_title(matrix.title, loc="left")
    axes.tick_params(length=0)
    axes.spines[:].set_color("0.75")


def curve_plot(stages: Mapping[str, Sequence[Sequence[Curve]]]) -> bytes:
    """Draw learning curves: a row of panels for each stage, and in a panel the curves of one kind.

    Raises:
        MissingError: matplotlib is not installed.
    """
    columns = max(len(panels) for panels in stages.values())
    target = io.BytesIO()
    with canvas(target, max(4.2, 3.6 * columns), 2.3 * len(stages)) as figure:
        grid = figure.subplots(len(stages), columns, squeeze=False)
        for axes_of_stage, (stage, panels) in zip(grid, stages.items(), strict=True):
            for axes, panel in zip(axes_of_stage, panels, strict=False):
                _curves(axes, stage, panel)
            for spare in axes_of_stage[len(panels) :]:
                spare.set_axis_off()
    return target.getvalue()


def _curves(axes: Axes, stage: str, panel: Sequence[Curve]) -> None:
    for curve, colour in zip(panel, COLOURS * len(panel), strict=False):
        few = len(curve.steps) < 12
        look: dict[str, Any] = {"color": colour, "linewidth": 1.6, "label": curve.name}
        if few:
            axes.plot(curve.steps, curve.values, "o-", markersize=4, **look)
        elif curve.name.startswith("train/"):  # each value is one batch's
            axes.plot(curve.steps, curve.values, color=colour, linewidth=0.8, alpha=0.3)
            axes.plot(curve.steps, _running_mean(curve.values), **look)
        else:
            axes.plot(curve.steps, curve.values, **look)
    values = [value for curve in panel for value in curve.values if value > 0]
    if panel[0].name.endswith(("loss", "grad_norm")) and values and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.set_title(stage, loc="left")
    axes.set_xlabel("step")
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)


def _running_mean(values: Sequence[float]) -> list[float]:
    """Exponential, with the first values not pulled to 0."""
    mean = weight = 0.0
    smooth = []
    for value in values:
        mean, weight = (1 - SMOOTHED) * mean + SMOOTHED * value, (1 - SMOOTHED) * weight + SMOOTHED
        smooth.append(mean / weight)
    return smooth
