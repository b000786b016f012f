"""What the results of a run were made with: its evaluation and test side; with another one they are made again."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from sottovoce.config.recipe import Recipe
from sottovoce.evaluation import OWN_METRICS
from sottovoce.io import atomic_write
from sottovoce.own_parts import origin
from sottovoce.training.run_folder import digest_rows
from sottovoce.training.splits import Split

FILE = "made_with.json"
FREE = ("batch_size", "judges")  # they change no answer; `sottovoce judge` asks other judges about the same ones
FREE_OF_VOICEBENCH = ("engine", "open_rubric", "qa_rubric", "panda")
OF_ANSWERS = ("max_new_tokens", "text", "task_overrides", "sources")  # what an answer depends on, of an evaluation
KEPT = ("predictions.jsonl", "results.json", "results.md", FILE)
_log = logging.getLogger(__name__)


def provenance(recipe: Recipe, test: Split) -> dict[str, Any]:
    """The part of a recipe, and a digest of the test side, that results depend on beside the weights."""
    return {"evaluation": _evaluation(recipe), "test": digest_rows(test.fingerprint_rows())}


def is_scored(recipe: Recipe) -> bool:
    """Whether the run of a recipe has results of this very evaluation, as far as the recipe tells."""
    folder = recipe.folder / "evaluation"
    before = _read(folder)
    return (folder / "results.json").is_file() and (before is None or before["evaluation"] == _evaluation(recipe))


def answers_are(recipe: Recipe, folder: Path) -> bool:
    """Whether each answer in a folder is the one that this evaluation gives; it may ask other tasks of other rows."""
    before, now = _read(folder), _evaluation(recipe)
    return before is None or all(before["evaluation"].get(key) == now.get(key) for key in OF_ANSWERS)


def results_are(made_with: dict[str, Any], folder: Path) -> bool:
    """Whether there are results that were made with this; others are set aside as `earlier-<number>`."""
    if not (folder / "results.json").is_file():
        return False
    if _are(made_with, folder):
        return True
    aside = folder / f"earlier-{len(list(folder.glob('earlier-*'))) + 1}"
    aside.mkdir()
    for name in KEPT:
        if (folder / name).is_file():
            shutil.copy2(folder / name, aside / name)
    (folder / "results.json").unlink()
    _log.info(f"another evaluation or test side than before: scored again; the earlier results are in {aside}")
    return False


def are_there(made_with: dict[str, Any], folder: Path) -> bool:
    """Whether there are results that were made with this; others stay where they are."""
    return (folder / "results.json").is_file() and _are(made_with, folder)


def write(made_with: dict[str, Any], folder: Path) -> None:
    """Beside the results, before them."""
    atomic_write(folder / FILE, json.dumps(made_with, indent=2, ensure_ascii=False) + "\n")


def _evaluation(recipe: Recipe) -> dict[str, Any]:
    node = {key: value for key, value in recipe.plain()["evaluation"].items() if key not in FREE}
    if bench := node.pop("voicebench"):  # recipes of older runs have no such key
        node["voicebench"] = {key: value for key, value in bench.items() if key not in FREE_OF_VOICEBENCH}
    if metrics := node.pop("metrics"):  # with a digest of their code
        own = {name: origin(one["metric"]["type"], OWN_METRICS.group) for name, one in metrics.items()}
        node["metrics"] = {name: {**one, "code": own[name]} for name, one in metrics.items()}
    if any(source.task_overrides or source.captions for source in recipe.data.test):
        node["sources"] = [[source.place, source.task_overrides, source.captions] for source in recipe.data.test]
    whole: dict[str, Any] = json.loads(json.dumps(node))
    return whole


def _are(made_with: dict[str, Any], folder: Path) -> bool:
    return _read(folder) in (None, made_with)  # results of older versions do not say


def _read(folder: Path) -> dict[str, Any] | None:
    file = folder / FILE
    found: dict[str, Any] | None = json.loads(file.read_text("utf-8")) if file.is_file() else None
    return found
