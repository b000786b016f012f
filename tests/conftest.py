"""A small world for the tests: a random Whisper and a random Qwen2 on disk, and a few tones as speech."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import whisper
from absl import logging as absl_logging
from whisper.model import ModelDimensions

from sottovoce.cli.main import main, silence_libraries
from sottovoce.config import recipe as recipes
from sottovoce.logs import set_up_logging
from tests.helpers.families import save_family
from tests.helpers.hub import FakeHub, be_known, fake_hub
from tests.helpers.servers import Serve, serving

torch.set_num_threads(1)  # models this small gain nothing by a second, and the workers of the suite share the cores
silence_libraries()
set_up_logging()
# absl, which TensorBoard and rouge-score import, logs to the `sys.stderr` of that time: one of pytest's own files. A
# server that sets up logging (uvicorn) closes the streams of all handlers, that file too, and every later test fails.
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__

CONFORMER = {"type": "conformer", "layers": 2, "width": 16, "feedforward": 32, "heads": 2, "kernel": 3}
EMOTIONS = ("neutral", "happy", "sad", "angry")
WORDS = ("we found the lamp", "they sold a book", "i lost my key", "you made some tea")


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random two-layer Qwen2 on disk, so that tests walk the same path as a real checkpoint."""
    return str(save_family("qwen2", tmp_path_factory.mktemp("llm"), ends=True))


