"""FrozenHeadLoss: cross-entropy and its gradient as PyTorch has them, with few logits in memory at once."""

import pytest
import torch
import torch.nn.functional as F

from sottovoce.llms import frozen_head_loss
from sottovoce.llms.frozen_head_loss import FrozenHeadLoss


@pytest.mark.parametrize("logits", [1, 100, 10_000])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_loss_and_its_gradient_are_those_of_pytorch(
    logits: int, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_head_loss, "LOGITS", logits)
    torch.manual_seed(0)
    weight, targets, share = torch.randn(40, 8), torch.randint(40, (11,)), torch.rand(11)
    bias = torch.randn(40) if has_bias else None
    ours, theirs = (torch.randn(11, 8, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    sizes: list[int] = []
    linear = F.linear
    monkeypatch.setattr(
        frozen_head_loss.F, "linear", lambda x, *rest: (sizes.append(x.shape[0] * 40), linear(x, *rest))[1]
    )
    nll = FrozenHeadLoss.apply(ours, weight, bias, targets)  # type: ignore[no-untyped-call]
    assert max(sizes) <= max(logits, 40) and sum(sizes) == 11 * 40
    right = F.cross_entropy(linear(theirs, weight, bias), targets, reduction="none")
    torch.testing.assert_close(nll, right)
    (nll * share).sum().backward()
    (right * share).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_without_gradients_none_is_computed() -> None:
    states, weight = torch.randn(3, 8), torch.randn(5, 8, requires_grad=False)
    nll = FrozenHeadLoss.apply(states, weight, None, torch.tensor([0, 1, 2]))  # type: ignore[no-untyped-call]
    assert not nll.requires_grad
