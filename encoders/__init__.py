"""Frozen speech encoders behind one small face."""

from undertone.rooms import one_copy

one_copy(__name__)

from undertone.encoders.base import ENCODERS, Encoder

__all__ = ["ENCODERS", "Encoder"]

from undertone.encoders import audio_tower, conformer, hf_conformer, whisper  # noqa: F401  (importing a module registers it)
