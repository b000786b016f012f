"""Interface of speech encoders, and what their implementations share."""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from sottovoce.errors import ConfigError
from sottovoce.frames import Frames
from sottovoce.tensor_files import update_digest


class Encoder(nn.Module, ABC):
    """Maps waveforms (batch, samples) to frames (batch, frames, dim).

    `__init__` only describes (cheap, no weights, works on the meta device); `load` fetches the weights, where the
    strategy may shard them. The network is the one submodule. It starts in eval mode.
    """

    sample_rate: int  # of the waveforms it takes, in Hz
    frame_rate: float  # of the frames it returns, in Hz
    dim: int  # of each frame
    depth: int = 0  # of its layers, which `layer_frames` reads; 0 where it does not expose them
    hides_layers: str = "it does not expose its layers"  # why, where `depth` is 0
    loaded: bool = False  # whether it has its weights
    reentrant: bool = False  # whether several threads may encode at once: no hooks, nothing kept from call to call

    @abstractmethod
    def build(self) -> None:
        """Make the network without its weights, on the current device; `meta` for a dry run. Idempotent."""

    @abstractmethod
    def load(self) -> None:
        """Build the network with its pretrained weights; `MissingError` says where they were looked for. Idempotent."""

    def load_trained(self, weights: dict[str, Tensor]) -> None:
        """Build the network with these weights, named as in its state dict; `RuntimeError` if they do not fit."""
        self.build()
        self.load_state_dict(weights, assign=True)
        self.loaded = True

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of settings and of all weights as they are now: two encoders with one return the same frames."""

    @abstractmethod
    def forward(self, waveform: Tensor, lengths: Tensor) -> Frames:
        """Map (batch, samples) in [-1, 1] to (batch, frames, dim); `lengths` (batch,) counts samples.

        A clip's frames do not depend on its batch.

        Raises:
            RuntimeError: the weights are not loaded.
            ValueError: a clip is empty, or shapes do not fit; names the row.
        """

    def unsaid_dtype(self, device: torch.device) -> torch.dtype | None:
        """In what it computes on a device, where the fingerprint does not tell: it is of weights and settings."""
        return None

    def in_float32(self) -> AbstractContextManager[None]:
        """A context in which it computes in float32 where its own settings leave that to the device."""
        return nullcontext()

    def output_length(self, samples: int) -> int:
        """How many frames a clip of so many samples becomes; a bound from above where an encoder has no formula."""
        return math.ceil(samples * self.frame_rate / self.sample_rate) + 1

    def layer_frames(self, waveform: Tensor, lengths: Tensor, layers: Sequence[int]) -> Frames:
        """Outputs of some layers, side by side: (batch, frames, len(layers) * dim), at the rate of `forward`.

        Layers are the Transformer's blocks, 1 to `depth`. The last one is what `forward` returns, after the final norm
        where there is one; the others are as the next block is given them, and 0 is what the first block is given.
        Blocks above the highest layer are not computed. Arguments and errors as in `forward`.

        Raises:
            ConfigError: the encoder does not expose its layers.
            ValueError: there is no such layer, or none is asked for.
        """
        if tuple(layers) == (self.depth,):
            return cast(Frames, self(waveform, lengths))
        if not self.depth:
            raise ConfigError.at("encoder.type", "conflict", f"{type(self).__name__}: {self.hides_layers}")
        if not layers or not 0 <= min(layers) <= max(layers) <= self.depth:
            raise ValueError(f"expected layers of 0-{self.depth}, got {list(layers)}")
        return self._read_layers(waveform, lengths, layers)

    def _read_layers(self, waveform: Tensor, lengths: Tensor, layers: Sequence[int]) -> Frames:
        """What `layer_frames` returns; for encoders with a `depth`."""
        raise NotImplementedError

    def hidden_states(self, waveform: Tensor, lengths: Tensor) -> list[Frames]:
        """The first layer's input and every layer's output, `depth + 1` times (batch, frames, dim).

        `ConfigError` where an encoder does not expose its layers.
        """
        if not self.depth:
            why = f"{type(self).__name__}: {self.hides_layers}. Take another encoder, such as `conformer`"
            raise ConfigError.at("encoder.type", "conflict", why)
        x, counts = self.layer_frames(waveform, lengths, range(self.depth + 1))
        return [Frames(part, counts) for part in x.chunk(self.depth + 1, -1)]

    def loaded_network(self) -> Any:
        """The network; `RuntimeError` until it has its weights."""
        if not self.loaded:
            raise RuntimeError(f"the weights of {type(self).__name__} are not loaded: call load() first")
        (network,) = self.children()
        return network


def float32_in_eval(encoder: nn.Module, device: torch.device) -> AbstractContextManager[None]:
    """Autocast off in eval mode, since a fingerprint cannot tell in what an encoder ran; unchanged in training."""
    return nullcontext() if encoder.training else torch.autocast(device.type, enabled=False)


def fingerprint(network: nn.Module, *settings: Any) -> str:
    """SHA-256 of settings (JSON) and every tensor of a network, by name, dtype and shape."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, value in network.state_dict().items():
        update_digest(digest, value, f"{name} ")
    return digest.hexdigest()
