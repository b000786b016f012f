"""Trainable bridges from speech frames to the embedding space of a frozen LLM, one file an adapter."""

from undertone.rooms import one_copy

one_copy(__name__)

from undertone.adapters.base import ADAPTERS, Adapter, small_at_first

__all__ = ["ADAPTERS", "Adapter", "small_at_first"]

from undertone.adapters import (  # noqa: F401  (importing a module registers it)
    checkpoint_projector,
    emotion_aligned,
    frame_stacking_mlp,
    pooled_soft_prompt,
)
