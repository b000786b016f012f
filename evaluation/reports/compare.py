"""Systems side by side, as a researcher reads them: in the terminal, and as a file for further sums."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

from rich import box
from rich.markup import escape
from rich.table import Table

from sottovoce.errors import SottovoceError, nearest
from sottovoce.evaluation.paired_bootstrap import Estimate, Key, Seeds, differences, estimate
from sottovoce.evaluation.reports.results import METRICS, in_order_of, shown

LOWER_IS_BETTER = tuple(name for name, title in METRICS.items() if title.endswith("↓"))
COSTS = {  # of a stage, as its done.json has them -> title, format
    "trainable": ("trainable parameters", "{:,.0f}"),
    "steps": ("steps", "{:,.0f}"),
    "seconds_per_step": ("seconds a step", "{:.3f}"),
    "peak_memory_mb": ("peak memory, MB", "{:,.0f}"),
}
LEGEND = (
    "In percent, but nats as they are. [ ] is the 95 % interval over utterances; of several seeds the mean stands "
    "first, and the lowest and highest below. Differences are paired: both systems on the same utterances. * where "
    "the interval lies on one side of 0."
)


@dataclass(frozen=True)
class System:
    """What is compared: one recipe with one seed or several.

    Args:
        seeds: of its runs, in order.
        runs: their folders.
        costs: (stage, what of `COSTS`) -> what each run took.
        settings: key of the recipe -> value, of what is not the same for all systems.
    """

    seeds: Sequence[int]
    runs: Sequence[str]
    costs: Mapping[tuple[str, str], Sequence[float]] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SideBySide:
    """All that a comparison says.

    Args:
        systems: by name, in their order.
        against: the system that the others are held against first.
        scores: score -> system -> its value.
        differences: score -> (system, other) -> how much higher the system's is.
        heard: the choice of slots that stands first.
        remarks: what a reader must know about the numbers.
    """

    systems: Mapping[str, System]
    against: str
    scores: Mapping[Key, Mapping[str, Estimate]]
    differences: Mapping[Key, Mapping[tuple[str, str], Estimate]]
    heard: str
    remarks: Sequence[str] = ()

    @property
    def others(self) -> list[str]:
        """All systems but the one that they are held against."""
        return [name for name in self.systems if name != self.against]

    @property
    def headline(self) -> list[Key]:
        """Scores of what was heard, and of text retention; the others are scores of single slots."""
        return [key for key in self.scores if key.slots == self.heard or key.task == "retention"]

    @property
    def gaps(self) -> list[Key]:
        """Scores whose differences are shown; changes differ as what they are changes of does."""
        return [key for key in self.headline if not key.metric.endswith("_change")]

    @property
    def settings(self) -> list[str]:
        """Keys of recipes that differ."""
        return list(dict.fromkeys(key for system in self.systems.values() for key in system.settings))

    @property
    def costs(self) -> list[tuple[str, str]]:
        """(stage, what it took), stage by stage."""
        return list(dict.fromkeys(key for system in self.systems.values() for key in system.costs))


def side_by_side(
    systems: Mapping[str, System], measured: Mapping[Key, Mapping[str, Seeds]], against: str, remarks: Sequence[str]
) -> SideBySide:
    """Estimate every score and every difference.

    Raises:
        SottovoceError: no system is called `against`.
    """
    if against not in systems:
        raise SottovoceError(f"no system is called {against!r}.{nearest(against, systems)}")
    ordered = in_order_of(measured)
    scores = {key: {name: estimate(seeds) for name, seeds in measured[key].items()} for key in ordered}
    gaps = {key: differences(measured[key]) for key in ordered}
    slots = [key.slots for key in ordered if key.task != "retention"]
    heard = "both" if "both" in slots or not slots else slots[0]
    return SideBySide(systems, against, scores, gaps, heard, remarks)


def is_better(metric: str, gap: Estimate) -> bool | None:
    """Whether a difference is clearly for the better or the worse; None where its interval holds 0."""
    if not gap.is_clear:
        return None
    return (gap.value < 0) == (metric in LOWER_IS_BETTER)


def title_of(key: Key) -> str:
    return METRICS.get(key.metric, key.metric)


def signed(metric: str, number: float) -> str:
    """A difference: in points (of percent), or nats."""
    text = shown(metric, number)
    return text if number <= 0 or text.strip("0.") == "" else f"+{text}"


def spread(numbers: Sequence[float], pattern: str) -> str:
    """The mean, and behind it the lowest and highest where they differ."""
    low, high = (pattern.format(end) for end in (min(numbers), max(numbers)))
    return pattern.format(mean(numbers)) + ("" if low == high else f" ({low}-{high})")


def terminal_tables(page: SideBySide) -> Table:
    """Scores, differences, costs, and what differs between the recipes."""
    grid = Table.grid()
    for table in (_scores(page), _gaps(page), _costs(page), _settings(page)):
        if table.row_count:
            grid.add_row(table)
            grid.add_row("")
    seeds = (f"{name}: seeds {', '.join(map(str, s.seeds))}" for name, s in page.systems.items() if len(s.seeds) > 1)
    for line in (LEGEND, *seeds, *page.remarks):
        grid.add_row(escape(line))
    return grid


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in columns:
        shown_as = name.replace("_", "_\n").replace("/", "/\n")  # a terminal has 80 columns
        table.add_column(escape(shown_as), justify="right" if name not in ("task", "score", "", "key") else "left")
    return table


def _scores(page: SideBySide) -> Table:
    several = max(len(system.seeds) for system in page.systems.values()) > 1
    table = _table("Scores", ["task", "score", *page.systems])
    for key in page.headline:
        found = page.scores[key]
        cells = [_narrow(score_cell(key, found[name], several)) if name in found else "-" for name in page.systems]
        table.add_row(*map(escape, (key.task, title_of(key), *cells)))
    return table


def score_cell(key: Key, score: Estimate, several: bool = True) -> str:
    """Value and interval, and on a line of its own the lowest and highest seed."""
    value, low, high = (shown(key.metric, number) for number in (score.value, score.low, score.high))
    text = f"{value} [{_ends(low, high)}]"
    return f"{text}\n{seeds_cell(key, score)}" if several and len(score.each) > 1 else text


def seeds_cell(key: Key, score: Estimate) -> str:
    """Lowest and highest of the seeds."""
    return _ends(*(shown(key.metric, end) for end in (min(score.each.values()), max(score.each.values()))))


def _ends(low: str, high: str) -> str:
    return f"{low} to {high}" if low.startswith(("-", "+")) or high.startswith(("-", "+")) else f"{low}-{high}"


def _gaps(page: SideBySide) -> Table:
    table = _table(f"Differences to {page.against}", ["task", "score", *page.others])
    for key in page.gaps:
        found = page.differences[key]
        cells = [
            _narrow(gap_cell(key, found[n, page.against])) if (n, page.against) in found else "-" for n in page.others
        ]
        if any(cell != "-" for cell in cells):
            table.add_row(*map(escape, (key.task, title_of(key), *cells)))
    return table


def gap_cell(key: Key, gap: Estimate) -> str:
    """Difference and interval, marked where it is clear."""
    value, low, high = (signed(key.metric, number) for number in (gap.value, gap.low, gap.high))
    return f"{value} [{_ends(low, high)}]{'*' if gap.is_clear else ' '}"


def _narrow(cell: str) -> str:
    """A terminal has 80 columns: intervals stand on lines of their own."""
    return cell.replace(" [", "\n[").replace(" (", "\n(")


def _costs(page: SideBySide) -> Table:
    table = _table("What training took", ["", *page.systems])
    several = len({stage for stage, _ in page.costs}) > 1
    for stage, what in page.costs:
        title, pattern = COSTS[what]
        found = [system.costs.get((stage, what)) for system in page.systems.values()]
        cells = [_narrow(spread(numbers, pattern)) if numbers else "-" for numbers in found]
        table.add_row(*map(escape, (f"{stage}: {title}" if several else title, *cells)))
    return table


def _settings(page: SideBySide) -> Table:
    table = _table("What differs between the recipes", ["key", *page.systems])
    for key in page.settings:
        table.add_row(*map(escape, (key, *(s.settings.get(key, "-") for s in page.systems.values()))))
    return table


def comparison_csv(page: SideBySide) -> str:
    """Every number, one a line, in the units of `results.json`: scores, all differences, costs, and each seed's own."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "kind",
            "system",
            "against",
            "seed",
            "task",
            "metric",
            "slots",
            "value",
            "low",
            "high",
            "lowest",
            "highest",
            "n",
        ]
    )
    writer.writerows(_lines(page))
    return out.getvalue()


def _lines(page: SideBySide) -> Iterator[list[object]]:
    for key, scores in page.scores.items():
        for name, score in scores.items():
            yield from _seeds("score", name, "", key, score)
    for key, gaps in page.differences.items():
        for (name, other), gap in gaps.items():
            yield from _seeds("difference", name, other, key, gap)
    for name, system in page.systems.items():
        for (stage, what), numbers in system.costs.items():
            yield ["cost", name, "", "", stage, what, "", mean(numbers), "", "", min(numbers), max(numbers), ""]


def _seeds(kind: str, name: str, other: str, key: Key, score: Estimate) -> Iterator[list[object]]:
    ends = [min(score.each.values()), max(score.each.values())] if score.each else ["", ""]
    yield [kind, name, other, "", *key, score.value, score.low, score.high, *ends, score.n]
    for seed, value in score.each.items():
        yield [f"{kind} of a seed", name, other, seed, *key, value, "", "", "", "", score.n]
