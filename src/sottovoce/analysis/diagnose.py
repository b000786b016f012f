"""`sottovoce diagnose`: is it the encoder, the adapter or the LLM? For each task of a run, measures and a verdict."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from sottovoce.analysis.diagnosis_report import diagnosis_page, diagnosis_table, task_picture
from sottovoce.analysis.part_probes import best_layer_probe, part_probe, reading, rows_of
from sottovoce.analysis.pooled_features import PooledFeatures, read_features
from sottovoce.analysis.stage_losses import StageLosses, read_stage_losses
from sottovoce.analysis.task_answers import SPEECH, TEXT, answers_of, losses_of, metric_of, text_of_topline, told_share
from sottovoce.analysis.trained_run import Sides, TrainedRun, open_trained, prepare_sides
from sottovoce.analysis.verdicts import MEANING, THRESHOLDS, Kind, TaskDiagnosis
from sottovoce.data.audio import load_audio
from sottovoce.data.examples import Example, carriers
from sottovoce.data.tasks import task_of
from sottovoce.device import on_device
from sottovoce.encoders.whisper_decoder import whisper_decoder
from sottovoce.errors import ConfigError, MissingError, SottovoceError
from sottovoce.evaluation.metrics import Metric, Prediction, Score, error_rate
from sottovoce.io import atomic_write
from sottovoce.lightning_modules.run import Run
from sottovoce.progress import Progress
from sottovoce.training.run_folder import trained_elsewhere, where_trained

LIMIT = 600  # test utterances a task, if the command line does not say
RESULT, PAGE, FRAMES = "diagnosis.json", "diagnosis.md", "encoder_layers.safetensors"
DECODED = 8  # clips that Whisper's decoder reads at once
Features = NDArray[np.float32]


def diagnose(
    folder: str,
    stage: str | None = None,
    tasks: Sequence[str] = (),
    limit: int = LIMIT,
    test: Sequence[str] = (),
    out: str | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """The command: a table, and in the folder `diagnosis` a JSON file, a Markdown page and a picture of each task.

    `folder` is a run's, or a bundle. `tasks` are names, also joined by commas; all that are scored if there are none.
    """
    if limit < 2:
        raise ConfigError.at("--limit", "bad-value", f"{limit} utterances cannot be compared: at least 2")
    console = Console()
    home = Path(folder)
    if trained_elsewhere(home):  # its relative paths may lead elsewhere than ours
        home = Path(os.path.abspath(home))
        test, out = [os.path.abspath(name) for name in test], os.path.abspath(out) if out else None
    trained = open_trained(home, stage, overrides)
    asked = [name for each in tasks for name in each.split(",") if name]
    target = Path(out) if out else trained.folder / "diagnosis"
    with where_trained(home, trained.module.recipe):
        run, sides = prepare_sides(trained, asked, limit, test, console)
        losses = read_stage_losses(trained.stage) if trained.stage else None
        found = diagnose_tasks(trained, run, sides, target)
    console.print(diagnosis_table(found, losses))
    for each in found:
        console.print(f"{each.task}: {each.sentence}", markup=False, highlight=False, soft_wrap=True)
    _write(found, losses, trained, target, console)


def diagnose_tasks(trained: TrainedRun, run: Run, sides: Sides, out: Path) -> list[TaskDiagnosis]:
    """All that can be measured of each task with a test row, and a verdict; layers of the encoder are kept in `out`."""
    with on_device(run.module):
        rows = [e for task in sides if not run.tasks[task].generated for side in sides[task].values() for e in side]
        clips = list(dict.fromkeys(e.utterance.clip for e in rows))
        with run.progress() as progress:
            features = read_features(run, clips, out / FRAMES, progress) if clips else None
        return [_diagnosed(trained, run, task, sides[task], features) for task in sides if sides[task]["test"]]


def _diagnosed(
    trained: TrainedRun, run: Run, name: str, sides: Mapping[str, list[Example]], features: PooledFeatures | None
) -> TaskDiagnosis:
    task, test, train = run.tasks[name], sides["test"], sides["train"]
    carrying = carriers(task.relies_on, run.slots, run.recipe.carries)
    metric, score = metric_of(task)
    kind: Kind = "generated" if task.generated else "asr" if name == "asr" else "attribute"
    slots = tuple(slot for slot in run.slots if slot in carrying)
    found = TaskDiagnosis(name, kind, metric, len(test), len(train), slots)
    text = text_of_topline(task, run.slots)
    answers = answers_of(trained, run, name, test, text)
    found.answers = _scored(found, "answers", score, answers[SPEECH])
    found.topline = _scored(found, "topline", score, answers[TEXT])
    if kind == "attribute":
        shown = {next(iter(text)): next(iter(text.values()))} if text else {**run.slots}
        found.told = told_share(run, test, shown)
    own = [] if text else ["text"]  # the loss takes the slots' own texts, which here tell nothing
    with run.progress() as progress:  # answers show one of their own, and two at once are too many for rich
        found.loss["test"] = losses_of(run, test, ["speech", *own, "none"], progress)
        found.loss["train"] = losses_of(run, train, ["speech", "none"], progress)
    if kind == "generated":
        found.left_out["probes"] = "its answers have no label, and are no transcript"
    elif features is not None:
        with run.progress() as progress:
            _probe_parts(found, run, train, test, features, progress)
    if kind == "asr":
        with run.progress() as progress:
            _decode(found, run, test, progress)
    found.judge()
    return found


def _scored(found: TaskDiagnosis, what: str, score: Metric, predictions: Sequence[Prediction]) -> Score | None:
    try:
        return score(predictions)
    except SottovoceError as error:
        found.left_out[what] = str(error)
        return None


def _probe_parts(
    found: TaskDiagnosis,
    run: Run,
    train: Sequence[Example],
    test: Sequence[Example],
    features: PooledFeatures,
    progress: Progress,
) -> None:
    """Probes of the encoder's last and best layer, of what slots hear, and of their tokens."""
    labels: dict[str, str] = {}
    if found.kind == "attribute":
        everyone = [*train, *test]
        labels = {e.utterance.id: str(task_of(run.tasks, found.task, e.utterance).label(e.utterance)) for e in everyone}
    seed, last = run.recipe.seed, max(features.layers)
    try:
        rows = rows_of(run, train, test, labels)
        at = [features.rows[e.utterance.clip] for e in rows.examples]
        layers = {number: x[at] for number, x in features.layers.items()}
        found.frames["last"] = part_probe(rows, layers[last], seed)
        found.frames["best"], found.best_layers = best_layer_probe(rows, layers, seed, progress)
        for slot in progress.track(list(run.slots), description="probing slots"):
            mix = features.heard[slot][at]
            is_last = np.array_equal(mix, layers[last])  # as in most recipes
            found.frames[slot] = found.frames["last"] if is_last else part_probe(rows, mix, seed)
            found.tokens[slot] = part_probe(rows, features.tokens[slot][at], seed)
        found.notes.append(f"probes: {rows.how}")
    except SottovoceError as error:  # too few speakers or classes
        found.left_out["probes"] = str(error)
    if found.kind == "asr":
        at = [features.rows[e.utterance.clip] for e in test]
        for slot in found.carriers:
            found.readings[slot] = reading(run, [features.nearest[slot][row] for row in at], test)


