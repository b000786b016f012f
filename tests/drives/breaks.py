"""Recipes broken on purpose: one key of a published recipe is changed, and its drive must turn red for that reason."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tests.drives.world import ROOT, World


@dataclass(frozen=True)
class Break:
    """A key of a recipe, the value that breaks it, the plan that must be red, and what it must say."""

    recipe: str
    key: str
    value: Any
    plan: str
    says: str
    short: bool = False  # whether CI tries it

    def copy(self, folder: Path) -> Path:
        """A copy of conf/ with the broken recipe; its path."""
        conf = folder / "broken" / "conf"
        shutil.copytree(ROOT / "conf", conf)
        file = conf.parent / self.recipe
        tree = yaml.safe_load(file.read_text("utf-8"))
        *parents, last = [int(part) if part.isdigit() else part for part in self.key.split(".")]
        node = tree
        for part in parents:
            node = node[part]
        if node[last] == self.value:
            raise ValueError(f"{self.key} of {self.recipe} has this value: nothing is broken")
        node[last] = self.value
        file.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), "utf-8")
        return conf

    def world(self, like: World, folder: Path) -> World:
        """A world with this recipe, and with the data and parts of another, but none of its runs."""
        own = ("runs", "conf", "exported", ".cache", ".driven")
        for place in like.folder.iterdir():
            if place.is_dir() and place.name not in own:
                shutil.copytree(place, folder / place.name, symlinks=True, copy_function=os.link)
            elif place.is_file():
                os.link(place, folder / place.name)
        return World(folder, self.copy(folder), like.start)


BREAKS = (
    Break("conf/best_rq.yaml", "data.train.0.allow", [], "best_rq", "outside of manifests/speech", short=True),
    Break("conf/dual_adapter.yaml", "data.test.0.name", "clean", "dual_adapter", "published, and not scored: asr"),
    Break("conf/dual_adapter.yaml", "evaluation.judges.qwen.engine.model", "Qwen", "dual_adapter", "/qwen"),
    Break("conf/paired_data.yaml", "voices.test.gender.male", ["cedric"], "paired_data", "were due"),
    Break("conf/pe_ft/qwen2_5_omni.yaml", "auxiliary_head.categories.age", ["child", "grown"], "qwen2_5_omni", "grown"),
    Break("conf/dual_adapter.yaml", "stages.holistic.parts", {"libri": 0.02}, "dual_adapter", "libri"),
    Break(
        "conf/speech_emotion_llama/_base.yaml",
        "evaluation.tasks",
        ["response"],
        "speech_emotion_llama",
        "lacks the task",
    ),
)
