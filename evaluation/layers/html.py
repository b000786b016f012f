"""An analysis as one page that opens from disk: the picture within it, the split in words, and every number."""

import base64
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from sottovoce.evaluation.layers.split import Curve

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
img { width: 100%; height: auto; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.82rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; } thead th { border-bottom: 2px solid #888; }
td small { color: #666; white-space: nowrap; display: block; } tr.voice td { background: #fdf1e7; }
tr.meaning td { background: #eaf3fa; }
.known td { text-align: left; } .split { font-size: 1.05rem; }
.split b.voice { background: #fbe3d0; padding: 0 0.3rem; } .split b.meaning { background: #d6e8f5; padding: 0 0.3rem; }
"""


def layer_page(told: Mapping[str, Any], curves: Mapping[str, Curve], picture: Path) -> str:
    """The page, as HTML without a link to anything.

    Args:
        told: what `layers.json` holds.
        curves: by name.
        picture: the PNG, which becomes part of the page.
    """
    image = base64.b64encode(picture.read_bytes()).decode("ascii")
    (first, last), (begin, end) = told["paralinguistic"], told["semantic"]
    heard = told["heard"]
    known = {
        "heard": f"{heard['utterances']} utterances, {heard['speakers']} speakers, {heard['texts']} texts",
        "instruction": heard["instruction"] or "none",
        "intent": heard["intent"],
        **{f"fingerprint, {part}": digest for part, digest in told["model"].items()},
    }
    return "\n".join(
        [
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Layers</title><style>{STYLE}</style>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"></head><body>',
            "<h1>Where the voice is, and where the meaning</h1>",
            f'<p class="split">Of layers 0-{told["layers"] - 1}: <b class="voice">paralinguistic {first}-{last}</b>, '
            f'<b class="meaning">semantic {begin}-{end}</b>. {escape(told["words"])}</p>',
            f'<img alt="Curves of all analyses over the layers" src="data:image/png;base64,{image}">',
            "<p>Bands are 95 % intervals, dashed lines are chance. <i>in</i> is what the first layer is given; after "
            "it stands the output of each layer. The split is shaded.</p>",
            f"<h2>The rule</h2><p>{escape(told['rule'])}</p>",
            "<h2>Every number</h2>",
            *_numbers(curves, told),
            "<h2>What each was measured on</h2>",
            *_notes(curves, told["left_out"]),
            "<h2>What was heard</h2>",
            *_pairs(known),
            "</body></html>\n",
        ]
    )


def _numbers(curves: Mapping[str, Curve], told: Mapping[str, Any]) -> Iterator[str]:
    heads = "".join(f"<th>{escape(name)}</th>" for name in curves)
    yield f'<div class="wide"><table><thead><tr><th>state</th>{heads}</tr></thead><tbody>'
    for state in range(told["layers"] + 1):
        cells = "".join(
            f"<td>{c.value[state]:.3f}<small>{c.low[state]:.3f} to {c.high[state]:.3f}</small></td>"
            for c in curves.values()
        )
        yield f'<tr class="{_side(state - 1, told)}"><td>{f"layer {state - 1}" if state else "input"}</td>{cells}</tr>'
    chances = "".join(f"<td>{c.chance[0]:.3g}</td>" for c in curves.values())
    yield f"<tr><td>chance</td>{chances}</tr></tbody></table></div>"


def _side(layer: int, told: Mapping[str, Any]) -> str:
    sides = (("voice", told["paralinguistic"]), ("meaning", told["semantic"]))
    return next((name for name, (first, last) in sides if first <= layer <= last), "")


def _notes(curves: Mapping[str, Curve], left_out: Mapping[str, str]) -> Iterator[str]:
    yield '<table class="known"><thead><tr><th>analysis</th><th>unit</th><th>n</th><th>notes</th></tr></thead><tbody>'
    for name, curve in curves.items():
        unit, notes = escape(curve.unit), escape(curve.notes)
        yield f"<tr><td>{escape(name)}</td><td>{unit}</td><td>{curve.n}</td><td>{notes}</td></tr>"
    for name, reason in left_out.items():
        yield f"<tr><td>{escape(name)}</td><td></td><td></td><td>left out: {escape(reason)}</td></tr>"
    yield "</tbody></table>"


def _pairs(known: Mapping[str, str]) -> Iterator[str]:
    yield '<table class="known"><tbody>'
    for name, value in known.items():
        yield f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
    yield "</tbody></table>"
