"""What a recipe says of Lightning's trainer: its arguments, and callbacks of one's own."""

from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator

from sottovoce.config_model import Node, fault
from sottovoce.errors import ConfigError, brief

RESERVED = {  # argument of lightning.Trainer -> what decides about it
    "max_epochs": "epochs or steps", "max_steps": "epochs or steps",
    "accumulate_grad_batches": "accumulate_grad_batches of a stage", "gradient_clip_val": "grad_clip",
    "val_check_interval": "val_checks_per_epoch or validate_every", "num_sanity_val_steps": "no key",
    "enable_checkpointing": "checkpoint_every", "default_root_dir": "output_dir and name",
    "callbacks": "the recipe's own `callbacks`",
    "logger": "`logging` of the recipe", "use_distributed_sampler": "no key",
    "enable_model_summary": "no key: see `fit --dry-run`",
}  # fmt: skip


def _free_arguments(trainer: dict[str, Any]) -> dict[str, Any]:
    faults = [
        fault("conflict", key, f"Sottovoce decides about it, by {RESERVED[key]}; leave that out")
        for key in sorted(set(trainer) & set(RESERVED))
    ]
    if faults:
        raise ConfigError.of(faults)
    return trainer


def _callback(value: object) -> object:
    node = {"type": value} if isinstance(value, str) else value
    path = node.get("type") if isinstance(node, dict) else None
    if not isinstance(path, str) or not all(path.rpartition(":")[::2]):
        told = "must be the import path of a Lightning callback, module:Class or ./file.py:Class, or a mapping with "
        raise fault("bad-value", "", f"{told}such a `type` and its arguments, found {brief(repr(value), 100)}")
    return node


Callbacks: TypeAlias = list[Annotated[Node, BeforeValidator(_callback, json_schema_input_type=str | dict[str, Any])]]
TrainerArguments: TypeAlias = Annotated[dict[str, Any], AfterValidator(_free_arguments)]
