"""Plots by matplotlib: t-SNE of speech tokens, intervals of scores; looks that all plots share."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import MissingError, SottovoceError
from sottovoce.evaluation.reports.pages import NO_PLOTS
from sottovoce.io import atomic_open

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Features = NDArray[np.floating[Any]]
Embedding = NDArray[np.float64]
Labelled = tuple[Features, Sequence[str]]  # (rows, dim) and the label of each row

PERPLEXITY = 30.0  # van der Maaten and Hinton (2008): 5 to 50; their own choice is 40, and 30 that of most tools
DPI = 200
COLUMNS = 3  # panels that stand in one row; more are laid out as a square
# Okabe and Ito (2008), told apart by colour-blind eyes too. Wine (Tol 2021) in place of their yellow, faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
MARKERS = ("o", "^", "s", "D")  # one for every round through the colours
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "figure.constrained_layout.h_pad": 0.08,  # inches
    "figure.constrained_layout.w_pad": 0.08,
    "legend.frameon": False,
    "svg.hashsalt": "sottovoce",  # or names inside the file would differ from run to run
}


class Look(NamedTuple):
    """How the points of one label are drawn, in every panel."""

    colour: str
    marker: str


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look of its own for each name, in the order given, or an error; the first eight differ in colour alone."""
    ordered, most = list(dict.fromkeys(names)), len(COLOURS) * len(MARKERS)
    if len(ordered) > most:
        message = f"a plot tells at most {most} names apart, got {len(ordered)}; merge or leave out some"
        raise SottovoceError(message, code="bad-value")
    return {name: Look(COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS)]) for i, name in enumerate(ordered)}


