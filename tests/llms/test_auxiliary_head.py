"""The auxiliary head: routed by the true category, the same as a head for each category, row by row."""

import pytest
import torch
import torch.nn.functional as F

from sottovoce.errors import ConfigError
from sottovoce.llms.auxiliary_head import AuxiliaryHead

CATEGORIES = {"age": ["child", "adult"], "gender": ["male", "female"], "emotion": ["neutral", "happy", "sad", "angry"]}
TRUTH = [("age", "adult"), ("emotion", "sad"), ("gender", "male"), ("age", "child"), ("emotion", "neutral")]


def head() -> AuxiliaryHead:
    torch.manual_seed(0)
    return AuxiliaryHead(8, CATEGORIES)


def test_it_is_one_head_for_each_category_row_by_row() -> None:
    adch, states = head(), torch.randn(5, 8)
    category = attribute = torch.zeros(())
    weights = adch.attribute.weight.split([2, 2, 4]), adch.attribute.bias.split([2, 2, 4])
    for state, (name, value) in zip(states, TRUTH, strict=True):
        number = list(CATEGORIES).index(name)
        category = category + F.cross_entropy(adch.category(state)[None], torch.tensor([number]))
        own = F.linear(state, weights[0][number], weights[1][number])
        attribute = attribute + F.cross_entropy(own[None], torch.tensor([CATEGORIES[name].index(value)]))
    told = adch.loss(states, TRUTH)
    torch.testing.assert_close(told.category, category)
    torch.testing.assert_close(told.attribute, attribute)
    assert told.rows == 5


def test_other_categories_get_no_gradient_from_a_row() -> None:
    adch = head()
    adch.loss(torch.randn(1, 8), [("gender", "female")]).attribute.backward()
    grad = adch.attribute.weight.grad
    assert grad is not None
    assert grad[2:4].any() and not grad[:2].any() and not grad[4:].any() and torch.isfinite(grad).all()


def test_a_row_is_right_within_its_category() -> None:
    adch = head()
    with torch.no_grad():
        adch.attribute.weight.zero_()
        adch.attribute.bias.copy_(torch.tensor([0.0, 1, 5, 4, 9, 0, 0, 0]))
    told = adch.loss(torch.randn(3, 8), [("age", "adult"), ("gender", "female"), ("emotion", "neutral")])
    assert told.right == 2


@pytest.mark.parametrize(("pair", "known"), [(("ages", "child"), "Did you mean 'age'"), (("age", "chlid"), "'child'")])
def test_unknown_names(pair: tuple[str, str], known: str) -> None:
    with pytest.raises(ConfigError, match=known):
        head().loss(torch.randn(1, 8), [pair])
