"""Recorded people whom nobody heard in training, by a frozen Whisper and a frozen chat LLM: docs/real_speech.md.

    python benchmarks/recorded_people.py --data DIR --whisper FILE --llm FOLDER [--made FILE] [--parts 1 2 3 4 5]
        [--seeds 1 2 3] [--systems err plain last] [--runs DIR] [--answers DIR] [key=value ...]

DIR holds the folders speechocean762, speechocean762_more, emodb_2s and fsdd, each with a `manifest.jsonl`; FILE of
--made is a manifest of `sottovoce speak`, more words for training. Every reader of speechocean762 is tested in one of
five parts, EmoDB's six actors in pairs of a man and a woman in the first three, one man of the digits in each of four;
nobody who is tested is in training. Answers of all parts are scored together, with intervals over speakers.

`err` is conf/starter/recorded.yaml, changed by `key=value`; `plain` is the same from its stage `joint`, without ERR;
`last` has the last layer of Whisper for both slots. Against them: Whisper's own greedy decoder on the same clips, and
linear probes of mean and deviation over time of each of its layers, without the speakers tested.

It leaves results.md in the folder of --runs; what was trained before is not trained again. A run takes an hour or so
of one core, so answers are kept in the folder of --answers, recorded_people beside this file unless said otherwise:
SYSTEM-SEED-PART.jsonl, decoder-PART.jsonl, probe_best-PART.jsonl. What is there is not made again: parts may be
trained one after another, on several machines; --anew trains. Another encoder or LLM needs --answers and --runs.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from real_speech import DIGITS, DIGITS_EVERY, PAIRS, PARTS, Row, _every, read
from recorded_scores import results, shown
from rich.progress import track
from shared import sottovoce

from sottovoce.data.audio import load_audio
from sottovoce.encoders import ENCODERS
from sottovoce.encoders.whisper import WhisperEncoder
from sottovoce.errors import AudioError
from sottovoce.evaluation.linear_probe import probe
from sottovoce.evaluation.metrics import Prediction
from sottovoce.evaluation.records import read_predictions, score_all
from sottovoce.io import atomic_write

READERS, ACTORS = ("speechocean762", "speechocean762_more"), "emodb_2s"
SYSTEMS = {"err": "with ERR", "plain": "without ERR", "last": "last layer"}
EMOTIONS = {
    "happiness": "happy", "sadness": "sad", "anger": "angry", "fear": "fearful", "disgust": "disgusted",
    "boredom": "bored", "neutral": "neutral",
}  # fmt: skip
HEARD = {  # times an epoch, where the LLM answers: actors are few
    "joint": {"readers": 0.8, "digits": 0.1, "actors": 8},
    "disentangle": {"readers": 0.6, "digits": 0.5, "actors": 6},
}
ASR_EVERY = 3  # of the test clips, so that words do not take all of the time
LABELS = ("age", "gender", "emotion")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "whisper", "llm"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--made", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/recorded"))
    parser.add_argument("--answers", type=Path, default=Path(__file__).with_suffix(""))
    parser.add_argument("--parts", type=int, nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["err"])
    parser.add_argument("--anew", action="store_true", help="train also what answers are kept of")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe")
    arguments = parser.parse_args()
    data = {name: read(arguments.data, name) for name in (*READERS, ACTORS, DIGITS)}
    sides = {part: Sides(data, part) for part in arguments.parts}
    answers: dict[str, list[Prediction]] = {}
    for seed in arguments.seeds:
        for part, side in sides.items():
            base = [f"encoder.checkpoint={arguments.whisper}", f"llm.checkpoint={arguments.llm}", f"seed={seed}"]
            base += [f"stages.{stage}.parts={json.dumps(parts)}" for stage, parts in HEARD.items()]
            base += [*side.overrides(arguments, part), *arguments.overrides]
            for system in arguments.systems:
                answers.setdefault(SYSTEMS[system], []).extend(answered(arguments, system, seed, part, base))
    references = [*decoded(arguments, sides), *probed(arguments, sides)]
    page = results(answers, references)
    atomic_write(arguments.runs / "results.md", page)
    print(page)


class Sides:
    """Lines of the manifests of one part: training, validation, and the people who are tested."""

    def __init__(self, data: dict[str, list[Row]], part: int) -> None:
        readers = [row for name in READERS for row in data[name]]
        tested = _every(readers, len(PARTS), part - 1)
        training = [row for row in readers if row["speaker"] not in tested]
        held_out, men = _every(training, 12, 3), sorted({row["speaker"] for row in data[DIGITS]})
        man, pair = men[(part - 1) % len(men)], {*PAIRS[part - 1]} if part <= len(PAIRS) else set()
        actors = [row for row in data[ACTORS] if row["speaker"] not in pair]
        self.train = {
            "readers": _lines(row for row in training if row["speaker"] not in held_out),
            # whose gender would be learned by heart, since they are seven, and heard oftener than all readers
            "actors": _lines((row for i, row in enumerate(actors) if i % 10), ("emotion",)),
            "digits": _lines([row for row in data[DIGITS] if row["speaker"] != man][::DIGITS_EVERY], ()),
        }
        self.validation = {
            "readers": _lines(row for row in training if row["speaker"] in held_out),
            "actors": _lines(actors[::10], ("emotion",)),  # other takes of people who are in training: six are few
        }
        self.test = {
            "readers": [*_tested(row for row in readers if row["speaker"] in tested)],
            "digits": _lines([row for row in data[DIGITS] if row["speaker"] == man][::DIGITS_EVERY]),
        }
        if pair:
            self.test["actors"] = _lines((row for row in data[ACTORS] if row["speaker"] in pair), ("emotion",))

    def overrides(self, arguments: argparse.Namespace, part: int) -> Iterator[str]:
        """The three sides as a recipe has them, their manifests written."""
        for side in ("train", "validation", "test"):
            nodes = []
            for name, lines in getattr(self, side).items():
                file = arguments.runs / f"{side}-{name}-{part}.jsonl"
                atomic_write(file, "".join(json.dumps(line) + "\n" for line in lines))
                named = name if side != "test" or name == "digits" else None
                nodes.append({"manifest": str(file), "root": str(arguments.data), "name": named})
            if side == "train" and arguments.made:
                nodes.append({"manifest": str(arguments.made), "name": "made", "tasks": ["asr"]})
            yield f"data.{side}={json.dumps(nodes)}"


def _lines(rows: Iterable[Row], only: Sequence[str] = LABELS) -> list[dict[str, Any]]:
    """As a manifest has them; a child has no gender, which small ones do not show, and German no English words."""
    lines = []
    for row in rows:
        group, emotion = row.get("age_group"), row.get("emotion")
        labels = {"gender": None if group == "child" else row["gender"], "emotion": EMOTIONS.get(emotion)}
        labels["age"] = group if row["audio"].startswith(READERS[0]) else None
        lines.append({
            "id": row["audio"], "audio": row["audio"], "speaker": row["speaker"],
            "labels": {key: value for key, value in labels.items() if value and key in only},
            "text": row["text"].lower() if row["language"] == "en" else None,
        })  # fmt: skip
    return lines


def _tested(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Age where the text of a child and of an adult are alike, since words alone would tell; a share of the words."""
    for number, (row, line) in enumerate((row, _lines([row])[0]) for row in rows):
        labels = line["labels"]
        if not row.get("text_match"):
            labels.pop("age", None)
        yield {**line, "labels": labels, "text": line["text"] if number % ASR_EVERY == 0 else None}


