"""Encoders from Hugging Face checkpoints: config.json and preprocessor_config.json describe them."""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from sottovoce.encoders.base import Encoder, fingerprint
from sottovoce.encoders.layer_taps import tapped
from sottovoce.errors import ConfigError, MissingError
from sottovoce.frames import Frames
from sottovoce.hub import BOOKKEEPING, WEIGHTS, Hub

SETTINGS = ("*.json",)


class HubEncoder(Encoder):
    """An encoder with the feature extractor of its own checkpoint, a hub id or local folder.

    For a dry run, a published checkpoint is described by a table; weights come with the checkpoint's own files, which
    must agree. In eval mode it computes in float32, autocast or not.

    Raises:
        ConfigError: `checkpoint` is another model.
        MissingError: `checkpoint` cannot be reached or is damaged.
    """

    hub: ClassVar[Hub]
    kind: str  # first word of the fingerprint
    norm: str | None = None  # what `_stack` calls its final norm
    config: Any  # the encoder's own
    extractor: Any  # of features

    def __init__(self, *, checkpoint: str) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        config = self.hub.published_config(checkpoint)
        if config is None:
            self._describe(*self._read_settings(self.hub.snapshot(checkpoint, SETTINGS)))
        else:
            self._describe(config, self._published_extractor(config))
        self.encoder: Any = None  # the network, once built

    @abstractmethod
    def _published_extractor(self, config: Any) -> Any:
        """The feature extractor of a published checkpoint."""

    @abstractmethod
    def _read_settings(self, folder: Path) -> tuple[Any, Any]:
        """Configuration and feature extractor from a folder's JSON files; errors as in `__init__`."""

    @abstractmethod
    def _describe(self, config: Any, extractor: Any) -> None:
        """Set `config`, `extractor`, and the sizes of `Encoder`."""

    @abstractmethod
    def _network(self) -> Any:
        """The network, without its weights."""

    @abstractmethod
    def _with_weights(self, folder: Path) -> Any:
        """The network with the weights in a folder, or `MissingError`."""

    def build(self) -> None:
        if self.encoder is None:
            self.encoder = self._network()
            self.eval()

    def load(self) -> None:
        """See `Encoder.load`; `ConfigError` where the checkpoint's own files differ from what was published."""
        if self.loaded:
            return
        folder = self._folder()
        self._describe_by(folder)
        self.encoder = self._with_weights(folder)
        self.loaded = True
        self.eval()

    def _weights_pattern(self) -> tuple[str, ...]:
        """Files that may hold the weights; those of the first pattern are taken where there are such."""
        return WEIGHTS

    def _folder(self) -> Path:
        """The folder of the whole checkpoint; `MissingError` about the first pattern where it has none of them."""
        first, *others = self._weights_pattern()
        try:
            return self.hub.snapshot(self.checkpoint, (*SETTINGS, first))
        except MissingError as error:
            for pattern in others:
                with suppress(MissingError):
                    return self.hub.snapshot(self.checkpoint, (*SETTINGS, pattern))
            raise error

    def load_trained(self, weights: dict[str, Tensor]) -> None:
        """See `Encoder.load_trained`; of the checkpoint, only its JSON files are needed."""
        self._describe_by(self.hub.snapshot(self.checkpoint, SETTINGS))
        super().load_trained(weights)

    def _describe_by(self, folder: Path) -> None:
        """Let the checkpoint's own files, and not the table, describe the network that is built next."""
        published = self.sample_rate, self.frame_rate, self.dim, self.depth
        self._describe(*self._read_settings(folder))
        if (found := (self.sample_rate, self.frame_rate, self.dim, self.depth)) != published:
            why = (
                f"{folder} has (Hz, frames per second, dim, layers) {found}, but {self.checkpoint} was published with "
            )
            raise ConfigError.at("encoder.checkpoint", "mismatch", f"{why}{published}")
        self.encoder = None

    def _stack(self) -> nn.Module:
        """The part of the network that has the Transformer's `layers`."""
        return cast(nn.Module, self.loaded_network())

    def _read_layers(self, waveform: Tensor, lengths: Tensor, layers: Sequence[int]) -> Frames:
        with tapped(self._stack(), self.norm, layers):
            return cast(Frames, self(waveform, lengths))

    def fingerprint(self) -> str:
        """See `Encoder.fingerprint`; both configurations count."""
        ignored = {*BOOKKEEPING, "architectures"}
        settings = {key: value for key, value in self.config.to_dict().items() if key not in ignored}
        return fingerprint(self.loaded_network(), self.kind, settings, self.extractor.to_dict())
