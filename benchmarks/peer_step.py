"""A training step of ours and of peers' own code, on the same rows and frozen parts: docs/performance.md.

    python benchmarks/peer_step.py --data FOLDER --llm FOLDER --python PYTHON [--ultravox CHECKOUT] [--west CHECKOUT]
        [--dtype bfloat16] [--clips 32] [--batch 4] [--rounds 3]

FOLDER of --data holds `manifest.jsonl`, lines with `audio` and `text`; every n-th clip is taken, --clips in all. The
encoder is a Whisper base with random weights, frozen as the LLM is. What trains is a map of 8 stacked frames with 2,048
hidden units (WEST: its own, of 5); every side begins with rows on disk, and ends with the optimizer's step. PYTHON is
of the environment that peers need:

    pip install "torch>=2.6,<2.14" transformers==4.51.3 accelerate peft==0.11.1 openai-whisper soundfile librosa

`ours` has the encoder's outputs from its cache, which is filled before; `ours, no cache` encodes in every step, as the
peers do. `KL` is from the LLM that reads the text: Ultravox's own recipes train so, `distill` in ours. One thread a
side; sides take turns step by step, and CPU seconds are counted, with the optimizer and all that makes a batch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import whisper
import yaml
from shared import table
from whisper.model import ModelDimensions

HERE = Path(__file__).parent
PROMPT = "Repeat this word for word:"
BASE = ModelDimensions(80, 1500, 512, 8, 6, 51865, 448, 512, 8, 6)
KL = {"weight": 1, "temperature": 2}


class Taken(NamedTuple):
    """CPU seconds of the process so far, and its peak memory in GB."""

    seconds: float
    peak: float


class Side:
    """A process that trains, and waits after each step until it may go on."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env={**env}
            )

    def taken(self) -> Taken:
        """What it has taken when its next step has ended."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("STEP "):
                return Taken(**json.loads(line[5:]))
        sys.exit(f"{self.log.stem} ended:\n" + "\n".join(self.log.read_text().splitlines()[-20:]))

    def go_on(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--llm", type=Path, required=True, help="a folder as transformers has it")
    parser.add_argument("--python", help="of the peers' environment")
    parser.add_argument("--ultravox", type=Path, help="a checkout of fixie-ai/ultravox")
    parser.add_argument("--west", type=Path, help="a checkout of wenet-e2e/west")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="times that every clip is drawn, and one time before")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, opened(arguments, Path(name)) as sides:
        steps = arguments.clips // arguments.batch
        seconds, peaks = measure(sides, steps, arguments.rounds)
    least = statistics.mean(seconds["ours"])
    rows = [
        (side, f"{statistics.mean(took):.2f}", f"{statistics.mean(took) / least:.2f}", f"{peaks[side]:.2f}")
        for side, took in seconds.items()
    ]
    print(table((f"{arguments.dtype}, {arguments.batch} rows", "CPU s a step", "ratio", "peak, GB"), rows))


def measure(sides: Mapping[str, Side], steps: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """CPU seconds of each side's steps, without those of the first round, and its peak memory in GB."""
    last = {name: side.taken() for name, side in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for step in range(1, steps * (rounds + 1)):
        for name, side in sides.items():
            side.go_on()
            now = side.taken()
            if step >= steps:
                seconds[name].append(now.seconds - last[name].seconds)
            last[name] = now
    return seconds, {name: taken.peak for name, taken in last.items()}


@contextmanager
def opened(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Side]]:
    """All sides, each before its first step; their processes end with the block."""
    spec = prepare(arguments, folder)
    ours = {"ours": ({}, ".cache"), "ours, no cache": ({}, None)}
    if arguments.ultravox:
        ours["ours, KL"] = ({"distill": KL}, ".cache")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    sides: dict[str, Side] = {}
    try:
        for name, (stage, cache) in ours.items():
            file = folder / f"{name}.yaml"
            file.write_text(yaml.safe_dump(recipe(spec, name, stage, cache)), "utf-8")
            command = [sys.executable, "-m", "sottovoce", "fit", "--config", str(file)]
            path = os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parent / "src")])
            sides[name] = Side(command, {**env, "PYTHONPATH": path}, folder / f"{name}.log")
        for name in ("ultravox", "ultravox_kl", "west"):
            if getattr(arguments, name.split("_")[0]):
                command = [arguments.python, str(HERE / "peer_sides.py"), name, str(folder / "spec.json")]
                theirs = {key: value for key, value in env.items() if key != "PYTHONPATH"}
                sides[name] = Side(command, theirs, folder / f"{name}.log")
        yield sides
    finally:
        for side in sides.values():
            side.process.kill()
            side.process.wait()