def kept(file: Path, make: Callable[[], Sequence[Prediction]], anew: bool = False) -> list[Prediction]:
    """Answers of a file, or else those that `make` gives, which are kept there then."""
    if file.is_file() and not anew:
        return [Prediction(**json.loads(line)) for line in file.read_text("utf-8").splitlines()]
    answers = [replace(answer, audio=None, instruction="") for answer in make()]  # that scores need
    lines = [
        {key: value for key, value in asdict(answer).items() if value is not None and value is not False}
        for answer in answers
    ]
    atomic_write(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return answers


def answered(
    arguments: argparse.Namespace, system: str, seed: int, part: int, overrides: Sequence[str]
) -> list[Prediction]:
    """The answers of a run, which are kept; of one whose recipe was changed by `key=value` they are not."""

    def make() -> list[Prediction]:
        return read_predictions(train(arguments.runs, system, seed, part, overrides) / "evaluation")

    return (
        make()
        if arguments.overrides
        else kept(arguments.answers / f"{system}-{seed}-{part}.jsonl", make, arguments.anew)
    )


def train(runs: Path, system: str, seed: int, part: int, overrides: Sequence[str]) -> Path:
    """Train a run, or find it finished; returns its folder."""
    name, began = f"{system}-{seed}-{part}", runs / f"err-{seed}-{part}" / "stages"
    own = {"err": [], "plain": ["stages.disentangle.err=null"], "last": ["slots.paralinguistic.layers=last"]}[system]
    stages = runs / name / "stages"
    if system == "plain" and began.is_dir() and not stages.is_dir():  # the same stages before: only ERR differs
        for stage in ("1-align", "2-joint"):
            shutil.copytree(began / stage, stages / stage)
    recipe = "sottovoce:conf/starter/recorded.yaml"
    sottovoce("fit", "--config", recipe, f"output_dir={runs}", f"name={name}", *overrides, *own)
    return runs / name


def decoded(arguments: argparse.Namespace, sides: dict[int, Sides]) -> list[tuple[str, str, str]]:
    """Error rates of Whisper's own greedy decoder, on the clips whose words are asked for."""
    predictions = []
    for part, side in sides.items():
        predictions += kept(arguments.answers / f"decoder-{part}.jsonl", partial(_decode, arguments, side))
    return [(record.task, "Whisper's own decoder", shown(record)) for record in score_all("", predictions)]


def _decode(arguments: argparse.Namespace, side: Sides) -> list[Prediction]:
    import whisper

    model = whisper.load_model(str(arguments.whisper), device="cpu")
    options = whisper.DecodingOptions(language="en", without_timestamps=True, fp16=False)
    predictions = []
    clips = [
        (line, name if name == "digits" else None)
        for name, lines in side.test.items() for line in lines if line["text"]
    ]  # fmt: skip
    for line, source in track(clips, "Whisper's own decoder"):
        if (audio := _audio(arguments.data / line["audio"])) is None:
            continue
        mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(audio), model.dims.n_mels)
        said = whisper.decode(model, mel, options).text
        predictions.append(
            Prediction(line["id"], "asr", "both", "", said, line["text"], speaker=line["speaker"], source=source)
        )
    return predictions


