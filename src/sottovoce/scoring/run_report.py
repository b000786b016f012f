"""The page of a run, `report.html`: its scores, confusions, learning curves, and answers with their audio."""

import base64
import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from urllib.parse import quote

import soundfile

from sottovoce import __version__
from sottovoce.data.audio import load_audio
from sottovoce.errors import AudioError
from sottovoce.evaluation.records import read_predictions, read_results
from sottovoce.evaluation.reports.run_html import RunReport, run_html, shown_audio
from sottovoce.evaluation.reports.run_plots import Curve
from sottovoce.io import atomic_write
from sottovoce.training.run_folder import RECIPE

PAGE = "report.html"
MAX_SECONDS = 10.0  # of a clip that becomes part of the page; a longer one is referred to
MAX_BYTES = 6_000_000  # of all clips in a page


def write_report(scores: Path, page: Path, run: Path | None = None) -> Path:
    """Write the page of what lies in a folder of scores, such as `evaluation`; returns its path.

    Args:
        scores: with `results.json` and `predictions.jsonl`.
        page: the file to write.
        run: the run's folder, for its stages, its recipe and its clips; None: there is none.

    Raises:
        MissingError: nothing has been scored there.
    """
    predictions = read_predictions(scores)
    records = read_results(scores)
    recipe = run / RECIPE if run else None
    report = RunReport(
        name=records[0].system if records else scores.name,
        records=records,
        predictions=predictions,
        curves=learning_curves(run) if run else {},
        sounds=_sounds(shown_audio(predictions), run or scores, page.parent),
        recipe=recipe.read_text("utf-8") if recipe and recipe.is_file() else "",
        made=_made(run),
    )
    atomic_write(page, run_html(report))
    return page


def learning_curves(run: Path) -> dict[str, list[list[Curve]]]:
    """Stage -> panels of curves, of all that its `metrics.csv` has by step; after a restart the later value holds."""
    found: dict[str, list[list[Curve]]] = {}
    folders = sorted(run.glob("stages/*"), key=lambda folder: (len(folder.name.partition("-")[0]), folder.name))
    for folder in folders:
        files = sorted(folder.glob("metrics/version_*/metrics.csv"), key=lambda file: int(file.parent.name[8:]))
        values: dict[str, dict[float, float]] = {}
        for file in files:
            with file.open(encoding="utf-8", newline="") as stream:
                for row in csv.DictReader(stream):
                    step = row.pop("step", None)
                    row.pop("epoch", None)
                    for name, text in row.items():
                        if step and text:
                            values.setdefault(name, {})[float(step)] = float(text)
        curves = [Curve(name, sorted(by), [by[step] for step in sorted(by)]) for name, by in sorted(values.items())]
        if panels := _panels(curves):
            found[folder.name] = panels
    return found


def _panels(curves: Sequence[Curve]) -> list[list[Curve]]:
    """Losses, learning rates and gradient norms; then the scores of validation together."""
    rates = [c for c in curves if c.name.startswith(("lr-", "lr/")) or c.name == "train/lr"]
    losses = [c for c in curves if c.name in ("train/loss", "val/loss")]
    norms = [c for c in curves if c.name.endswith("grad_norm")]
    scores = [c for c in curves if c.name.startswith("val/") and not c.name.startswith("val/loss")]
    return [panel for panel in (losses, rates, norms, scores[:6]) if panel]


def _sounds(clips: Sequence[str], run: Path, page: Path) -> dict[str, str]:
    """Addresses for players: short clips in the page itself, as FLAC; others by a path relative to it."""
    found: dict[str, str] = {}
    size = 0
    for clip in clips:
        path = Path(clip) if os.path.isabs(clip) else run / clip
        try:
            samples = load_audio(path, 16_000, max_seconds=MAX_SECONDS, silent=True)
            target = io.BytesIO()
            soundfile.write(target, samples.clip(-1, 1), 16_000, format="FLAC", subtype="PCM_16")
            address = f"data:audio/flac;base64,{base64.b64encode(target.getvalue()).decode('ascii')}"
        except AudioError:
            address = ""
        if not address or size + len(address) > MAX_BYTES:
            if path.is_file():  # no part of a recording or of an archive
                found[clip] = quote(os.path.relpath(path, page))
            continue
        found[clip], size = address, size + len(address)
    return found


def _made(run: Path | None) -> str:
    here: Mapping[str, object] = {}
    if run and (run / "environment.json").is_file():
        here = json.loads((run / "environment.json").read_text("utf-8"))
    parts = [f"Sottovoce {__version__}", str(date.today())]
    parts += [f"commit {str(here['commit'])[:12]}"] if here.get("commit") else []
    parts += [f"on {here['device']}"] if here.get("device") else []
    return ", ".join(parts)
