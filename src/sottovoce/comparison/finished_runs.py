"""Finished runs: read from disk, and checked against each other before their scores are compared."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from sottovoce.config_tree import Tree, read_yaml
from sottovoce.errors import ConfigError, MissingError, SottovoceError
from sottovoce.evaluation.metrics import Prediction
from sottovoce.evaluation.records import Record, read_predictions, read_results
from sottovoce.evaluation.retention import RetentionScore, read_scores
from sottovoce.io import file_sha256
from sottovoce.scoring.text_retention import AFTER, BEFORE
from sottovoce.training.run_folder import LATER, is_off, recipe_file

# Keys of a recipe that say which run of a system it is, or how it is run, and not what is run.
OF_THE_RUN = (
    "name", "seed", "output_dir", "checkpoint_every", "data.cache", "data.num_workers", "trainer.enable_progress_bar",
)  # fmt: skip
Question = tuple[str, str]  # task, slots
Reply = tuple[str, str, str]  # task, slots, id of the utterance


@dataclass(frozen=True)
class FinishedRun:
    """A run that has been scored."""

    folder: Path
    recipe: Tree
    environment: dict[str, Any]  # what it ran on
    records: list[Record]  # its scores, as it wrote them
    predictions: list[Prediction]  # by task, slots and utterance
    stages: list[tuple[str, dict[str, Any]]]  # (name, what its `done.json` says), in their order
    text: tuple[RetentionScore, RetentionScore] | None  # scores on text prompts, before and after

    @property
    def seed(self) -> int:
        return int(self.recipe.get("seed", 0))

    @property
    def name(self) -> list[str]:
        """In parts, without the seed."""
        parts = str(without_seed(str(self.recipe.get("name", self.folder.name)), self.seed)).split("/")
        plain = [re.sub(r"(?i)[-_.]?seed[-_=]?\*", "", part) for part in parts]
        return [part for part in plain if part] or [self.folder.name]

    def section(self, name: str) -> Tree:
        """A part of the recipe; empty where it is not there, or null."""
        return self.recipe.get(name) or {}

    @property
    def by_question(self) -> dict[Question, list[Prediction]]:
        return {key: list(rows) for key, rows in groupby(self.predictions, key=lambda p: (p.task, p.slots))}


def reply_of(prediction: Prediction) -> Reply:
    return prediction.task, prediction.slots, prediction.id


def read_run(folder: Path) -> FinishedRun:
    """Read a run's folder.

    Raises:
        MissingError: it is no run, or has not been scored.
        SottovoceError: a file in it cannot be read.
    """
    recipe, scores = recipe_file(folder), folder / "evaluation"
    if not (scores / "results.json").is_file():
        message = f"{folder} has no scores yet: run its recipe to the end (`sottovoce fit` goes on)"
        raise MissingError(message, where=scores / "results.json")
    scored = (scores / BEFORE).is_file() and (scores / AFTER).is_file()
    return FinishedRun(
        folder,
        _recipe(recipe),
        _json(folder / "environment.json"),
        read_results(scores),
        sorted(read_predictions(scores), key=reply_of),
        [(_stage(file)[1], _json(file)) for file in sorted(folder.glob("stages/*/done.json"), key=_stage)],
        (read_scores(scores / BEFORE), read_scores(scores / AFTER)) if scored else None,
    )


def _recipe(file: Path) -> Tree:
    if not isinstance(found := read_yaml(file), dict):
        raise SottovoceError.at(file, "damaged", "no recipe: it is not a mapping of keys to values")
    return found


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except OSError:
        raise MissingError(f"{file} is not there, which every run writes; is the folder whole?", where=file) from None
    except (ValueError, RecursionError) as error:
        raise SottovoceError.at(file, "damaged", f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise SottovoceError.at(file, "damaged", "a JSON object is needed")
    return found


def _stage(file: Path) -> tuple[int, str]:
    """Stage folders are called `1-joint`."""
    number, _, name = file.parent.name.partition("-")
    return int(number) if number.isdecimal() else 0, name


def flat(tree: Tree, before: str = "") -> dict[str, Any]:
    """Nested dicts as `key.sub` -> value; lists are values. An empty dict is a value, too."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{before}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return found


