"""`sottovoce compare`: finished runs side by side, on the same utterances, as systems of one seed or several."""

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from rich.console import Console

from sottovoce.comparison.finished_runs import FinishedRun, Reply, read_run, refuse_incomparable, reply_of, settings
from sottovoce.errors import ConfigError, MissingError
from sottovoce.evaluation.awareness import AWARENESS
from sottovoce.evaluation.metrics import Measure, Score
from sottovoce.evaluation.paired_bootstrap import Estimate, Key, Seeds, reported
from sottovoce.evaluation.records import Record, scores_due
from sottovoce.evaluation.reports.compare import COSTS, Comparison, System, comparison_csv, comparison_of, of_recipe
from sottovoce.evaluation.reports.compare_html import comparison_html
from sottovoce.evaluation.reports.results import POINTS
from sottovoce.evaluation.reports.tables import terminal_tables
from sottovoce.evaluation.retention import SLOTS, TASK, retention_measures
from sottovoce.evaluation.voicebench import TASK as VOICEBENCH
from sottovoce.io import atomic_write
from sottovoce.scoring.judging import has_labels

CLOSE = 2e-5  # of a score that is computed again: files have six decimals, and ROUGE is summed in float32
Systems = Mapping[str, Sequence[FinishedRun]]
Measured = Mapping[Key, Mapping[str, Seeds]]  # score -> system -> seed -> what its rows contribute


def compare(runs: Sequence[str], out: str | None = None, against: str | None = None) -> None:
    """The command: a table in the terminal, `comparison.csv`, and `comparison.html`, which needs nothing but itself.

    A pattern such as `runs/*/full` stands for all folders that match. The files go to `out`, or to `comparison` beside
    the runs; the systems are held against the one called `against`, or the first.
    """
    paths = [Path(name) for folder in runs for name in _matching(folder)]
    comparison = compare_runs([read_run(path) for path in paths], against)
    write_comparison(comparison, Path(out) if out else _beside(paths), Console())


def write_comparison(comparison: Comparison, folder: Path, console: Console, picture: bytes | None = None) -> None:
    """Print the comparison and write its files; `picture`, a PNG of speech tokens, becomes part of the page."""
    console.print(terminal_tables(comparison))
    files = {"comparison.csv": comparison_csv(comparison), "comparison.html": comparison_html(comparison, picture)}
    for name, text in files.items():
        atomic_write(folder / name, text)
        console.print(f"written  {folder / name}", highlight=False, soft_wrap=True)


def _matching(folder: str) -> list[str]:
    """A shell without matches, or a quoted pattern, hands the pattern over as it is."""
    if not glob.has_magic(folder) or Path(folder).is_dir():
        return [folder]
    if not (matches := sorted(glob.glob(folder))):
        raise MissingError(f"{folder}: no folder matches this pattern", where=folder)
    return matches


def _beside(folders: Sequence[Path]) -> Path:
    parents = [folder.resolve().parent for folder in folders]
    return Path(os.path.relpath(os.path.commonpath(parents))) / "comparison"


def compare_runs(runs: Sequence[FinishedRun], against: str | None = None) -> Comparison:
    """Group runs into systems, and hold these side by side; a SottovoceError says every reason why they cannot be."""
    if len(runs) < 2:
        raise ConfigError(f"a comparison needs at least two runs, got {len(runs)}", code="empty", where="runs")
    refuse_incomparable(runs)
    systems = grouped(runs)
    baseline, remarks = against or next(iter(systems)), [*remarks_on(systems)]
    return comparison_of(described(systems), measured(systems), baseline, remarks, reported=reported_by(systems))


