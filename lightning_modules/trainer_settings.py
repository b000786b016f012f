"""Settings of a recipe's `trainer`: those that cannot work here are refused, with the reason, before anything is read.

To Lightning a stage is one epoch, whose batches our own sampler lays out for all processes; a run goes on from
checkpoints that hold what trains in one file; parts have dtypes of their own. What follows from that stands below.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.strategies import StrategyRegistry

from sottovoce.config.best_rq import PretrainRecipe
from sottovoce.config.recipe import Recipe
from sottovoce.errors import ConfigError, nearest

_STAGES = "a stage, which is one epoch to Lightning, ends with its `epochs`"
_SCORES = "scores are not made by Lightning: `evaluation.limit` says how many utterances a task has"
_DTYPES = "what trains stays in float32, and frozen parts have dtypes of their own (llm.dtype): take"
_LATE = "its processes start when the data are dealt out already: take ddp"
_SHARDS = "it cannot write what trains as one file, from which any number of processes goes on: take deepspeed_stage_3"
_XLA = "nothing here is made for XLA: take a CPU or GPUs"

REFUSED = {  # argument -> why nothing but Lightning's default can be
    "min_epochs": _STAGES,
    "min_steps": _STAGES,
    "check_val_every_n_epoch": "a stage is one epoch to Lightning: take the stage's `val_checks_per_epoch`",
    "reload_dataloaders_every_n_epochs": "a stage is one epoch to Lightning, so nothing would be loaded again",
    "limit_test_batches": _SCORES,
    "limit_predict_batches": _SCORES,
    "barebones": "it forbids the checkpoints that a run goes on from",
    "plugins": "they are objects of Python, which a recipe cannot hold",
    "model_registry": "it uploads checkpoints, which lack all that is frozen: publish the bundle instead",
    "sync_batchnorm": "no batch norm learns here; those of encoders keep their statistics",
}
REFUSED_PRECISIONS = {  # what Lightning takes beside `PRECISIONS`
    "16-true": f"{_DTYPES} 16-mixed",
    "bf16-true": f"{_DTYPES} bf16-mixed",
    "64-true": f"{_DTYPES} 32-true",
    "64": f"{_DTYPES} 32-true",
    "transformer-engine": f"{_DTYPES} bf16-mixed",
    "transformer-engine-float16": f"{_DTYPES} 16-mixed",
}
REFUSED_STRATEGIES = {  # by the beginning of their names
    "ddp_spawn": _LATE,
    "ddp_fork": _LATE,
    "ddp_notebook": _LATE,
    "fsdp": _SHARDS,
    "xla": _XLA,
    "single_xla": _XLA,
    "single_tpu": _XLA,
    "deepspeed_stage_3_offload_nvme": "a recipe cannot say where its disk is: take deepspeed_stage_3_offload",
}
REFUSED_IN_PRETRAINING = {
    "fast_dev_run": "take `steps`, under another `name`",
    "limit_train_batches": "`steps` says how long it trains",
    "overfit_batches": "give `data.train` few clips instead",
}
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16", None)
MEANT = {  # as others call precisions
    "fp16": "16-mixed", "float16": "16-mixed", "half": "16-mixed", "bfloat16": "bf16-mixed", "fp32": "32-true",
    "float32": "32-true",
}  # fmt: skip
ZERO_PRECISIONS = ("32-true", "bf16-mixed", "32", "bf16", None)  # under DeepSpeed
AMOUNTS = {  # of batches: argument -> the least, and whether a share between 0 and 1 is one, too
    "limit_train_batches": (1, True),
    "limit_val_batches": (1, True),
    "overfit_batches": (0, True),
    "fast_dev_run": (0, False),
    "log_every_n_steps": (0, False),
}
SWITCHES = ("enable_progress_bar", "benchmark", "inference_mode", "detect_anomaly", "enable_autolog_hparams")
CHOICES: dict[str, Sequence[object]] = {
    "gradient_clip_algorithm": ("norm", "value", None),
    "deterministic": (True, False, "warn", None),
    "profiler": ("simple", "advanced", "pytorch", None),
    **dict.fromkeys(SWITCHES, (True, False, None)),
}


def check_trainer(recipe: Recipe | PretrainRecipe) -> None:
    """Whether Lightning knows what `trainer` says, and it can work here with the strategy that it names.

    Which devices there are is not asked: a recipe may be looked at elsewhere.

    Raises:
        ConfigError: about `trainer.KEY`.
    """
    chosen, parameters = recipe.trainer, inspect.signature(L.Trainer).parameters
    stages = isinstance(recipe, Recipe)
    for key, value in chosen.items():
        where = f"trainer.{key}"
        if key not in parameters:
            told = f"{where}: Lightning's Trainer takes no {key!r}.{nearest(key, parameters)}"
            raise ConfigError(told, code="unknown-key", where=where)
        why = REFUSED.get(key) or (None if stages else REFUSED_IN_PRETRAINING.get(key))
        if why and value not in (None, parameters[key].default):
            raise ConfigError.at(where, "conflict", why)
        if problem := _problem(key, value):
            raise ConfigError.at(where, "bad-value", f"{problem}, found {value!r}")
    _check_names(chosen)
    _check_strategy(recipe, str(chosen.get("strategy", "auto")))


def _problem(key: str, value: object) -> str:
    """What is wrong with a value, whatever else the recipe says; empty if nothing is."""
    choices = CHOICES.get(key)
    if choices and not any(value is one or (isinstance(one, str) and value == one) for one in choices):
        return f"it is one of {', '.join(map(str, choices))}"
    if key in ("devices", "num_nodes"):
        others = ("auto", -1, "-1") if key == "devices" else ()
        return "" if _counts(value, others) else "a positive whole number is needed"
    if key in AMOUNTS:
        return _amount_problem(key, value)
    if key == "max_time" and value is not None:
        try:
            seconds_of(value)
        except (MisconfigurationException, TypeError, AttributeError):
            return "it is DD:HH:MM:SS or such as {hours: 8}"
    return ""


def _amount_problem(key: str, value: object) -> str:
    least, shares = AMOUNTS[key]
    if value is None or (key == "fast_dev_run" and isinstance(value, bool)):
        return ""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else -1
    if (number >= least and number == int(number)) or (shares and 0 < number < 1):
        return ""
    if number == 0:
        return "nothing would be left, and without a validation there is no best checkpoint"
    return f"a whole number from {least}{', or a share of them below 1,' if shares else ''} is needed"


def _counts(value: Any, others: Sequence[Any]) -> bool:
    """Whether a value says how many: a positive number, a list that is not empty, or one of `others`."""
    if value in others or (isinstance(value, str) and set(value) <= set("0123456789,") and value.strip("0,")):
        return True
    return (
        bool(value) if isinstance(value, list) else isinstance(value, int) and not isinstance(value, bool) and value > 0
    )


def _check_names(chosen: dict[str, Any]) -> None:
    accelerators = ["auto", "gpu", *AcceleratorRegistry.available_accelerators()]
    precisions = (*(name for name in PRECISIONS if name), *REFUSED_PRECISIONS)
    strategies = ["auto", *StrategyRegistry.available_strategies()]
    tables: tuple[tuple[str, Sequence[str], dict[str, str]], ...] = (
        ("accelerator", accelerators, {"tpu": _XLA}),
        ("precision", precisions, REFUSED_PRECISIONS),
        ("strategy", strategies, _by_beginning(strategies)),
    )
    for key, known, refused in tables:
        value = chosen.get(key)
        name = str(value)
        if key not in chosen or (key == "precision" and value is None):
            continue
        if name not in known or not isinstance(value, str | int):
            usable = sorted({one for one in known if one not in refused}, key=known.index)
            meant = f" Did you mean {MEANT[name]!r}?" if key == "precision" and name in MEANT else ""
            tail = f"{meant} Known: {', '.join(usable)}" if meant else nearest(name, usable)
            why = f"there is no {key} {value!r}.{tail}"
            raise ConfigError.at(f"trainer.{key}", "unknown-name", why)
        if why := refused.get(name, ""):
            raise ConfigError.at(f"trainer.{key}", "conflict", f"{name} cannot work: {why}")


def _by_beginning(strategies: Sequence[str]) -> dict[str, str]:
    """The reasons why these strategies are refused."""
    return {name: why for start, why in REFUSED_STRATEGIES.items() for name in strategies if name.startswith(start)}


def _check_strategy(recipe: Recipe | PretrainRecipe, name: str) -> None:
    """What a strategy cannot do for this recipe."""
    chosen, devices = recipe.trainer, recipe.trainer.get("devices", 1)
    if chosen.get("accelerator") == "cpu" and not (devices == "auto" or str(devices).isdigit()):
        why = f"on CPUs it is the number of processes, found {devices!r}"
        raise ConfigError.at("trainer.devices", "conflict", why)
    if name == "single_device" and processes(chosen) > 1:
        raise ConfigError.at("trainer.strategy", "conflict", "it trains on one device: take ddp, or devices=1")
    if not name.startswith("deepspeed"):
        return
    for stage, node in recipe.stages.items() if isinstance(recipe, Recipe) else ():
        if isinstance(node.lr, dict):  # DeepSpeed 0.19 ties moments to weights after the step of the first group alone
            why = f"{name} has one learning rate for all: take ddp, or a number"
            raise ConfigError.at(f"stages.{stage}.lr", "conflict", why)
    if is_sharded(chosen) and isinstance(recipe, Recipe):
        for key in _of_whole_weights(recipe):
            raise ConfigError.at(key, "conflict", f"{name} shards the LLM: take deepspeed_stage_2, or ddp")
    if is_sharded(chosen) and _trains_large(recipe):
        why = f"under {name} adapters and LoRA can train, but not auxiliary_head, ctc, the encoder, or the LLM's own "
        why += "weights (llm.tuning.method=weights): take deepspeed_stage_2, or ddp"
        raise ConfigError.at("trainer.strategy", "conflict", why)
    precision = chosen.get("precision")
    if (None if precision is None else str(precision)) not in ZERO_PRECISIONS:
        why = f"under {name} it is 32-true or bf16-mixed: DeepSpeed's fp16 would cast what must stay in float32"
        raise ConfigError.at("trainer.precision", "conflict", why)
    if chosen.get("gradient_clip_algorithm") == "value":
        why = f"{name} clips gradients by their norm alone"
        raise ConfigError.at("trainer.gradient_clip_algorithm", "conflict", why)


def _of_whole_weights(recipe: Recipe) -> Iterator[str]:
    """Keys of what needs the whole LLM in each process: answers in validation, a teacher, a compiled LLM."""
    for name, stage in recipe.stages.items():
        if stage.answered:
            yield f"stages.{name}.{'monitor_batches' if stage.monitor_batches else 'monitor'}"
        if stage.distill:
            yield f"stages.{name}.distill"
    if recipe.compile:
        yield "compile"


def _trains_large(recipe: Recipe | PretrainRecipe) -> bool:
    """Whether something trains that cannot be sharded: encoder, heads, or the LLM's own weights."""
    if isinstance(recipe, PretrainRecipe):
        return True
    heads = recipe.auxiliary_head or any(stage.ctc for stage in recipe.stages.values())
    return bool(heads or recipe.trains_encoder or recipe.llm.tuning.method == "weights")