def settings(run: FinishedRun) -> dict[str, Any]:
    """What is run, by flat key: the recipe without what is the run's alone. The seed in a path is written `*`."""
    found = flat(without_seed(run.recipe, run.seed)).items()
    aside = {*OF_THE_RUN, "published", "logging"}
    kept = {key: value for key, value in found if key not in aside and key.partition(".")[0] not in aside}
    return {key: value for key, value in kept.items() if not _means_nothing_new(key, value)}


def _means_nothing_new(key: str, value: Any) -> bool:
    """Whether a key says what recipes of older runs, which lack it, meant: nothing, or a slot's usual."""
    first, _, last = key.rpartition(".")
    return is_off(value) or (bool(re.fullmatch(r"slots\.[^.]+", first)) and last in LATER and value == LATER[last])


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
    """Check that every run can be held against the first; a ConfigError has every reason why not."""
    if faults := incomparable(runs):
        message = "\n  ".join(["these runs cannot be compared:", *map(str, faults)])
        raise ConfigError(message, code="mismatch", where=faults[0].where, faults=faults)


def incomparable(runs: Sequence[FinishedRun]) -> list[ConfigError]:
    """Every reason why runs cannot be held against the first; none where they can."""
    faults = [fault for run in runs for fault in _twice(run)]
    for run in runs if not faults else ():
        mate = next(other for other in runs if other.seed == run.seed)  # is held against the same targets
        faults += [fault for other in (runs[0], mate) if other is not run for fault in _mismatches(other, run)]
    return list({str(fault): fault for fault in faults}.values())


def _twice(run: FinishedRun) -> list[ConfigError]:
    where = run.folder / "evaluation" / "predictions.jsonl"
    return [
        ConfigError(f"{where}: {id!r} was answered twice in task {task!r}, {slots}", code="conflict", where=where)
        for (task, slots, id), count in Counter(map(reply_of, run.predictions)).most_common(1)
        if count > 1
    ]


def _mismatches(first: FinishedRun, run: FinishedRun) -> list[ConfigError]:
    found = [*_tasks(first, run), *_test_side(first, run), *_questions(first, run)]
    for question, rows in run.by_question.items():
        found += list(_rows(first.by_question.get(question, rows), rows, first, run))[:1]
    if run.text and first.text:
        ours, theirs = ([kept.item for kept in text[0].rows] for text in (run.text, first.text))
        if ours != theirs:
            found.append(("evaluation.retention", f"other text prompts ({len(ours)} and {len(theirs)})"))
    runs = f"{run.folder} and {first.folder}"
    return [ConfigError(f"{runs}: {reason}", code="mismatch", where=where) for where, reason in found]


Reasons = Iterator[tuple[str, str]]  # a recipe's key, or <task>.<slots>.<what of a prediction>; and the reason in words


def _tasks(first: FinishedRun, run: FinishedRun) -> Reasons:
    sides = [sorted(each.by_question) for each in (run, first)]
    if not {*sides[0]} & {*sides[1]}:
        ours, theirs = (", ".join(f"{task} ({slots})" for task, slots in side) for side in sides)
        yield "evaluation.tasks", f"other tasks: {ours} and {theirs}"