def prepare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Clips, an encoder and what the sides are told, as files in `folder`."""
    lines = [json.loads(line) for line in (arguments.data / "manifest.jsonl").read_text("utf-8").splitlines()]
    lines = [{**line, "audio": str((arguments.data / line["audio"]).resolve())} for line in lines if line.get("text")]
    taken = lines[:: max(len(lines) // (arguments.clips + 1), 1)][: arguments.clips + 1]
    rows = [{"id": str(n), "audio": line["audio"], "text": line["text"].lower()} for n, line in enumerate(taken)]
    for name, of in (("train", rows[:-1]), ("validation", rows[-1:]), ("all", rows[:-1] * (arguments.rounds + 1))):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in of), "utf-8")
    west = [{"wav": row["audio"], "txt": row["text"]} for row in rows[:-1]] * (arguments.rounds + 1)
    (folder / "west.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in west), "utf-8")
    (folder / "prompt.txt").write_text(f"{PROMPT}\n", "utf-8")
    torch.manual_seed(0)
    weights = whisper.model.Whisper(BASE).state_dict()
    torch.save({"dims": vars(BASE), "model_state_dict": weights}, folder / "whisper.pt")
    spec = {
        "folder": str(folder), "manifest": str(folder / "all.jsonl"), "west_manifest": str(folder / "west.jsonl"),
        "llm": str(arguments.llm.resolve()), "whisper": str(folder / "whisper.pt"), "dtype": arguments.dtype,
        "batch": arguments.batch, "prompt": PROMPT, "times": arguments.rounds + 1,
    }  # fmt: skip
    spec |= {name: str(getattr(arguments, name)) for name in ("ultravox", "west")}
    (folder / "spec.json").write_text(json.dumps(spec), "utf-8")
    return spec


def recipe(spec: Mapping[str, Any], name: str, stage: Mapping[str, Any], cache: str | None) -> dict[str, Any]:
    """Our side: one slot, one stage, in which every clip is drawn `times` times."""
    folder = spec["folder"]
    train = {"manifest": f"{folder}/train.jsonl", "tasks": ["asr"], "allow": ["/"], "weight": spec["times"]}
    return {
        "name": name.replace(", ", "_").replace(" ", "_"), "output_dir": f"{folder}/runs", "instructions": "user",
        "encoder": {"type": "whisper", "checkpoint": spec["whisper"], "window": "longest", "dtype": spec["dtype"]},
        "llm": {"checkpoint": spec["llm"], "dtype": spec["dtype"]},
        "slots": {
            "speech": {
                "adapter": {"type": "frame_stacking_mlp", "stack": 8, "hidden": 2048}, "text": "transcript"
            }
        },
        "data": {
            "cache": f"{folder}/{cache}" if cache else None, "train": [train],
            "validation": [{"manifest": f"{folder}/validation.jsonl", "tasks": ["asr"], "allow": ["/"]}],
        },
        "tasks": {"asr": {"prompts": f"{folder}/prompt.txt"}},
        "stages": {
            "joint": {"tasks": {"asr": 1}, "epochs": 1, "batch_size": spec["batch"], "lr": 1e-3, **stage}
        },
        "callbacks": [f"{HERE / 'peer_gate.py'}:Gate"],
        "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32-true"},
    }  # fmt: skip


if __name__ == "__main__":
    main()