def _decode(found: TaskDiagnosis, run: Run, test: Sequence[Example], progress: Progress) -> None:
    """The error rate of the encoder's own decoder, on the same clips."""
    encoder = run.module.encoder
    try:
        if run.module.owns_encoder:
            raise MissingError("the encoder was trained, away from its decoder", code="unavailable")
        transcribe = whisper_decoder(encoder)
        said: list[str] = []
        for start in progress.track(range(0, len(test), DECODED), description="Whisper's decoder", unit="batch"):
            clips = [load_audio(e.utterance.clip, encoder.sample_rate) for e in test[start : start + DECODED]]
            said += transcribe([torch.from_numpy(clip) for clip in clips])
    except MissingError as error:
        found.left_out["decoder"] = str(error)
        return
    answers = [
        Prediction(e.utterance.id, "asr", "both", "", text, e.target or "", speaker=e.utterance.speaker)
        for e, text in zip(test, said, strict=True)
    ]
    found.decoder = _scored(found, "decoder", error_rate(found.metric), answers)


def _write(
    found: Sequence[TaskDiagnosis], losses: StageLosses | None, trained: TrainedRun, out: Path, console: Console
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, str] = {}
    for each in found:
        try:
            task_picture(each, out / f"{each.task}.png")
        except MissingError as error:  # matplotlib is an extra
            console.print(str(error), style="yellow", markup=False)
            break
        pictures[each.task] = f"{each.task}.png"
    report = {
        "source": trained.source,
        "thresholds": THRESHOLDS,
        "verdicts": MEANING,
        "stage_loss": None if losses is None else {**losses._asdict(), "gap": losses.gap},
        "tasks": [_plain(asdict(each)) for each in found],
    }
    atomic_write(out / PAGE, diagnosis_page(found, losses, trained.source, pictures))
    atomic_write(out / RESULT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    for name in (*pictures.values(), PAGE, RESULT):
        console.print(f"written  {out / name}", highlight=False, soft_wrap=True)


def _plain(value: Any) -> Any:
    """With scores as objects instead of lists."""
    if isinstance(value, Score):
        return value._asdict()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value
