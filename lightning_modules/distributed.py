"""How a run is spread over processes: what a recipe's `trainer` says, made into what Lightning takes."""

import inspect
import os
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities import rank_zero_only

from sottovoce.config.recipe import Recipe
from sottovoce.errors import ConfigError, MissingError, nearest

PRECISIONS = ("32-true", "bf16-mixed")  # under DeepSpeed
KNOWN = (
    "16-mixed",
    "16-true",
    "bf16-mixed",
    "bf16-true",
    "32-true",
    "64-true",
    "16",
    "bf16",
    "32",
    "64",
    16,
    32,
    64,
    "transformer-engine",
    "transformer-engine-float16",
    None,
)  # to Lightning


def is_rank_zero() -> bool:
    """Whether this process speaks for all: there is no other, or it has rank 0 of those that were started together."""
    return (getattr(rank_zero_only, "rank", None) or 0) == 0


def is_sharded(trainer: dict[str, Any]) -> bool:
    """Whether a recipe's `trainer` shards the weights themselves, the frozen ones included: ZeRO's stage 3."""
    return str(trainer.get("strategy", "")).startswith("deepspeed_stage_3")


def check_trainer(recipe: Recipe) -> None:
    """Whether Lightning knows what `trainer` says, and the strategy can do what the recipe asks for.

    Which devices there are is not asked: a recipe may be looked at elsewhere.

    Raises:
        ConfigError: an argument, accelerator, precision or strategy is none of Lightning's, a number is no count of
            devices, or the strategy shards the weights where that cannot be.
    """
    takes = list(inspect.signature(L.Trainer).parameters)
    for key in recipe.trainer:
        if key not in takes:
            told = f"trainer: Lightning's Trainer takes no {key!r}.{nearest(key, takes)}"
            raise ConfigError(told, code="unknown-key", where=f"trainer.{key}")
    accelerators = ["auto", "gpu", *AcceleratorRegistry.available_accelerators()]
    for key, names in (("accelerator", accelerators), ("precision", KNOWN)):
        if key in recipe.trainer and recipe.trainer[key] not in names:
            told = f"trainer.{key}: Lightning has no {recipe.trainer[key]!r}."
            told += nearest(str(recipe.trainer[key]), [str(name) for name in names])
            raise ConfigError(told, code="unknown-name", where=f"trainer.{key}")
    for key in ("devices", "num_nodes"):
        if not _counts(recipe.trainer.get(key, 1), others=("auto", -1, "-1") if key == "devices" else ()):
            told = f"trainer.{key}: a positive whole number is needed, found {recipe.trainer[key]!r}"
            raise ConfigError(told, code="bad-value", where=f"trainer.{key}")
    name, known = recipe.trainer.get("strategy", "auto"), ["auto", *StrategyRegistry.available_strategies()]
    if not isinstance(name, str) or name not in known:
        told = f"trainer.strategy: there is no strategy {name!r}.{nearest(str(name), known)}"
        raise ConfigError(told, code="unknown-name", where="trainer.strategy")
    if is_sharded(recipe.trainer) and (
        recipe.auxiliary_head or recipe.trains_encoder or recipe.llm.tuning.method == "weights"
    ):
        raise ConfigError(
            f"trainer.strategy: under {recipe.trainer['strategy']} adapters and LoRA can train, but not "
            "auxiliary_head, the encoder, or the LLM's own weights (llm.tuning.method=weights): take "
            "deepspeed_stage_2, or ddp",
            code="conflict",
            where="trainer.strategy",
        )


def _counts(value: Any, others: Sequence[Any]) -> bool:
    """Whether a value says how many: a positive number, a list that is not empty, or one of `others`."""
    if value in others or (isinstance(value, str) and set(value) <= set("0123456789,") and value.strip("0,")):
        return True
    return (
        bool(value) if isinstance(value, list) else isinstance(value, int) and not isinstance(value, bool) and value > 0
    )


def trainer_arguments(trainer: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `lightning.Trainer`; DeepSpeed's strategies are replaced by our own of the same name.

    Raises:
        ConfigError: DeepSpeed is not to be had with this precision.
        MissingError: DeepSpeed is not installed.
    """
    name = trainer.get("strategy", "auto")
    if not isinstance(name, str) or not name.startswith("deepspeed"):
        return trainer
    precision = str(trainer.get("precision") or "32-true")
    precision = {"32": "32-true", "bf16": "bf16-mixed"}.get(precision, precision)
    if precision not in PRECISIONS:
        raise ConfigError(
            f"trainer.precision: under {name} it is {' or '.join(PRECISIONS)}, found {precision!r}: what trains stays "
            "in float32, and frozen parts have dtypes of their own (llm.dtype)",
            code="conflict",
            where="trainer.precision",
        )
    if trainer.get("accelerator") == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when DeepSpeed is first imported
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        told = f"trainer.strategy: {name} needs DeepSpeed: pip install deepspeed"
        raise MissingError(told, code="unavailable", where="trainer.strategy") from error
    from sottovoce.lightning_modules.deepspeed_strategy import ZeRO

    knobs = StrategyRegistry[name]["init_params"]
    rest = {key: value for key, value in trainer.items() if key != "precision"}
    return {**rest, "strategy": ZeRO(precision, **knobs)}