def _test_side(first: FinishedRun, run: FinishedRun) -> Reasons:
    """Other test manifests: by their names, unless their bytes are the same; of a corpus, by its type."""
    sides = [without_seed(each.section("data"), each.seed) for each in (run, first)]
    corpora = [(side.get("corpus") or {}).get("type") for side in sides]
    if corpora[0] != corpora[1]:
        yield "data.corpus", f"other test data: data.corpus is {corpora[0]} and {corpora[1]}"
    ours, theirs = ([_named(node) for node in side.get("test") or []] for side in sides)
    if ours != theirs and not _same_bytes(first, run):
        told = " and ".join(", ".join(names) or "empty" for names in (ours, theirs))
        yield "data.test", f"other test data: data.test is {told}"
    for key in ("task_overrides", "captions"):
        own, other = ([node.get(key) or None for node in side.get("test") or []] for side in sides)
        if own != other:
            yield "data.test", f"other questions: {key} of data.test is {own} and {other}"


def _named(source: dict[str, Any]) -> str:
    """What a part of the data is called: a manifest, or data in another format and its split."""
    names = [source.get(key) for key in ("manifest", "dataset", "cuts", "subset", "split")]
    return " ".join(str(name) for name in names if name)


def _same_bytes(*runs: FinishedRun) -> bool:
    sides = [[Path(str(node.get("manifest"))) for node in run.section("data").get("test") or []] for run in runs]
    there = all(files and all(file.is_file() for file in files) for files in sides)
    return there and len({tuple(file_sha256(file) for file in files) for files in sides}) == 1


def _questions(first: FinishedRun, run: FinishedRun) -> Reasons:
    """What a task asks, and how an answer is read, as it was when it was scored."""
    for task in sorted({p.task for p in run.predictions} & {p.task for p in first.predictions}):
        ours, theirs = _options(run, task), _options(first, task)
        for name in sorted({*ours, *theirs}):
            if ours.get(name) != theirs.get(name):
                where = f"tasks.{task}.{name}"
                yield where, f"other questions: {where} is {ours.get(name)} and {theirs.get(name)}"
    where = "evaluation.max_new_tokens"
    longest, other = (each.section("evaluation").get("max_new_tokens") for each in (run, first))
    if longest != other:
        yield where, f"other answers: {where} is {longest} and {other}"


def _options(run: FinishedRun, task: str) -> Tree:
    scored = run.section("evaluation").get("task_overrides") or {}
    return {**(run.section("tasks").get(task) or {}), **(scored.get(task) or {})}


def _rows(theirs: list[Prediction], ours: list[Prediction], first: FinishedRun, run: FinishedRun) -> Reasons:
    """Why two runs' answers to one question are not answers to the same."""
    where = f"{ours[0].task}.{ours[0].slots}"
    ids = [{p.id for p in rows} for rows in (ours, theirs)]
    if odd := sorted(ids[0] ^ ids[1]):
        counts = f"{len(ids[0])} and {len(ids[1])} utterances, {len(odd)} of them in one run alone, such as {odd[0]!r}"
        yield f"{where}.id", f"{where}: other test data: {counts} (is evaluation.limit the same?)"
        return
    # wordings of questions are drawn by seed, and the targets that an LLM makes may follow them
    llms = [each.section("llm").get("checkpoint") for each in (run, first)]
    same_targets = run.seed == first.seed or llms[0] != llms[1]
    for what in ("label", "speaker", "category", "topic", *(("target", "rivals") if same_targets else ())):
        other = [a.id for a, b in zip(ours, theirs, strict=True) if getattr(a, what) != getattr(b, what)]
        if other:
            reason = f"other test data: {len(other)} utterances have another {what}, such as {other[0]!r}"
            yield f"{where}.{what}", f"{where}: {reason}"
    judges = [" and ".join(sorted({p.judge or "the rule" for p in rows if _is_labelled(p)})) for rows in (ours, theirs)]
    if all(judges) and judges[0] != judges[1]:  # a run without labels lacks these scores, and no more
        yield f"{where}.judge", f"{where}: other metrics: replies were labelled by {judges[0]}, and by {judges[1]}"


def _is_labelled(prediction: Prediction) -> bool:
    """Whether a judge has labelled a reply to paired data, or the rule will."""
    return bool(prediction.category) and (prediction.judge is None or prediction.awareness is not None)
