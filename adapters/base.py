"""The face of every adapter."""

from abc import ABC, abstractmethod

from torch import nn

from undertone.registry import Registry
from undertone.types import Frames


class Adapter(nn.Module, ABC):
    """Reads frames in the encoder's space and writes frames in the LLM's space.

    A subclass takes `(d_audio, d_llm)` as wiring and its knobs as keyword-only parameters.
    """

    @abstractmethod
    def forward(self, frames: Frames) -> Frames:
        """Map (batch, frames, d_audio) to (batch, tokens, d_llm), with lengths to match.

        Padding must not change a real frame: a row's output is the same alone and in any batch.
        """


ADAPTERS: Registry[Adapter] = Registry("adapter")
