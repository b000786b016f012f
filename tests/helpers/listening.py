"""What the tests of encoders share: noise to hear, weights that hide no mistake, and how close is equal."""

import torch
from torch import Tensor, nn


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
