"""Plots are what was asked for: all labels, one look a label, the right size, the same each time."""

import itertools
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text
from numpy.typing import NDArray
from tests.helpers.errors import refused

from sottovoce.errors import MissingError
from sottovoce.evaluation.reports import plots
from sottovoce.evaluation.reports.plots import COLOURS, Bar, Panel, interval_plot, looks, tsne, tsne_picture

STYLES = (
    "neutral angry disgusted fearful happy sad surprised bored confused interested sarcastic laughing projected sleepy "
    "whisper"
).split()
# Machado et al. (2009), full severity, on linear RGB
BLIND = {
    "nobody": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def panel(rows: int, seed: int = 0, styles: list[str] = STYLES) -> tuple[NDArray[np.float64], list[str]]:
    """`rows` points around one centre a style."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(len(styles), 12)) * 4
    names = [i % len(styles) for i in range(rows)]
    return random.normal(size=(rows, 12)) + centres[names], [styles[i] for i in names]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures, as they are when they would be written."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    return figures


def test_one_seed_gives_one_picture(tmp_path: Path) -> None:
    panels = {"before": panel(20), "after": panel(20, seed=1)}
    first, second = (tsne_picture(panels, tmp_path / f"{name}.png", seed=5) for name in "ab")
    for name, (features, labels) in panels.items():
        assert first[name].shape == (len(labels), 2)
        assert np.array_equal(first[name], second[name])
        assert np.array_equal(first[name], tsne(features, 5))
    wide = np.random.default_rng(0).normal(size=(40, 600))  # whose principal components are found by chance
    assert np.array_equal(tsne(wide, 5), tsne(wide, 5))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_neighbours_stay_neighbours() -> None:
    features, labels = panel(60, styles=STYLES[:3])
    points = tsne(features)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.diag(np.full(60, np.inf))
    assert [labels[i] for i in distances.argmin(axis=1)] == labels


def test_every_label_stands_in_the_legend_once(tmp_path: Path, drawn: list[Figure]) -> None:
    panels = {"one system": panel(8, styles=STYLES[:8]), "another": panel(10, styles=STYLES[5:])}
    tsne_picture(panels, tmp_path / "tokens.png")
    words = [text.get_text() for text in drawn[0].findobj(Text) if text.get_text()]
    assert sorted(words) == sorted([*STYLES, "one system", "another"])  # and no ticks


@pytest.mark.parametrize(("systems", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (4, 2, 2), (5, 3, 2)])
def test_the_file_is_a_png_of_the_size_of_its_panels(tmp_path: Path, systems: int, columns: int, rows: int) -> None:
    file = tmp_path / "new" / "tokens.png"
    tsne_picture({f"system {i}": panel(4) for i in range(systems)}, file)
    pixels = imread(file)
    legend = 0.55 + 0.075 * len("disgusted")
    assert pixels.shape[:2] == pytest.approx((3.15 * rows * plots.DPI, (2.9 * columns + legend) * plots.DPI), abs=1)
    assert pixels.std() > 0.01


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
def test_few_points_work(tmp_path: Path, rows: int) -> None:
    points = tsne_picture({"few": panel(rows)}, tmp_path / "few.png")["few"]
    assert points.shape == (rows, 2) and np.isfinite(points).all()
    assert len(np.unique(points, axis=0)) == rows


def test_points_that_are_all_the_same_stay_together() -> None:
    assert not tsne(np.full((10, 3), 0.1, dtype=np.float32)).any()


def lab(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    t = to_xyz @ linear.clip(0, 1) / to_xyz.sum(axis=1)
    x, y, z = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eyes", BLIND)
def test_colours_are_told_apart_by_all_eyes_and_from_the_page(eyes: str) -> None:
    seen = []
    for colour in (*COLOURS, "#FFFFFF"):
        rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        seen.append(lab(np.array(BLIND[eyes]) @ linear))
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15  # just noticeable is 2.3


def test_each_name_has_a_look_of_its_own() -> None:
    most = len(COLOURS) * len(plots.MARKERS)
    known = looks(str(i) for i in range(most))
    assert len(set(known.values())) == most
    assert len({look.colour for look in looks(STYLES[:8]).values()}) == 8
    with refused("bad-value"):
        looks(str(i) for i in range(most + 1))


def test_what_cannot_be_drawn_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    features, labels = panel(4)
    with refused("empty"):
        tsne_picture({}, file)
    for rows, names in ((features, labels[1:]), (features[:0], [])):
        with refused("bad-value", "a"):
            tsne_picture({"a": (rows, names)}, file)
    for bad in (features[:, :1], features[0], features * np.nan):
        with refused("bad-value"):
            tsne(bad)
    assert not file.exists()


def test_without_matplotlib_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingError, match=r"pip install 'sottovoce\[plots\]'"):
        tsne_picture({"few": panel(4)}, tmp_path / "x.png")


BARS = [Bar("a", (2.0, 1.0, 3.0), [1.5, 2.5], COLOURS[0]), Bar("absent")]


def test_an_interval_plot_draws_values_where_they_are(drawn: list[Figure]) -> None:
    interval_plot([Panel("accuracy", BARS), Panel("WER", BARS, zero=True)])
    for axes, title in zip(drawn[0].axes, ("accuracy", "WER"), strict=False):
        interval, seeds, mean, *zero = [line.get_xdata() for line in axes.lines]
        assert (list(interval), list(seeds), list(mean)) == ([1, 3], [1.5, 2.5], [2])
        assert zero == ([[0, 0]] if title == "WER" else []) and axes.get_title(loc="left") == title
    assert [label.get_text() for label in drawn[0].axes[0].get_yticklabels()] == ["a", "absent"]
    low, high = drawn[0].axes[0].get_ylim()
    assert low > high  # the first system stands on top


def test_pyplots_figures_and_settings_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "black")
    settings, figures = dict(matplotlib.rcParams), pyplot.get_fignums()
    first = interval_plot([Panel("accuracy", BARS)])
    assert pyplot.get_fignums() == figures and dict(matplotlib.rcParams) == settings
    monkeypatch.undo()
    assert interval_plot([Panel("accuracy", BARS)]) == first and first.startswith(b"<?xml")
