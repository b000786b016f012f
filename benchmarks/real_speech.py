"""What BEST-RQ learns from an hour of real speech: linear probes of frozen Conformers, on speakers that none has heard.

    python benchmarks/real_speech.py [key=value ...] --data DIR [--runs DIR] [--steps N] [--parts 1 2 3 4 5]

DIR holds the folders speechocean762, emodb_2s, fsdd, ljspeech_mini and jfk, each with a `manifest.jsonl`.

Every speaker is tested once. Of the readers of speechocean762, in the order of their names, every fifth belongs to the
same part: the first, sixth, eleventh, ... to part 1. EmoDB's six actors are tested in pairs of a man and a woman, 03
and 08 in part 1. For each part a small Conformer (conf/best_rq_small.yaml) is pre-trained without any label, and like
the probes without the speakers of that part. A part alone says little: it has three to seven men, and utterances of a
speaker tend to be right or wrong together. So the answers of all parts are scored together, and the interval resamples
speakers, not utterances.

Frames of a Conformer's layers are pooled (mean and standard deviation over time) and read by logistic regression; layer
and penalty are chosen by cross-validation over the training speakers. Against it stand the same Conformer with the
random weights that training began with, and mean and standard deviation of log-mels with pitch. It leaves results.json
and results.md in the folder of --runs; a part that was pre-trained before is not pre-trained again.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import librosa
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from undertone.data.audio import load_audio
from undertone.encoders import ENCODERS
from undertone.encoders.conformer import ConformerEncoder
from undertone.encoders.log_mel import SAMPLE_RATE, log_mel
from undertone.errors import MissingError
from undertone.evaluation.intervals import bootstrap, mean_of_ratios
from undertone.evaluation.metrics import Prediction, balanced_accuracy
from undertone.evaluation.probe import probe
from undertone.lightning_modules.cli import quiet
from undertone.lightning_modules.pretrain import begin, pretrain
from undertone.lightning_modules.pretrain_recipe import load
from undertone.paths import resolve

CONFIG = resolve("undertone:conf/best_rq_small.yaml")
PARTS = (1, 2, 3, 4, 5)
PAIRS = (("03", "08"), ("10", "09"), ("11", "13"))  # a man and a woman of EmoDB; parts 4 and 5 test readers alone
CHILDREN, ACTORS, DIGITS, OTHERS = "speechocean762", "emodb_2s", "fsdd", ("ljspeech_mini", "jfk")
DIGITS_EVERY = 4  # of 2,000 digits by four men, so that they do not outnumber everybody else
BASELINE, UNTRAINED, TRAINED = "log-mel + pitch", "Conformer, random", "Conformer, BEST-RQ"
SYSTEMS = (BASELINE, UNTRAINED, TRAINED)
F0_RANGE = (65.0, 600.0)  # Hz: from low men to small children
Features = NDArray[np.float32]
Row = dict[str, Any]  # a line of a manifest, its audio relative to DIR


class Task(NamedTuple):
    """Clips with a label each."""

    name: str
    rows: list[Row]
    labels: list[str]

    @property
    def speakers(self) -> list[str]:
        return [row["speaker"] for row in self.rows]


class Answers(NamedTuple):
    """What the probe of one system said of the speakers of one part."""

    task: str
    system: str
    part: int
    layer: int | None  # 0 is the projected input
    predictions: tuple[Prediction, ...]


class Result(NamedTuple):
    """Balanced accuracy of one system on all speakers that were tested; the interval resamples speakers."""

    task: str
    system: str
    value: float
    low: float
    high: float
    chance: float
    clips: int
    speakers: int
    parts: dict[int, float]
    layers: dict[int, int | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/real_speech"))
    parser.add_argument("--steps", type=int, help="of pre-training; the recipe's own if absent")
    parser.add_argument("--parts", type=int, nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe, such as batch=32")
    arguments = parser.parse_args()
    quiet()
    overrides = [*arguments.overrides, *([f"steps={arguments.steps}"] if arguments.steps else [])]
    rows = {name: read(arguments.data, name) for name in (CHILDREN, ACTORS, DIGITS, *OTHERS)}
    tasks = tasks_of(rows)
    answers = baseline(arguments.data, tasks, rows, arguments.parts)
    for part in arguments.parts:
        tested = tested_in(part, rows)
        sources = write_manifests(arguments.data, arguments.runs, rows, tested, part)
        answers += conformers(arguments.data, arguments.runs, tasks, tested, part, [*overrides, *sources])
    write(arguments.runs, results_of(answers))


def read(data: Path, name: str) -> list[Row]:
    file = data / name / "manifest.jsonl"
    if not file.is_file():
        raise MissingError(f"{file} is not there: --data must hold the folders that `--help` names")
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [{**row, "audio": f"{name}/{row['audio']}"} for row in rows]


def every(rows: Sequence[Row], n: int, start: int = 0) -> set[str]:
    """Every n-th of the speakers, in the order of their names."""
    return set(sorted({row["speaker"] for row in rows})[start::n])


def tested_in(part: int, rows: dict[str, list[Row]]) -> set[str]:
    """The speakers that neither pre-training nor probes of a part (1 to 5) may hear."""
    return every(rows[CHILDREN], len(PARTS), part - 1).union(*PAIRS[part - 1 : part])


def tasks_of(rows: dict[str, list[Row]]) -> list[Task]:
    """Emotion where the words say nothing, age where they would tell but for matched texts, and gender of adults."""
    matched = [row for row in rows[CHILDREN] if row["text_match"] is not None]
    adults = [row for row in rows[CHILDREN] if row["age_group"] == "adult"]
    found = [
        ("emotion", rows[ACTORS], "emotion"),
        ("child or adult", matched, "age_group"),
        ("gender", adults, "gender"),
    ]
    return [Task(name, of_task, [row[key] for row in of_task]) for name, of_task, key in found]


def write_manifests(data: Path, runs: Path, rows: dict[str, list[Row]], tested: set[str], part: int) -> list[str]:
    """What pre-training hears, without labels and without the speakers tested; returns the recipe's overrides.

    A tenth of the readers that are left are held out to watch the loss.
    """
    readers, actors = ([row for row in rows[name] if row["speaker"] not in tested] for name in (CHILDREN, ACTORS))
    watched = every(readers, 10)
    sides = {
        "train": [
            *(row for row in readers if row["speaker"] not in watched),
            *actors,
            *(row for name in OTHERS for row in rows[name]),
            *rows[DIGITS][::DIGITS_EVERY],
        ],
        "validation": [row for row in readers if row["speaker"] in watched],
    }
    runs.mkdir(parents=True, exist_ok=True)
    overrides = []
    for name, lines in sides.items():
        file = runs / f"{name}-{part}.jsonl"
        file.write_text("".join(json.dumps({"audio": row["audio"]}) + "\n" for row in lines), "utf-8")
        overrides.append(f"data.{name}={json.dumps([{'manifest': str(file), 'root': str(data)}])}")
    return overrides


def conformers(
    data: Path, runs: Path, tasks: Sequence[Task], tested: set[str], part: int, overrides: list[str]
) -> list[Answers]:
    """Pre-train without the speakers tested, and probe what training began with and what it ended with."""
    overrides = [*overrides, f"runs={runs}", f"name=best_rq-{part}", f"seed={part}"]
    folder, recipe = pretrain(str(CONFIG), overrides), load(CONFIG, overrides)
    trained = ENCODERS.build({**recipe.encoder, "checkpoint": str(folder)})
    trained.load()
    answers = []
    for system, encoder in ((UNTRAINED, begin(recipe).best_rq.encoder), (TRAINED, trained)):
        assert isinstance(encoder, ConformerEncoder)
        encoder.eval().requires_grad_(False)
        for task in tasks:
            if tested.intersection(task.speakers):
                features = extract(data, task, f"{system}, part {part}", partial(pooled_layers, encoder))
                answers.append(answer(task, system, part, tested, features))
    return answers


def baseline(data: Path, tasks: Sequence[Task], rows: dict[str, list[Row]], parts: Sequence[int]) -> list[Answers]:
    """Statistics of log-mels and of pitch, which need no training at all."""
    answers = []
    for task in tasks:
        mels = extract(data, task, BASELINE, pooled_mel)[:, 0]
        with ProcessPoolExecutor() as pool:
            pitches = list(pool.map(pitch, [data / row["audio"] for row in task.rows], chunksize=8))
        features = np.concatenate([mels, pitches], 1)[:, None]
        sides = ((part, tested_in(part, rows)) for part in parts)
        heard = [(part, tested) for part, tested in sides if tested.intersection(task.speakers)]
        answers += [answer(task, BASELINE, part, tested, features) for part, tested in heard]
    return answers


def extract(data: Path, task: Task, system: str, pool: Callable[[torch.Tensor], torch.Tensor]) -> Features:
    """(rows, layers, dim): each clip alone through `pool`, which maps (1, samples) to (layers, dim)."""
    clips = track(task.rows, f"{task.name}: {system}")
    with torch.no_grad():
        features = [pool(torch.from_numpy(load_audio(data / row["audio"], SAMPLE_RATE))[None]) for row in clips]
    return torch.stack(features).numpy()


def pooled_layers(encoder: ConformerEncoder, clip: torch.Tensor) -> torch.Tensor:
    """(layers + 1, 2 * width): the projected input and every layer's frames, pooled."""
    stacked = encoder.stack(encoder.log_mel(clip, torch.tensor([clip.shape[1]])))
    return torch.stack([pooled(frames.x[0]) for frames in encoder.hidden_states(stacked)])


