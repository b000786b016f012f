"""Plot of a layer-wise analysis: a panel for each kind of curve, the split shaded in all of them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sottovoce.evaluation.layers.split import Curve, Split
from sottovoce.evaluation.reports.plots import Look, canvas, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VOICE, MEANING = "#FBE3D0", "#D6E8F5"  # tints of the split
# (title, what its curves' names end in, y axis)
PANELS = (
    ("Paralinguistic probes", "probe", "balanced accuracy"),
    ("Same words, other speaker: attribute", "similarity", "cosine, same $-$ other value"),
    ("Intent probe", "intent probe", "balanced accuracy"),
    ("Other words, other speaker: intent", "intent similarity", "cosine, same $-$ other intent"),
    ("Logit lens", "logit lens", "final top-1 in the top 3"),
)
ENCODER_PANELS = (("Encoder: paralinguistic probes", "probe"), ("Encoder: intent probe", "intent probe"))


def layer_picture(
    curves: Mapping[str, Curve],
    split: Split,
    left_out: Mapping[str, str],
    file: Path,
    encoder: Mapping[str, Curve] | None = None,
) -> None:
    """Draw the five analyses and the signals that the split goes by, with chance and 95 % intervals, as PNG.

    Curves have names such as `age probe`, `intent similarity` or `logit lens`; `left_out` says why one has no curve.
    `encoder` are probes over the encoder's layers, which get a row of their own.

    Raises:
        MissingError: matplotlib is not installed.
    """
    known = looks(["intent", "logit lens", *map(_subject, (*curves, *left_out, *(encoder or {})))])
    rows = 3 if encoder else 2
    with canvas(file, 11.0, 3.1 * rows) as figure:
        axes = list(figure.subplots(rows, 3).flat)
        axes, below = axes[:6], axes[6:]
        for panel, (title, ending, unit) in zip(axes, PANELS, strict=False):
            mine = {_subject(name): curve for name, curve in curves.items() if _belongs(name, ending)}
            for subject, curve in mine.items():
                _draw(panel, curve, known[subject], subject)
            if mine:
                _chance(panel, mine.values())
                _key(panel, len(mine))
            else:
                _empty(panel, [reason for name, reason in left_out.items() if _belongs(name, ending)])
            panel.set(ylabel=unit)
            panel.set_title(title, loc="left")
        _signals(axes[-1], split)
        for panel in axes:
            _frame(panel, split)
        for panel, (title, ending) in zip(below, ENCODER_PANELS, strict=False):
            _encoder(panel, {_subject(n): c for n, c in (encoder or {}).items() if _belongs(n, ending)}, known)
            panel.set_title(title, loc="left")
        for panel in below[len(ENCODER_PANELS) :]:
            panel.set_axis_off()


def _encoder(panel: Axes, curves: Mapping[str, Curve], known: Mapping[str, Look]) -> None:
    """Probes over the encoder's layers, which count from 1."""
    if not curves:
        _empty(panel, ["see the same probe of the LLM"])
        return
    for subject, curve in curves.items():
        _draw(panel, curve, known[subject], subject, first=0)
    _chance(panel, curves.values())
    _key(panel, len(curves))
    depth = len(next(iter(curves.values())).value) - 1
    ticks = list(range(1, depth + 1, max(1, round(depth / 10))))
    panel.set_xticks([0, *ticks], ["in", *map(str, ticks)])
    panel.set(xlabel="after layer of the encoder", ylabel="balanced accuracy")
    panel.spines[["top", "right"]].set_visible(False)


def _subject(name: str) -> str:
    """The attribute that a curve is about, `intent`, or `logit lens`."""
    return name if name == "logit lens" else name.rpartition(" ")[0]


def _belongs(name: str, ending: str) -> bool:
    return name == ending or (name.endswith(f" {ending}") and _subject(name) != "intent")


def _draw(panel: Axes, curve: Curve, look: Look, label: str, first: int = -1) -> None:
    x = np.arange(len(curve.value)) + first
    panel.fill_between(x, curve.low, curve.high, color=look.colour, alpha=0.18, linewidth=0)
    panel.plot(x, curve.value, color=look.colour, marker=look.marker, markersize=3.5, linewidth=1.5, label=label)


def _chance(panel: Axes, curves: Iterable[Curve]) -> None:
    """A dashed line at each chance that some curve has."""
    for i, chance in enumerate(sorted({curve.chance[0] for curve in curves})):
        label = "chance" if i == 0 else None
        panel.axhline(chance, color="0.4", linestyle=(0, (4, 3)), linewidth=1, label=label, zorder=1)


def _key(panel: Axes, lines: int) -> None:
    panel.legend(loc="best", fontsize=7, ncols=2 if lines > 3 else 1, frameon=True, framealpha=0.8, edgecolor="none")


def _empty(panel: Axes, reasons: list[str]) -> None:
    told = "\n".join(textwrap.wrap(reasons[0] if reasons else "no such analysis", 46)[:8])
    panel.text(0.5, 0.5, f"left out:\n{told}", transform=panel.transAxes, ha="center", va="center", fontsize=7.5)
    panel.set_yticks([])


def _signals(panel: Axes, split: Split) -> None:
    x = np.arange(split.layers)
    for signal, colour, label in ((split.voice, "#D55E00", "voice"), (split.meaning, "#0072B2", "meaning")):
        if signal is not None:
            panel.plot(x, signal, color=colour, marker="o", markersize=3.5, linewidth=1.5, label=label)
    if split.voice is not None or split.meaning is not None:
        _key(panel, 2)
    else:
        _empty(panel, ["no curve differs between layers and beats chance"])
    panel.set_title("Signals, and the split by them", loc="left")
    panel.set(ylabel="share of its range")


def _frame(panel: Axes, split: Split) -> None:
    """The split behind the curves, and the input of the LLM as `in` before layer 0."""
    (first, last), (begin, end) = split.paralinguistic, split.semantic
    panel.axvspan(first - 0.5, last + 0.5, color=VOICE, zorder=0, linewidth=0)
    panel.axvspan(begin - 0.5, end + 0.5, color=MEANING, zorder=0, linewidth=0)
    step = max(1, round(split.layers / 10))
    ticks = list(range(0, split.layers, step))
    panel.set_xticks([-1, *ticks], ["in", *map(str, ticks)])
    panel.set_xlim(-1.3, split.layers - 0.5)
    panel.set(xlabel="after layer")
    panel.spines[["top", "right"]].set_visible(False)
