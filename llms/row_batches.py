"""Rows of different length as batches of an LLM: padding on the left, masks, groups of like length."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def response_mask(responses: list[list[int]], device: torch.device) -> Tensor:
    """(rows, longest), True where a response that is padded on the left has a token."""
    lengths = torch.tensor([len(response) for response in responses], device=device)
    longest = max(len(response) for response in responses)
    return torch.arange(longest, device=device) >= longest - lengths[:, None]


def group_by_length(lengths: list[int]) -> list[list[int]]:
    """Row numbers in groups within which the shortest row is at least 3/4 as long as the longest."""
    groups: list[list[int]] = []
    for row in reversed(sorted(range(len(lengths)), key=lambda row: lengths[row])):
        if groups and lengths[row] >= 0.75 * lengths[groups[-1][0]]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def pad_left(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of (tokens, dim) as (batch, tokens, dim) that end together, and (batch, tokens), True where real."""
    longest = max(len(row) for row in rows)
    x = torch.stack([F.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows], device=x.device)
    return x, torch.arange(longest, device=x.device) >= longest - lengths[:, None]


def position_mask(rows: list[Tensor], positions: Sequence[Sequence[int]]) -> Tensor:
    """(batch, tokens), 1.0 at these positions of each row of (tokens, dim), after `pad_left`."""
    longest = max(len(row) for row in rows)
    mask = torch.zeros(len(rows), longest, device=rows[0].device)
    for i, (row, chosen) in enumerate(zip(rows, positions, strict=True)):
        mask[i, [longest - len(row) + position for position in chosen]] = 1.0
    return mask


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean in float32 of (batch, tokens, dim) where the mask (batch, tokens) is 1: (batch, dim), 0 for none."""
    return torch.einsum("rtd,rt->rd", x.float(), mask) / mask.sum(1, keepdim=True).clamp(min=1)


def kept_logits(count: int, before_end: int = 0, *, device: torch.device) -> Tensor:
    """Of a row's positions the last `count`, or those up to `before_end` positions sooner, for `logits_to_keep`.

    By indices, since what a number keeps is a slice: not contiguous, so that torch multiplies row by row, in bfloat16
    on a CPU with a copy of the whole vocabulary's weights for each row (findings/frozen_linear_of_a_slice.sh).
    """
    return torch.arange(-count - before_end, -before_end, device=device)
