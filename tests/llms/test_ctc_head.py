"""CTCHead against torch's CTC over the whole vocabulary: loss, gradients, rows that cannot be aligned."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sottovoce.llms import ctc_head
from sottovoce.llms.ctc_head import CTCHead

TEXTS = [[3, 3, 7], [5], [1, 2, 3, 4]]


@pytest.fixture
def speech() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(frames, 8, requires_grad=True) for frames in (6, 2, 5)]


@pytest.fixture
def head() -> CTCHead:
    torch.manual_seed(1)
    return CTCHead(8)


@pytest.fixture
def table() -> Tensor:
    return torch.randn(11, 8, generator=torch.Generator().manual_seed(2))


def whole(head: CTCHead, speech: list[Tensor], texts: list[list[int]], table: Tensor) -> Tensor:
    """Row by row, with a class for every token."""
    losses = [
        F.ctc_loss(
            head(x, table).log_softmax(-1), torch.tensor(text) + 1, torch.tensor(len(x)), torch.tensor(len(text)),
            reduction="sum",
        )
        for x, text in zip(speech, texts, strict=True)
    ]  # fmt: skip
    return torch.stack(losses).sum()


def test_loss_and_gradients_are_those_of_the_whole_vocabulary(
    head: CTCHead, speech: list[Tensor], table: Tensor
) -> None:
    learned = [*speech, head.blank, head.log_scale]
    expected = whole(head, speech, TEXTS, table)
    wanted = torch.autograd.grad(expected, learned)
    loss = head.loss(speech, TEXTS, table)
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(torch.autograd.grad(loss.total, learned), wanted, rtol=1e-4, atol=1e-5)
    assert loss.tokens == 8 and all(gradient.abs().max() > 1e-3 for gradient in wanted)


def test_a_training_step_estimates_what_nobody_says(
    head: CTCHead, speech: list[Tensor], table: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From some of the other tokens, so that the mean over steps comes near the whole vocabulary; scores use it all."""
    expected = whole(head, speech, TEXTS, table).item()
    monkeypatch.setattr(ctc_head, "DRAWN", 3)
    head.log_scale.data.fill_(0.0)  # of moderate differences between tokens
    exact = head.eval().loss(speech, TEXTS, table).total.item()
    assert exact == pytest.approx(whole(head, speech, TEXTS, table).item(), rel=1e-5) and exact != expected
    head.train()
    drawn = torch.tensor([head.loss(speech, TEXTS, table).total.item() for _ in range(300)])
    assert drawn.std() > 1e-3 * exact
    assert drawn.mean().item() == pytest.approx(exact, rel=0.01)


def test_a_vocabulary_that_is_all_said(head: CTCHead, speech: list[Tensor], table: Tensor) -> None:
    loss = head.loss(speech[:1], [[1, 0, 2]], table[:3])
    torch.testing.assert_close(loss.total, whole(head, speech[:1], [[1, 0, 2]], table[:3]))


def test_embeddings_are_drawn_to_the_size_of_words(head: CTCHead, table: Tensor) -> None:
    """Cosines do not know it; what is as long as the mean of the text's tokens costs nothing."""
    size = table[[3, 7]].norm(dim=1).mean()
    x = F.normalize(torch.randn(6, 8), dim=1) * size
    losses = [head.loss([(factor * x).requires_grad_()], [[3, 3, 7]], table) for factor in (1, 10, 0.1)]
    same, longer, shorter = (float(loss.size) for loss in losses)
    assert same == pytest.approx(0, abs=1e-6) and longer == pytest.approx(shorter, rel=1e-4) and longer > 1
    assert all(loss.total.item() == pytest.approx(losses[0].total.item(), rel=1e-4) for loss in losses)


def test_a_token_that_is_said_has_the_greater_logit(head: CTCHead, table: Tensor) -> None:
    assert head(5.0 * table, table)[:, 1:].argmax(1).tolist() == list(range(11))  # whatever its length
    assert head(head.blank.detach()[None], table).argmax().item() == 0


def test_a_text_too_long_for_its_frames_is_not_counted(head: CTCHead, speech: list[Tensor], table: Tensor) -> None:
    """Two of the same in a row need a blank between them."""
    loss = head.loss(speech, [[3, 3, 7], [5, 5], [1, 1, 2, 2]], table)
    torch.testing.assert_close(loss.total, whole(head, speech[:1], [[3, 3, 7]], table))
    assert (loss.tokens, loss.given) == (3, 9)
    none = head.loss(speech, [[], [5, 5], [1, 1, 2, 2]], table)
    assert none.tokens == 0 and none.total.item() == 0
    none.total.backward()  # every process has a gradient for the head, as others may have rows
    assert head.blank.grad is not None and not head.blank.grad.any()


def test_what_is_learned_is_read_from_the_frames(head: CTCHead, table: Tensor) -> None:
    torch.manual_seed(3)
    x = torch.randn(6, 8, requires_grad=True)
    optimizer = torch.optim.Adam([x, *head.parameters()], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        head.loss([x], [[3, 3, 7]], table).total.backward()
        optimizer.step()
    best = torch.unique_consecutive(head(x, table).argmax(1))
    assert [int(token) - 1 for token in best if token] == [3, 3, 7]


@pytest.mark.parametrize("at_once", [3, 4, 1000])
def test_the_likeliest_tokens_are_those_of_the_whole_vocabulary(
    head: CTCHead, table: Tensor, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Whatever is in memory at once, in their order, without tokens that may not be read."""
    monkeypatch.setattr(ctc_head, "READ_TOKENS", at_once)
    monkeypatch.setattr(ctc_head, "READ", 5)
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(4))
    logits = head(x, table)[:, 1:].detach()
    logits[:, [0, 3, 10]] = -torch.inf
    expected = logits.topk(5)
    found = ctc_head._likeliest(head._scaled(x).detach(), table, (0, 3, 10))
    torch.testing.assert_close(found, tuple(expected))
