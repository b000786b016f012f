"""Cross-entropy of a frozen output layer in chunks: the logits of all tokens are never in memory at once."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LOGITS = 2**23  # in memory at once: 32 MB in float32


class FrozenHeadLoss(torch.autograd.Function):
    """Negative log-likelihood of tokens, (tokens,) in float32, by hidden states (tokens, dim) under a frozen map.

    The gradient in the hidden states is computed with the loss, chunk by chunk, as by Liger (Hsu et al., 2024); there
    is none in `weight` (vocabulary, dim) and `bias` (vocabulary,).
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        """See the class."""
        losses, gradients = [], []
        size = max(LOGITS // len(weight), 1)
        for chunk, tokens in zip(torch.split(states, size), torch.split(targets, size), strict=True):
            logits = F.linear(chunk, weight, bias).float()
            total = logits.logsumexp(-1)
            losses.append(total - logits.gather(1, tokens[:, None])[:, 0])
            if ctx.needs_input_grad[0]:
                off = logits.sub_(total[:, None]).exp_()  # probabilities, less 1 for the token that came
                off[torch.arange(len(tokens), device=tokens.device), tokens] -= 1
                gradients.append(off.to(weight.dtype) @ weight)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """See the class."""
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0][:, None]).to(gradient.dtype), None, None, None
