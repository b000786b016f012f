"""Published corpora in miniature, in their official layouts; every clip is a short tone."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from undertone.data.corpora import CORPORA
from undertone.data.manifest import read_manifest
from undertone.data.published.base import Published
from undertone.data.published.report import Report
from undertone.data.tasks import TASKS, AttributeTask
from undertone.data.utterance import Utterance

RATE = 8_000


def choices() -> dict[str, Any]:
    """The default labels of every attribute."""
    tasks = [TASKS.build({"type": name}) for name in TASKS.names()]
    return {task.name: task.choices for task in tasks if isinstance(task, AttributeTask)}


def tone(file: Path, seconds: float = 0.4, channels: int = 1, hertz: float = 200.0, rate: int = RATE) -> Path:
    """A clip whose channel k has k + 1 times the pitch."""
    at = np.arange(round(seconds * rate)) / rate
    samples = np.stack([0.3 * np.sin(2 * np.pi * hertz * (k + 1) * at) for k in range(channels)], axis=1)
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, samples, rate, subtype="PCM_16")
    return file


def table(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def text(file: Path, *lines: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def write(name: str, source: Path, out: Path, **knobs: Any) -> Report:
    """Prepare a corpus anew."""
    corpus = CORPORA.build({"type": name, "source": str(source), **knobs})
    assert isinstance(corpus, Published)
    return corpus.write(out)


def read(out: Path, split: str) -> dict[str, Utterance]:
    """A manifest as a recipe reads it, with no fault allowed; by id without the corpus's name."""
    found = read_manifest(out / f"{split}.jsonl", choices=choices())
    return {utterance.id.partition("-")[2]: utterance for utterance in found.utterances}


def kept(out: Path) -> dict[str, Any]:
    """The report as it lies on disk."""
    page: dict[str, Any] = json.loads((out / "report.json").read_text("utf-8"))
    return page
