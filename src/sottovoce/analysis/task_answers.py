"""Answers and losses of one task: to speech, to the equivalent text, and to empty slots."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from sottovoce.analysis.trained_run import TrainedRun, recipe_of_answers, spread
from sottovoce.config.sections import SlotText
from sottovoce.data.examples import Example, collate, slot_text
from sottovoce.data.tasks import AttributeTask, Task, task_of
from sottovoce.errors import MissingError
from sottovoce.evaluation.metrics import Metric, Prediction, balanced_accuracy, error_rate
from sottovoce.evaluation.records import read_predictions
from sottovoce.evaluation.text_similarity import rouge_l
from sottovoce.lightning_modules.run import Run
from sottovoce.progress import Progress
from sottovoce.scoring.predict import predict
from sottovoce.scoring.provenance import answers_are
from sottovoce.scripts import searched, standing
from sottovoce.training.splits import DataSplits

SPEECH, TEXT = "both", "text"  # choices of slots, as the evaluation calls them
MOST_LOSSES = 200  # rows of a side whose loss is taken, spread over it


def text_of_topline(task: Task, slots: Mapping[str, str]) -> dict[str, SlotText]:
    """What the first slot must say in place of its own text, where no slot's text tells what the task asks for."""
    first = next(iter(slots))
    if isinstance(task, AttributeTask):
        telling = ("caption", "tagged") if task.name == "emotion" else ("caption",)
        return {} if set(slots.values()) & set(telling) else {first: "caption"}
    if task.name == "asr":
        return {} if set(slots.values()) & {"transcript", "tagged"} else {first: "transcript"}
    return {}


def told_share(run: Run, examples: Sequence[Example], slots: Mapping[str, str]) -> float:
    """Share of the examples of an attribute whose text in the slots has the label in it."""
    told = 0
    for example in examples:
        task = task_of(run.tasks, example.task, example.utterance)
        assert isinstance(task, AttributeTask)
        texts = " ".join(slot_text(example.utterance, text) or "" for text in slots.values())
        word = searched(task.word(task.label(example.utterance) or ""))
        told += bool(standing([word]).search(searched(texts)))
    return told / len(examples)


def answers_of(
    trained: TrainedRun, run: Run, task: str, test: Sequence[Example], text: dict[str, SlotText]
) -> dict[str, list[Prediction]]:
    """Answers to speech and to text: those that the run has of this test side and these weights, or made now."""
    found: dict[str, list[Prediction]] = {}
    for mode, own in ((SPEECH, {}), (TEXT, text)):
        recipe = recipe_of_answers(trained, task, [mode], own)
        if not own and (ready := _ready(trained, mode, test)):
            found[mode] = ready
            continue
        wanted = {e.utterance.id for e in test}
        split = run.data.splits["test"].only(u.id in wanted for u in run.data.splits["test"].utterances)
        data = DataSplits({**run.data.splits, "test": split}, list(run.data.faults))
        alone = {task: run.tasks[task]}  # without `emotion`, whose rivals of each reply nobody asks for here
        found[mode] = predict(replace(run, recipe=recipe, data=data, tasks=alone))
    return found


def _ready(trained: TrainedRun, mode: str, test: Sequence[Example]) -> list[Prediction]:
    """Answers in the run's folder to exactly these questions; none where one is missing."""
    try:
        known = {(p.task, p.slots, p.id): p for p in read_predictions(trained.answers)}
    except MissingError:
        return []
    if not answers_are(trained.module.recipe, trained.answers):
        return []
    found = []
    for example in test:
        ready = known.get((example.task, mode, example.utterance.id))
        if ready is None or ready.instruction != example.instruction or example.target not in (None, ready.target):
            return []
        found.append(ready)
    return found


def metric_of(task: Task) -> tuple[str, Metric]:
    """The score of a task's answers, and its name."""
    if isinstance(task, AttributeTask):
        return "balanced_accuracy", balanced_accuracy
    return (task.rate or "wer", error_rate(task.rate or "wer")) if task.name == "asr" else ("rouge_l", rouge_l)


@torch.no_grad()
def losses_of(run: Run, examples: Sequence[Example], sources: Sequence[str], progress: Progress) -> dict[str, float]:
    """Nats a token of the true response, teacher-forced, by what fills all slots: speech, text or none."""
    rows = spread(examples, MOST_LOSSES)
    made = run.targets.make(run.module.llm, rows, progress)
    rows = [run.targets.complete(e) for e in rows if (e.task, e.utterance.id) not in made.rejected]
    rows.sort(key=lambda e: e.utterance.seconds)
    size, found = min(16, run.recipe.evaluation.batch_size), {}
    for source in sources if rows else ():
        total, tokens = 0.0, 0
        filled = [replace(e, sources=dict.fromkeys(run.slots, source), trains=frozenset()) for e in rows]
        for start in progress.track(range(0, len(filled), size), description=f"loss, {source}"):
            batch = collate(filled[start : start + size], run.audio_reader.read).to(run.module.device)
            loss = run.module.loss(batch)
            total, tokens = total + loss.total.item(), tokens + loss.tokens
        found[source] = total / max(1, tokens)
    return found
