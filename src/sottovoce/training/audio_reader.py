"""Reader of clips: each is checked and encoded once, before the first step, and read from the cache after that."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sottovoce.data.audio import load_audio
from sottovoce.data.audio_decoder import read_header
from sottovoce.device import best_device
from sottovoce.encoders import Encoder
from sottovoce.encoders.cache_formats import CacheDtype
from sottovoce.encoders.feature_cache import FeatureCache, audio_key, layers_fingerprint
from sottovoce.errors import AudioError, MissingError
from sottovoce.progress import Progress
from sottovoce.training.preparation import Preparation, Start, team_size


class AudioReader:
    """Reads clips, as encoder outputs from a cache, or where that is None as waveforms, encoded in every step.

    A clip that is longer than `max_seconds` is faulty. `silent` are those on which nothing is said, by their manifest,
    and nothing needs to be heard. `layers` are those of the encoder that are kept, side by side, in `dtype`; None: the
    last one.
    """

    def __init__(
        self, encoder: Encoder, cache: Path | None, max_seconds: float, layers: Sequence[int] | None = None,
        dtype: CacheDtype = "float16",
    ) -> None:  # fmt: skip
        self.sample_rate, self.max_seconds, self.layers = encoder.sample_rate, max_seconds, layers or (encoder.depth,)
        self.cache: FeatureCache | None = None
        if cache:
            of = layers_fingerprint(encoder, self.layers, best_device())
            self.cache = FeatureCache(cache / "features", of, dtype)
        self.keys: dict[Path, str] = {}  # of the content of clips that have been heard
        self.samples: dict[Path, int] = {}  # of clips, at the encoder's sample rate
        self.apart: frozenset[str] = frozenset()  # content that no other clip may have
        self.silent: frozenset[Path] = frozenset()  # clips on which nothing is said

    def prepare(
        self, encoder: Encoder, clips: Sequence[Path], progress: Progress, helpers: Start | None = None
    ) -> list[AudioError]:
        """Check every clip and, with a cache, encode those that are not in it yet. Returns what is wrong with which.

        All processes of a run may do so at once, and each encodes a share, see `Preparation`; so do `helpers`.
        """
        work = Preparation(self, encoder, clips, team_size())
        work.run(progress, *([helpers] if helpers else []))
        return [work.faults[clip] for clip in clips if clip in work.faults]

    def read(self, path: Path) -> Tensor:
        """(frames, layers * dim) from the cache, or (samples,) without one."""
        if self.cache is None or path not in self.keys:
            samples = self._load(path)
            if path not in self.keys and self.apart and audio_key(samples) in self.apart:  # checked when it is drawn
                told = "it holds the same samples as a clip of validation or test: leave it out"
                raise AudioError.at(path, "conflict", told)
            return torch.from_numpy(samples)
        try:
            return self.cache.get(self.keys[path])
        except KeyError:
            told = "which somebody has emptied while this run was going on; the same command makes it again and goes on"
            message = f"{path}: what the encoder made of it is gone from {self.cache.folder}, {told}"
            raise MissingError(message, where=path) from None

    def count_samples(self, path: Path) -> int:
        """Samples at the encoder's rate; of a clip that has not been heard yet, by its header, or 0 without one."""
        if (known := self.samples.get(path)) is not None:
            return known
        try:
            header = read_header(path)
        except AudioError:  # which is told when it is heard
            return 0
        return math.floor(header.frames * self.sample_rate / header.sample_rate + 0.5)  # as soxr resamples

    def stand_in(self, encoder: Encoder, *, cached: bool) -> Tensor:
        """A second of sound as `read` would give it, from the cache or not, for batches that have none."""
        if cached and self.cache is not None:
            return torch.zeros(encoder.output_length(encoder.sample_rate), len(self.layers) * encoder.dim)
        return 0.1 * torch.sin(torch.arange(encoder.sample_rate) * 0.3)

    def _load(self, path: Path) -> NDArray[np.float32]:
        try:
            seconds = read_header(path).seconds  # before the whole clip takes memory
        except AudioError as error:
            raise AudioError.at(path, error.code, error) from None
        if seconds > self.max_seconds:
            problem = f"{seconds:.1f} s is longer than data.max_seconds={self.max_seconds:g}"
            raise AudioError.at(path, "bad-value", problem)
        return load_audio(path, self.sample_rate, silent=path in self.silent)
