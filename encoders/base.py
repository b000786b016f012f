"""The face of every encoder."""

import hashlib
import json
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sottovoce.errors import ConfigError
from sottovoce.frames import Frames


class Encoder(nn.Module, ABC):
    """Turns waveforms into frames.

    `__init__` only describes (cheap, no weights, works on the meta device); `load` fetches the weights, where the
    strategy may shard them.
    """

    sample_rate: int  # of the waveforms it wants, in Hz
    frame_rate: float  # of the frames it returns, in Hz
    dim: int  # of each frame
    loaded: bool = False  # whether it has its weights

    @abstractmethod
    def build(self) -> None:
        """Make the network without its weights, on the current device; `meta` for a dry run. Idempotent."""

    @abstractmethod
    def load(self) -> None:
        """Build the pretrained network. Idempotent.

        Raises:
            MissingError: the weights cannot be reached; the message says where they were looked for and what to do.
        """

    def load_trained(self, weights: dict[str, Tensor]) -> None:
        """Build the network and give it these weights, named as in its state dict, instead of the checkpoint's.

        Raises:
            RuntimeError: a weight is missing, unknown, or of another shape.
        """
        self.build()
        self.load_state_dict(weights, assign=True)
        self.loaded = True

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of weights and settings: two encoders with one fingerprint return the same frames."""

    @abstractmethod
    def forward(self, waveform: Tensor, lengths: Tensor) -> Frames:
        """Map (batch, samples) in [-1, 1] to (batch, frames, dim); `lengths` counts samples.

        A clip's frames do not depend on its batch.
        """

    def states(self, waveform: Tensor, lengths: Tensor) -> list[Frames]:
        """The input of the first layer and the output of each, `layers + 1` times (batch, frames, dim).

        Raises:
            ConfigError: this encoder does not show its layers.
        """
        raise ConfigError(f"{type(self).__name__} does not show its layers: take another encoder, such as `conformer`")


def precision(encoder: nn.Module, device: torch.device) -> AbstractContextManager[None]:
    """In training, what surrounds the encoder decides; in eval mode, float32."""
    return nullcontext() if encoder.training else torch.autocast(device.type, enabled=False)


def fingerprint(network: nn.Module, *settings: Any) -> str:
    """SHA-256 of settings (JSON) and every tensor of a network, by name, dtype and shape."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
