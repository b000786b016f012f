"""Linear probes of real speech, and the frozen LLM's own words for who speaks: the numbers of docs/real_speech.md.

    python benchmarks/real_speech.py --data DIR [--runs DIR] [--parts 1 2 3 4 5] [--no-pretraining] [key=value ...]

DIR holds the folders speechocean762, emodb_2s, fsdd, ljspeech_mini and jfk, each with a `manifest.jsonl`.

Every speaker is tested once: a fifth of the readers of speechocean762 in each part, and EmoDB's six actors in pairs of
a man and a woman. For each part a small Conformer (conf/best_rq_small.yaml, changed by `key=value`) is pre-trained
without any label, and like the probes without the speakers of that part. The answers of all parts are scored together,
and the interval resamples speakers: utterances of one speaker tend to be right or wrong together.

Of a Conformer's layers the mean over time is read by logistic regression (SpeechEmotionLlama, section V-C); layer and
penalty are chosen by cross-validation over the training speakers. Against it stand the same Conformer with the random
weights that training began with, and mean and standard deviation of log-mels with pitch. Whether a child speaks is also
asked of the demo's frozen LLM, with a paralinguistic adapter that was trained on the other parts (conf/real_age.yaml).

It leaves results.md in the folder of --runs; what was trained before is not trained again.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from sottovoce.config.best_rq import load
from sottovoce.data.audio import load_audio
from sottovoce.encoders import ENCODERS
from sottovoce.encoders.conformer import ConformerEncoder
from sottovoce.encoders.log_mel import SAMPLE_RATE, log_mel, stack
from sottovoce.evaluation.bootstrap import bootstrap, mean_of_ratios
from sottovoce.evaluation.linear_probe import probe
from sottovoce.evaluation.metrics import Prediction, balanced_accuracy
from sottovoce.evaluation.records import read_predictions
from sottovoce.io import atomic_write
from sottovoce.lightning_modules.best_rq_pretraining import begin, pretrain
from sottovoce.lightning_modules.fit import fit
from sottovoce.paths import resolve

PARTS = (1, 2, 3, 4, 5)
PAIRS = (("03", "08"), ("10", "09"), ("11", "13"))  # a man and a woman of EmoDB; parts 4 and 5 test readers alone
READERS, ACTORS, DIGITS, OTHERS = "speechocean762", "emodb_2s", "fsdd", ("ljspeech_mini", "jfk")
DIGITS_EVERY = 4  # of 2,000 digits by four men, so that they do not outnumber everybody else
REFERENCES = {"emotion": 49, "child or adult": 72, "gender": 92}  # logistic regression, as the data's README has it
BASELINE, UNTRAINED, TRAINED = "log-mel + pitch", "Conformer, random", "Conformer, BEST-RQ"
SPOKEN = "adapter, the LLM's words"
Row = dict[str, Any]  # a line of a manifest, its audio relative to DIR
Rows = dict[str, list[Row]]  # by folder
Features = NDArray[np.float32]


class Task(NamedTuple):
    """Clips with a label each."""

    name: str
    rows: list[Row]
    labels: list[str]

    @property
    def speakers(self) -> list[str]:
        return [row["speaker"] for row in self.rows]


class Answers(NamedTuple):
    """Predictions of one system for the speakers of one part."""

    task: str
    system: str
    predictions: Sequence[Prediction]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/real_speech"))
    parser.add_argument("--parts", type=int, nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--no-pretraining", action="store_true", help="leave the Conformers out, which take longest")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe, such as steps=100")
    arguments = parser.parse_args()
    rows = {name: read(arguments.data, name) for name in (READERS, ACTORS, DIGITS, *OTHERS)}
    answers = list(baseline(arguments.data, rows, arguments.parts))
    answers += [spoken_answers(arguments.data, arguments.runs, rows, part) for part in arguments.parts]
    for part in () if arguments.no_pretraining else arguments.parts:
        answers += conformers(arguments.data, arguments.runs, rows, part, arguments.overrides)
    page = results(answers)
    (arguments.runs / "results.md").write_text(page, "utf-8")
    print(page)


def read(data: Path, name: str) -> list[Row]:
    lines = (data / name / "manifest.jsonl").read_text("utf-8").splitlines()
    return [{**row, "audio": f"{name}/{row['audio']}"} for row in map(json.loads, lines)]


def tested_in(part: int, rows: Rows) -> set[str]:
    """The speakers that neither pre-training nor probes of a part (1 to 5) may hear."""
    return _every(rows[READERS], len(PARTS), part - 1).union(*PAIRS[part - 1 : part])


def _every(rows: Sequence[Row], n: int, start: int = 0) -> set[str]:
    """Every n-th of the speakers, in the order of their names."""
    return set(sorted({row["speaker"] for row in rows})[start::n])


def tasks_of(rows: Rows) -> list[Task]:
    """Emotion where the words say nothing, age where they would tell but for matched texts, and gender of adults."""
    matched = [row for row in rows[READERS] if row["text_match"] is not None]
    adults = [row for row in rows[READERS] if row["age_group"] == "adult"]
    return [
        Task("emotion", rows[ACTORS], [row["emotion"] for row in rows[ACTORS]]),
        Task("child or adult", matched, [row["age_group"] for row in matched]),
        Task("gender", adults, [row["gender"] for row in adults]),
    ]


def sides(rows: Rows, part: int) -> tuple[list[Row], list[Row], list[Row]]:
    """Clips of speechocean762: of training, of validation (a tenth of the training speakers), and of the test."""
    tested = tested_in(part, rows)
    readers = [row for row in rows[READERS] if row["speaker"] not in tested]
    held_out = _every(readers, 10)
    train, validation = ([row for row in readers if (row["speaker"] in held_out) == out] for out in (False, True))
    return train, validation, [row for row in rows[READERS] if row["speaker"] in tested]


def source(file: Path, data: Path, lines: Iterable[dict[str, Any]]) -> str:
    """Write a manifest; returns it as a recipe has it."""
    atomic_write(file, "".join(json.dumps(line) + "\n" for line in lines))
    return json.dumps([{"manifest": str(file), "root": str(data)}])


def pretraining_sources(data: Path, runs: Path, rows: Rows, part: int) -> list[str]:
    """Overrides that name the clips of pre-training: no labels, and none of the speakers tested."""
    train, validation, _ = sides(rows, part)
    tested = tested_in(part, rows)
    train += [row for row in rows[ACTORS] if row["speaker"] not in tested]
    train += [row for name in OTHERS for row in rows[name]] + rows[DIGITS][::DIGITS_EVERY]
    return [
        f"data.{side}={source(runs / f'{side}-{part}.jsonl', data, ({'audio': row['audio']} for row in lines))}"
        for side, lines in (("train", train), ("validation", validation))
    ]


def spoken_answers(data: Path, runs: Path, rows: Rows, part: int) -> Answers:
    """Train an adapter on the readers of the other parts, and ask the LLM about the matched clips of this one."""
    train, validation, test = sides(rows, part)
    test = [row for row in test if row["text_match"] is not None]
    overrides = [f"output_dir={runs}", f"name=age-{part}", f"seed={part}"]
    for side, clips in (("train", train), ("validation", validation), ("test", test)):
        lines = ({"id": Path(row["audio"]).stem, "audio": row["audio"], "text": row["text"].lower(),
                  "speaker": row["speaker"], "labels": {"age": row["age_group"]}} for row in clips)  # fmt: skip
        overrides.append(f"data.{side}={source(runs / f'age-{side}-{part}.jsonl', data, lines)}")
    fit(str(resolve("sottovoce:conf/real_age.yaml")), overrides)
    return Answers("child or adult", SPOKEN, read_predictions(runs / f"age-{part}" / "evaluation"))


def conformers(data: Path, runs: Path, rows: Rows, part: int, overrides: Sequence[str]) -> Iterable[Answers]:
    """Pre-train without the speakers tested, and probe what training began with and what it ended with."""
    config, tested = resolve("sottovoce:conf/best_rq_small.yaml"), tested_in(part, rows)
    overrides = [*overrides, *pretraining_sources(data, runs, rows, part), f"output_dir={runs}", f"seed={part}"]
    overrides.append(f"name=best_rq-{part}")
    folder, recipe = pretrain(str(config), overrides), load(config, overrides)
    trained = ENCODERS.build({**recipe.encoder, "checkpoint": str(folder)})
    trained.load()
    for system, encoder in ((UNTRAINED, begin(recipe).best_rq.encoder), (TRAINED, trained)):
        encoder.eval().requires_grad_(False)
        for task in tasks_of(rows):
            if tested.intersection(task.speakers):
                features = extract(data, task, f"{system}, part {part}", partial(layer_means, encoder))
                yield answer(task, system, tested, features)


def baseline(data: Path, rows: Rows, parts: Sequence[int]) -> Iterable[Answers]:
    """Statistics of log-mels and of pitch, which need no training at all."""
    for task in tasks_of(rows):
        mels = extract(data, task, BASELINE, mel_statistics)[:, 0]
        clips = [data / row["audio"] for row in task.rows]
        pitch(clips[0])  # numba keeps what it compiles, and two processes that write that at once spoil it for good
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:  # forks of running threads may crash
            features = np.concatenate([mels, list(pool.map(pitch, clips, chunksize=8))], 1)[:, None]
        for part in parts:
            if (tested := tested_in(part, rows)).intersection(task.speakers):
                yield answer(task, BASELINE, tested, features)


def extract(data: Path, task: Task, system: str, pool: Callable[[torch.Tensor], torch.Tensor]) -> Features:
    """(rows, layers, dim): each clip alone through `pool`, which maps (1, samples) to (layers, dim)."""
    clips = track(task.rows, f"{task.name}: {system}")
    with torch.no_grad():
        features = [pool(torch.from_numpy(load_audio(data / row["audio"], SAMPLE_RATE))[None]) for row in clips]
    return torch.stack(features).numpy()


def layer_means(encoder: ConformerEncoder, clip: torch.Tensor) -> torch.Tensor:
    """(layers, width): the mean of every layer's frames, without the projected input, which is log-mels still."""
    stacked = stack(log_mel(clip, torch.tensor([clip.shape[1]])))
    return torch.stack([frames.x[0].mean(0) for frames in encoder.layer_outputs(stacked)[1:]])


