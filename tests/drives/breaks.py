"""Recipes broken on purpose: one key of a published recipe is changed, and its drive must turn red."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tests.drives.world import ROOT


@dataclass(frozen=True)
class Break:
    """A key of a recipe, the value that breaks it, and the plan that must be red."""

    recipe: str
    key: str
    value: Any
    plan: str
    told: str  # what the drive says, in words
    short: bool = False  # whether CI tries it

    def copy(self, folder: Path) -> Path:
        """A copy of conf/ with the broken recipe; its path."""
        conf = folder / "conf"
        shutil.copytree(ROOT / "conf", conf)
        file = conf.parent / self.recipe
        tree = yaml.safe_load(file.read_text("utf-8"))
        *parents, last = self.key.split(".")
        node = tree
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[int(last) if isinstance(node, list) else last] = self.value
        file.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), "utf-8")
        return conf


BREAKS = (
    Break("conf/dual_adapter.yaml", "data.test.0.name", "clean", "dual_adapter", "a published score is not made"),
    Break(
        "conf/dual_adapter.yaml", "evaluation.judges.qwen.engine.model", "Qwen2.5-72B", "dual_adapter",
        "the server does not know this model",
    ),
    Break("conf/dual_adapter.yaml", "stages.joint.tasks", {"asr": 1}, "dual_adapter", "tensors without gradients"),
    Break("conf/best_rq.yaml", "data.train.0.allow", [], "best_rq", "no clip may be read"),
    Break("conf/paired_data.yaml", "voices.test.gender.male", ["onyx", "cedric"], "paired_data", "pairs are missing"),
    Break(
        "conf/pe_ft/qwen2_5_omni.yaml", "slots.audio.before", "<|vision_bos|>", "qwen2_5_omni", "-",
    ),
    Break("conf/speech_emotion_llama/v2.yaml", "name", "speech_emotion_llama_8b/v3", "speech_emotion_llama", "-"),
)  # fmt: skip