def tsne(features: Features, seed: int = 0) -> Embedding:
    """Two numbers for each row, (rows, dim) to (rows, 2), such that neighbours stay neighbours.

    Van der Maaten and Hinton (2008), started from the principal components, so that the coarse order is not left to
    chance. Distances between clusters, their sizes and the axes mean nothing. With few rows the perplexity shrinks
    to a third of the other rows. Rows that are all the same stay in one place.

    Raises:
        SottovoceError: `features` is no table of finite numbers with rows and at least two columns.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or not len(x) or x.shape[1] < 2 or not np.isfinite(x).all():
        message = f"tsne: expected finite features (rows, dim of at least 2), got shape {np.shape(features)}"
        raise SottovoceError(message, code="bad-value")
    if not np.ptp(x, axis=0).any():
        return np.zeros((len(x), 2))  # scikit-learn would divide by a deviation of 0, and crash the process
    perplexity = min(PERPLEXITY, max(1.0, (len(x) - 1) / 3))
    with threadpool_limits(1):  # one order of adding up, however many cores a machine has
        embedded = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(x)
    return np.asarray(embedded, dtype=np.float64)


def tsne_picture(panels: Mapping[str, Labelled], file: Path, *, seed: int = 0) -> dict[str, Embedding]:
    """Draw what the systems' speech tokens look like, one panel a system, coloured by label; where the points lie.

    SpeechEmotionLlama, figure 2. Each panel is embedded alone, (rows, dim) to (rows, 2), by one seed, and a label looks
    the same in all. A row is the mean over time of an utterance's speech tokens.

    Raises:
        MissingError: matplotlib is not installed.
        SottovoceError: there is nothing to draw, a panel has no row or not a label for each, or there are too many
            labels.
    """
    if not panels:
        raise SottovoceError("tsne_picture: there are no panels to draw; give at least one system", code="empty")
    for name, (features, labels) in panels.items():
        if not len(labels) or len(features) != len(labels):
            message = f"tsne_picture: panel {name!r} has {len(features)} rows and {len(labels)} labels"
            message += "; expected a label for each row, and at least one row"
            raise SottovoceError(message, code="bad-value", where=name)
    known = looks(sorted({label for _, labels in panels.values() for label in labels}))
    columns = len(panels) if len(panels) <= COLUMNS else math.ceil(math.sqrt(len(panels)))
    rows = math.ceil(len(panels) / columns)
    legend = 0.55 + 0.075 * max(map(len, known))  # inches
    with canvas(file, 2.9 * columns + legend, 3.15 * rows) as figure:
        points = {name: tsne(features, seed) for name, (features, _) in panels.items()}
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for name, (_, labels) in panels.items():
            _scatter(next(axes), name, points[name], labels, known)
        for spare in axes:
            spare.set_axis_off()
        figure.legend(handles=_handles(known), loc="outside right center", handletextpad=0.2)
    return points


class Bar(NamedTuple):
    """A row of a panel: a value with its interval (value, low, high), and the values of single seeds.

    `other` is a second interval, (low, high), drawn pale below the first.
    """

    name: str
    value: tuple[float, float, float] | None = None
    seeds: Sequence[float] = ()
    colour: str = ""
    other: tuple[float, float] | None = None


class Panel(NamedTuple):
    """Values of several systems below one another, on an axis of their own; `zero` marks 0, for differences."""

    title: str
    bars: Sequence[Bar]
    zero: bool = False


def interval_plot(panels: Sequence[Panel]) -> bytes:
    """Draw dots with intervals, a panel a score, all of them with the same systems: SVG.

    Raises:
        MissingError: matplotlib is not installed.
    """
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    target = io.BytesIO()
    with canvas(target, 4.0 * columns, (0.75 + 0.25 * len(panels[0].bars)) * rows) as figure:
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
        for panel in panels:
            _intervals(next(axes), panel)
        for spare in axes:
            spare.set_axis_off()
    return target.getvalue()


def _intervals(axes: Axes, panel: Panel) -> None:
    for at, bar in enumerate(panel.bars):
        if bar.value:
            value, low, high = bar.value
            axes.plot([low, high], [at, at], color=bar.colour, linewidth=2, solid_capstyle="round")
            seeds = axes.plot(bar.seeds, [at] * len(bar.seeds), "o", color=bar.colour, markersize=4.5)
            seeds[0].set(markerfacecolor="white", markeredgewidth=0.8)
            axes.plot(value, at, "o", color=bar.colour, markersize=6)
        if bar.other:
            below = at + 0.28
            axes.plot(bar.other, [below, below], color=bar.colour, linewidth=2, alpha=0.35, solid_capstyle="round")
    if panel.zero:
        axes.axvline(0, color="0.4", linewidth=1, zorder=1)
    axes.set_title(panel.title, loc="left")
    axes.set_yticks(range(len(panel.bars)), [bar.name for bar in panel.bars])
    axes.set_ylim(len(panel.bars) - 0.4, -0.6)
    axes.margins(x=0.06)
    axes.locator_params(axis="x", nbins=6)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def layer_weights_picture(weights: Mapping[str, Mapping[int, float]], file: Path) -> None:
    """Draw how much each slot hears of each layer of the encoder, a row a slot, as PNG.

    `weights` is slot -> layer -> weight, which add up to 1 in a slot.

    Raises:
        MissingError: matplotlib is not installed.
    """
    layers = sorted({layer for mine in weights.values() for layer in mine})
    grid = np.array([[mine.get(layer, np.nan) for layer in layers] for mine in weights.values()])
    with canvas(file, 2.4 + 0.45 * len(layers), 1.1 + 0.45 * len(weights)) as figure:
        axes = figure.subplots()
        shown = axes.imshow(grid, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), weight in np.ndenumerate(grid):
            if np.isfinite(weight):
                colour = "white" if weight > 0.6 else "black"
                axes.text(column, row, f"{weight:.2f}", ha="center", va="center", color=colour, fontsize=7)
        axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
        axes.set_yticks(range(len(weights)), list(weights))
        axes.set(xlabel="layer of the encoder")
        figure.colorbar(shown, label="weight")


@contextmanager
def canvas(target: Path | IO[bytes], width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches, written when it has been drawn: a PNG file, or an SVG stream; no pyplot state.

    Raises:
        MissingError: matplotlib is not installed.
    """
    try:
        from matplotlib import style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingError(NO_PLOTS, code="unavailable", where="matplotlib") from error
    with style.context(_STYLE, after_reset=True):  # the user's own matplotlibrc would change the picture
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        if isinstance(target, Path):
            with atomic_open(target) as stream:
                figure.savefig(stream, dpi=DPI, format="png", metadata={"Software": None})
        else:
            figure.savefig(target, format="svg", metadata={"Date": None})


def _scatter(axes: Axes, name: str, points: Embedding, labels: Sequence[str], known: Mapping[str, Look]) -> None:
    size, told = float(np.clip(4000 / len(points), 7, 40)), np.asarray(labels)
    for label, look in known.items():
        x, y = points[told == label].T
        axes.scatter(x, y, s=size, c=look.colour, marker=look.marker, edgecolors="white", linewidths=0.3, alpha=0.85)
    axes.set_title(name)
    axes.set(xticks=[], yticks=[], box_aspect=1)
    axes.margins(0.06)
    axes.spines[:].set_color("0.75")


def _handles(known: Mapping[str, Look]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle="none", markersize=6, label=label)
        for label, look in known.items()
    ]
