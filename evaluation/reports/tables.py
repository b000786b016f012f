"""Tables of a comparison: their cells, for the page, and as they stand in the terminal."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table

from sottovoce.evaluation.paired_bootstrap import Estimate, Key
from sottovoce.evaluation.records import Record
from sottovoce.evaluation.reports.compare import COSTS, Comparison, is_better, of_recipe
from sottovoce.evaluation.reports.results import label_of, order_of, shown, shown_range

LEGEND = (
    "In percent; nats and points of judges as they are. [ ] is the 95 % interval, over utterances or speakers; of "
    "several seeds the mean stands first, and the lowest and highest below. Differences are paired: both systems on "
    "the same utterances. * where the interval lies on one side of 0."
)
PUBLISHED = "As published: other data, models and judge; compare the shape alone"
VERDICTS = {True: "better", False: "worse", None: "even"}
_FEW_SYSTEMS, _FEW_SETTINGS = 4, 12  # that a terminal of 80 columns has room for


class Cell(NamedTuple):
    """One value as text: the interval and the range of the seeds beside it; `verdict` is one of `VERDICTS`."""

    text: str = "-"
    interval: str = ""
    seeds: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Grid:
    """A table: rows have as many labels as `labels` has heads, and a cell for each of `columns`."""

    title: str
    labels: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[tuple[Sequence[str], Sequence[Cell]]]


def score_grid(comparison: Comparison, keys: Sequence[Key]) -> Grid:
    """Values with their intervals, and the number of utterances."""
    rows = []
    for key in keys:
        scores = comparison.scores[key]
        counts = sorted({score.n for score in scores.values()})
        n = Cell("-".join(map(str, dict.fromkeys((counts[0], counts[-1])))))
        cells = [_score_cell(key, scores[name]) if name in scores else Cell() for name in comparison.systems]
        rows.append((_labels(key), [*cells, n]))
    return Grid("Scores", ("task", "score", "slots"), [*comparison.systems, "n"], rows)


def difference_grid(comparison: Comparison, keys: Sequence[Key], baseline: str) -> Grid:
    """Every other system less the baseline; scores without any difference to it are left out."""
    others = [name for name in comparison.systems if name != baseline]
    found = {key: [comparison.differences[key].get((name, baseline)) for name in others] for key in keys}
    rows = [(_labels(k), [_difference_cell(k, each) for each in row]) for k, row in found.items() if any(row)]
    return Grid(f"Differences to {baseline}", ("task", "score", "slots"), others, rows)


def cost_grid(comparison: Comparison) -> Grid:
    """What training took, stage by stage: the mean of the runs, and the lowest and highest."""
    rows = []
    for stage, what in comparison.costs:
        title, pattern = COSTS[what]
        found = [system.costs.get((stage, what)) for system in comparison.systems.values()]
        rows.append(((stage, title), [_cost_cell(numbers, pattern) if numbers else Cell() for numbers in found]))
    return Grid("What training took", ("stage", ""), list(comparison.systems), rows)


def published_grid(comparison: Comparison) -> Grid:
    """What a paper reports of the same systems, in the unit of the scores."""
    rows = []
    for key, found in comparison.published.items():
        numbers = [[shown(key.metric, number) for number in found.get(name, [])] for name in comparison.systems]
        rows.append((_labels(key), [Cell(" ±".join(each)) if each else Cell() for each in numbers]))
    return Grid(PUBLISHED, ("task", "score", "slots"), list(comparison.systems), rows)


def published_beside(
    records: Sequence[Record], published: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
) -> Table | None:
    """For the terminal, what a paper reports (a recipe's `published`) beside the scores of one run; None: nothing."""
    ours = {Key(record.task, record.metric, record.slots): record.value for record in records}
    rows = sorted(of_recipe(published).items(), key=lambda row: order_of(row[0]))
    if not rows:
        return None
    table = Table("task", "score", "slots", "ours", "published", title=PUBLISHED, box=box.SIMPLE_HEAD, show_edge=False)
    for key, numbers in rows:
        paper = " ±".join(shown(key.metric, number) for number in numbers)
        mine = shown(key.metric, ours[key]) if key in ours else "-"
        table.add_row(*map(escape, (key.task, label_of(key.metric), key.slots, mine, paper)))
    return table


def settings_grid(comparison: Comparison) -> Grid:
    """Keys of the recipes that differ."""
    names, systems = list(comparison.systems), comparison.systems.values()
    rows = [((key,), [Cell(each.settings.get(key, "-")) for each in systems]) for key in comparison.settings]
    return Grid("What differs between the recipes", ("key",), names, rows)


def _labels(key: Key) -> tuple[str, str, str]:
    return key.task, label_of(key.metric), key.slots


def _score_cell(key: Key, score: Estimate) -> Cell:
    each = sorted(score.each.values())
    seeds = shown_range(key.metric, each[0], each[-1]) if each[:1] != each[-1:] else ""
    return Cell(shown(key.metric, score.value), f"[{shown_range(key.metric, score.low, score.high)}]", seeds)


def _difference_cell(key: Key, difference: Estimate | None) -> Cell:
    if difference is None:
        return Cell()
    value, low, high = (_signed(key.metric, end) for end in (difference.value, *difference.interval))
    star = "*" if difference.is_significant else ""
    return Cell(value, f"[{low} to {high}]{star}", verdict=VERDICTS[is_better(key.metric, difference)])


def _signed(metric: str, number: float) -> str:
    """A difference: in points (of percent, or of a judge), or nats."""
    text = shown(metric, number)
    return text.lstrip("-") if not text.strip("-0.") else text if number < 0 else f"+{text}"


def _cost_cell(numbers: Sequence[float], pattern: str) -> Cell:
    low, high = (pattern.format(end) for end in (min(numbers), max(numbers)))
    return Cell(pattern.format(mean(numbers)), "" if low == high else f"({low}-{high})")


def terminal_tables(comparison: Comparison) -> Table:
    """Scores, differences, costs, published numbers, what differs between the recipes, and the remarks."""
    c = comparison
    grids = [score_grid(c, c.headline), difference_grid(c, c.compared, c.baseline), cost_grid(c), published_grid(c)]
    if len(c.settings) <= _FEW_SETTINGS:
        grids.append(settings_grid(c))
    whole = Table.grid()
    for grid in grids:
        if grid.rows:
            whole.add_row(_terminal_table(grid, narrow=len(c.systems) > _FEW_SYSTEMS))
            whole.add_row("")
    for line in (LEGEND, *filter(None, [c.intervals]), *_systems(c), *c.remarks):
        whole.add_row(escape(line))
    return whole


def _systems(comparison: Comparison) -> Iterator[str]:
    for name, system in comparison.systems.items():
        seeds = f"seeds {', '.join(map(str, system.seeds))}" if len(system.seeds) > 1 else ""
        if system.title or seeds:
            yield f"{name}: {', '.join(filter(None, [system.title, seeds]))}"


def _terminal_table(grid: Grid, narrow: bool) -> Table:
    """Without slots, which headlines share, and without the number of utterances."""
    table = Table(
        title=escape(grid.title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False
    )
    labels = [at for at, head in enumerate(grid.labels) if head != "slots"]
    columns = [at for at, head in enumerate(grid.columns) if head != "n"]
    for at in labels:
        table.add_column(grid.labels[at], overflow="fold", no_wrap=narrow and at == 0)
    for at in columns:
        head = grid.columns[at].replace("_", "_\n").replace("/", "/\n")  # a terminal has 80 columns
        table.add_column(escape(head), justify="right", overflow="fold")
    for texts, cells in grid.rows:
        shown_labels = (texts[at].replace(" ", "\n") if narrow else texts[at] for at in labels)
        table.add_row(*map(escape, (*shown_labels, *(_stacked(cells[at], narrow) for at in columns))))
    return table


def _stacked(cell: Cell, narrow: bool) -> str:
    """Intervals and ranges stand on lines of their own; where there are many systems, their ends, too."""
    text = "\n".join(filter(None, [cell.text.replace(" ±", "\n±"), cell.interval, cell.seeds]))
    return re.sub(r"(?<=\d)(-| to )(?=[-+\d])", r"\1\n", text) if narrow else text
