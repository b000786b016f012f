"""How large the numbers of a recipe may be: a slip of the keyboard, or a recipe from elsewhere, ends in one message."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

# By the last part of a key; what is larger would fill a memory or never end, and was not meant.
_LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "epochs": (1, 100_000),
    "batch_size": (1, 1_000_000),
    "tasks_per_utterance": (1, 10_000),
    "val_checks_per_epoch": (1, 10_000),
    "warmup_steps": (0, 10**9),
    "checkpoint_every": (1, 10**9),
    "max_new_tokens": (1, 1_000_000),
    "limit": (1, 10**9),
    "max_seconds": (0, 3600),
    "num_workers": (0, 1024),
    "rank": (0, 100_000),
    "pool": (1, 100_000),
    "patience": (0, 100_000),
    "grad_clip": (0, math.inf),
}


def beyond_limits(recipe: Any, where: str = "") -> Iterator[str]:
    """Every number of a recipe, a dataclass with others in it, that is not finite or outside its limits."""
    for name, value in _entries(recipe):
        place = f"{where}.{name}" if where else name
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{place}: a finite number is needed, found {value}"
        elif isinstance(value, int | float) and not isinstance(value, bool):
            least, most = _limits(place)
            if not least <= value <= most:
                yield f"{place}: must be from {least:g} to {most:g}, found {_shown(value)}"
        else:
            yield from beyond_limits(value, place)


def _entries(node: Any) -> Iterator[tuple[str, Any]]:
    if is_dataclass(node):
        yield from ((f.name, getattr(node, f.name)) for f in fields(node))
    elif isinstance(node, dict):
        yield from ((str(key), value) for key, value in node.items())
    elif isinstance(node, list):
        yield from ((str(i), value) for i, value in enumerate(node))


def _limits(place: str) -> tuple[float, float]:
    *before, name = place.split(".")
    if before[:2] in (["data", "train"], ["data", "validation"], ["data", "test"]) and name == "weight":
        return 0, 10_000  # times an epoch
    if before[:1] == ["stages"] and before[2:] == ["parts"]:
        return 0, 10_000
    if before[:1] in (["stages"], ["data"], ["evaluation"], ["cascade"], []) or before == ["llm", "tuning"]:
        return _LIMITS.get(name, (-1e15, 1e15))
    return -1e15, 1e15


def _shown(value: float) -> str:
    return str(value) if abs(value) < 1e16 else "a number of more than 16 digits"
