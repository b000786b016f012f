"""Connectionist temporal classification (CTC) of speech embeddings, whose classes are an LLM's own token embeddings."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CTCLoss(NamedTuple):
    """Negative log-likelihood in nats, (), summed over rows; how many tokens of text those have, and all that came."""

    total: Tensor
    tokens: int
    given: int


class CTCHead(nn.Module):
    """A frame's logits are its cosines with a learned blank and with each token's embedding, times a learned scale.

    Graves et al. (ICML 2006). What the head has learned serves training and is no part of the trained model: it asks an
    adapter for embeddings in which the LLM's own tokens can be read, in their order.

    Args:
        dim: of the LLM's embeddings.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.blank = nn.Parameter(torch.randn(dim))
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    def forward(self, speech: Tensor, table: Tensor) -> Tensor:
        """Logits (frames, 1 + tokens) of embeddings (frames, dim), by the LLM's table (tokens, dim); 0 is the blank."""
        x = F.normalize(speech.float(), dim=-1)
        blank = x @ F.normalize(self.blank, dim=0)
        by_token = F.linear(x.to(table.dtype), F.normalize(table, dim=-1)).float()
        return self.log_scale.exp() * torch.cat([blank[:, None], by_token], 1)

    def loss(self, speech: Sequence[Tensor], texts: Sequence[Sequence[int]], table: Tensor) -> CTCLoss:
        """Of embeddings (frames, dim) of each row, given the token ids of its text.

        A text that needs more frames than its row has cannot be aligned, and is not counted.
        """
        given = sum(map(len, texts))
        rows = [(x, text) for x, text in zip(speech, texts, strict=True) if text and _needed(text) <= len(x)]
        if not rows:
            return CTCLoss(0.0 * (self.log_scale + self.blank.sum()), 0, given)
        frames, sizes = (torch.tensor([len(pair[i]) for pair in rows]) for i in (0, 1))
        logits = self(torch.cat([x for x, _ in rows]), table)  # of real frames alone
        tokens = torch.tensor([token for _, text in rows for token in text])
        said, targets = torch.unique(tokens, return_inverse=True)
        some = torch.cat([said.new_zeros(1), said + 1]).to(logits.device)
        log_p = logits[:, some] - logits.logsumexp(1, keepdim=True)
        # What no text has is one class: few columns to align, and torch's gradient needs probabilities that add up to 1
        others = torch.log1p(-log_p.exp().sum(1, keepdim=True).clamp(max=1 - 1e-6))
        padded = nn.utils.rnn.pad_sequence(list(torch.split(torch.cat([log_p, others], 1), frames.tolist())))
        total = F.ctc_loss(padded, targets.to(logits.device) + 1, frames, sizes, reduction="sum")
        return CTCLoss(total, int(sizes.sum()), given)


def _needed(text: Sequence[int]) -> int:
    """Frames that a text needs: one a token, and a blank between two that are the same."""
    return len(text) + sum(a == b for a, b in itertools.pairwise(text))
