"""Pictures of speech tokens and of layers, drawn alike wherever they are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from sottovoce.errors import MissingError, SottovoceError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Features = NDArray[np.floating[Any]]
Embedding = NDArray[np.float64]
Panel = tuple[Features, Sequence[str]]  # (rows, dim) and the label of each row
Curve = tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[float]]  # x, y and the interval, low and high

PERPLEXITY = 30.0  # van der Maaten and Hinton (2008): 5 to 50; their own choice is 40, and 30 that of most tools
DPI = 200
COLUMNS = 3  # panels that stand in one row; more are laid out as a square
# Okabe and Ito (2008), told apart by colour-blind eyes too. Wine (Tol 2021) in place of their yellow, faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
MARKERS = ("o", "^", "s", "D")  # one for every round through the colours
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "svg.fonttype": "none",  # words stay words, which can be searched
    "svg.hashsalt": "sottovoce",  # or names inside the file would differ from run to run
}


class Look(NamedTuple):
    """How the points of one label are drawn, in every panel."""

    colour: str
    marker: str


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look of its own for each name, in the order given; the first eight differ in colour alone.

    Raises:
        SottovoceError: there are more names than looks.
    """
    ordered, most = list(dict.fromkeys(names)), len(COLOURS) * len(MARKERS)
    if len(ordered) > most:
        raise SottovoceError(f"a picture tells at most {most} names apart, got {len(ordered)}; merge or leave out some")
    return {name: Look(COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS)]) for i, name in enumerate(ordered)}


def tsne(features: Features, seed: int = 0) -> Embedding:
    """Two numbers for each row, (rows, dim) to (rows, 2), such that neighbours stay neighbours.

    Van der Maaten and Hinton (2008), started from the principal components, so that the coarse order is not left to
    chance. Distances between clusters, their sizes and the axes mean nothing. With few rows the perplexity shrinks
    to a third of the other rows. Rows that are all the same stay in one place.

    Raises:
        SottovoceError: `features` is no table of finite numbers with rows and at least two columns.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or not len(x) or x.shape[1] < 2 or not np.isfinite(x).all():
        raise SottovoceError(
            f"tsne: expected finite features (rows, dim of at least 2), got shape {np.shape(features)}"
        )
    if not np.ptp(x, axis=0).any():
        return np.zeros((len(x), 2))  # scikit-learn would divide by a deviation of 0, and crash the process
    perplexity = min(PERPLEXITY, max(1.0, (len(x) - 1) / 3))
    with threadpool_limits(1):  # one order of adding up, however many cores a machine has
        embedded = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(x)
    return np.asarray(embedded, dtype=np.float64)


def tsne_picture(panels: Mapping[str, Panel], file: Path, *, seed: int = 0, svg: bool = False) -> dict[str, Embedding]:
    """Draw what the systems' speech tokens look like, one panel a system, coloured by label.

    SpeechEmotionLlama, figure 2. Each panel is embedded alone, by one seed, and a label looks the same in all.

    Args:
        panels: system -> features (rows, dim), one row the mean over time of an utterance's speech tokens; and the
            label of each row.
        file: the PNG to write.
        seed: of the embedding.
        svg: write the same as `.svg` beside it.

    Returns:
        Where the points lie: system -> (rows, 2).

    Raises:
        MissingError: matplotlib is not installed.
        SottovoceError: there is nothing to draw, a panel has no row or not a label for each, there are too many
            labels, or `file` is no `.png`.
    """
    if not panels:
        raise SottovoceError("tsne_picture: there are no panels to draw; give at least one system")
    for name, (features, labels) in panels.items():
        if not len(labels) or len(features) != len(labels):
            raise SottovoceError(
                f"tsne_picture: panel {name!r} has {len(features)} rows and {len(labels)} labels; expected a label "
                "for each row, and at least one row"
            )
    known = looks(sorted({label for _, labels in panels.values() for label in labels}))
    columns = len(panels) if len(panels) <= COLUMNS else math.ceil(math.sqrt(len(panels)))
    rows = math.ceil(len(panels) / columns)
    legend = 0.55 + 0.075 * max(map(len, known))  # inches
    with _canvas(file, 2.9 * columns + legend, 3.15 * rows, svg) as figure:
        points = {name: tsne(features, seed) for name, (features, _) in panels.items()}
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for name, (_, labels) in panels.items():
            _scatter(next(axes), name, points[name], labels, known)
        for spare in axes:
            spare.set_axis_off()
        figure.legend(handles=_handles(known), loc="outside right center", handletextpad=0.2)
    return points


def curve_picture(
    curves: Mapping[str, Curve],
    file: Path,
    *,
    title: str,
    x_label: str,
    y_label: str,
    chance: float | None = None,
    svg: bool = False,
) -> None:
    """Draw one line a name with its interval as a band, such as the accuracy of probes over layers.

    Args:
        curves: name -> x, y and the interval's ends, low and high, all of one length.
        file: the PNG to write.
        title: above the picture.
        x_label: what x is, with its unit; ticks stand at whole numbers where x is whole.
        y_label: what y is, with its unit.
        chance: where a guess would be, if that is one number for all.
        svg: write the same as `.svg` beside it.

    Raises:
        MissingError: matplotlib is not installed.
        SottovoceError: there is nothing to draw, a curve's lengths differ, an interval does not hold its value, there
            are too many curves, or `file` is no `.png`.
    """
    if not curves:
        raise SottovoceError("curve_picture: there are no curves to draw; give at least one")
    for name, curve in curves.items():
        _require_curve(name, curve)
    known = looks(curves)
    with _canvas(file, 5.6, 3.4, svg) as figure:
        axes = figure.subplots()
        for name, curve in curves.items():
            _line(axes, name, curve, known[name])
        if chance is not None:
            axes.axhline(chance, color="0.45", linestyle=(0, (4, 3)), linewidth=1, label="chance", zorder=1)
        axes.set_title(title, loc="left")
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        if all(float(at).is_integer() for x, *_ in curves.values() for at in x):
            axes.locator_params(axis="x", integer=True)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


@contextmanager
def _canvas(file: Path, width: float, height: float, svg: bool) -> Iterator[Figure]:
    """A figure of so many inches, which is written when it has been drawn; nothing of pyplot's global state."""
    if file.suffix != ".png":
        raise SottovoceError(f"{file}: a picture is written as .png, and as .svg beside it on demand; name it *.png")
    try:
        from matplotlib import style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingError(
            f"{file} cannot be drawn: matplotlib is not installed. Install it: pip install 'sottovoce[plots]'"
        ) from error
    with style.context(_STYLE, after_reset=True):  # the user's own matplotlibrc would change the picture
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=DPI, metadata={"Software": None})
        if svg:
            figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})


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


def _line(axes: Axes, name: str, curve: Curve, look: Look) -> None:
    x, y, low, high = curve
    axes.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0)
    axes.plot(x, y, color=look.colour, marker=look.marker, markersize=3.5, linewidth=1.6, label=name)


def _require_curve(name: str, curve: Curve) -> None:
    lengths = [len(part) for part in curve]
    if not lengths[0] or len(set(lengths)) > 1:
        raise SottovoceError(
            f"curve_picture: {name!r} has x, y, low and high of {lengths} points; expected equally many"
        )
    for x, y, low, high in zip(*curve, strict=True):
        if not low <= y <= high:
            raise SottovoceError(f"curve_picture: {name!r} at {x}: {y} is not between {low} and {high}")