@pytest.fixture(scope="session")
def tiny_whisper(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_whisper(tmp_path_factory.mktemp("whisper"))


def save_tiny_whisper(folder: Path) -> str:
    """A random two-layer Whisper with windows of one second, in openai-whisper's own format."""
    torch.manual_seed(0)
    dims = ModelDimensions(80, 50, 32, 4, 2, 100, 16, 32, 4, 2)
    file = folder / "tiny.pt"
    torch.save({"dims": dims.__dict__, "model_state_dict": whisper.model.Whisper(dims).state_dict()}, file)
    return str(file)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished audio LLMs on disk."""
    from tests.helpers.audio_llms import KINDS  # takes seconds, which other tests need not wait for

    return {kind: save(tmp_path_factory.mktemp("audio-llm")) for kind, (_, save, _) in KINDS.items()}


@pytest.fixture(scope="session")
def kimi(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Kimi-Audio and its speech tokenizer on disk."""
    from tests.helpers.kimi_audio import save_kimi_audio, save_speech_tokenizer

    folder = tmp_path_factory.mktemp("kimi")
    return save_kimi_audio(folder / "model"), save_speech_tokenizer(folder / "tokenizer")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts servers on localhost, which end with the test."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as start:
        yield start


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that this process knows, has a token of, and has fetched nothing from; it works in an empty folder."""
    monkeypatch.chdir(tmp_path)
    with fake_hub() as server:
        be_known(server, tmp_path / "cache", monkeypatch)
        yield server


def write_tone(file: Path, seconds: float, hertz: float, rate: int = 16_000) -> None:
    at = np.arange(int(seconds * rate)) / rate
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * hertz * at) * (1 + 0.3 * np.sin(2 * np.pi * 3 * at)), rate)


def write_manifest(folder: Path, split: str, count: int) -> Path:
    """`count` utterances with every label; every third stands in a dialogue, every sixth after a spoken turn."""
    lines: list[dict[str, Any]] = []
    for i in range(count):
        name = f"{split}-{i}.wav"
        write_tone(folder / name, 0.4 + 0.13 * (i % 7), 120 + 40 * (i % 5) + 3 * len(split))  # no sound on two sides
        labels = {"gender": ("male", "female")[i % 2], "emotion": EMOTIONS[i % 4]}
        line: dict[str, Any] = {"id": f"{split}-{i}", "audio": name, "text": WORDS[i % 4]}
        if i % 3 == 2:
            line["context"] = [{"role": "user", "text": "hello"}, {"role": "assistant", "text": "hi there"}]
        if i % 6 == 5:
            earlier = {"role": "user", "text": "it rains", "audio": f"{split}-0.wav", "caption": "A sad voice."}
            line["context"] += [earlier, {"role": "assistant", "text": "it does"}]
        lines.append({**line, "speaker": f"{split}-s{i % 3}", "labels": labels})
    return write_lines(folder / f"{split}.jsonl", lines)


def write_lines(file: Path, lines: Iterable[Any]) -> Path:
    """JSON Lines."""
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="session")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("speech")
    return {split: write_manifest(folder, split, n) for split, n in (("train", 12), ("validation", 5), ("test", 6))}


def tiny_tree(tiny_llm: str, tiny_whisper: str, manifests: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    """A whole recipe of the three stages, small enough for seconds."""
    stage = {"lr": 1e-2, "epochs": 1, "batch_size": 4}
    return {
        "name": "tiny",
        "seed": 3,
        "encoder": {"type": "whisper", "checkpoint": tiny_whisper},
        "llm": {"checkpoint": tiny_llm, "dtype": "float32"},
        "slots": {
            "paralinguistic": {
                "adapter": {"type": "pooled_soft_prompt", "tokens": 2, "feedforward": 16}, "text": "caption",
            },
            "linguistic": {"adapter": {"type": "frame_stacking_mlp", "hidden": 16}, "text": "transcript"},
        },
        "tasks": {"emotion": {"choices": list(EMOTIONS)}},
        "data": {
            "cache": str(tmp_path / "cache"),
            "target_max_new_tokens": 12,
            **{split: [{"manifest": str(file)}] for split, file in manifests.items()},
        },
        "stages": {
            "joint": {"tasks": {"asr": 2, "gender": 1, "emotion": 1}, "warmup_steps": 2, **stage | {"epochs": 2}},
            "disentangle": {"tasks": {"asr": 1, "emotion": 1}, "err": {"speech": 1, "text": 1, "none": 1}, **stage},
            "holistic": {"tasks": {"dialogue": 2, "asr": 1, "gender": 1}, **stage},
        },
        "evaluation": {"batch_size": 5, "max_new_tokens": 6},
        "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
        "checkpoint_every": 2,
        "output_dir": str(tmp_path / "runs"),
    }  # fmt: skip


@pytest.fixture
def tree(tiny_llm: str, tiny_whisper: str, manifests: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    return tiny_tree(tiny_llm, tiny_whisper, manifests, tmp_path)


@pytest.fixture
def alignment(tree: dict[str, Any]) -> dict[str, Any]:
    """One slot and one stage, in which encoder and adapter learn together."""
    prompts = "sottovoce:data/prompts/speech_emotion_llama"
    stage = {
        "tasks": {"response": 1, "asr": 1, "caption": 1, "emotion": 1},
        "train": ["encoder", "speech"], "lr": 1e-2, "epochs": 2, "batch_size": 4,
    }  # fmt: skip
    return {
        **tree,
        "slots": {"speech": {"adapter": {"type": "frame_stacking_mlp", "hidden": 16}, "text": "tagged"}},
        "instructions": "user",
        "tasks": {
            "response": {},
            "asr": {"prompts": f"{prompts}/asr.txt"},
            "caption": {"prompts": f"{prompts}/caption.txt"},
            "emotion": {**tree["tasks"]["emotion"], "prompts": f"{prompts}/emotion.txt", "sentence": "{label}"},
        },
        "stages": {"align": stage},
        "evaluation": {"batch_size": 5, "max_new_tokens": 4, "limit": 3},
    }


@pytest.fixture
def recipe(tree: dict[str, Any]) -> recipes.Recipe:
    return recipes.parse(tree)


@pytest.fixture
def write_recipe(tree: dict[str, Any], tmp_path: Path) -> Callable[..., str]:
    """Write the tiny recipe, changed as said, and return its path."""
    from omegaconf import OmegaConf

    def write(**changes: Any) -> str:
        file = tmp_path / "recipe.yaml"
        file.write_text(OmegaConf.to_yaml({**tree, **changes}))
        return str(file)

    return write


@pytest.fixture
def fit(write_recipe: Callable[..., str]) -> Callable[..., Path]:
    """Train by the tiny recipe, changed as said, and return the folder of the run."""

    def run(**changes: Any) -> Path:
        config = write_recipe(**changes)
        assert main(["fit", "--config", config]) == 0
        return recipes.load(config).folder

    return run


@pytest.fixture(scope="session")
def tiny_run(
    tiny_llm: str, tiny_whisper: str, manifests: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a finished run that learned `asr`, `gender` and `emotion`; not to be changed, but to be copied."""
    from omegaconf import OmegaConf

    folder = tmp_path_factory.mktemp("trained")
    tree = tiny_tree(tiny_llm, tiny_whisper, manifests, folder)
    tree["stages"] = {"joint": tree["stages"]["joint"] | {"epochs": 1}}
    tree["evaluation"] = {"max_new_tokens": 3, "slots": ["both", "text"], "batch_size": 5}
    file = folder / "recipe.yaml"
    file.write_text(OmegaConf.to_yaml(tree))
    assert main(["fit", "--config", str(file)]) == 0
    return recipes.load(str(file)).folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Where a published corpus lies in miniature."""
    return tmp_path / "source"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where its manifests are written."""
    return tmp_path / "manifests"
