"""A layer-wise analysis as one page that opens from disk: the plot, the split in words, and every number."""

from collections.abc import Mapping
from typing import Any

from sottovoce.evaluation.layers.split import Curve
from sottovoce.evaluation.reports.pages import NO_PLOTS, data_uri, render


def layer_page(report: Mapping[str, Any], curves: Mapping[str, Curve], picture: bytes | None) -> str:
    """The page, as HTML without a link to anything.

    Args:
        report: what `layers.json` holds.
        curves: by name.
        picture: the plot as PNG, which becomes part of the page; None where matplotlib is not installed.
    """
    heard = report["heard"]
    known = {
        "heard": f"{heard['utterances']} utterances, {heard['speakers']} speakers, {heard['texts']} texts",
        "instruction": heard["instruction"] or "none",
        "intent": heard["intent"],
        **{f"fingerprint, {part}": digest for part, digest in report["model"].items()},
    }
    return render(
        "layers.html",
        report=report,
        curves=curves,
        known=known,
        picture=data_uri(picture) if picture else "",
        missing=NO_PLOTS,
        sides=[_side(state - 1, report) for state in range(report["layers"] + 1)],
    )


def _side(layer: int, report: Mapping[str, Any]) -> str:
    sides = (("voice", report["paralinguistic"]), ("meaning", report["semantic"]))
    return next((name for name, (first, last) in sides if first <= layer <= last), "")
