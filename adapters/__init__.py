"""Adapters: trainable maps from speech frames into the embedding space of a frozen LLM, one file an adapter."""

from typing import TYPE_CHECKING

from sottovoce.registry import Registry, lazy_attributes

if TYPE_CHECKING:
    from sottovoce.adapters.base import Adapter, init_small

ADAPTERS: "Registry[Adapter]" = Registry(
    "adapter",
    {
        "checkpoint_projector": "sottovoce.adapters.checkpoint_projector",
        "conv1d": "sottovoce.adapters.conv1d",
        "emotion_aligned": "sottovoce.adapters.emotion_aligned",
        "frame_stacking_mlp": "sottovoce.adapters.frame_stacking_mlp",
        "kimi_audio_projector": "sottovoce.adapters.kimi_audio_projector",
        "linear": "sottovoce.adapters.linear",
        "pooled_soft_prompt": "sottovoce.adapters.pooled_soft_prompt",
        "qformer": "sottovoce.adapters.qformer",
        "windowed_qformer": "sottovoce.adapters.windowed_qformer",
    },
)
__all__ = ["ADAPTERS", "Adapter", "init_small"]
__getattr__ = lazy_attributes(__name__, {"Adapter": "base", "init_small": "base"})
