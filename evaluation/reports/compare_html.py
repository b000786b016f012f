"""The comparison as one page that opens from disk: plots, tables and recipes, in light and in dark."""

from collections.abc import Iterator, Sequence
from html import escape
from statistics import mean

from sottovoce.evaluation.paired_bootstrap import Estimate, Key
from sottovoce.evaluation.reports.compare import (
    COSTS,
    LEGEND,
    SideBySide,
    gap_cell,
    is_better,
    score_cell,
    seeds_cell,
    spread,
    title_of,
)
from sottovoce.evaluation.reports.results import NATS, shown
from sottovoce.evaluation.reports.svg import Bar, lengths, panel

COLOURS = 8  # that the page has; further systems begin again
STYLE = """
:root { color-scheme: light dark; --ground: #fcfcfb; --ink: #1d2125; --soft: #5f676f; --line: #dfe2e5; --card: #ffffff;
  --good: #00724f; --bad: #b23b00; --c0: #0072b2; --c1: #c4560a; --c2: #00835f; --c3: #b0558a; --c4: #a87400;
  --c5: #2f8fc4; --c6: #4b4f54; --c7: #882255; }
@media (prefers-color-scheme: dark) { :root { --ground: #15181b; --ink: #e6e8ea; --soft: #9aa3ab; --line: #30363c;
  --card: #1c2024; --good: #4fc79a; --bad: #f08a55; --c0: #5aaee6; --c1: #f0873c; --c2: #3fc295; --c3: #dd8fbc;
  --c4: #e3b04b; --c5: #8fd0f5; --c6: #b9c0c6; --c7: #d977a5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1560px; padding: 28px 20px 60px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 40px 0 6px; }
h3 { font-size: 14px; margin: 0 0 2px; font-weight: 600; }
p, li { max-width: 76ch; } p.soft, .soft { color: var(--soft); } p { margin: 4px 0 12px; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 14px; }
figure { margin: 0; padding: 12px 12px 6px; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; }
svg { display: block; width: 100%; height: auto; font-size: 12px; } svg text { fill: var(--ink); }
svg .name { text-anchor: end; } svg .tick { text-anchor: middle; fill: var(--soft); font-size: 11px; }
svg .value { fill: var(--soft); } svg .grid { stroke: var(--line); }
svg .zero { stroke: var(--soft); stroke-width: 1.5; }
svg .span { stroke: var(--c); stroke-width: 2.5; stroke-linecap: round; } svg .dot { fill: var(--c); }
svg .seed { fill: var(--card); stroke: var(--c); stroke-width: 1.2; opacity: .75; } svg rect { fill: var(--c); }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); } .c4 { --c: var(--c4); }
.c5 { --c: var(--c5); } .c6 { --c: var(--c6); } .c7 { --c: var(--c7); } .even { --c: var(--soft); }
.better { --c: var(--good); } .worse { --c: var(--bad); }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 50%; background: var(--c);
  margin-right: 6px; }
.scroll { overflow-x: auto; margin: 0 0 12px; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; text-align: right; vertical-align: top; white-space: nowrap; }
th { font-weight: 600; border-bottom: 1px solid var(--soft); } td { border-bottom: 1px solid var(--line); }
th.left, td.left { text-align: left; } td small { display: block; color: var(--soft); }
td.better { color: var(--good); } td.worse { color: var(--bad); } td.wrap { white-space: normal; max-width: 34ch; }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--soft); } code { font-size: 13px; }
"""


def comparison_html(page: SideBySide) -> str:
    """One HTML file with everything in it: no script, no font, no picture from elsewhere."""
    names = " · ".join(page.systems)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{escape(names)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(names)}</h1>",
        f'<p class="soft">{escape(LEGEND)}</p>',
        *_legend(page),
        *_section(
            "Scores", _score_panels(page), "A dot is the mean of the seeds, a ring one seed, a line the interval."
        ),
        _scores(page, page.headline),
        *_section(f"Differences to {page.against}", _gap_panels(page), "Green: clearly better. Orange: clearly worse."),
        _gaps(page, page.gaps, page.against),
        *_section("What training took", _cost_panels(page), "Means of the seeds, and the lowest and highest."),
        *_recipes(page),
        *_more(page),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _section(title: str, figures: Sequence[str], text: str) -> list[str]:
    if not figures:
        return []
    return [f'<h2>{escape(title)}</h2><p class="soft">{text}</p><div class="panels">{"".join(figures)}</div><p></p>']


def _colours(page: SideBySide) -> dict[str, str]:
    return {name: f"c{at % COLOURS}" for at, name in enumerate(page.systems)}


def _legend(page: SideBySide) -> Iterator[str]:
    colours = _colours(page)
    rows = []
    for name, system in page.systems.items():
        seeds = ", ".join(map(str, system.seeds))
        folders = "<br>".join(f"<code>{escape(folder)}</code>" for folder in system.runs)
        rows.append([f'<span class="swatch {colours[name]}"></span>{escape(name)}', seeds, folders])
    yield _table(["system", "seeds", "runs"], rows, left=3)
    if page.remarks:
        yield f"<ul>{''.join(f'<li>{escape(remark)}</li>' for remark in page.remarks)}</ul>"


def _score_panels(page: SideBySide) -> list[str]:
    colours = _colours(page)
    return [
        _figure(key, [_bar(key, n, score, colours[n], score_cell(key, score)) for n, score in page.scores[key].items()])
        for key in page.headline
    ]