def processes(trainer: dict[str, Any]) -> int:
    """How many a recipe's `trainer` asks for; `auto` and -1 are 1, since what they mean depends on the machine."""
    devices = trainer.get("devices", 1)
    if isinstance(devices, str) and "," in devices:
        devices = [number for number in devices.split(",") if number.strip()]
    each = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
    return each * int(trainer.get("num_nodes", 1))


def is_trial(recipe: Recipe) -> bool:
    """Whether its stages are only tried, by `trainer.fast_dev_run`: nothing is kept."""
    return bool(recipe.stages and recipe.trainer.get("fast_dev_run"))


def is_sharded(trainer: dict[str, Any]) -> bool:
    """Whether a recipe's `trainer` shards the weights themselves, the frozen ones included: ZeRO's stage 3."""
    return str(trainer.get("strategy", "")).startswith("deepspeed_stage_3")


def seconds_of(max_time: Any) -> float:
    """Seconds of Lightning's `max_time`; it raises MisconfigurationException or TypeError where that is no time."""
    remaining = Timer(max_time).time_remaining()
    assert remaining is not None
    return remaining


def batches_of(amount: float | None, most: int) -> int:
    """How many of `most` batches an amount of Lightning's is: a number of them, or a share; None: all."""
    if amount is None:
        return most
    share = isinstance(amount, float) and amount <= 1
    return max(1, min(most, int(most * amount if share else amount)))
