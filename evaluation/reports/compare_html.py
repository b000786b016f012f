"""A comparison as one page that opens from disk: plots, tables and recipes."""

from collections.abc import Iterator
from dataclasses import replace

from sottovoce.errors import MissingError
from sottovoce.evaluation.paired_bootstrap import Estimate, Key
from sottovoce.evaluation.reports import tables
from sottovoce.evaluation.reports.compare import Comparison, is_better
from sottovoce.evaluation.reports.pages import NO_PLOTS, data_uri, render
from sottovoce.evaluation.reports.plots import COLOURS, Bar, Panel, interval_plot
from sottovoce.evaluation.reports.results import NATS, POINTS, label_of

VERDICT_COLOURS = {"better": "#00724f", "worse": "#b23b00", "even": "#8a9199"}


def comparison_html(comparison: Comparison, picture: bytes | None = None) -> str:
    """One HTML file with everything in it, also a `picture` of speech tokens: no script or font from elsewhere.

    Without matplotlib there are tables alone, and a line that says so.
    """
    c = comparison
    try:
        plots, missing = [_plot(list(panels)) for panels in (_score_panels(c), _difference_panels(c))], ""
    except MissingError:
        plots, missing = ["", ""], NO_PLOTS
    return render(
        "compare.html",
        comparison=c,
        legend=" ".join([tables.LEGEND, c.intervals]).strip(),
        missing=missing,
        score_plot=plots[0],
        difference_plot=plots[1],
        scores=tables.score_grid(c, c.headline),
        differences=tables.difference_grid(c, c.compared, c.baseline),
        published=tables.published_grid(c),
        costs=tables.cost_grid(c),
        settings=tables.settings_grid(c),
        details=[grid for grid in _details(c) if grid.rows],
        picture=data_uri(picture) if picture else "",
    )


def _details(comparison: Comparison) -> Iterator[tables.Grid]:
    """What is folded up: single slots, and differences to every other system."""
    rest = [key for key in comparison.scores if key not in comparison.headline]
    yield replace(tables.score_grid(comparison, rest), title="Scores of other slots")
    of_slots = tables.difference_grid(comparison, rest, comparison.baseline)
    yield replace(of_slots, title=f"{of_slots.title}, other slots")
    for name in comparison.others if len(comparison.systems) > 2 else ():
        yield tables.difference_grid(comparison, comparison.compared, name)


def _plot(panels: list[Panel]) -> str:
    return data_uri(interval_plot(panels)) if panels else ""


def _score_panels(comparison: Comparison) -> Iterator[Panel]:
    colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(comparison.systems)}
    for key in comparison.headline:
        scores = comparison.scores[key]
        yield Panel(_title(key), [_bar(key, name, scores.get(name), colours[name]) for name in comparison.systems])


def _difference_panels(comparison: Comparison) -> Iterator[Panel]:
    for key in comparison.compared:
        found = {name: comparison.differences[key].get((name, comparison.baseline)) for name in comparison.others}
        bars = [
            _bar(key, name, gap, VERDICT_COLOURS[tables.VERDICTS[is_better(key.metric, gap)]] if gap else "")
            for name, gap in found.items()
        ]
        if any(found.values()):
            yield Panel(_title(key), bars, zero=True)


def _bar(key: Key, name: str, score: Estimate | None, colour: str) -> Bar:
    if score is None:
        return Bar(name)
    scale = 100.0 if _is_share(key) else 1.0
    value, low, high = (scale * number for number in (score.value, *score.interval))
    seeds = [scale * number for number in score.each.values()] if len(score.each) > 1 else []
    return Bar(name, (value, low, high), seeds, colour)


def _title(key: Key) -> str:
    return f"{key.task}: {label_of(key.metric)}" + (", %" if _is_share(key) else "")


def _is_share(key: Key) -> bool:
    return key.metric not in NATS and not key.metric.startswith(POINTS)
