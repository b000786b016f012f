"""Learning rates: a linear warm-up, then a decay to zero."""

import math
from typing import Literal, NamedTuple


class Schedule(NamedTuple):
    """Steps of warm-up, steps of the whole stage, and the shape of the decay."""

    warmup: int
    steps: int
    decay: Literal["linear", "cosine", "constant"]


def learning_rate(shape: Schedule, step: int) -> float:
    """The factor on the maximum rate at a step counted from 0; it is above 0 for every step of the stage."""
    if step < shape.warmup:
        return (step + 1) / (shape.warmup + 1)
    left = max(shape.steps - step, 0) / max(shape.steps - shape.warmup, 1)
    return {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant": 1.0}[shape.decay]
