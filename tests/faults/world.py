"""A run small enough to be killed twenty times: random models of the true architectures, tones as speech."""

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from sottovoce.lightning_modules.checkpointing import read_checkpoint
from tests.conftest import save_tiny_whisper, tiny_tree, write_manifest
from tests.helpers.families import save_family

STAGES = ("1-joint", "2-disentangle", "3-holistic")
UTTERANCES, EPOCHS = 24, 2


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
    """`sottovoce fit` of one recipe, its run folder, and the ledger of events that its processes write."""

    name: str
    config: Path
    run: Path
    ledger: Path

    def entries(self) -> list[dict[str, Any]]:
        """The events of all processes of this run, oldest first."""
        return [json.loads(line) for line in self.ledger.read_text().splitlines()] if self.ledger.is_file() else []

    def weights(self) -> dict[str, dict[str, torch.Tensor]]:
        """The best weights of every stage that has some."""
        files = {stage: self.run / "stages" / stage / "best.ckpt" for stage in STAGES}
        return {stage: read_checkpoint(file)["state_dict"] for stage, file in files.items() if file.is_file()}


def make_world(folder: Path) -> World:
    """Write models and speech, the same every time."""
    (folder / "speech").mkdir(parents=True, exist_ok=True)
    ear, counts = save_tiny_whisper(folder), {"train": UTTERANCES, "validation": 5, "test": 4}
    manifests = {split: write_manifest(folder / "speech", split, count) for split, count in counts.items()}
    tree = tiny_tree(str(save_family("qwen2", folder / "llm", ends=True)), ear, manifests, folder)
    tree["slots"]["paralinguistic"]["adapter"]["dropout"] = 0.1
    tree["stages"] = {name: {**stage, "epochs": EPOCHS} for name, stage in tree["stages"].items()}
    evaluation = {"tasks": ["asr"], "slots": ["both"], "batch_size": 4, "max_new_tokens": 4}
    return World(folder, {**tree, "evaluation": evaluation, "checkpoint_every": 4})
