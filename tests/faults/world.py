"""A run small enough to be killed twenty times: random models of the true architectures, tones as speech."""

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import whisper
from omegaconf import OmegaConf
from whisper.model import ModelDimensions

from sottovoce.lightning_modules.checkpointing import read_checkpoint
from tests.conftest import EMOTIONS, write_manifest
from tests.helpers.families import save_family

STAGES = ("1-joint", "2-disentangle", "3-holistic")
UTTERANCES, BATCH, EPOCHS = 24, 4, 2


@dataclass
class World:
    """A folder with models, speech and recipes; runs lie in `runs/<name>`."""

    folder: Path
    tree: dict[str, Any]

    def recipe(self, name: str, **changes: Any) -> "Command":
        """A recipe like all others but for its name and the values of these keys, such as `data={"num_workers": 2}`."""
        tree = deepcopy(self.tree)
        for key, value in changes.items():
            tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
        file = self.folder / f"{name}.yaml"
        file.write_text(OmegaConf.to_yaml({**tree, "name": name}))
        return Command(name, file, self.folder / "runs" / name, self.folder / f"{name}.jsonl")


@dataclass(frozen=True)
class Command:
    """`sottovoce fit` of one recipe, what it leaves, and the ledger in which its processes say what they do."""

    name: str
    config: Path
    run: Path
    ledger: Path

    def entries(self) -> list[dict[str, Any]]:
        """What all processes of this run have said, oldest first."""
        return [json.loads(line) for line in self.ledger.read_text().splitlines()] if self.ledger.is_file() else []

    def weights(self) -> dict[str, dict[str, torch.Tensor]]:
        """The best weights of every stage that has some."""
        files = {stage: self.run / "stages" / stage / "best.ckpt" for stage in STAGES}
        return {stage: read_checkpoint(file)["state_dict"] for stage, file in files.items() if file.is_file()}


def make_world(folder: Path) -> World:
    """Write models and speech, the same every time."""
    torch.manual_seed(0)
    dims = ModelDimensions(80, 50, 32, 4, 2, 100, 16, 32, 4, 2)
    (folder / "speech").mkdir(parents=True, exist_ok=True)
    torch.save({"dims": dims.__dict__, "model_state_dict": whisper.model.Whisper(dims).state_dict()}, folder / "ear.pt")
    counts = {"train": UTTERANCES, "validation": 5, "test": 4}
    manifests = {split: write_manifest(folder / "speech", split, count) for split, count in counts.items()}
    return World(folder, _tree(folder, str(save_family("qwen2", folder / "llm")), manifests))


def _tree(folder: Path, llm: str, manifests: dict[str, Path]) -> dict[str, Any]:
    stage = {"lr": 1e-2, "epochs": EPOCHS, "batch_size": BATCH}
    pooled = {"type": "pooled_soft_prompt", "tokens": 2, "feedforward": 16, "dropout": 0.1}
    return {
        "seed": 3,
        "encoder": {"type": "whisper", "checkpoint": str(folder / "ear.pt")},
        "llm": {"checkpoint": llm, "dtype": "float32"},
        "slots": {
            "paralinguistic": {"adapter": pooled, "text": "caption"},
            "linguistic": {"adapter": {"type": "frame_stacking_mlp", "hidden": 16}, "text": "transcript"},
        },
        "tasks": {"emotion": {"choices": list(EMOTIONS)}},
        "data": {
            "cache": str(folder / "cache"),
            **{split: [{"manifest": str(file)}] for split, file in manifests.items()},
        },
        "stages": {
            "joint": {"tasks": {"asr": 2, "gender": 1, "emotion": 1}, "warmup_steps": 2, **stage},
            "disentangle": {"tasks": {"asr": 1, "emotion": 1}, "err": {"speech": 1, "text": 1, "none": 1}, **stage},
            "holistic": {"tasks": {"dialogue": 2, "asr": 1, "gender": 1}, **stage},
        },
        "evaluation": {"tasks": ["asr"], "slots": ["both"], "batch_size": 4, "max_new_tokens": 4},
        "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
        "checkpoint_every": 4,
        "output_dir": str(folder / "runs"),
    }  # fmt: skip
