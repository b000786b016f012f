"""`sottovoce compare`: finished runs side by side, on the same utterances, as systems of one seed or several."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from rich.console import Console

from sottovoce.comparison.finished_runs import FinishedRun, read_run, refuse_incomparable, settings, without_seed
from sottovoce.errors import ConfigError, MissingError, SottovoceError
from sottovoce.evaluation.awareness import AWARENESS
from sottovoce.evaluation.metrics import Measure, Prediction
from sottovoce.evaluation.paired_bootstrap import Key, Seeds
from sottovoce.evaluation.records import Due, scores_due
from sottovoce.evaluation.reports.compare import (
    COSTS,
    SideBySide,
    System,
    comparison_csv,
    side_by_side,
    terminal_tables,
)
from sottovoce.evaluation.reports.compare_html import comparison_html
from sottovoce.evaluation.retention import SLOTS, TASK, retention_measures

CLOSE = 2e-5  # of a score that is computed again: files have six decimals, and ROUGE is summed in float32
Systems = dict[str, list[FinishedRun]]


def compare(folders: Sequence[str], out: str | None = None, against: str | None = None) -> None:
    """The command: a table in the terminal, `comparison.csv`, and `comparison.html`, which needs nothing but itself.

    Args:
        folders: of runs; a pattern such as `runs/*/full` stands for all that match.
        out: folder of the files; `comparison` beside the runs if absent.
        against: the system that the others are held against; the first if absent.

    Raises:
        SottovoceError: a folder is no finished run, or the runs cannot be compared, with every reason.
    """
    found = [Path(name) for folder in folders for name in _matching(folder)]
    page = compared([read_run(folder) for folder in found], against)
    home = Path(out) if out else _beside(found)
    home.mkdir(parents=True, exist_ok=True)
    files = {"comparison.csv": comparison_csv(page), "comparison.html": comparison_html(page)}
    console = Console()
    console.print(terminal_tables(page))
    for name, text in files.items():
        (home / name).write_text(text, "utf-8")
        console.print(f"written  {home / name}", highlight=False, soft_wrap=True)


def _matching(folder: str) -> list[str]:
    """A shell without matches, or a quoted pattern, hands the pattern over as it is."""
    if not glob.has_magic(folder) or Path(folder).is_dir():
        return [folder]
    if not (matches := sorted(glob.glob(folder))):
        raise MissingError(f"{folder}: no folder matches this pattern")
    return matches


def _beside(folders: Sequence[Path]) -> Path:
    parents = [str(folder.resolve().parent) for folder in folders]
    return Path(os.path.relpath(os.path.commonpath(parents))) / "comparison"


def compared(runs: Sequence[FinishedRun], against: str | None = None) -> SideBySide:
    """Group runs into systems, and hold these side by side.

    Raises:
        SottovoceError: there are fewer than two runs, they cannot be compared, or no system is called `against`.
    """
    if len(runs) < 2:
        raise ConfigError(f"a comparison needs at least two runs, got {len(runs)}")
    refuse_incomparable(runs)
    systems = grouped(runs)
    described = {name: _system(group, _differing(list(systems.values()))) for name, group in systems.items()}
    return side_by_side(described, _measured(systems), against or next(iter(systems)), _remarks(systems))


def grouped(runs: Sequence[FinishedRun]) -> Systems:
    """Runs whose recipes differ in seed and name alone are one system; the same seed again is another.

    A system is called as its runs are, without what speaks of the seed and without what all systems share.
    """
    groups: list[tuple[dict[str, Any], list[FinishedRun]]] = []
    for run in runs:
        made = settings(run)
        mates = next((g for known, g in groups if known == made and run.seed not in [r.seed for r in g]), None)
        if mates is None:
            groups.append((made, [run]))
        else:
            mates.append(run)
    names = _short([_name(group[0]) for _, group in groups])
    counts = Counter(names)
    seen: Counter[str] = Counter()
    systems: Systems = {}
    for name, (_, group) in zip(names, groups, strict=True):
        seen[name] += 1
        systems[f"{name} #{seen[name]}" if counts[name] > 1 else name] = sorted(group, key=lambda run: run.seed)
    return systems


def _name(run: FinishedRun) -> list[str]:
    """The run's name in parts, without the seed."""
    parts = str(without_seed(str(run.recipe.get("name", run.folder.name)), run.seed)).split("/")
    plain = [re.sub(r"(?i)[-_.]?seed[-_=]?\*", "", part) for part in parts]
    return [part for part in plain if part] or [run.folder.name]


def _short(names: Sequence[list[str]]) -> list[str]:
    """Joined, without the folders that all of them lie in."""
    shared = 0
    while all(len(name) > shared + 1 and name[shared] == names[0][shared] for name in names):
        shared += 1
    return ["/".join(name[shared:]) for name in names]