def grouped(runs: Sequence[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Runs whose recipes differ in seed and name alone are one system; the same seed again is another.

    A system is called as its runs are, without what speaks of the seed and without what all systems share.
    """
    groups: list[list[FinishedRun]] = []
    for run in runs:
        same = [g for g in groups if settings(g[0]) == settings(run) and run.seed not in [mate.seed for mate in g]]
        if same:
            same[0].append(run)
        else:
            groups.append([run])
    parts = [group[0].name for group in groups]
    folders = zip(*(name[:-1] for name in parts), strict=False)
    shared = len([*takewhile(lambda level: len({*level}) == 1, folders)])
    names = ["/".join(name[shared:]) for name in parts]
    systems = {}
    for row, (name, group) in enumerate(zip(names, groups, strict=True), 1):
        number = f" #{names[:row].count(name)}" if names.count(name) > 1 else ""
        systems[name + number] = sorted(group, key=lambda run: run.seed)
    return systems


def described(systems: Systems) -> dict[str, System]:
    """Seeds, folders, cost, and the settings in which the systems differ."""
    made = {name: settings(group[0]) for name, group in systems.items()}
    keys = dict.fromkeys(key for each in made.values() for key in each)
    differing = [key for key in keys if len({_yaml(each.get(key)) for each in made.values()}) > 1]
    found = {}
    for name, group in systems.items():
        costs: dict[tuple[str, str], list[float]] = {}
        for stage, done in (stage for run in group for stage in run.stages):
            for what in filter(done.__contains__, COSTS):
                costs.setdefault((stage, what), []).append(float(done[what]))
        shown = {key: _yaml(made[name][key]) for key in differing if key in made[name]}
        paper = of_recipe(group[0].section("published"))
        found[name] = System(
            [run.seed for run in group], [str(run.folder) for run in group], costs, shown, published=paper
        )
    return found


def _yaml(value: Any) -> str:
    """As a recipe has it, on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n...\n").strip()


def measured(systems: Systems) -> Measured:
    """Every score of every system, computed again from its answers; what a seed of a system lacks is left out."""
    runs = [run for group in systems.values() for run in group]
    labelled = _labelled(runs)
    scores = {id(run): _scores(run, labelled) for run in runs}
    found: dict[Key, dict[str, Seeds]] = {}
    for name, group in systems.items():
        for key in dict.fromkeys(key for run in group for key in scores[id(run)]):
            if all(key in scores[id(run)] for run in group):
                found.setdefault(key, {})[name] = {run.seed: scores[id(run)][key] for run in group}
    return found


def reported_by(systems: Systems) -> dict[Key, dict[str, Estimate]]:
    """Scores as the runs wrote them, which are not computed again: by judges of replies, and of VoiceBench."""
    found: dict[Key, dict[str, Estimate]] = {}
    for name, group in systems.items():
        runs = [{Key(r.task, r.metric, r.slots): r for r in run.records if _is_reported(r)} for run in group]
        for key in runs[0]:
            if all(key in records for records in runs):
                seeds = {run.seed: _score(records[key]) for run, records in zip(group, runs, strict=True)}
                found.setdefault(key, {})[name] = reported(seeds)
    return found


def _is_reported(record: Record) -> bool:
    if record.task.partition(" ")[0] == VOICEBENCH:
        return record.metric in ("score", "rating")
    return "/" in record.metric and record.metric.startswith(POINTS)


def _score(record: Record) -> Score:
    return Score(record.value, record.low, record.high, record.n, record.baseline, record.notes, record.speakers)


def _labelled(runs: Sequence[FinishedRun]) -> set[Reply]:
    """Replies that were labelled in every run: a judge may fail on one alone."""
    replies = {reply_of(p) for run in runs for p in run.predictions}
    judged = [run for run in runs if has_labels(run.predictions)]  # whoever has none at all is left out
    return replies - {reply_of(p) for run in judged for p in run.predictions if p.judge and p.awareness is None}


def _scores(run: FinishedRun, labelled: set[Reply]) -> dict[Key, Measure]:
    """Every score of a run, which was scored by other definitions if a metric gives another number than it wrote."""
    written = {Key(r.task, r.metric, r.slots): r.value for r in run.records}
    found = {}
    for due in scores_due(run.predictions):
        key, measure = Key(due.task, due.name, due.slots), due.metric.measure(due.rows)
        if key in written and abs(measure.value - written[key]) > CLOSE:
            told = f"these runs cannot be compared: {run.folder}: {key.task}, {key.metric}, {key.slots} is "
            told += (
                f"{written[key]:.6f} in its results.json, but {measure.value:.6f} as it is defined now: delete that "
            )
            told += "file and run the recipe again, which scores anew and does not train"
            raise ConfigError(told, code="mismatch", where=run.folder / "evaluation" / "results.json")
        if due.name in AWARENESS:
            rows = [row for row in due.rows if reply_of(row) in labelled]
            if not rows:  # which costs this score, and `remarks_on` says so
                continue
            measure = due.metric.measure(rows)
        found[key] = measure
    kept = retention_measures(*run.text) if run.text else {}
    after = {name: measure for name, measure in kept.items() if not name.endswith("_before")}  # of whence all start
    return found | {Key(TASK, name, SLOTS): measure for name, measure in after.items()}


def remarks_on(systems: Systems) -> Iterator[str]:
    """What is not the same about the runs, and does not keep them from being compared."""
    if reported_by(systems):
        yield "Scores by judges and of VoiceBench are those that the runs report; they have no paired differences."
    if len({tuple(run.seed for run in group) for group in systems.values()}) > 1:
        yield "The systems have other seeds, or not equally many: their spreads are not of the same kind."
    runs = [run for group in systems.values() for run in group]
    labelled, judged = _labelled(runs), (due for run in runs for due in scores_due(run.predictions))
    rated = [due for due in judged if due.name in AWARENESS and labelled.isdisjoint(map(reply_of, due.rows))]
    for told in dict.fromkeys(f"{due.task}, {due.slots}" for due in rated):
        yield f"{told}: no PA-score and no PA-rate, for no reply was labelled in every run."
    for what in ("device", "threads"):
        values = sorted({str(run.environment.get(what)) for run in runs})
        if len(values) > 1:
            yield f"Ran with other {what} ({', '.join(values)}): do not compare seconds and memory."
    commits = sorted({str(run.environment.get("commit"))[:8] for run in runs})
    if len(commits) > 1:
        yield f"Ran at other commits: {', '.join(commits)}."
    targets = [(run.seed, {reply_of(p): p.target for p in run.predictions}) for run in runs]
    seed, first = targets[0]
    others = [other for number, other in targets if number != seed]
    if any(other.get(reply, target) != target for other in others for reply, target in first.items()):
        yield "Runs of other seeds hold some replies against other targets, since the wordings of questions are drawn."
