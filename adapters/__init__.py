"""Trainable bridges from speech frames to the embedding space of a frozen LLM, one file an adapter."""

from sottovoce.adapters.base import ADAPTERS, Adapter, init_small

__all__ = ["ADAPTERS", "Adapter", "init_small"]

from sottovoce.adapters import (  # noqa: F401  (importing a module registers it)
    checkpoint_projector,
    emotion_aligned,
    frame_stacking_mlp,
    pooled_soft_prompt,
)
