"""Systems one below the other, over several seeds, with what was published in a table of its own."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from rich import box
from rich.table import Table


@dataclass(frozen=True)
class Column:
    """How a score is shown: its name, by what it is multiplied, and with how many decimals."""

    title: str
    scale: float = 1.0
    decimals: int = 2


COLUMNS = {  # of table I (Kang et al., 2024), and the linear probe of section V-C
    "rouge_1": Column("ROUGE-1", decimals=3),
    "rouge_2": Column("ROUGE-2", decimals=3),
    "rouge_l": Column("ROUGE-L", decimals=3),
    "bert_score": Column("BERTScore", 100),
    "quality": Column("quality"),
    "emotion": Column("emotion"),
    "ser": Column("SER %", 100, 1),
    "probe": Column("probe %", 100, 1),
}
LEGEND = (
    "Means over seeds; ± is half of the 95 % interval over utterances, averaged over seeds. quality, emotion: 1 to 10, "
    "by the judge. SER: share of right labels. probe: of a linear probe on mean speech tokens."
)


@dataclass(frozen=True)
class Cell:
    """One score of one run; `value`, `low` and `high` (the 95 % interval) in the unit that it was measured in."""

    system: str
    seed: int
    column: str
    value: float
    low: float
    high: float
    n: int
    notes: str = ""


@dataclass(frozen=True)
class Comparison:
    """All that a page shows.

    Args:
        name: of the table.
        titles: system -> what its row is called, in the order of rows.
        cells: every score of every run.
        paper: system -> column -> value and, where it was published, half of the interval; as published, unscaled.
        remarks: what a reader must know about the numbers.
    """

    name: str
    titles: Mapping[str, str]
    cells: Sequence[Cell]
    paper: Mapping[str, Mapping[str, Sequence[float]]]
    remarks: Sequence[str] = ()

    def of(self, system: str, column: str) -> list[Cell]:
        """The score of each seed."""
        return [cell for cell in self.cells if (cell.system, cell.column) == (system, column)]

    def mean(self, system: str, column: str) -> str:
        """Mean over seeds, and half of the interval: the mean of the seeds', rather too wide than too narrow."""
        cells = self.of(system, column)
        if not cells:
            return "-"
        shown = COLUMNS[column]
        return _number(shown, mean(c.value for c in cells), mean(c.high - c.low for c in cells) / 2)

    def span(self, system: str, column: str) -> str:
        """Lowest and highest of the seeds."""
        values = [COLUMNS[column].scale * cell.value for cell in self.of(system, column)]
        if not values:
            return "-"
        low, high = (f"{end:.{COLUMNS[column].decimals}f}" for end in (min(values), max(values)))
        return low if low == high else f"{low}-{high}"

    def published(self, system: str, column: str) -> str:
        """What the paper says."""
        told = self.paper.get(system, {}).get(column)
        if not told:
            return "-"
        return _number(Column("", 1.0, COLUMNS[column].decimals), *told)


def _number(column: Column, value: float, half: float | None = None) -> str:
    text = f"{column.scale * value:.{column.decimals}f}"
    return text if half is None else f"{text} ±{column.scale * half:.{column.decimals}f}"


def comparison_table(page: Comparison) -> Table:
    """For the terminal, scores below one another and a column a system: ours, and below them the paper's."""
    grid = Table.grid()
    for title, rows in _parts(page):
        table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title_justify="left")
        for name in ("", *page.titles):
            table.add_column(name.replace("_", "\n"), justify="right" if name else "left", no_wrap=True)
        for column, *cells in zip([c.title for c in COLUMNS.values()], *(row[1:] for row in rows), strict=True):
            table.add_row(column, *(_narrow(cell) for cell in cells))
        grid.add_row(table)
        grid.add_row("")
    for line in (*(f"{name}: {title}" for name, title in page.titles.items()), LEGEND, *page.remarks):
        grid.add_row(line)
    return grid


def _narrow(cell: str) -> str:
    """A terminal has 80 columns: intervals and the ends of ranges stand on lines of their own."""
    return re.sub(r"(?<=\d)-(?=\d)", "-\n", cell.replace(" ±", "\n±"))


def comparison_markdown(page: Comparison) -> str:
    """The same as a page."""
    head = ["system", *(column.title for column in COLUMNS.values())]
    parts = [f"# {page.name}", LEGEND, *page.remarks]
    for title, rows in _parts(page):
        lines = [head, ["---", *["---:"] * len(COLUMNS)], *rows]
        parts += [f"## {title}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _parts(page: Comparison) -> list[tuple[str, list[list[str]]]]:
    seeds = sorted({cell.seed for cell in page.cells})
    shown = [(f"Ours, {len(seeds)} seed{'s' * (len(seeds) > 1)}", page.mean)]
    shown += [("Ours, lowest and highest of the seeds", page.span)] if len(seeds) > 1 else []
    shown += [("As published: other data, models and judge; compare the shape alone", page.published)] * bool(
        page.paper
    )
    return [
        (title, [[page.titles[system], *(cell(system, column) for column in COLUMNS)] for system in page.titles])
        for title, cell in shown
    ]


def write_comparison(folder: Path, page: Comparison) -> None:
    """`table.md` and `table.json`, which holds every cell of every seed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(comparison_markdown(page), "utf-8")
    (folder / "table.json").write_text(_json(page.cells), "utf-8")


def _json(cells: Iterable[Cell]) -> str:
    return "[\n" + ",\n".join(f"  {json.dumps(asdict(cell))}" for cell in cells) + "\n]\n"
