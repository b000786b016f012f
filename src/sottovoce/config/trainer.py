"""The `trainer` node of a recipe: keyword arguments of lightning.Trainer, but for those that a run sets itself."""

from collections.abc import Iterable, Iterator

RESERVED = (
    "max_epochs", "max_steps", "callbacks", "logger", "val_check_interval", "default_root_dir",
    "accumulate_grad_batches", "gradient_clip_val", "use_distributed_sampler", "enable_checkpointing",
    "enable_model_summary", "num_sanity_val_steps",
)  # fmt: skip


def reserved_arguments(trainer: Iterable[str]) -> Iterator[str]:
    """The fault of a recipe that sets an argument which the run decides about."""
    if reserved := sorted(set(trainer) & set(RESERVED)):
        yield f"trainer: other keys of the recipe decide about {', '.join(reserved)}; leave that out"
