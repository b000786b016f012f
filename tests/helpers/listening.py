"""What the tests of encoders share: clips, weights that hide no mistake, and laws of every encoder."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sottovoce.frames import Frames


def scramble(network: nn.Module) -> None:
    """No tensor stays at a value that would hide a mistake (norms of one, biases of zero)."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.05, 0.3)
    for name, buffer in network.named_buffers():
        if "running" in name:
            nn.init.uniform_(buffer, 0.5, 2.0)


def clips(*samples: int) -> list[Tensor]:
    """Noise with a tone in it, each ten times as loud as the one before."""
    generator = torch.Generator().manual_seed(1)
    return [
        0.5 * 10.0 ** (i + 1 - len(samples)) * (torch.sin(torch.arange(n) * (0.05 + 0.03 * i)) + noise).clamp(-1, 1)
        for i, n in enumerate(samples)
        for noise in [0.4 * torch.randn(n, generator=generator)]
    ]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def check_refuses_bad_batches(encode: Callable[[Tensor, Tensor], Any]) -> None:
    """Errors of a caller, who reads the message: it names the row, or what was expected."""
    for waveform, lengths, message in (
        (torch.zeros(2, 400), [400, 0], "row 1 has a length of 0"),
        (torch.zeros(2, 400), [401, 400], "row 0 has a length of 401"),
        (torch.zeros(1, 400, dtype=torch.int16), [400], "int16"),
        (torch.zeros(400), [400], r"\(batch, samples\)"),
    ):
        with pytest.raises(ValueError, match=message):
            encode(waveform, torch.tensor(lengths))


def check_needs_weights(*acts: Callable[[], Any]) -> None:
    for act in acts:
        with pytest.raises(RuntimeError, match=r"load\(\)"):
            act()


@torch.no_grad()
def check_clips_do_not_depend_on_their_batch(encoder: Callable[..., Frames], waveforms: list[Tensor]) -> Frames:
    """Alone, together, and in another order; what lies behind a clip changes nothing, and comes out as zeros."""
    x, lengths = Frames.pad(waveforms)
    together = encoder(x, lengths)
    for waveform, row in zip(waveforms, together.rows(), strict=True):
        close(row, encoder(*Frames.pad([waveform])).x[0])
    for row, back in zip(together.rows(), encoder(*Frames.pad(waveforms[::-1])).rows()[::-1], strict=True):
        close(row, back)
    x[~Frames(x, lengths).mask()] = 1.0
    torch.testing.assert_close(encoder(x, lengths).x, together.x, atol=0, rtol=0)
    assert not together.x[~together.mask()].any()
    return together
