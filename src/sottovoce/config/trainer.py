"""The `trainer` node of a recipe: keyword arguments of lightning.Trainer, but for those that a run sets itself."""

from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator

from sottovoce.config_model import fault

RESERVED = (
    "max_epochs", "max_steps", "callbacks", "logger", "val_check_interval", "default_root_dir",
    "accumulate_grad_batches", "gradient_clip_val", "use_distributed_sampler", "enable_checkpointing",
    "enable_model_summary", "num_sanity_val_steps",
)  # fmt: skip


def _free_arguments(trainer: dict[str, Any]) -> dict[str, Any]:
    if reserved := sorted(set(trainer) & set(RESERVED)):
        told = f"other keys of the recipe decide about {', '.join(reserved)}; leave that out"
        raise fault("conflict", "", told)
    return trainer


TrainerArguments: TypeAlias = Annotated[dict[str, Any], AfterValidator(_free_arguments)]