def mel_statistics(clip: torch.Tensor) -> torch.Tensor:
    """(1, 160): mean and standard deviation of a clip's log-mel frames."""
    frames = log_mel(clip, torch.tensor([clip.shape[1]])).x[0]
    return torch.cat((frames.mean(0), frames.std(0, correction=0)))[None]


def pitch(file: Path) -> Features:
    """Octaves above 100 Hz, mean and standard deviation over voiced frames, and the share of these: (3,)."""
    import librosa

    samples = load_audio(file, SAMPLE_RATE)
    f0, voiced, _ = librosa.pyin(samples, fmin=65, fmax=600, sr=SAMPLE_RATE, frame_length=1024, resolution=0.2)
    octaves = np.log2(f0[voiced] / 100) if voiced.any() else np.zeros(1)
    return np.array([octaves.mean(), octaves.std(), voiced.mean()], np.float32)


def answer(task: Task, system: str, tested: set[str], features: Features) -> Answers:
    """Choose the layer whose probe is best on training speakers by cross-validation; test it on the others."""
    held_out, layer = np.isin(task.speakers, list(tested)), 0
    if features.shape[1] > 1:
        labels, speakers = (np.array(of)[~held_out].tolist() for of in (task.labels, task.speakers))
        folds, layers = min(5, len(set(speakers))), features[~held_out].swapaxes(0, 1)
        layer = int(np.argmax([probe(x, labels, speakers, folds=folds).balanced_accuracy.value for x in layers]))
    tests = probe(features[:, layer], task.labels, task.speakers, held_out=held_out)
    return Answers(task.name, system, tests.predictions)


