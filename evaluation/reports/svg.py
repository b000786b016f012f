"""Plots of a comparison as inline SVG, whose colours are the page's and follow it into the dark."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

WIDTH, ROW, TOP, BOTTOM = 350, 24, 6, 26  # of a panel, in CSS pixels
_TICKS = 4


class Bar(NamedTuple):
    """One line of a panel: a value with its interval, the values of single seeds, and the class of its colour."""

    name: str
    value: float
    low: float
    high: float
    seeds: Sequence[float]
    colour: str
    told: str  # shown when the pointer rests on it


def panel(bars: Sequence[Bar], *, zero: bool = False, unit: str = "") -> str:
    """Dots with intervals, one below the other, on an axis of their own.

    Args:
        bars: in their order, each with a name on the left.
        zero: draw a line at 0 and keep it in sight, for differences.
        unit: behind the axis's numbers.
    """
    ends = [end for bar in bars for end in (bar.low, bar.high, bar.value, *bar.seeds)] + [0.0] * zero
    ticks = ticks_of(min(ends), max(ends))
    left = 12 + 6.4 * max(len(bar.name) for bar in bars)
    height = TOP + ROW * len(bars) + BOTTOM
    low, high = ticks[0], ticks[-1]

    def x(value: float) -> float:
        return round(left + 10 + (WIDTH - left - 30) * (value - low) / (high - low), 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" xmlns="http://www.w3.org/2000/svg">']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{x(tick)}" y="{height - 8}">{_number(tick, ticks)}{unit}</text>')
    if zero:
        parts.append(f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="{TOP}" y2="{height - BOTTOM}"/>')
    for at, bar in enumerate(bars):
        y = TOP + ROW * (at + 0.5)
        parts.append(f'<text class="name" x="{left}" y="{y + 4}">{escape(bar.name)}</text>')
        parts.append(f'<g class="{bar.colour}"><title>{escape(bar.told)}</title>')
        parts.append(f'<line class="span" x1="{x(bar.low)}" x2="{x(bar.high)}" y1="{y}" y2="{y}"/>')
        parts += [f'<circle class="seed" cx="{x(seed)}" cy="{y}" r="3"/>' for seed in bar.seeds]
        parts.append(f'<circle class="dot" cx="{x(bar.value)}" cy="{y}" r="5"/></g>')
    return "".join([*parts, "</svg>"])


def ticks_of(low: float, high: float) -> list[float]:
    """Round numbers, evenly apart, from no more than `low` to no less than `high`."""
    if high - low < 1e-9:
        room = abs(high) * 0.05 or 1.0
        low, high = low - room, high + room
    rough = (high - low) / _TICKS
    base = 10.0 ** np.floor(np.log10(rough))
    step = float(min(m * base for m in (1, 2, 5, 10) if m * base >= rough * 0.999))
    first, last = int(np.floor(low / step + 1e-9)), int(np.ceil(high / step - 1e-9))
    return [round(step * i, 10) for i in range(first, last + 1)]


def _number(tick: float, ticks: Iterable[float]) -> str:
    """With as many decimals as the axis needs."""
    decimals = next((d for d in range(5) if all(abs(round(t, d) - t) < 1e-9 for t in ticks)), 5)
    return f"{tick:.{decimals}f}".replace("-0.0", "0.0") if tick else "0"


def lengths(values: Mapping[str, float | None], told: Mapping[str, str], colours: Mapping[str, str]) -> str:
    """Plain bars from 0, one a system, each with its number behind it."""
    most = max((value for value in values.values() if value), default=1.0)
    left = 12 + 6.4 * max(len(name) for name in values)
    height = ROW * len(values) + 4
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" xmlns="http://www.w3.org/2000/svg">']
    for at, (name, value) in enumerate(values.items()):
        y = ROW * (at + 0.5) + 2
        width = round((WIDTH - left - 130) * (value or 0.0) / most, 1)
        parts.append(f'<text class="name" x="{left}" y="{y + 4}">{escape(name)}</text>')
        parts.append(
            f'<g class="{colours[name]}"><rect x="{left + 8}" y="{y - 6}" width="{width}" height="12" rx="2"/></g>'
        )
        parts.append(f'<text class="value" x="{left + 14 + width}" y="{y + 4}">{escape(told[name])}</text>')
    return "".join([*parts, "</svg>"])
