"""Judging of a run's replies, once they are on disk: within the run, or later by `sottovoce judge`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from sottovoce.config.recipe import Recipe
from sottovoce.config.sections import AwarenessConfig, JudgeConfig
from sottovoce.data.tasks import style_caption
from sottovoce.data.utterance import Utterance
from sottovoce.errors import ConfigError, MissingError, SottovoceError
from sottovoce.evaluation import AWARENESS_JUDGES, JUDGES, Prediction, Record, Reply, Score, Verdict, labelled
from sottovoce.evaluation.records import read_predictions, read_results, score_all, write_results
from sottovoce.evaluation.reports.results import results_table
from sottovoce.evaluation.reports.tables import published_beside
from sottovoce.lightning_modules.trainer import is_rank_zero
from sottovoce.llms import ENGINES
from sottovoce.llms.answer_cache import CachedEngine
from sottovoce.progress import Progress
from sottovoce.scoring import voicebench
from sottovoce.scoring.ask_later import later
from sottovoce.training.run_folder import load_run, recipe_file, where_trained
from sottovoce.training.splits import read_splits

ANSWERS = "judgements.jsonl"  # cache of the engines' answers, beside the results
NOBODY = "nobody yet"  # as the judge of a reply that an LLM is to label
_log = logging.getLogger(__name__)


def judged(
    system: str, recipe: Recipe, said: Sequence[Prediction], test: Sequence[Utterance], folder: Path, console: Console
) -> list[Record]:
    """Records of all judges of a recipe, such as `cs_content/<judge>`; one that fails is reported, and costs its own.

    What their engines answer is kept in `folder`.
    """
    records: list[Record] = []
    if not is_rank_zero():  # one process asks
        return records
    for name, node in recipe.evaluation.judges.items():
        try:
            rows, replies = _to_judge(node, said, test)
            with Progress(console=console, transient=True) as progress:
                judge = JUDGES.build(node.judge, _engine(node, folder, progress))
                verdicts = judge.judge(replies)
            records += _records(system, name, judge.name, rows, verdicts)
        except SottovoceError as error:
            _log.warning(f"judge {name}: {error}")
    missing = recipe.evaluation.judges.keys() - {record.metric.partition("/")[2] for record in records}
    if missing:
        told = f"no score by {', '.join(sorted(missing))}; all else is kept. Once the judge can be asked: "
        told += later(recipe, folder, f"evaluation.judges.{sorted(missing)[0]}.engine.base_url=…")
        _log.warning(told)
    return records


def label_awareness(
    recipe: Recipe, said: Sequence[Prediction], test: Sequence[Utterance], folder: Path, console: Console
) -> list[Prediction]:
    """Predictions with labels by the recipe's judge of awareness, if it names one, on replies that have a category.

    Where it cannot be asked, no reply has a label, which costs PA-score and PA-rate, and the command that asks later
    is told.
    """
    node = recipe.evaluation.awareness
    if node is None or not any(p.category for p in said):
        return list(said)
    try:
        with Progress(console=console, transient=True) as progress:
            judge = AWARENESS_JUDGES.build(node.judge, _engine(node, folder, progress))
            said = labelled(said, judge, {u.id: u.text or "" for u in test})
    except SottovoceError as error:
        _log.warning(f"awareness: {error}")
        said = awaiting_labels(said)
    if not has_labels(said):
        told = "no PA-score and no PA-rate: no reply was labelled; all else is kept. Once the judge can be asked: "
        told += later(recipe, folder, "evaluation.awareness.engine.base_url=…")
        _log.warning(told)
    return list(said)


def asked_again(
    system: str, recipe: Recipe, records: list[Record], test: Sequence[Utterance], folder: Path, console: Console
) -> list[Record]:
    """Records that are in a folder, and those of its judges who could not be asked, as far as they can be now."""
    node, said = recipe.evaluation, read_predictions(folder)
    asked = {record.metric.partition("/")[2] for record in records}
    missing = {name: judge for name, judge in node.judges.items() if name not in asked}
    unlabelled = bool(node.awareness) and any(p.category for p in said) and not has_labels(said)
    if not missing and not unlabelled:
        return records
    if unlabelled and has_labels(labels := label_awareness(recipe, said, test, folder, console)):
        said, records = labels, merged(records, score_all(system, labels))
    again = replace(recipe, evaluation=replace(node, judges=missing))
    records = merged(records, judged(system, again, said, test, folder, console))
    write_results(folder, records, said)
    return records


def awaiting_labels(said: Sequence[Prediction]) -> list[Prediction]:
    """Predictions whose replies nobody has labelled yet, so that the rule does not label them instead."""
    return [replace(p, judge=NOBODY, awareness=None) if p.category else p for p in said]


def has_labels(said: Sequence[Prediction]) -> bool:
    """Whether some reply is labelled."""
    return any(p.awareness is not None for p in said)


def _engine(node: JudgeConfig | AwarenessConfig, folder: Path, progress: Progress) -> CachedEngine | None:
    return CachedEngine(ENGINES.build(node.engine), folder / ANSWERS, progress) if node.engine else None


def _records(
    system: str, name: str, judge: str, rows: list[Prediction], verdicts: Mapping[str, Verdict]
) -> list[Record]:
    """Records of one judge, for each part of the test side apart."""
    places = [(p.title, p.slots) for p in rows]
    records: list[Record] = []
    unjudged: dict[str, None] = {}
    for aspect, verdict in verdicts.items():
        verdict = replace(verdict, speakers=[p.speaker for p in rows])
        for title, slots in dict.fromkeys(places):
            part = verdict.of([row for row, place in enumerate(places) if place == (title, slots)])
            if part.mean is None or part.interval is None:
                unjudged[f"judge {name}: {title}, {slots}: {part.notes()}"] = None
                continue
            notes = "; ".join([f"{aspect}/{name} by {judge}", *filter(None, [part.notes()])])
            score = Score(part.mean, *part.interval, len(part.scored), None, notes, part.clusters)
            records.append(Record(system, title, f"{aspect}/{name}", slots, **score._asdict()))
    for message in unjudged:
        _log.warning(message)
    return records


def _to_judge(
    node: JudgeConfig, said: Sequence[Prediction], test: Sequence[Utterance]
) -> tuple[list[Prediction], list[Reply]]:
    """The replies that a judge is for: their predictions, and each as the judge sees it."""
    spoken = {u.id: u for u in test}
    rows = [p for p in said if p.task in node.tasks and p.slots in node.slots]
    if not rows:
        known = sorted({f"{p.task} ({p.slots})" for p in said})
        message = f"there is no reply of {', '.join(node.tasks)} heard by {', '.join(node.slots)}; the run has "
        raise SottovoceError(message + ", ".join(known), code="empty", where="tasks")
    if lost := [p.id for p in rows if p.id not in spoken]:
        told = f"{len(lost)} of {len(rows)} utterances are not in the test manifests any more, such as {lost[0]!r}"
        raise MissingError(told, where="data.test")
    return rows, [reply(p, spoken[p.id]) for p in rows]


def reply(prediction: Prediction, utterance: Utterance) -> Reply:
    """A reply as a judge sees it: the dialogue as it was written, how the turn was said, and the answer."""
    context = "\n".join(f"{turn.role.capitalize()}: {turn.text}" for turn in utterance.context)
    return Reply(
        transcript=utterance.text or "",
        emotion=utterance.labels.get("emotion", ""),
        response=prediction.response,
        context=context or "(The user speaks first.)",
        caption=style_caption(utterance) or "(unknown)",
    )


def command(folder: str, overrides: Sequence[str]) -> None:
    """Command `sottovoce judge`: judge and label the replies of a finished run, and write its results anew."""
    file = recipe_file(Path(folder))
    recipe = load_run(Path(folder), overrides)
    node = recipe.evaluation
    if not (node.judges or node.awareness or (node.voicebench and node.voicebench.engine)):
        message = f"{file}: there is no judge in it: name one, such as "
        message += "evaluation.judges.mine.engine='{type: openai, base_url: …, model: …}'; of paired data, "
        message += "evaluation.awareness='{judge: {type: llm}, engine: {…}}'"
        raise ConfigError(message, code="missing-key", where="evaluation.judges")
    scores, console = Path(folder) / "evaluation", Console()
    predictions, before = read_predictions(scores), read_results(scores)
    with where_trained(Path(folder), recipe):
        side = read_splits(replace(recipe, data=replace(recipe.data, train=[], validation=[]))).splits["test"]
    test = side.utterances
    system = before[0].system
    labelled_now = label_awareness(recipe, predictions, test, scores, console)
    predictions = labelled_now if has_labels(labelled_now) else predictions  # a judge that is away takes none back
    new = judged(system, recipe, predictions, test, scores, console)
    new += voicebench.scored(system, recipe, scores, console)
    records = merged([*score_all(system, predictions), *before], new)
    write_results(scores, records, predictions)
    print_results(console, records, recipe)


def print_results(console: Console, records: Sequence[Record], recipe: Recipe) -> None:
    """A run's scores, and beside them what its recipe says was published."""
    console.print(results_table(records))
    if table := published_beside(records, recipe.published):
        console.print(table)


def merged(old: Sequence[Record], new: Sequence[Record]) -> list[Record]:
    """Both records, each score once: the new ones before the old, and of the old the first."""
    found: dict[tuple[str, str, str], Record] = {}
    for record in (*new, *old):
        found.setdefault((record.task, record.metric, record.slots), record)
    return list(found.values())