def _differing(groups: Sequence[Sequence[FinishedRun]]) -> list[str]:
    made = [settings(group[0]) for group in groups]
    keys = dict.fromkeys(key for each in made for key in each)
    return [key for key in keys if len({_written(each.get(key)) for each in made}) > 1]


def _system(group: Sequence[FinishedRun], keys: Sequence[str]) -> System:
    costs: dict[tuple[str, str], list[float]] = {}
    for run in group:
        for stage, done in run.stages:
            for what in COSTS:
                if what in done:
                    costs.setdefault((stage, what), []).append(float(done[what]))
    made = settings(group[0])
    return System(
        [run.seed for run in group],
        [str(run.folder) for run in group],
        costs,
        {key: _written(made[key]) for key in keys if key in made},
    )


def _written(value: Any) -> str:
    """As a recipe has it, on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n...\n").strip()


def _measured(systems: Systems) -> dict[Key, dict[str, Seeds]]:
    """Score -> system -> seed -> what its rows contribute; scores that not all seeds of a system have are left out."""
    runs = [run for group in systems.values() for run in group]
    judged = _judged(runs)
    scores = {id(run): _scores(run, judged) for run in runs}
    found: dict[Key, dict[str, Seeds]] = {}
    for name, group in systems.items():
        for key in dict.fromkeys(key for run in group for key in scores[id(run)]):
            if all(key in scores[id(run)] for run in group):
                found.setdefault(key, {})[name] = {run.seed: scores[id(run)][key] for run in group}
    return found


def _judged(runs: Sequence[FinishedRun]) -> set[tuple[str, str, str]]:
    """Replies that were labelled in every run: a judge may fail on one alone."""
    sides = [{_place(p) for p in run.predictions if p.judge is None or p.awareness is not None} for run in runs]
    answered = [{_place(p) for p in run.predictions} for run in runs]
    missing = {place for side, all_of_it in zip(sides, answered, strict=True) for place in all_of_it - side}
    return set().union(*answered) - missing


def _place(prediction: Prediction) -> tuple[str, str, str]:
    return prediction.task, prediction.slots, prediction.id


def _scores(run: FinishedRun, judged: set[tuple[str, str, str]]) -> dict[Key, Measure]:
    """Every score of a run, computed again from what it said.

    Raises:
        ConfigError: that gives another number than the run wrote down: it was scored by another definition.
    """
    told = {Key(r.task, r.metric, r.slots): r.value for r in run.records}
    found = {}
    for due in scores_due(run.predictions):
        key = Key(due.task, due.name, due.slots)
        measure = due.metric.measure(due.rows)
        if key in told and abs(measure.value - told[key]) > CLOSE:
            raise ConfigError(
                f"these runs cannot be compared: {run.folder}: {key.task}, {key.metric}, {key.slots} is "
                f"{told[key]:.6f} in its results.json, but {measure.value:.6f} as it is defined now: delete that file "
                "and run the recipe again, which scores anew and does not train"
            )
        found[key] = _of_judged(due, judged) if due.name in AWARENESS else measure
    if run.text:
        found |= {
            Key(TASK, metric, SLOTS): measure
            for metric, measure in retention_measures(*run.text).items()
            if not metric.endswith("_before")  # of the LLM that all start from
        }
    return found


def _of_judged(due: Due, judged: set[tuple[str, str, str]]) -> Measure:
    rows = [row for row in due.rows if _place(row) in judged]
    if not rows:
        raise SottovoceError(f"{due.task}, {due.slots}: no reply was labelled in every run, so none can be compared")
    return due.metric.measure(rows)


def _remarks(systems: Mapping[str, Sequence[FinishedRun]]) -> list[str]:
    runs = [run for group in systems.values() for run in group]
    return [
        *_seeds_differ(systems),
        *_elsewhere(runs),
        *_targets_differ(runs),
    ]


def _seeds_differ(systems: Mapping[str, Sequence[FinishedRun]]) -> Iterator[str]:
    if len({tuple(run.seed for run in group) for group in systems.values()}) > 1:
        yield "The systems have other seeds, or not equally many: their spreads are not of the same kind."


def _elsewhere(runs: Sequence[FinishedRun]) -> Iterator[str]:
    """What is not the same about where runs ran."""
    for what in ("device", "threads"):
        values = sorted({str(run.environment.get(what)) for run in runs})
        if len(values) > 1:
            yield f"Ran with other {what} ({', '.join(values)}): do not compare seconds and memory."
    commits = sorted({str(run.environment.get("commit"))[:8] for run in runs})
    if len(commits) > 1:
        yield f"Ran at other commits: {', '.join(commits)}."


def _targets_differ(runs: Sequence[FinishedRun]) -> Iterator[str]:
    targets = [{_place(p): p.target for p in run.predictions} for run in runs]
    if any(other.get(place, target) != target for other in targets[1:] for place, target in targets[0].items()):
        yield "Runs of other seeds hold some replies against other targets, since the wordings of questions are drawn."
