"""Frozen speech encoders behind one small face."""

from sottovoce.encoders.base import ENCODERS, Encoder

__all__ = ["ENCODERS", "Encoder"]

from sottovoce.encoders import (  # noqa: F401  (importing a module registers it)
    conformer,
    hf_conformer,
    qwen_audio,
    whisper,
)
