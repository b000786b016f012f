"""A teacher's likeliest tokens at each place of a response, their files, and a student's divergence from them.

Knowledge distillation (Hinton et al., 2015) with the k likeliest tokens; all others are one more, with their sum.
"""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from sottovoce.errors import SottovoceError
from sottovoce.io import atomic_open

_LEAST = 1e-7  # of what other tokens share in a student: float32 knows no less of 1 - x
_KEY = re.compile(r"[0-9a-f]{16,}")


class TopTokens(NamedTuple):
    """Of each token of a response: the likeliest ones, the logarithms of their probabilities, what all others share."""

    ids: Tensor  # (tokens, k), int32
    log_probs: Tensor  # (tokens, k), float32, in nats
    rest: Tensor  # (tokens,), float32, a probability

    def to(self, device: torch.device) -> "TopTokens":
        return TopTokens(*(part.to(device) for part in self))


class Teaching(NamedTuple):
    """What the rows of a batch learn from; a row without a teacher has None."""

    rows: Sequence[TopTokens | None]
    temperature: float


def top_tokens(logits: Tensor, top_k: int, temperature: float) -> TopTokens:
    """Those of logits (tokens, vocabulary), at a temperature; all of them where `top_k` is not smaller."""
    log_probs = (logits.float() / temperature).log_softmax(-1)
    kept, ids = log_probs.topk(min(top_k, log_probs.shape[-1]))
    rest = log_probs.exp().scatter(-1, ids, 0.0).sum(-1)
    return TopTokens(ids.int(), kept, rest)


def divergence(logits: Tensor, teacher: TopTokens, temperature: float) -> Tensor:
    """KL(teacher || student) of each token, (tokens,), times the temperature's square; logits (tokens, vocabulary).

    The square keeps gradients as large as those of the likelihood (Hinton et al., 2015, section 2).
    """
    scaled = logits.float() / temperature
    student = scaled.gather(-1, teacher.ids.long()) - scaled.logsumexp(-1, keepdim=True)
    others = (1 - student.exp().sum(-1)).clamp(min=_LEAST)
    kept = (teacher.log_probs.exp() * (teacher.log_probs - student)).sum(-1)
    return (kept + torch.xlogy(teacher.rest, teacher.rest) - teacher.rest * others.log()) * temperature**2


class TopTokenCache:
    """Teachers' tokens on disk, a safetensors file a response: `folder/<key[:2]>/<key>.safetensors`.

    Processes may share the folder; a file appears whole, and a checksum detects later damage.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> TopTokens | None:
        """None where nothing was put; `SottovoceError` where the file is damaged."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            content = path.read_bytes()
            if zlib.crc32(content[:-4]) != int.from_bytes(content[-4:], "big"):
                raise ValueError("changed since it was written")
            return TopTokens(**load(content[:-4]))
        except Exception as error:  # safetensors has several errors for a broken file
            why = "damaged cache file; deleting it is safe, it is made again"
            raise SottovoceError.at(path, "damaged", why) from error

    def put(self, key: str, tokens: TopTokens) -> None:
        with atomic_open(self._path(key), shared=True, lasting=False) as stream:
            content = save({name: part.cpu().contiguous() for name, part in tokens._asdict().items()})
            stream.write(content + zlib.crc32(content).to_bytes(4, "big"))

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"a key is hexadecimal, got {key!r}")
        return self.folder / key[:2] / f"{key}.safetensors"
