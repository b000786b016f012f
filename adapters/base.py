"""Interface of adapters."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from sottovoce.frames import Frames


class Adapter(nn.Module, ABC):
    """A trainable map from frames of the encoder's dim to embeddings of the LLM's dim.

    A subclass takes these dims, `(d_audio, d_llm)`, as wiring and its hyperparameters as keyword-only parameters.
    """

    pretrained: bool = False  # whether `load` brings weights of a checkpoint, with which a model answers untrained

    def load(self) -> None:
        """Fetch weights that come with a checkpoint. Idempotent; most adapters have none."""

    def output_length(self, frames: int) -> int:
        """How many embeddings so many frames become; none become more than they are, unless an adapter says so."""
        return frames

    @abstractmethod
    def forward(self, frames: Frames) -> Frames:
        """Map (batch, frames, d_audio) to (batch, tokens, d_llm), with lengths to match.

        Padding must not change a real frame: a row's output is the same alone and in any batch.
        """


def stack_frames(x: Tensor, stack: int) -> Tensor:
    """Concatenate every `stack` adjacent frames: (batch, frames, dim) to (batch, frames // stack, dim * stack)."""
    batch, count, dim = x.shape
    tokens = count // stack
    if torch.compiler.is_exporting():  # a slice is a view: its strides would say whether frames are left over, for all
        return x.index_select(1, torch.arange(tokens * stack, device=x.device)).reshape(batch, tokens, dim * stack)
    return x[:, : tokens * stack].reshape(batch, tokens, dim * stack)


def init_small(last: nn.Linear, std: float = 0.03) -> nn.Linear:
    """Initialise an adapter's last layer so that outputs are as small as an LLM's word embeddings (0.01-0.06 for most).

    With PyTorch's own initialisation they are ten times larger, drown what the LLM's layers add to them, and take
    many steps to shrink. For inputs of unit variance the outputs get this standard deviation.
    """
    nn.init.normal_(last.weight, std=std * last.in_features**-0.5)
    nn.init.zeros_(last.bias)
    return last