def recalls_by_speaker(predictions: Sequence[Prediction]) -> NDArray[np.float64]:
    """(speakers, 2 * classes): clips of each class that were recognised, then all clips of each class."""
    rows, speakers = balanced_accuracy.measure(predictions).rows, np.array([str(p.speaker) for p in predictions])
    return np.stack([rows[speakers == one].sum(0) for one in np.unique(speakers)])


def results(answers: Sequence[Answers]) -> str:
    """Markdown: balanced accuracy of each task and system over all parts together, and of each part."""
    systems = [name for name in (BASELINE, UNTRAINED, TRAINED, SPOKEN) if any(a.system == name for a in answers)]
    lines = ["Balanced accuracy on unheard speakers, in percent, with the 95 % interval over speakers.", ""]
    lines += [f"| task | speakers | clips | chance | reference | {' | '.join(systems)} |"]
    lines += [f"|---|{'---:|' * (4 + len(systems))}"]
    by_part = ["", "In each part:", ""]
    for task, reference in REFERENCES.items():
        cells, head = [], ""
        for system in systems:
            own = [a for a in answers if (a.task, a.system) == (task, system)]
            predictions = [prediction for a in own for prediction in a.predictions]
            if not own:
                cells.append("")
                continue
            counts = recalls_by_speaker(predictions)
            low, high = bootstrap(counts, mean_of_ratios)
            cells.append(f"{_percent(predictions)} [{100 * low:.1f}-{100 * high:.1f}]")
            head = head or f"{len(counts)} | {len(predictions)} | {200 / counts.shape[1]:.1f}"
            by_part.append(f"- {task}, {system}: {', '.join(_percent(a.predictions) for a in own)}")
        lines.append(f"| {task} | {head} | {reference} | {' | '.join(cells)} |")
    return "\n".join([*lines, *by_part, ""])


def _percent(predictions: Sequence[Prediction]) -> str:
    return f"{100 * balanced_accuracy(predictions).value:.1f}"


if __name__ == "__main__":
    main()
