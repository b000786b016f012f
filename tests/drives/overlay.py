"""The overlay of all drives: sizes, places and devices by one rule for every recipe; all else stays as published."""

from collections.abc import Callable, Mapping
from typing import Any

Tree = dict[str, Any]

WHISPER = {"large-v3": "large-v3.pt", "base": "base.pt"}  # checkpoints that have other names in the world's folder
ON_CPU = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "enable_progress_bar": False}
CONFORMER = {"layers": 2, "width": 16, "feedforward": 32, "heads": 2}
ADAPTERS = {  # type -> its widths
    "emotion_aligned": {"width": 16, "feedforward": 32, "heads": 2},
    "pooled_soft_prompt": {"feedforward": 32},
    "frame_stacking_mlp": {"hidden": 32},
}
STAGE = {"epochs": 1, "batch_size": 4, "warmup_steps": 1, "val_checks_per_epoch": 1}
EVALUATION = {"batch_size": 24, "max_new_tokens": 16, "limit": 3}  # utterances a task and part of the test side
CORPORA = {"train": 32, "validation": 8, "test": 12}  # of the demo's own, which speak themselves
PAIRED_TEXTS = {"train": 4, "validation": 1, "test": 2}


def kind_of(recipe: Mapping[str, Any]) -> str:
    """fit, pretrain, paired, table or analyze."""
    marks = {
        "systems": "table",
        "voices": "paired",
        "quantizer": "pretrain",
        "intent_folds": "analyze",
        "stages": "fit",
    }
    return next((kind for key, kind in marks.items() if key in recipe), "nothing")


def overlay(recipe: Tree, servers: Mapping[str, str]) -> Tree:
    """What lies over a recipe, given whole (all that it extends included); `servers` has an address for another."""
    laid: Tree = _RULES[kind_of(recipe)](recipe)
    return _moved(recipe, laid, servers)


def _fit(recipe: Tree) -> Tree:
    encoder, slots = recipe["encoder"], recipe["slots"]
    laid: Tree = {
        "trainer": ON_CPU,
        "data": {"num_workers": 0, **({"corpus": CORPORA} if (recipe.get("data") or {}).get("corpus") else {})},
        "evaluation": EVALUATION,
        "checkpoint_every": 4,
        "stages": {name: STAGE for name, stage in recipe["stages"].items() if stage},
        "slots": {
            name: {"adapter": ADAPTERS.get(slot["adapter"].get("type"), {})} for name, slot in slots.items() if slot
        },
    }
    if encoder["type"] == "whisper" and encoder["checkpoint"] in WHISPER:
        laid["encoder"] = {"checkpoint": WHISPER[encoder["checkpoint"]]}
    if encoder["type"] == "conformer" and "layers" not in encoder:
        laid["encoder"] = CONFORMER
    if recipe.get("cascade") is not None:
        laid["cascade"] = {"epochs": 1, "batch_size": 8}
    return laid


def _pretrain(recipe: Tree) -> Tree:
    laid = {"steps": 6, "batch_size": 4, "warmup_steps": 1, "validate_every": 3, "checkpoint_every": 3}
    sizes = {"encoder": CONFORMER, "quantizer": {"codebooks": 4, "codes": 32}, "data": {"num_workers": 0}}
    return {**laid, **sizes, "trainer": ON_CPU}


def _paired(recipe: Tree) -> Tree:
    writer = {"writer": {"texts": 1, "at_once": 2}} if recipe.get("writer") else {}
    return {"texts": PAIRED_TEXTS, "num_workers": 2, **writer}


def _table(recipe: Tree) -> Tree:
    return {"seeds": recipe["seeds"][:1], "probe_train": 40}


def _analyze(recipe: Tree) -> Tree:
    return {"folds": 2, "intent_folds": 2, "batch_size": 4, "limit": 24}


_RULES: dict[str, Callable[[Tree], Tree]] = {
    "fit": _fit, "pretrain": _pretrain, "paired": _paired, "table": _table, "analyze": _analyze,
}  # fmt: skip


def _moved(node: Tree, laid: Tree, servers: Mapping[str, str]) -> Tree:
    """`laid`, and the address that stands for each server that a recipe names."""
    moved = dict(laid)
    for key, value in node.items():
        if key == "base_url" and value in servers:
            moved[key] = servers[value]
        elif isinstance(value, dict) and (below := _moved(value, moved.get(key) or {}, servers)):
            moved[key] = below
    return moved
