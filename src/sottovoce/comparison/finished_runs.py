"""FinishedRun runs, as they lie on disk: read whole, and held against each other before their numbers are."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sottovoce.config_tree import Tree, read_yaml
from sottovoce.errors import ConfigError, MissingError, SottovoceError
from sottovoce.evaluation.metrics import Prediction
from sottovoce.evaluation.records import Record, read_predictions, read_results
from sottovoce.evaluation.retention import RetentionScore, read_scores
from sottovoce.io import file_sha256
from sottovoce.scoring.text_retention import AFTER, BEFORE
from sottovoce.training.run_folder import RECIPE

# Keys of a recipe that say which run of a system it is, or how it is run, and not what is run.
OF_THE_RUN = (
    "name",
    "seed",
    "output_dir",
    "checkpoint_every",
    "data.cache",
    "data.num_workers",
    "trainer.enable_progress_bar",
)
Place = tuple[str, str]  # task, slots


@dataclass(frozen=True)
class FinishedRun:
    """A run that has been scored.

    Args:
        folder: of the run.
        recipe: all of it.
        environment: what it ran on.
        records: its scores, as it wrote them.
        predictions: what it said, in an order that all runs share.
        stages: (name, what its `done.json` says), in their order.
        text: scores on text prompts before and after; None where there are none.
    """

    folder: Path
    recipe: Tree
    environment: dict[str, Any]
    records: list[Record]
    predictions: list[Prediction]
    stages: list[tuple[str, dict[str, Any]]]
    text: tuple[RetentionScore, RetentionScore] | None

    @property
    def seed(self) -> int:
        return int(self.recipe.get("seed", 0))

    @property
    def places(self) -> dict[Place, list[Prediction]]:
        """Predictions by task and slots."""
        found: dict[Place, list[Prediction]] = {}
        for prediction in self.predictions:
            found.setdefault((prediction.task, prediction.slots), []).append(prediction)
        return found


def read_run(folder: Path) -> FinishedRun:
    """Read a run's folder.

    Raises:
        MissingError: it is no run, or has not been scored.
        SottovoceError: a file in it cannot be read.
    """
    if not (folder / RECIPE).is_file():
        raise MissingError(f"{folder} is not a run: there is no {RECIPE} in it. `sottovoce fit` makes one")
    scores = folder / "evaluation"
    if not (scores / "results.json").is_file():
        raise MissingError(f"{folder} has no scores yet: run its recipe to the end (`sottovoce fit` goes on)")
    said = sorted(read_predictions(scores), key=lambda p: (p.task, p.slots, p.id))
    scored = (scores / BEFORE).is_file() and (scores / AFTER).is_file()
    return FinishedRun(
        folder,
        _recipe(folder / RECIPE),
        _json(folder / "environment.json"),
        read_results(scores),
        said,
        [(_stage(file), _json(file)) for file in sorted(folder.glob("stages/*/done.json"), key=_number)],
        (read_scores(scores / BEFORE), read_scores(scores / AFTER)) if scored else None,
    )


def _recipe(file: Path) -> Tree:
    found = read_yaml(file)
    if not isinstance(found, dict):
        raise SottovoceError(f"{file}: no recipe: it is not a mapping of keys to values")
    return found


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except OSError:
        raise MissingError(f"{file} is not there, which every run writes; is the folder whole?") from None
    except (ValueError, RecursionError) as error:
        raise SottovoceError(f"{file}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise SottovoceError(f"{file}: a JSON object is needed")
    return found


def _number(file: Path) -> tuple[int, str]:
    """Stage folders are called `1-joint`."""
    number, _, name = file.parent.name.partition("-")
    return (int(number) if number.isdecimal() else 0, name)


def _stage(file: Path) -> str:
    return file.parent.name.partition("-")[2]


def flat(tree: Tree, before: str = "") -> dict[str, Any]:
    """Nested dicts as `key.sub` -> value; lists are values. An empty dict is a value, too."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found


def settings(run: FinishedRun) -> dict[str, Any]:
    """What is run, by flat key: the recipe without what is the run's alone. The seed in a path is written `*`."""
    kept = flat(run.recipe)
    return {key: without_seed(value, run.seed) for key, value in kept.items() if key not in OF_THE_RUN}


def without_seed(value: Any, seed: int) -> Any:
    """Paths and names that speak of `seed-1` of the run with this seed, as `seed-*`, in lists and dicts, too."""
    if isinstance(value, str):
        return re.sub(rf"(?i)(seed[-_=]?)0*{seed}(?!\d)", r"\1*", value)
    if isinstance(value, list):
        return [without_seed(part, seed) for part in value]
    if isinstance(value, dict):
        return {key: without_seed(part, seed) for key, part in value.items()}
    return value


def refuse_incomparable(runs: Sequence[FinishedRun]) -> None:
    """Nothing where every run can be held against the first.

    Raises:
        ConfigError: with every reason why not: other test data, other questions, other metrics.
    """
    faults = [fault for run in runs for fault in _own_faults(run)]
    for run in runs if not faults else ():
        mate = next(other for other in runs if other.seed == run.seed)  # is held against the same targets
        faults += [fault for other in (runs[0], mate) if other is not run for fault in _against(other, run)]
    if faults:
        told = dict.fromkeys(faults)
        raise ConfigError("these runs cannot be compared:\n" + "\n".join(f"  {fault}" for fault in told))


