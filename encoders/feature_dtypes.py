"""Number formats of cached features: float32, float16, bfloat16, and int8 with a scale for every channel of a clip."""

import torch
from torch import Tensor

from sottovoce.encoders.cache_formats import BYTES, CacheDtype
from sottovoce.errors import SottovoceError

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in BYTES}
_STEPS = 127  # of an int8, on either side of 0


def packed(key: str, frames: Tensor, dtype: CacheDtype) -> dict[str, Tensor]:
    """Frames of one clip, (frames, dim), as they are kept; int8 rounds each to 1/127 of its channel's largest value.

    A channel, and not a frame, has a scale: in speech encoders a few channels are far larger than the others, which
    would then share what few steps such a frame leaves them.

    Raises:
        SottovoceError: a value is not finite in this format.
    """
    frames = frames.detach().to("cpu", torch.float32)
    scale = None
    if dtype == "int8":
        scale = frames.abs().amax(0) / _STEPS if len(frames) else frames.new_zeros(frames.shape[1])
        kept = frames if not scale.isfinite().all() else (frames / scale.clamp(min=1e-30)).round().to(torch.int8)
    else:
        kept = frames.to(DTYPES[dtype])
    if kept.is_floating_point() and not kept.isfinite().all():
        why = f"the frames of this clip are not finite in {dtype}: "
        why += "take data.cache_dtype=float32, or turn the cache off (data.cache=null)"
        raise SottovoceError.at(key, "nonfinite", why)
    return {"frames": kept.contiguous()} if scale is None else {"frames": kept.contiguous(), "scale": scale}


def unpacked(tensors: dict[str, Tensor], dtype: CacheDtype) -> Tensor:
    """(frames, dim) in float32 of what `packed` returned; `ValueError` for what it did not."""
    frames = tensors["frames"]
    if frames.dtype != DTYPES[dtype] or frames.dim() != 2:
        raise ValueError(f"it holds {frames.dtype} {tuple(frames.shape)}")
    return frames.float() * tensors["scale"] if dtype == "int8" else frames.float()