def _gap_panels(page: SideBySide) -> list[str]:
    """One a score, a line for each system: nothing here depends on another score's scale."""
    figures = []
    for key in page.gaps:
        found = page.differences[key]
        gaps = {name: found[name, page.against] for name in page.others if (name, page.against) in found}
        bars = [_bar(key, name, gap, _verdict(key, gap), gap_cell(key, gap)) for name, gap in gaps.items()]
        figures += [_figure(key, bars, zero=True)] if bars else []
    return figures


def _figure(key: Key, bars: Sequence[Bar], zero: bool = False) -> str:
    kind = "" if key.metric in NATS else " pt" if zero else " %"
    title = f"{escape(key.task)} <span class='soft'>{escape(title_of(key))}</span>"
    return f"<figure><h3>{title}</h3>{panel(bars, zero=zero, unit=kind)}</figure>"


def _bar(key: Key, name: str, score: Estimate, colour: str, told: str) -> Bar:
    scale = 1.0 if key.metric in NATS else 100.0
    value, low, high = (scale * number for number in (score.value, score.low, score.high))
    seeds = [scale * number for number in score.each.values()] if len(score.each) > 1 else []
    return Bar(name, value, low, high, seeds, colour, f"{name}: {told}, n = {score.n}")


def _verdict(key: Key, gap: Estimate) -> str:
    return {True: "better", False: "worse", None: "even"}[is_better(key.metric, gap)]


def _cost_panels(page: SideBySide) -> list[str]:
    colours, figures = _colours(page), []
    several = len({stage for stage, _ in page.costs}) > 1
    for stage, what in page.costs:
        title, pattern = COSTS[what]
        found = {name: system.costs.get((stage, what)) for name, system in page.systems.items()}
        values = {name: mean(numbers) if numbers else None for name, numbers in found.items()}
        told = {name: spread(numbers, pattern) if numbers else "-" for name, numbers in found.items()}
        where = f" <span class='soft'>stage {escape(stage)}</span>" if several else ""
        figures.append(f"<figure><h3>{escape(title)}{where}</h3>{lengths(values, told, colours)}</figure>")
    return figures


def _scores(page: SideBySide, keys: Sequence[Key], slots: bool = False) -> str:
    rows = []
    for key in keys:
        cells = []
        for name in page.systems:
            score = page.scores[key].get(name)
            if score is None:
                cells.append("-")
                continue
            value = shown(key.metric, score.value)
            details = score_cell(key, score, several=False).removeprefix(f"{value} ")
            seeds = f"<small>{seeds_cell(key, score)}</small>" if len(score.each) > 1 else ""
            cells.append(f"<b>{value}</b> <span class='soft'>{details}</span>{seeds}")
        counts = sorted({score.n for score in page.scores[key].values()})
        rows.append([*_titles(key, slots), *cells, "-".join(map(str, dict.fromkeys((counts[0], counts[-1]))))])
    return _table([*_heads(slots), *page.systems, "n"], rows, left=2 + slots)


def _gaps(page: SideBySide, keys: Sequence[Key], against: str, slots: bool = False) -> str:
    others = [name for name in page.systems if name != against]
    rows, looks = [], []
    for key in keys:
        found = [page.differences[key].get((name, against)) for name in others]
        if any(found):
            rows.append([*_titles(key, slots), *(gap_cell(key, gap).strip() if gap else "-" for gap in found)])
            looks.append([*[""] * (2 + slots), *(_verdict(key, gap) if gap else "" for gap in found)])
    return _table([*_heads(slots), *others], rows, left=2 + slots, looks=looks) if rows else ""


def _heads(slots: bool) -> list[str]:
    return ["task", "score", *(["slots"] if slots else [])]


def _titles(key: Key, slots: bool) -> list[str]:
    return [escape(key.task), escape(title_of(key)), *([escape(key.slots)] if slots else [])]


def _recipes(page: SideBySide) -> Iterator[str]:
    if page.settings:
        rows = [
            [f"<code>{escape(key)}</code>", *(escape(s.settings.get(key, "-")) for s in page.systems.values())]
            for key in page.settings
        ]
        yield "<h2>What differs between the recipes</h2>"
        yield _table(["key", *page.systems], rows, left=1 + len(page.systems), wrap=True)


def _more(page: SideBySide) -> Iterator[str]:
    yield "<h2>More</h2>"
    rest = [key for key in page.scores if key not in page.headline]
    if rest:
        yield f"<details><summary>scores of other slots</summary>{_scores(page, rest, slots=True)}</details>"
    if rest:
        gaps = _gaps(page, rest, page.against, slots=True)
        yield f"<details><summary>differences of other slots to {escape(page.against)}</summary>{gaps}</details>"
    for name in page.others if len(page.systems) > 2 else ():
        gaps = _gaps(page, page.gaps, name)
        yield f"<details><summary>differences to {escape(name)}</summary>{gaps}</details>"


def _table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: int,
    looks: Sequence[Sequence[str]] = (),
    wrap: bool = False,
) -> str:
    """Cells are HTML already; the first `left` columns stand on the left."""

    def classes(at: int, look: str = "") -> str:
        return " ".join(filter(None, ["left" if at < left else "", "wrap" if wrap else "", look]))

    top = "".join(f'<th class="{classes(at)}">{escape(head)}</th>' for at, head in enumerate(heads))
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{classes(at, looks[number][at] if looks else "")}">{cell}</td>' for at, cell in enumerate(row)
        )
        + "</tr>"
        for number, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
