"""The auxiliary head: routed by the true category, the same as a head for each category, row by row."""

import pytest
import torch
import torch.nn.functional as F
from tests.helpers.errors import refused

from sottovoce.llms.auxiliary_head import AuxiliaryHead

CATEGORIES = {"age": ["child", "adult"], "gender": ["male", "female"], "emotion": ["neutral", "happy", "sad", "angry"]}
TRUTH = [("age", "adult"), ("emotion", "sad"), ("gender", "male"), ("age", "child"), ("emotion", "neutral")]


def head() -> AuxiliaryHead:
    torch.manual_seed(0)
    return AuxiliaryHead(8, CATEGORIES)


def test_it_is_one_head_for_each_category_row_by_row() -> None:
    heads, states = head(), torch.randn(5, 8)
    category = attribute = torch.zeros(())
    weights = heads.attribute.weight.split([2, 2, 4]), heads.attribute.bias.split([2, 2, 4])
    for state, (name, value) in zip(states, TRUTH, strict=True):
        number = list(CATEGORIES).index(name)
        category = category + F.cross_entropy(heads.category(state)[None], torch.tensor([number]))
        own = F.linear(state, weights[0][number], weights[1][number])
        attribute = attribute + F.cross_entropy(own[None], torch.tensor([CATEGORIES[name].index(value)]))
    out = heads.loss(states, TRUTH)
    torch.testing.assert_close(out.category, category)
    torch.testing.assert_close(out.attribute, attribute)
    assert out.rows == 5


def test_other_categories_get_no_gradient_from_a_row() -> None:
    heads = head()
    heads.loss(torch.randn(1, 8), [("gender", "female")]).attribute.backward()
    grad = heads.attribute.weight.grad
    assert grad is not None
    assert grad[2:4].any() and not grad[:2].any() and not grad[4:].any() and torch.isfinite(grad).all()


def test_a_row_is_right_within_its_category() -> None:
    heads = head()
    with torch.no_grad():
        heads.attribute.weight.zero_()
        heads.attribute.bias.copy_(torch.tensor([0.0, 1, 5, 4, 9, 0, 0, 0]))
    out = heads.loss(torch.randn(3, 8), [("age", "adult"), ("gender", "female"), ("emotion", "neutral")])
    assert out.right == 2


@pytest.mark.parametrize(
    ("pair", "where"), [(("ages", "child"), "auxiliary_head.categories"), (("age", "chlid"), "categories.age")]
)
def test_unknown_names(pair: tuple[str, str], where: str) -> None:
    with refused("unknown-name", where):
        head().loss(torch.randn(1, 8), [pair])
