"""What BEST-RQ learns from an hour of real speech: linear probes of frozen Conformers, on speakers that none has heard.

    python benchmarks/real_speech.py [key=value ...] --data DIR [--runs DIR] [--parts 1 2 3 4 5] [--no-pretraining]

DIR holds the folders speechocean762, emodb_2s, fsdd, ljspeech_mini and jfk, each with a `manifest.jsonl`.

Every speaker is tested once. Of the readers of speechocean762, in the order of their names, every fifth belongs to the
same part: the first, sixth, eleventh, ... to part 1. EmoDB's six actors are tested in pairs of a man and a woman, 03
and 08 in part 1. For each part a small Conformer (conf/best_rq_small.yaml) is pre-trained without any label, and like
the probes without the speakers of that part. A part alone says little: it has three to seven men, and utterances of a
speaker tend to be right or wrong together. So the answers of all parts are scored together, and the interval resamples
speakers, not utterances.

Of a Conformer's layers the mean over time is read by logistic regression (SpeechEmotionLlama, section V-C); layer and
penalty are chosen by cross-validation over the training speakers. Against it stand the same Conformer with the random
weights that training began with, and mean and standard deviation of log-mels with pitch. The projected input of
the Conformer, which is log-mels still, is not among the layers. Whether a child speaks is also asked of the demo's
frozen LLM, with a paralinguistic adapter that was trained on the speakers of the other parts (conf/real_age.yaml).

It leaves results.json and results.md in the folder of --runs; what was trained before is not trained again.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import librosa
import numpy as np
import torch
from numpy.typing import NDArray
from real_age import told
from rich.progress import track
from speaker_scores import BASELINE, TRAINED, UNTRAINED, Answers, results_of, write
from speakers import ACTORS, CHILDREN, DIGITS, OTHERS, PARTS, Row, Task, read, tasks_of, tested_in, watched_of

from sottovoce.cli.main import silence_libraries
from sottovoce.config.best_rq import load
from sottovoce.data.audio import load_audio
from sottovoce.encoders import ENCODERS
from sottovoce.encoders.conformer import ConformerEncoder
from sottovoce.encoders.log_mel import SAMPLE_RATE, log_mel, stack
from sottovoce.evaluation.linear_probe import probe
from sottovoce.lightning_modules.best_rq_pretraining import begin, pretrain
from sottovoce.paths import resolve

CONFIG = resolve("sottovoce:conf/best_rq_small.yaml")
DIGITS_EVERY = 4  # of 2,000 digits by four men, so that they do not outnumber everybody else
F0_RANGE = (65.0, 600.0)  # Hz: from low men to small children
Features = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/real_speech"))
    parser.add_argument("--steps", type=int, help="of pre-training; the recipe's own if absent")
    parser.add_argument("--parts", type=int, nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--no-pretraining", action="store_true", help="leave the Conformers out, which take longest")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe, such as batch=32")
    arguments = parser.parse_args()
    silence_libraries()
    overrides = [*arguments.overrides, *([f"steps={arguments.steps}"] if arguments.steps else [])]
    rows = {name: read(arguments.data, name) for name in (CHILDREN, ACTORS, DIGITS, *OTHERS)}
    tasks = tasks_of(rows)
    answers = baseline(arguments.data, tasks, rows, arguments.parts)
    answers += [told(arguments.data, arguments.runs, rows, part) for part in arguments.parts]
    for part in () if arguments.no_pretraining else arguments.parts:
        tested = tested_in(part, rows)
        sources = write_manifests(arguments.data, arguments.runs, rows, tested, part)
        answers += conformers(arguments.data, arguments.runs, tasks, tested, part, [*overrides, *sources])
    write(arguments.runs, results_of(answers))


def write_manifests(data: Path, runs: Path, rows: dict[str, list[Row]], tested: set[str], part: int) -> list[str]:
    """What pre-training hears, without labels and without the speakers tested; returns the recipe's overrides.

    A tenth of the readers that are left are held out to watch the loss.
    """
    readers, actors = ([row for row in rows[name] if row["speaker"] not in tested] for name in (CHILDREN, ACTORS))
    watched = watched_of(readers)
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
    overrides = [*overrides, f"output_dir={runs}", f"name=best_rq-{part}", f"seed={part}"]
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
        clips = [data / row["audio"] for row in task.rows]
        pitch(clips[0])  # numba keeps what it compiles, and two processes that write that at once spoil it for good
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:  # forks of running threads may crash
            pitches = list(pool.map(pitch, clips, chunksize=8))
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
    """(layers, width): the mean of every layer's frames."""
    stacked = stack(log_mel(clip, torch.tensor([clip.shape[1]])))
    return torch.stack([frames.x[0].mean(0) for frames in encoder.layer_outputs(stacked)[1:]])


def pooled_mel(clip: torch.Tensor) -> torch.Tensor:
    """(1, 160): mean and standard deviation of a clip's log-mel frames."""
    frames = log_mel(clip, torch.tensor([clip.shape[1]])).x[0]
    return torch.cat((frames.mean(0), frames.std(0, correction=0)))[None]


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


if __name__ == "__main__":
    main()
