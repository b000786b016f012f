"""Encoder outputs on disk, so that every clip is encoded once: files by the fingerprint of the encoder."""

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load, save
from torch import Tensor

from sottovoce.encoders.base import Encoder
from sottovoce.errors import SottovoceError
from sottovoce.io import atomic_open

SUM = "crc32"  # key of the checksum in a file's metadata; files of older versions have none
_KEY = re.compile(r"[0-9A-Za-z_-]{3,}")  # a key becomes a file name


def audio_key(samples: npt.NDArray[np.float32]) -> str:
    """SHA-256 of the bytes of one clip, (samples,) in float32: in another dtype the same sound has another key."""
    if samples.dtype != np.float32 or samples.ndim != 1:
        raise ValueError(f"expected float32 (samples,), got {samples.dtype} {samples.shape}")
    return hashlib.sha256(samples.tobytes()).hexdigest()


def layers_fingerprint(encoder: Encoder, layers: Sequence[int]) -> str:
    """The encoder's fingerprint; of other layers than the last one alone, a SHA-256 of it and of their numbers."""
    whole = encoder.fingerprint()
    if tuple(layers) == (encoder.depth,):
        return whole
    return hashlib.sha256(json.dumps([whole, list(layers)]).encode()).hexdigest()


class FeatureCache:
    """Frames of clips in float16: `root/<fingerprint[:16]>/<key[:2]>/<key>.safetensors`.

    float16 costs up to 0.05 % of each value. Several processes may share a root: a file is written under another name
    and renamed, so that a killed process leaves at most a hidden `.tmp` file. A checksum detects later damage.

    Args:
        root: folder of all caches; made when the first clip is put.
        fingerprint: of the encoder and its layers (`layers_fingerprint`), so that others never find these frames.
    """

    def __init__(self, root: Path, fingerprint: str) -> None:
        if not re.fullmatch(r"[0-9a-f]{16,}", fingerprint):
            raise ValueError(f"expected a fingerprint of at least 16 hexadecimal digits, got {fingerprint!r}")
        self.folder = root / fingerprint[:16]

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def get(self, key: str) -> Tensor:
        """The frames of one clip, (frames, dim) in float32.

        Raises:
            KeyError: nothing was put under this key.
            SottovoceError: the file is damaged.
        """
        path = self._path(key)
        try:
            content = path.read_bytes()  # at once: `safe_open` opens a file twice, and another may lie there by then
            frames, header = load(content)["frames"], content[8 : 8 + int.from_bytes(content[:8], "little")]
            if json.loads(header).get("__metadata__", {}).get(SUM) not in (None, _checksum(frames)):
                raise ValueError("its checksum is wrong")
            if frames.dtype != torch.float16 or frames.dim() != 2:
                raise ValueError(f"it holds {frames.dtype} {tuple(frames.shape)}")
        except FileNotFoundError:
            raise KeyError(key) from None
        except Exception as error:  # safetensors has several errors for a broken file
            why = "damaged cache file; deleting it is safe, it is made again"
            raise SottovoceError.at(path, "damaged", why) from error
        return frames.float()

    def put(self, key: str, frames: Tensor) -> None:
        """Keep the frames of one clip, (frames, dim); `SottovoceError` where a value is not finite in float16."""
        if frames.dim() != 2:
            raise ValueError(f"expected (frames, dim), got {tuple(frames.shape)}")
        half = frames.detach().to("cpu", torch.float16).contiguous()
        if not half.isfinite().all():
            why = "the frames of this clip are not finite in float16: turn the cache off (data.cache=null)"
            raise SottovoceError.at(key, "nonfinite", why)
        with atomic_open(self._path(key), shared=True, lasting=False) as stream:
            stream.write(save({"frames": half}, {SUM: _checksum(half)}))

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"a key is at least three of 0-9 A-Z a-z _ -, got {key!r}")
        return self.folder / key[:2] / f"{key}.safetensors"


def _checksum(frames: Tensor) -> str:
    return f"{zlib.crc32(frames.numpy().tobytes()):08x}"
