"""What is wrong between the keys of a stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sottovoce.config.sections import LOSS, StageConfig
from sottovoce.config_model import fault, unknown
from sottovoce.data.tasks import TASKS
from sottovoce.errors import ConfigError, nearest

if TYPE_CHECKING:
    from sottovoce.config.recipe import Recipe

ENCODER, LLM = "encoder", "llm"  # among the names of what a stage trains, beside the slots
SCORES = {"dialogue": ["rouge_l"], **{task: ["rouge_1", "rouge_2", "rouge_l"] for task in ("response", "caption")}}
OF_ATTRIBUTES = ["accuracy", "balanced_accuracy"]


def stage_conflicts(stage: StageConfig, where: str, recipe: Recipe) -> Iterator[ConfigError]:
    """Each fault of a stage of `recipe`, whose key is `where`."""
    for key, weights in (("tasks", stage.tasks), ("err", stage.err)):
        if weights is not None and not sum(weights.values()) > 0:
            yield fault("bad-value", f"{where}.{key}", f"one weight must be positive, found {weights}")
    if stage.err and not any(stage.err.get(source, 0) > 0 for source in ("speech", "none")):
        told = "an utterance may lack the text of a slot, so `speech` or `none` needs a weight, too"
        yield fault("bad-value", f"{where}.err", f"{told}; found {stage.err}")
    if stage.err is not None and ENCODER in (stage.train or []):
        told = "it freezes adapters example by example, but the encoder serves them all"
        yield fault("conflict", f"{where}.err", f"{told}: take `{ENCODER}` out of `train`, or err out of the stage")
    distills = stage.distill is not None and stage.distill.weight > 0
    if not stage.response_weight and not sum((stage.ctc or {}).values()) and not distills:
        why = "0 leaves no loss: give a slot a weight in `ctc`, or `distill` one"
        yield fault("bad-value", f"{where}.response_weight", why)
    if stage.batch_tokens and recipe.data.validate == "lazy":
        why = "of lines that are not read yet only the seconds are known: take batch_seconds, or data.validate: eager"
        yield fault("conflict", f"{where}.batch_tokens", why)
    yield from _rates(stage, where, recipe)
    yield from _monitor(stage, where, recipe)
    if stage.distill and recipe.llm.tuning.method == "weights":
        why = "the LLM's own weights are trained, so it cannot teach as it was: tune by method: lora"
        yield fault("conflict", f"{where}.distill", why)


def _rates(stage: StageConfig, where: str, recipe: Recipe) -> Iterator[ConfigError]:
    """A learning rate for each part that learns, and for no other."""
    if not isinstance(stage.lr, dict):
        return
    learns = list(recipe.slots) if stage.train is None else stage.train
    yield from unknown(f"{where}.lr", stage.lr, learns, "part that this stage trains")
    if missing := [part for part in learns if part not in stage.lr]:
        yield fault("missing-key", f"{where}.lr", f"it says no rate for {', '.join(missing)}")


def _monitor(stage: StageConfig, where: str, recipe: Recipe) -> Iterator[ConfigError]:
    if stage.monitor in (None, LOSS):
        return
    task, _, score = stage.monitor.partition("/")
    if not stage.tasks.get(task):
        yield from unknown(
            f"{where}.monitor", [task], [LOSS, *(t for t in stage.tasks if stage.tasks[t])], "task of this stage"
        )
    elif task in TASKS and score not in (scores := scores_of(task, recipe)):
        told = f"{task} has no score {score!r} in validation.{nearest(score, scores)}"
        yield fault("unknown-name", f"{where}.monitor", told)


def scores_of(task: str, recipe: Recipe) -> list[str]:
    """The scores that a validation has of a task, those of `evaluation.records`."""
    if task != "asr":
        return SCORES.get(task, OF_ATTRIBUTES)
    try:
        rate = TASKS.build(TASKS.filled({"type": task, **recipe.tasks.get(task, {})})).rate
    except ConfigError:  # told elsewhere
        rate = None
    return [rate or "wer"]
