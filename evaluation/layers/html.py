"""A layer-wise analysis as one page that opens from disk: the plot, the split in words, every number; and as CSV."""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from sottovoce.evaluation.layers.split import Curve
from sottovoce.evaluation.reports.pages import NO_PLOTS, data_uri, render


def layer_csv(curves: Mapping[str, Curve], encoder: Mapping[str, Curve]) -> str:
    """Every number as CSV, a row a state and analysis; the LLM's layers count from 0, the encoder's from 1."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["state", "analysis", "value", "low", "high", "chance", "unit", "n"])
    table.writerows(_rows(curves, "", 0))
    table.writerows(_rows(encoder, "encoder ", 1))
    return stream.getvalue()


def _rows(curves: Mapping[str, Curve], part: str, first: int) -> Iterator[list[Any]]:
    for name, c in curves.items():
        for state, numbers in enumerate(zip(c.value, c.low, c.high, c.chance, strict=True)):
            yield [f"{part}layer {state - 1 + first}" if state else f"{part}input", name, *numbers, c.unit, c.n]


def layer_page(
    report: Mapping[str, Any],
    curves: Mapping[str, Curve],
    picture: bytes | None,
    encoder: Mapping[str, Curve] | None = None,
) -> str:
    """The page, as HTML without a link to anything.

    `report` is what `layers.json` holds. `picture` is the plot as PNG; None where matplotlib is not installed.
    `encoder` are curves over the encoder's layers, whose first state is the input of layer 1.
    """
    heard = report["heard"]
    known = {
        "heard": f"{heard['utterances']} utterances, {heard['speakers']} speakers, {heard['texts']} texts",
        "instruction": heard["instruction"] or "none",
        "intent": heard["intent"],
        **{f"fingerprint, {part}": digest for part, digest in report["model"].items()},
    }
    (first, last), (begin, end) = report["paralinguistic"], report["semantic"]
    side_of = dict.fromkeys(range(first, last + 1), "voice") | dict.fromkeys(range(begin, end + 1), "meaning")
    return render(
        "layers.html",
        report=report,
        curves=curves,
        encoder=encoder,
        known=known,
        picture=data_uri(picture) if picture else "",
        missing=NO_PLOTS,
        sides=[side_of.get(layer, "") for layer in range(-1, report["layers"])],
    )
