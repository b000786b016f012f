"""Replies of a run are judged, once they are on disk: within the run, or later by `sottovoce judge`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from sottovoce.config import recipe as recipes
from sottovoce.config.judges import JudgeConfig
from sottovoce.config.recipe import Recipe
from sottovoce.data.captions import style_caption
from sottovoce.data.utterance import Utterance
from sottovoce.errors import ConfigError, MissingError, SottovoceError
from sottovoce.evaluation import (
    AWARENESS_JUDGES,
    JUDGES,
    Prediction,
    Record,
    Reply,
    Score,
    labelled,
    read_predictions,
    read_results,
    score_all,
)
from sottovoce.evaluation import write_results as write
from sottovoce.evaluation.reports.results import results_table
from sottovoce.lightning_modules.distributed import is_rank_zero
from sottovoce.llms import ENGINES
from sottovoce.llms.answer_cache import CachedEngine
from sottovoce.training.run_folder import RECIPE
from sottovoce.training.splits import read_splits

KEPT = "judgements.jsonl"  # beside the results: what was asked once is not asked again


def judged(
    system: str,
    recipe: Recipe,
    predictions: Sequence[Prediction],
    utterances: Sequence[Utterance],
    folder: Path,
    console: Console,
) -> list[Record]:
    """Records of all judges of a recipe, such as `cs_content/<judge>`; one that fails is told, and costs its own alone.

    Args:
        system: as its other records call it.
        recipe: whose `evaluation.judges` are asked.
        predictions: what the system said.
        utterances: of the test side, for what was said to it.
        folder: where judgements are kept.
        console: shows how far the asking is, and what went wrong.
    """
    records: list[Record] = []
    if not is_rank_zero():  # one process asks
        return records
    for name, node in recipe.evaluation.judges.items():
        try:
            records += _of(name, node, system, predictions, utterances, folder, console)
        except SottovoceError as error:
            console.print(f"judge {name}: {error}", style="red", markup=False, highlight=False)
    missing = recipe.evaluation.judges.keys() - {record.metric.partition("/")[2] for record in records}
    if missing:
        console.print(
            f"no score by {', '.join(sorted(missing))}; all else is kept. Once the judge can be asked: "
            f"sottovoce judge {recipe.folder} evaluation.judges.{sorted(missing)[0]}.engine.base_url=…",
            highlight=False,
            soft_wrap=True,
        )
    return records


def label_awareness(
    recipe: Recipe, said: list[Prediction], utterances: Sequence[Utterance], folder: Path
) -> list[Prediction]:
    """What was said; replies that hang on an attribute labelled by the recipe's judge of awareness, if it names one."""
    node = recipe.evaluation.awareness
    if node is None or not any(prediction.category for prediction in said):
        return said
    folder.mkdir(parents=True, exist_ok=True)
    with Progress(transient=True) as progress:
        engine = CachedEngine(ENGINES.build(node.engine), folder / KEPT, progress) if node.engine else None
        judge = AWARENESS_JUDGES.build(node.judge, engine)
        return labelled(said, judge, {u.id: u.text or "" for u in utterances})


def _of(
    name: str,
    node: JudgeConfig,
    system: str,
    predictions: Sequence[Prediction],
    utterances: Sequence[Utterance],
    folder: Path,
    console: Console,
) -> list[Record]:
    """What one judge says, for each part of the test side apart."""
    rows, shown = _to_judge(node, predictions, utterances)
    with Progress(console=console, transient=True) as progress:
        engine = CachedEngine(ENGINES.build(node.engine), folder / KEPT, progress) if node.engine else None
        judge = JUDGES.build(node.judge, engine)
        verdicts = judge.judge(shown)
    records: list[Record] = []
    unjudged: dict[str, None] = {}
    for aspect, verdict in verdicts.items():
        for title, slots in dict.fromkeys((p.title, p.slots) for p in rows):
            part = verdict.of([at for at, p in enumerate(rows) if (p.title, p.slots) == (title, slots)])
            if part.mean is None or part.interval is None:
                unjudged[f"judge {name}: {title}, {slots}: {part.notes()}"] = None
                continue
            count = len(part.scores) - part.scores.count(None)
            notes = "; ".join([f"{aspect}/{name} by {judge.name}", *filter(None, [part.notes()])])
            score = Score(part.mean, *part.interval, count, None, notes)
            records.append(Record(system, title, f"{aspect}/{name}", slots, **score._asdict()))
    for told in unjudged:
        console.print(told, markup=False, highlight=False)
    return records


def _to_judge(
    node: JudgeConfig, predictions: Sequence[Prediction], utterances: Sequence[Utterance]
) -> tuple[list[Prediction], list[Reply]]:
    """The replies that a judge is for, and what it is shown of each."""
    spoken = {u.id: u for u in utterances}
    rows = [p for p in predictions if p.task in node.tasks and p.slots in node.slots]
    if not rows:
        known = sorted({f"{p.task} ({p.slots})" for p in predictions})
        raise SottovoceError(
            f"there is no reply of {', '.join(node.tasks)} heard by {', '.join(node.slots)}; "
            f"the run has {', '.join(known)}"
        )
    if absent := [p.id for p in rows if p.id not in spoken]:
        raise MissingError(
            f"{len(absent)} of {len(rows)} utterances are not in the test manifests any more, such as {absent[0]!r}"
        )
    return rows, [reply(p, spoken[p.id]) for p in rows]


def reply(prediction: Prediction, utterance: Utterance) -> Reply:
    """What a judge is shown: the dialogue as it was written, how the turn was said, and the answer."""
    told = {"user": "User", "assistant": "Assistant"}
    context = "\n".join(f"{told[turn.role]}: {turn.text}" for turn in utterance.context)
    return Reply(
        transcript=utterance.text or "",
        emotion=utterance.labels.get("emotion", ""),
        response=prediction.response,
        context=context or "(The user speaks first.)",
        caption=style_caption(utterance) or "(unknown)",
    )


def command(folder: str, changes: Sequence[str]) -> None:
    """Judge the replies of a finished run, and write its results anew, the judges' scores among them.

    Raises:
        MissingError: the folder is no run, or has not been scored.
        ConfigError: the recipe has no judges.
    """
    file = Path(folder) / RECIPE
    if not file.is_file():
        raise MissingError(f"{folder} is not a run: there is no {RECIPE} in it. `sottovoce fit` makes one")
    recipe = recipes.load(file, changes)
    if not recipe.evaluation.judges:
        raise ConfigError(
            f"{file}: there is no judge in it: name one, such as "
            "evaluation.judges.mine.engine='{type: openai, base_url: …, model: …}'"
        )
    scores, console = Path(folder) / "evaluation", Console()
    predictions, before = read_predictions(scores), read_results(scores)
    test = read_splits(replace(recipe, data=replace(recipe.data, train=[], validation=[]))).splits["test"].utterances
    system = before[0].system
    new = judged(system, recipe, predictions, test, scores, console)
    records = merged([*score_all(system, predictions), *before], new)
    write(scores, records, predictions)
    console.print(results_table(records))


def merged(old: Sequence[Record], new: Sequence[Record]) -> list[Record]:
    """Both, each score once: the new ones count before the old, and of the old the first."""
    found: dict[tuple[str, str, str], Record] = {}
    for record in (*new, *old):
        found.setdefault((record.task, record.metric, record.slots), record)
    return list(found.values())
