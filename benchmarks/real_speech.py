"""What BEST-RQ learns from an hour of real speech: linear probes of frozen Conformers, on speakers that none has heard.

    python benchmarks/real_speech.py --data DIR [--runs DIR] [--steps N] [--seeds 1 2 3] [key=value ...]

DIR holds the folders speechocean762, emodb_2s, fsdd, ljspeech_mini and jfk, each with a `manifest.jsonl`. A small
Conformer (conf/best_rq_small.yaml) is pre-trained on them without any label, and without the speakers of the tests.
Frames of its layers are pooled (mean and standard deviation over time) and read by logistic regression; layer and
penalty are chosen by cross-validation over the training speakers. Against it stand the same Conformer with the random
weights that training began with, and mean and standard deviation of log-mels with pitch. It leaves results.json and
results.md in the folder of --runs.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean
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
from undertone.evaluation.probe import probe
from undertone.lightning_modules.cli import quiet
from undertone.lightning_modules.pretrain import begin, pretrain
from undertone.lightning_modules.pretrain_recipe import load
from undertone.paths import resolve

CONFIG = resolve("undertone:conf/best_rq_small.yaml")
EMOTION_TEST = ("03", "08")  # a man and a woman of EmoDB's six actors here
CHILDREN, ACTORS, DIGITS, OTHERS = "speechocean762", "emodb_2s", "fsdd", ("ljspeech_mini", "jfk")
DIGITS_EVERY = 4  # of 2,000 digits by four men, so that they do not outnumber everybody else
BASELINE, UNTRAINED, TRAINED = "log-mel + pitch", "Conformer, random", "Conformer, BEST-RQ"
SYSTEMS = (BASELINE, UNTRAINED, TRAINED)
F0_RANGE = (65.0, 600.0)  # Hz: from low men to small children
Features = NDArray[np.float32]
Row = dict[str, Any]  # a line of a manifest, its audio relative to DIR


class Task(NamedTuple):
    """Clips with a label each; `held_out` says which are spoken by speakers of the test."""

    name: str
    rows: list[Row]
    labels: list[str]
    held_out: NDArray[np.bool_]


class Result(NamedTuple):
    """Balanced accuracy of one system on unheard speakers; the interval resamples utterances."""

    task: str
    system: str
    seed: int | None  # None: nothing is drawn
    layer: int | None  # 0 is the projected input
    value: float
    low: float
    high: float
    n: int
    chance: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/real_speech"))
    parser.add_argument("--steps", type=int, help="of pre-training; the recipe's own if absent")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe, such as batch=32")
    arguments = parser.parse_args()
    quiet()
    overrides = [*arguments.overrides, *([f"steps={arguments.steps}"] if arguments.steps else [])]
    rows = {name: read(arguments.data, name) for name in (CHILDREN, ACTORS, DIGITS, *OTHERS)}
    tasks = tasks_of(rows)
    results = baseline(arguments.data, tasks)
    sources = write_manifests(arguments.data, arguments.runs, rows)
    for seed in arguments.seeds:
        results += conformers(arguments.data, arguments.runs, tasks, seed, [*overrides, *sources])
    write(arguments.runs, results)


def read(data: Path, name: str) -> list[Row]:
    file = data / name / "manifest.jsonl"
    if not file.is_file():
        raise MissingError(f"{file} is not there: --data must hold the folders that `--help` names")
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [{**row, "audio": f"{name}/{row['audio']}"} for row in rows]


def unheard(rows: Sequence[Row], every: int) -> set[str]:
    """Every so many of the speakers, in the order of their names."""
    return set(sorted({row["speaker"] for row in rows})[::every])


def tasks_of(rows: dict[str, list[Row]]) -> list[Task]:
    """Emotion where the words say nothing, age where they would tell but for matched texts, and gender of adults."""
    readers = unheard(rows[CHILDREN], 5)
    matched = [row for row in rows[CHILDREN] if row["text_match"] is not None]
    adults = [row for row in rows[CHILDREN] if row["age_group"] == "adult"]
    return [
        _task("emotion", rows[ACTORS], "emotion", set(EMOTION_TEST)),
        _task("child or adult", matched, "age_group", readers),
        _task("gender", adults, "gender", readers),
    ]


def _task(name: str, rows: list[Row], key: str, test: set[str]) -> Task:
    return Task(name, rows, [row[key] for row in rows], np.array([row["speaker"] in test for row in rows]))


def write_manifests(data: Path, runs: Path, rows: dict[str, list[Row]]) -> list[str]:
    """What pre-training hears, without labels and without any speaker of the tests; returns the recipe's overrides.

    A tenth of the readers that are left are held out to watch the loss.
    """
    tested = unheard(rows[CHILDREN], 5)
    readers = [row for row in rows[CHILDREN] if row["speaker"] not in tested]
    watched = unheard(readers, 10)
    sides = {
        "train": [
            *(row for row in readers if row["speaker"] not in watched),
            *(row for row in rows[ACTORS] if row["speaker"] not in EMOTION_TEST),
            *(row for name in OTHERS for row in rows[name]),
            *rows[DIGITS][::DIGITS_EVERY],
        ],
        "validation": [row for row in readers if row["speaker"] in watched],
    }
    runs.mkdir(parents=True, exist_ok=True)
    overrides = []
    for name, lines in sides.items():
        file = runs / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"audio": row["audio"]}) + "\n" for row in lines), "utf-8")
        overrides.append(f"data.{name}={json.dumps([{'manifest': str(file), 'root': str(data)}])}")
    return overrides


def conformers(data: Path, runs: Path, tasks: Sequence[Task], seed: int, overrides: list[str]) -> list[Result]:
    """Pre-train from a seed, and probe what training began with and what it ended with."""
    overrides = [*overrides, f"runs={runs}", f"name=best_rq-{seed}", f"seed={seed}"]
    folder, recipe = pretrain(str(CONFIG), overrides), load(CONFIG, overrides)
    trained = ENCODERS.build({**recipe.encoder, "checkpoint": str(folder)})
    trained.load()
    results = []
    for system, encoder in ((UNTRAINED, begin(recipe).best_rq.encoder), (TRAINED, trained)):
        assert isinstance(encoder, ConformerEncoder)
        encoder.eval().requires_grad_(False)
        for task in tasks:
            features = extract(data, task, f"{system}, seed {seed}", lambda clip, e=encoder: pooled_layers(e, clip))
            results.append(score(task, system, seed, features))
    return results


def baseline(data: Path, tasks: Sequence[Task]) -> list[Result]:
    """Statistics of log-mels and of pitch, which need no training at all."""
    results = []
    for task in tasks:
        mels = extract(data, task, BASELINE, pooled_mel)[:, 0]
        with ProcessPoolExecutor() as pool:
            pitches = list(pool.map(pitch, [data / row["audio"] for row in task.rows], chunksize=8))
        results.append(score(task, BASELINE, None, np.concatenate([mels, pitches], 1)[:, None]))
    return results


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


def score(task: Task, system: str, seed: int | None, features: Features) -> Result:
    """Choose a layer by the training speakers, and test the probe of that layer on the others."""
    speakers, train = [row["speaker"] for row in task.rows], ~task.held_out
    labels, heard = np.array(task.labels)[train].tolist(), np.array(speakers)[train].tolist()
    layer, layers = 0, features.shape[1]
    if layers > 1:
        folds = min(5, len(set(heard)))
        found = [probe(features[train, i], labels, heard, folds=folds).balanced_accuracy.value for i in range(layers)]
        layer = int(np.argmax(found))
    result = probe(features[:, layer], task.labels, speakers, held_out=task.held_out).balanced_accuracy
    chance = 1 / len(set(task.labels))
    return Result(
        task.name, system, seed, layer if layers > 1 else None, result.value, result.low, result.high, result.n, chance
    )


def write(runs: Path, results: Sequence[Result]) -> None:
    """Print the table and keep it, and the numbers."""
    (runs / "results.json").write_text(json.dumps([result._asdict() for result in results], indent=2) + "\n", "utf-8")
    head, lines = ("task", "n", "chance", *SYSTEMS), [*lines_of(results)]
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    note = (
        "Balanced accuracy on unheard speakers, in percent, with the 95 % interval over utterances (seeds: the mean)."
    )
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


def lines_of(results: Sequence[Result]) -> Iterable[list[str]]:
    for task in dict.fromkeys(result.task for result in results):
        of_task = [result for result in results if result.task == task]
        cells = [cell([result for result in of_task if result.system == system]) for system in SYSTEMS]
        yield [task, str(of_task[0].n), f"{100 * of_task[0].chance:.1f}", *cells]


def cell(results: Sequence[Result]) -> str:
    """Mean over seeds; the interval of one seed, or lowest to highest of several."""
    value = 100 * mean(result.value for result in results)
    if len(results) == 1:
        layer = "" if results[0].layer is None else f", layer {results[0].layer}"
        return f"{value:.1f} [{100 * results[0].low:.1f}-{100 * results[0].high:.1f}]{layer}"
    values = [100 * result.value for result in results]
    return f"{value:.1f} ({min(values):.1f}-{max(values):.1f} over {len(values)} seeds)"


if __name__ == "__main__":
    main()
