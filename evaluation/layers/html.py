"""A layer-wise analysis as one page that opens from disk: the plot, the split in words, and every number."""

from collections.abc import Mapping
from typing import Any

from sottovoce.evaluation.layers.split import Curve
from sottovoce.evaluation.reports.pages import NO_PLOTS, data_uri, render


def layer_page(report: Mapping[str, Any], curves: Mapping[str, Curve], picture: bytes | None) -> str:
    """The page, as HTML without a link to anything.

    `report` is what `layers.json` holds. `picture` is the plot as PNG; None where matplotlib is not installed.
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
        known=known,
        picture=data_uri(picture) if picture else "",
        missing=NO_PLOTS,
        sides=[side_of.get(layer, "") for layer in range(-1, report["layers"])],
    )