def _own_faults(run: FinishedRun) -> Iterator[str]:
    seen: set[tuple[str, str, str]] = set()
    for p in run.predictions:
        if (p.task, p.slots, p.id) in seen:
            yield f"{run.folder}: utterance {p.id!r} was answered twice in task {p.task!r}, {p.slots}"
            return
        seen.add((p.task, p.slots, p.id))


def _against(first: FinishedRun, run: FinishedRun) -> Iterator[str]:
    where = f"{run.folder} and {first.folder}"
    ours, theirs = run.places, first.places
    if not set(ours) & set(theirs):
        yield f"{where}: other tasks: {_told(ours)} and {_told(theirs)}"
    for fault in [*_other_side(first, run), *_other_questions(first, run)]:
        yield f"{where}: {fault}"
    for place in sorted(set(ours) & set(theirs)):
        if other := _other_rows(theirs[place], ours[place], first, run):
            yield f"{where}: {place[0]}, {place[1]}: {other}"
    if run.text and first.text:
        items = [[kept.item for kept in text[0].rows] for text in (run.text, first.text)]
        if items[0] != items[1]:
            yield f"{where}: other text prompts ({len(items[0])} and {len(items[1])}); see evaluation.retention"


def _told(places: Iterable[Place]) -> str:
    return ", ".join(f"{task} ({slots})" for task, slots in sorted(places))


def _other_side(first: FinishedRun, run: FinishedRun) -> Iterator[str]:
    """Other test manifests: by their names, unless their bytes are the same; of a corpus, by its type."""
    sides = [without_seed((each.recipe.get("data") or {}), each.seed) for each in (run, first)]
    corpora = [(side.get("corpus") or {}).get("type") for side in sides]
    if corpora[0] != corpora[1]:
        yield f"other test data: data.corpus is {corpora[0]} and {corpora[1]}"
    names = [[str(node.get("manifest")) for node in side.get("test") or []] for side in sides]
    if names[0] != names[1] and not _same_bytes(first, run):
        yield f"other test data: data.test is {', '.join(names[0]) or 'empty'} and {', '.join(names[1]) or 'empty'}"


def _same_bytes(first: FinishedRun, run: FinishedRun) -> bool:
    digests = []
    for each in (first, run):
        files = [Path(str(node.get("manifest"))) for node in (each.recipe.get("data") or {}).get("test") or []]
        if not files or not all(file.is_file() for file in files):
            return False
        digests.append([file_sha256(file) for file in files])
    return digests[0] == digests[1]


def _other_questions(first: FinishedRun, run: FinishedRun) -> Iterator[str]:
    """What a task asks, and how an answer is read, as it was when it was scored."""
    tasks = {task for task, _ in run.places} & {task for task, _ in first.places}
    for task in sorted(tasks):
        ours, theirs = _knobs(run, task), _knobs(first, task)
        for knob in sorted({*ours, *theirs}):
            if ours.get(knob) != theirs.get(knob):
                yield f"other questions: tasks.{task}.{knob} is {ours.get(knob)} and {theirs.get(knob)}"
    longest = [(each.recipe.get("evaluation") or {}).get("max_new_tokens") for each in (run, first)]
    if longest[0] != longest[1]:
        yield f"other answers: evaluation.max_new_tokens is {longest[0]} and {longest[1]}"


def _knobs(run: FinishedRun, task: str) -> Tree:
    scored = (run.recipe.get("evaluation") or {}).get("task_overrides") or {}
    return {**((run.recipe.get("tasks") or {}).get(task) or {}), **(scored.get(task) or {})}


def _other_rows(theirs: list[Prediction], ours: list[Prediction], first: FinishedRun, run: FinishedRun) -> str | None:
    """Why two runs' answers to one task are not answers to the same."""
    ids = [{p.id for p in rows} for rows in (ours, theirs)]
    if odd := sorted(ids[0] ^ ids[1]):
        return (
            f"other test data: {len(ids[0])} and {len(ids[1])} utterances, {len(odd)} of them in one run alone, such "
            f"as {odd[0]!r} (is evaluation.limit the same?)"
        )
    pairs = list(zip(ours, theirs, strict=True))
    for what in ("label", "speaker", "category", "topic"):
        if other := [a for a, b in pairs if getattr(a, what) != getattr(b, what)]:
            return f"other test data: {len(other)} utterances have another {what}, such as {other[0].id!r}"
    judges = [sorted({p.judge or "the rule" for p in rows if p.category}) for rows in (ours, theirs)]
    if judges[0] != judges[1]:
        return f"other metrics: replies were labelled by {' and '.join(judges[0])}, and by {' and '.join(judges[1])}"
    # wordings of questions are drawn by seed, and the targets that an LLM makes may follow them
    if run.seed == first.seed or _llm(run) != _llm(first):
        for what in ("target", "rivals"):
            if other := [a for a, b in pairs if getattr(a, what) != getattr(b, what)]:
                return f"other metrics: {len(other)} replies are held against another {what}, such as {other[0].id!r}"
    return None


def _llm(run: FinishedRun) -> Any:
    return (run.recipe.get("llm") or {}).get("checkpoint")
