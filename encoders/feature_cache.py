"""Encoder outputs on disk, so that every clip is encoded once: few large files by the fingerprint of the encoder."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load, save
from torch import Tensor

from sottovoce.encoders.base import Encoder
from sottovoce.encoders.cache_formats import CacheDtype
from sottovoce.encoders.feature_dtypes import packed, unpacked
from sottovoce.encoders.feature_shards import Shards
from sottovoce.errors import SottovoceError

_KEY = re.compile(r"[0-9A-Za-z_-]{3,64}")  # a key becomes a name within a tar


def audio_key(samples: npt.NDArray[np.float32]) -> str:
    """SHA-256 of the bytes of one clip, (samples,) in float32: in another dtype the same sound has another key."""
    if samples.dtype != np.float32 or samples.ndim != 1:
        raise ValueError(f"expected float32 (samples,), got {samples.dtype} {samples.shape}")
    return hashlib.sha256(samples.tobytes()).hexdigest()


def layers_fingerprint(encoder: Encoder, layers: Sequence[int], device: torch.device | None = None) -> str:
    """The encoder's fingerprint; of other layers than the last one alone, a SHA-256 of it and of their numbers.

    On a device on which the encoder computes in a dtype that its fingerprint does not tell, of that dtype, too.
    """
    whole, parts = encoder.fingerprint(), list[object]()
    if tuple(layers) != (encoder.depth,):
        parts.append(list(layers))
    if device is not None and (dtype := encoder.unsaid_dtype(device)) is not None:
        parts.append(str(dtype))
    return hashlib.sha256(json.dumps([whole, *parts]).encode()).hexdigest() if parts else whole


class FeatureCache:
    """Frames of clips, by key, in tar files of `root/<fingerprint[:16]>-<dtype>`, see `feature_shards`.

    float16 costs up to 0.05 % of each value. Several processes may share a root. What a killed process leaves torn is
    dropped by the next one that writes; a checksum detects later damage.

    Args:
        root: folder of all caches; made when the first clip is put.
        fingerprint: of the encoder and its layers (`layers_fingerprint`), so that others never find these frames.
        dtype: in which frames are kept.
        writers: files that processes may write at a time.
    """

    def __init__(self, root: Path, fingerprint: str, dtype: CacheDtype = "float16", writers: int = 1) -> None:
        if not re.fullmatch(r"[0-9a-f]{16,}", fingerprint):
            raise ValueError(f"expected a fingerprint of at least 16 hexadecimal digits, got {fingerprint!r}")
        self.dtype, self.folder = dtype, root / f"{fingerprint[:16]}-{dtype}"
        self.shards = Shards(self.folder, writers)

    def __contains__(self, key: str) -> bool:
        if key not in self.shards:
            self.shards.refresh()  # another process may have put it
        return key in self.shards

    def get(self, key: str) -> Tensor:
        """The frames of one clip, (frames, dim) in float32.

        Raises:
            KeyError: nothing was put under this key.
            SottovoceError: its file is damaged.
        """
        path = self.folder
        try:
            path, content = self.shards.read(key)
            frames = load(content)
            return unpacked(frames, self.dtype)
        except Exception as error:  # safetensors has several errors for a broken file
            if isinstance(error, KeyError) and path == self.folder:
                raise  # there is nothing of this key
            damaged = error.args[1] if len(error.args) > 1 and isinstance(error.args[1], Path) else path
            why = "damaged cache file; deleting it is safe, what it holds is made again"
            raise SottovoceError.at(damaged, "damaged", why) from error

    def put(self, key: str, frames: Tensor) -> None:
        """Keep the frames of one clip, (frames, dim); `SottovoceError` where a value is not finite in the dtype."""
        self.put_many([(key, frames)])

    def put_many(self, clips: Sequence[tuple[str, Tensor]]) -> None:
        """Keep the frames of clips, together in one file; see `put`."""
        for key, frames in clips:
            if frames.dim() != 2:
                raise ValueError(f"expected (frames, dim), got {tuple(frames.shape)}")
            if not _KEY.fullmatch(key):
                raise ValueError(f"a key is 3 to 64 of 0-9 A-Z a-z _ -, got {key!r}")
        self.shards.append([(key, save(packed(key, frames, self.dtype))) for key, frames in clips])
