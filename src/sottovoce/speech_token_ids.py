"""Ids of discrete speech tokens as numbers in a frame, which survive caches and networks in half precision."""

import torch
from torch import Tensor

DIGITS = 2  # numbers in a frame for an id
_BASE = 128  # float16 and bfloat16 hold every whole number up to 256


def split_ids(ids: Tensor) -> Tensor:
    """Ids below 16384, (tokens,), as two digits to the base 128: (tokens, 2) in float32."""
    return torch.stack([ids // _BASE, ids % _BASE], -1).float()


def joined_ids(digits: Tensor) -> Tensor:
    """The ids (...,) of digits (..., 2) from `split_ids`."""
    high, low = digits.round().long().unbind(-1)
    return high * _BASE + low
