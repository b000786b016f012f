"""A teacher's likeliest tokens: the divergence by hand over the whole vocabulary, and their files."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.helpers.errors import refused

from sottovoce.llms.top_tokens import TopTokenCache, TopTokens, divergence, top_tokens


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(5, 40, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("top_k", [40, 100])
def test_with_the_whole_vocabulary_it_is_the_divergence(top_k: int, temperature: float) -> None:
    one, other = logits(0), logits(1).requires_grad_()
    found = divergence(other, top_tokens(one, top_k, temperature), temperature)
    log_p, log_q = (x.double().div(temperature).log_softmax(-1) for x in (one, other))
    by_hand = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1) * temperature**2
    torch.testing.assert_close(found.double(), by_hand, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), other)
    (expected,) = torch.autograd.grad(by_hand.sum(), other)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_all_other_tokens_are_one_more() -> None:
    one, other = logits(0), logits(1).requires_grad_()
    teacher = top_tokens(one, 7, 2.0)
    p, q = (x.double().div(2).softmax(-1) for x in (one, other))
    top = one.topk(7).indices
    classes = [torch.cat([x.gather(-1, top), 1 - x.gather(-1, top).sum(-1, keepdim=True)], -1) for x in (p, q)]
    by_hand = 4 * (classes[0] * (classes[0] / classes[1]).log()).sum(-1)
    torch.testing.assert_close(divergence(other, teacher, 2.0).double(), by_hand, rtol=1e-4, atol=1e-5)
    assert torch.equal(teacher.ids.long(), top) and teacher.ids.dtype == torch.int32


def test_a_student_that_agrees_has_none() -> None:
    for sharp in (1.0, 100.0):  # where the rest is nothing to float32
        x = (sharp * logits(0)).requires_grad_()
        found = divergence(x, top_tokens(x.detach(), 7, 1.0), 1.0)
        assert found.abs().max() < 1e-4
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert gradient.isfinite().all() and gradient.abs().max() < 1e-3


def test_files_hold_what_was_put(tmp_path: Path) -> None:
    cache, tokens = TopTokenCache(tmp_path), top_tokens(logits(0), 7, 1.0)
    key = "0" * 64
    assert cache.get(key) is None
    cache.put(key, tokens)
    found = cache.get(key)
    assert isinstance(found, TopTokens) and all(map(torch.equal, found, tokens))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    cache = TopTokenCache(tmp_path)
    cache.put("0" * 64, top_tokens(logits(0), 7, 1.0))
    (file,) = tmp_path.rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    for at in (len(content) // 2, len(content) - 1):
        file.write_bytes(bytes(byte ^ (i == at) for i, byte in enumerate(content)))
        with refused("damaged", file.name):
            cache.get("0" * 64)