def pooled_mel(clip: torch.Tensor) -> torch.Tensor:
    """(1, 160): the log-mel frames of a clip, pooled."""
    return pooled(log_mel(clip, torch.tensor([clip.shape[1]])).x[0])[None]


def pooled(frames: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation over time: (frames, dim) to (2 * dim,)."""
    return torch.cat((frames.mean(0), frames.std(0, correction=0)))


def pitch(file: Path) -> Features:
    """Octaves above 100 Hz, mean and standard deviation over voiced frames, and the share of these: (3,)."""
    samples = load_audio(file, SAMPLE_RATE)
    f0, voiced, _ = librosa.pyin(
        samples, fmin=F0_RANGE[0], fmax=F0_RANGE[1], sr=SAMPLE_RATE, frame_length=1024, resolution=0.2
    )
    octaves = np.log2(f0[voiced] / 100) if voiced.any() else np.zeros(1)
    return np.array([octaves.mean(), octaves.std(), voiced.mean()], np.float32)


def answer(task: Task, system: str, part: int, tested: set[str], features: Features) -> Answers:
    """Choose a layer by the training speakers, and test the probe of that layer on the others."""
    held_out, layers = np.isin(task.speakers, list(tested)), features.shape[1]
    layer = chosen(task, ~held_out, features) if layers > 1 else 0
    predictions = probe(features[:, layer], task.labels, task.speakers, held_out=held_out).predictions
    return Answers(task.name, system, part, layer if layers > 1 else None, predictions)


def chosen(task: Task, train: NDArray[np.bool_], features: Features) -> int:
    """The layer whose probe is best on training speakers that it was not trained on; the lowest of equals."""
    labels, speakers = np.array(task.labels)[train].tolist(), np.array(task.speakers)[train].tolist()
    folds = min(5, len(set(speakers)))
    found = [probe(x, labels, speakers, folds=folds).balanced_accuracy.value for x in features[train].swapaxes(0, 1)]
    return int(np.argmax(found))


def results_of(answers: Sequence[Answers]) -> list[Result]:
    """Score the parts of each task and system together."""
    keys = dict.fromkeys((one.task, one.system) for one in answers)
    return [result([one for one in answers if (one.task, one.system) == key]) for key in keys]


def result(answers: Sequence[Answers]) -> Result:
    """Score what one system said in all parts of one task."""
    predictions = [prediction for one in answers for prediction in one.predictions]
    score, by_speaker = balanced_accuracy(predictions), recalls_by_speaker(predictions)
    low, high = bootstrap(by_speaker, mean_of_ratios)
    parts = {one.part: balanced_accuracy(one.predictions).value for one in answers}
    layers = {one.part: one.layer for one in answers}
    first, chance = answers[0], 1 / (by_speaker.shape[1] // 2)
    return Result(
        first.task, first.system, score.value, low, high, chance, len(predictions), len(by_speaker), parts, layers
    )


def recalls_by_speaker(predictions: Sequence[Prediction]) -> NDArray[np.float64]:
    """(speakers, 2 * classes): how many clips of each class a speaker has of which the class was found, then of all."""
    classes, speakers = (
        sorted({str(value) for value in column}) for column in zip(*map(_truth, predictions), strict=True)
    )
    counts = np.zeros((len(speakers), 2, len(classes)))
    for prediction in predictions:
        label, speaker = _truth(prediction)
        counts[speakers.index(speaker), :, classes.index(label)] += (prediction.predicted == label, 1)
    return counts.reshape(len(speakers), -1)


def _truth(prediction: Prediction) -> tuple[str, str]:
    return str(prediction.label), str(prediction.speaker)


def write(runs: Path, results: Sequence[Result]) -> None:
    """Print the table and keep it, and the numbers."""
    (runs / "results.json").write_text(json.dumps([result._asdict() for result in results], indent=2) + "\n", "utf-8")
    head, lines = ("task", "speakers", "clips", "chance", *SYSTEMS), [*lines_of(results)]
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    note = "Balanced accuracy on unheard speakers, in percent, with the 95 % interval over speakers."
    page = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    (runs / "results.md").write_text(f"# Linear probes of real speech\n\n{note}\n\n{page}\n", "utf-8")
    table = Table(title="Linear probes of real speech", caption=note)
    for name in head:
        table.add_column(name, justify="left" if name == "task" else "right")
    for line in lines:
        table.add_row(*line)
    console = Console()
    console.print(table)
    console.print(f"written: {runs / 'results.md'}, {runs / 'results.json'}", highlight=False)


def lines_of(results: Sequence[Result]) -> Iterator[list[str]]:
    for task in dict.fromkeys(result.task for result in results):
        of_task = {result.system: result for result in results if result.task == task}
        one = of_task[BASELINE]
        cells = [
            f"{100 * x.value:.1f} [{100 * x.low:.1f}-{100 * x.high:.1f}]" for x in map(of_task.__getitem__, SYSTEMS)
        ]
        yield [task, str(one.speakers), str(one.clips), f"{100 * one.chance:.1f}", *cells]


if __name__ == "__main__":
    main()
