"""Connectionist temporal classification (CTC) of speech embeddings, whose classes are an LLM's own token embeddings."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sottovoce.frames import Frames

READ_FRAMES, READ_TOKENS = 1024, 8192  # whose logits are in memory at once: they stay in a CPU's cache
DRAWN = 4_096  # tokens whose logits are in memory at once, and of which a training step estimates all that nobody says
SIZE = 0.1  # weight of how long embeddings are, which cosines leave open, and which grew to ten times that of words


READ = 8  # likeliest tokens of a frame, whose posteriors say how it learns from being read


class CTCLoss(NamedTuple):
    """Negative log-likelihood in nats, (), summed over rows; how many tokens of text those have, and all that came.

    `size` is the sum over frames, times `SIZE`, of the squared logarithm of how much longer they are than the tokens.
    """

    total: Tensor
    tokens: int
    given: int
    size: Tensor


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
        """Logits (frames, 1 + tokens) of embeddings (frames, dim), by rows of the LLM's table; 0 is the blank."""
        scaled = self._scaled(speech)
        return torch.cat([self._blank(scaled), _of_tokens(scaled, table)], 1)

    def read(self, speech: Frames, table: Tensor, never: Sequence[int] = ()) -> Frames:
        """Embeddings (batch, frames, dim) as the LLM's own tokens, (batch, tokens, dim): fewer, without blanks.

        CTC compression (Gaido et al., EACL 2021): frames whose likeliest class is the blank are left out, neighbours
        that are the same token become one, and the LLM gets the embedding of that token, since mixtures are none that
        it knows. The gradient is that of the mean of embeddings by posteriors, of the `READ` likeliest tokens: a
        straight-through estimator (Bengio et al., 2013). A row that is blank all along keeps the frame that is so
        least. The head learns nothing from what the LLM makes of this. Tokens of `never` are not read.
        """
        if speech.x.is_meta:  # of which nobody knows what is said
            return speech
        rows = speech.rows()
        with torch.no_grad():
            scaled = self._scaled(torch.cat(rows))
            tops = [_likeliest(part, table, never) for part in torch.split(scaled, READ_FRAMES)]
            logits, tokens = (torch.cat([top[i] for top in tops]) for i in (0, 1))  # (frames, READ)
            over_blank = logits[:, 0] - self._blank(scaled)[:, 0]
        sizes = [len(row) for row in rows]
        of_rows = zip(rows, torch.split(tokens, sizes), torch.split(over_blank, sizes), strict=True)
        return Frames.pad([self._read_row(x, ids, over, table).to(speech.x.dtype) for x, ids, over in of_rows])

    def _read_row(self, x: Tensor, tokens: Tensor, over_blank: Tensor, table: Tensor) -> Tensor:
        """One row's frames (frames, dim), by their likeliest tokens (frames, READ), as (tokens, dim)."""
        if not len(x):
            return x
        kept = over_blank > 0
        kept[over_blank.argmax()] = True
        new = torch.ones_like(kept)  # a frame that is not the same token as the one before
        new[1:] = (tokens[1:, 0] != tokens[:-1, 0]) | ~kept[:-1]
        run, of_each = new[kept].cumsum(0) - 1, table[tokens[kept]].float()  # (kept, READ, dim)
        cosines = F.normalize(of_each, dim=-1) @ F.normalize(x[kept].float(), dim=-1)[:, :, None]
        posteriors = (self.log_scale.detach().exp() * cosines).softmax(1)
        mean = (posteriors * of_each).sum(1)  # (kept, dim)
        read = of_each[:, 0] + (mean - mean.detach())  # exactly the token
        count = torch.bincount(run)
        return read.new_zeros(len(count), read.shape[1]).index_add(0, run, read) / count[:, None]

    def _scaled(self, speech: Tensor) -> Tensor:
        return self.log_scale.exp() * F.normalize(speech.float(), dim=-1)

    def _blank(self, scaled: Tensor) -> Tensor:
        return scaled @ F.normalize(self.blank, dim=0)[:, None]

    def _log_p(self, speech: Tensor, table: Tensor, said: Tensor) -> Tensor:
        """Log probabilities of the blank, of the tokens that are said, and of all others: (frames, 1 + said + 1).

        In training the others are estimated from `DRAWN` of them, at random: their sum, times how many more there are.
        The whole vocabulary would take most of the time of a step.
        """
        scaled = self._scaled(speech)
        other = torch.ones(len(table), dtype=torch.bool, device=table.device).index_fill(0, said, False).nonzero()[:, 0]
        drawn = other
        if self.training and len(other) > DRAWN:
            drawn = other[torch.randperm(len(other))[:DRAWN].to(other.device)]
        classes = [self._blank(scaled), _of_tokens(scaled, table[said])]
        if len(drawn):
            sums = [_of_tokens(scaled, table[some]).logsumexp(1) for some in torch.split(drawn, DRAWN)]
            classes.append(torch.stack(sums, 1).logsumexp(1, keepdim=True) + math.log(len(other) / len(drawn)))
        return torch.cat(classes, 1).log_softmax(1)

    def loss(self, speech: Sequence[Tensor], texts: Sequence[Sequence[int]], table: Tensor) -> CTCLoss:
        """Of embeddings (frames, dim) of each row, given the token ids of its text.

        A text that needs more frames than its row has cannot be aligned, and is not counted.
        """
        given = sum(map(len, texts))
        rows = [(x, text) for x, text in zip(speech, texts, strict=True) if text and frames_needed(text) <= len(x)]
        if not rows:
            nothing = 0.0 * (self.log_scale + self.blank.sum())
            return CTCLoss(nothing, 0, given, nothing)
        frames, sizes = (torch.tensor([len(pair[i]) for pair in rows]) for i in (0, 1))
        x = torch.cat([x for x, _ in rows])  # real frames alone
        tokens = torch.tensor([token for _, text in rows for token in text])
        said, targets = torch.unique(tokens, return_inverse=True)
        with torch.autocast(x.device.type, enabled=False):  # cosines times a scale need more than half precision
            log_p = self._log_p(x, table, said.to(table.device))
        padded = nn.utils.rnn.pad_sequence(list(torch.split(log_p, frames.tolist())))
        total = F.ctc_loss(padded, targets.to(x.device) + 1, frames, sizes, reduction="sum")
        words = table[said.to(table.device)].float().norm(dim=1).mean()
        size = SIZE * (x.float().norm(dim=1).clamp(min=1e-6) / words).log().square().sum()
        return CTCLoss(total, int(sizes.sum()), given, size)


def frames_needed(text: Sequence[int]) -> int:
    """Frames that a text needs: one a token, and a blank between two that are the same."""
    return len(text) + sum(a == b for a, b in itertools.pairwise(text))


def _of_tokens(scaled: Tensor, table: Tensor) -> Tensor:
    return F.linear(scaled.to(table.dtype), F.normalize(table, dim=-1)).float()


def _likeliest(scaled: Tensor, table: Tensor, never: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits and numbers of the likeliest tokens of each frame: (frames, READ) each."""
    lengths = torch.linalg.vector_norm(table, dim=-1).clamp_min(1e-12)
    tops = []
    for first, part in zip(itertools.count(0, READ_TOKENS), torch.split(table, READ_TOKENS)):
        logits = F.linear(scaled.to(table.dtype), part).div_(lengths[first : first + len(part)])
        logits[:, [token - first for token in never if first <= token < first + len(part)]] = -math.inf
        values, tokens = logits.topk(min(READ, len(part)))
        tops.append((values, tokens + first))
    values, tokens = (torch.cat(found, 1) for found in zip(*tops, strict=True))
    values, places = values.topk(min(READ, values.shape[1]))
    return values.float(), tokens.gather(1, places)