def probed(arguments: argparse.Namespace, sides: dict[int, Sides]) -> list[tuple[str, str, str]]:
    """Balanced accuracies of linear probes: of the layer that is best on training speakers, and of the last."""
    features = Features(arguments)
    lines = []
    for which in ("best", "last"):
        told = [
            p
            for part, side in sides.items()
            for p in kept(arguments.answers / f"probe_{which}-{part}.jsonl", partial(_probe, features, side, which))
        ]
        balanced = [record for record in score_all("", told) if record.metric == "balanced_accuracy"]
        lines += [(record.task, f"linear probe, {which} layer", shown(record)) for record in balanced]
    return lines


def _probe(features: "Features", side: Sides, which: str) -> list[Prediction]:
    """What the probe of each task says of who is tested; the best layer has the best cross-validation in training."""
    heard = [line for lines in (*side.train.values(), *side.validation.values()) for line in lines]
    tested = [line for lines in side.test.values() for line in lines]
    predictions: list[Prediction] = []
    for task in LABELS:
        rows = [(line, held) for held, lines in ((False, heard), (True, tested)) for line in lines]
        rows = [(line, held) for line, held in rows if task in line["labels"] and features.of(line) is not None]
        if not any(held for _, held in rows):
            continue
        x = np.stack([features.of(line) for line, _ in rows])  # type: ignore[arg-type]  # (rows, layers, 2 * dim)
        labels, who = [line["labels"][task] for line, _ in rows], [line["speaker"] for line, _ in rows]
        layers = range(x.shape[1]) if which == "best" else [x.shape[1] - 1]
        held_out = np.array([held for _, held in rows])
        probes = [probe(x[:, layer], labels, who, held_out=held_out) for layer in track(layers, f"probes: {task}")]
        told = max(probes, key=lambda one: one.validation[0]).predictions
        lines = [line for line, held in rows if held]
        predictions += [
            replace(p, id=line["id"], task=task, speaker=line["speaker"]) for p, line in zip(told, lines, strict=True)
        ]
    return predictions


class Features:
    """Mean and deviation over time of each of Whisper's layers, (layers, 2 * dim), by clip; loaded when asked for."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.data, self.whisper = arguments.data, str(arguments.whisper)
        self.known: dict[str, NDArray[np.float32] | None] = {}

    @cached_property
    def encoder(self) -> WhisperEncoder:
        return whisper_encoder(self.whisper, "float32")

    def of(self, line: dict[str, Any]) -> NDArray[np.float32] | None:
        """None: the clip cannot be read."""
        if line["id"] not in self.known:
            frames = layer_frames(self.encoder, self.data / line["audio"])
            self.known[line["id"]] = None if frames is None else statistics(frames, self.encoder.depth)
        return self.known[line["id"]]


def _audio(file: Path) -> torch.Tensor | None:
    try:
        return torch.from_numpy(load_audio(file))
    except AudioError:  # one of the readers' clips is cut off
        return None


def whisper_encoder(checkpoint: str, dtype: str) -> WhisperEncoder:
    node = {"type": "whisper", "checkpoint": checkpoint, "window": "longest", "dtype": dtype}
    encoder = cast(WhisperEncoder, ENCODERS.build(node))
    encoder.load()
    return encoder


@torch.no_grad()
def layer_frames(encoder: WhisperEncoder, file: Path) -> torch.Tensor | None:
    """All layers of a clip, side by side: (frames, layers * dim); None: it cannot be read."""
    if (audio := _audio(file)) is None:
        return None
    return encoder.layer_frames(audio[None], torch.tensor([len(audio)]), range(1, encoder.depth + 1)).x[0]


def statistics(frames: torch.Tensor, depth: int) -> NDArray[np.float32]:
    """(layers, 2 * dim): mean and deviation over time of each layer."""
    layers = frames.unflatten(1, (depth, -1))  # (frames, layers, dim)
    return torch.cat([layers.mean(0), layers.std(0, correction=0)], 1).numpy()


if __name__ == "__main__":
    main()
