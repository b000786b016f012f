"""The mix of an encoder's layers: by hand, and what it begins with."""

import pytest
import torch
import torch.nn.functional as F

from sottovoce.adapters.layer_mix import PACE, LayerMix


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("columns", [(0, 1, 2), (1, 2), (0, 2)])
def test_a_mix_is_the_softmax_weighted_sum(columns: tuple[int, ...], normalize: bool) -> None:
    mix, x = LayerMix(columns, 4, normalize=normalize), 3 * torch.randn(2, 5, 12) + 1
    assert mix.weights().tolist() == pytest.approx([1 / len(columns)] * len(columns))
    assert mix.logits is not None
    mix.logits.data = torch.arange(len(columns)) / 10
    weights = F.softmax(PACE * mix.logits, 0)
    parts = [x[..., 4 * c : 4 * c + 4] for c in columns]
    if normalize:
        parts = [
            (p - p.mean(-1, keepdim=True)) / (p.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() for p in parts
        ]
    expected = sum(w * part for w, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(mix(x), expected)
    assert torch.equal(mix.weights(), weights)


def test_one_layer_is_read_as_it_is() -> None:
    mix, x = LayerMix([2], 4), torch.randn(2, 5, 12)
    assert torch.equal(mix(x), x[..., 8:]) and not mix.state_dict() and mix.weights().tolist() == [1.0]
