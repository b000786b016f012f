"""An utterance is encoded once: its frames stay on disk under the fingerprint of the ear that heard them."""

import hashlib
import json
import re
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load, save
from torch import Tensor

from sottovoce.errors import ConfigError, SottovoceError, nearest
from sottovoce.io import atomic_open

_DTYPES = {"float16": torch.float16, "float32": torch.float32}
SUM = "crc32"  # of the samples' bytes, in the file's metadata; files of older versions have none
_KEY = re.compile(r"[0-9A-Za-z_-]{3,}")  # a key becomes a file name


def audio_key(samples: npt.NDArray[np.float32]) -> str:
    """SHA-256 of the bytes of one clip, (samples,) in float32.

    Raises:
        ValueError: another dtype or shape, in which the same sound would get another key.
    """
    if samples.dtype != np.float32 or samples.ndim != 1:
        raise ValueError(f"expected float32 (samples,), got {samples.dtype} {samples.shape}")
    return hashlib.sha256(samples.tobytes()).hexdigest()


class FeatureCache:
    """Encoder outputs on disk: `root/<fingerprint[:16]>/<key[:2]>/<key>.safetensors`, one file a clip.

    Several processes may share a root. A file appears whole or not at all: it is written under another name and then
    renamed, so that a killed process leaves at most a hidden `.tmp` file that nobody reads. A checksum tells a file
    that was damaged later.

    Args:
        root: folder of all caches; made when the first clip is put.
        fingerprint: of the encoder (`Encoder.fingerprint`), so that another encoder never finds these frames.
        dtype: of the files; float16 halves the disk and costs up to 0.05 % of each value.

    Raises:
        ConfigError: `dtype` is unknown.
        ValueError: `fingerprint` is not a digest.
    """

    def __init__(self, root: Path, fingerprint: str, dtype: Literal["float16", "float32"] = "float16") -> None:
        if dtype not in _DTYPES:
            raise ConfigError(f"the feature cache's dtype is {dtype!r}.{nearest(dtype, _DTYPES)}")
        if not re.fullmatch(r"[0-9a-f]{16,}", fingerprint):
            raise ValueError(f"expected a fingerprint of at least 16 hexadecimal digits, got {fingerprint!r}")
        self.folder = root / fingerprint[:16]
        self.dtype = _DTYPES[dtype]

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def get(self, key: str) -> Tensor:
        """The frames of one clip, (frames, dim) in float32.

        Raises:
            KeyError: nothing was put under this key.
            SottovoceError: the file is damaged, or was written with the other dtype.
        """
        path = self._path(key)
        try:
            content = path.read_bytes()
            frames = load(content)["frames"]
            if _told_sum(content) not in (None, _sum(frames)):
                raise ValueError("its checksum is wrong")
        except FileNotFoundError:
            raise KeyError(key) from None
        except Exception as error:  # safetensors has several errors for a broken file
            raise SottovoceError(f"{path}: damaged cache file; deleting it is safe, it is made again") from error
        if frames.dtype != self.dtype or frames.dim() != 2:
            raise SottovoceError(
                f"{path}: holds {frames.dtype} {tuple(frames.shape)}, the cache is set to {self.dtype} (frames, dim); "
                f"deleting {self.folder} is safe, it is made again"
            )
        return frames.float()

    def put(self, key: str, frames: Tensor) -> None:
        """Keep the frames of one clip, (frames, dim).

        Raises:
            SottovoceError: a value is not finite, or too large for float16.
            ValueError: `frames` is not (frames, dim).
        """
        if frames.dim() != 2:
            raise ValueError(f"expected (frames, dim), got {tuple(frames.shape)}")
        kept = frames.detach().to("cpu", self.dtype).contiguous()
        if not kept.isfinite().all():
            raise SottovoceError(f"frames of clip {key} are not finite in {self.dtype}; float32 holds larger values")
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_open(path, shared=True, lasting=False) as stream:
            stream.write(save({"frames": kept}, {SUM: _sum(kept)}))

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"a key is at least three of 0-9 A-Z a-z _ -, got {key!r}")
        return self.folder / key[:2] / f"{key}.safetensors"


def _sum(frames: Tensor) -> str:
    return f"{zlib.crc32(frames.numpy().tobytes()):08x}"


def _told_sum(content: bytes) -> str | None:
    """What a safetensors file says in its header: eight bytes of length, then JSON."""
    length = int.from_bytes(content[:8], "little")
    told: str | None = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get(SUM)
    return told
