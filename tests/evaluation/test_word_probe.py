"""The probe for words: texts found by a linear map, on speakers that it was not trained on."""

from typing import Any

import numpy as np
import pytest
from tests.helpers.errors import refused

from sottovoce.errors import Code
from sottovoce.evaluation.word_probe import word_probe


def spoken(count: int = 60, noise: float = 0.1, seed: int = 0) -> dict[str, Any]:
    """Ten texts by six speakers; features are a linear map of their meanings, and noise."""
    rng = np.random.default_rng(seed)
    known = rng.normal(size=(10, 5))
    which = np.arange(count) % 10
    features = known[which] @ rng.normal(size=(5, 12)) + noise * rng.normal(size=(count, 12))
    speakers = [f"s{row // 10}" for row in range(count)]
    held_out = [row >= 40 for row in range(count)]
    texts = [f"text {number}" for number in which]
    return {"features": features, "meanings": known[which], "texts": texts, "speakers": speakers, "held_out": held_out}


def test_what_a_linear_map_can_find_is_found() -> None:
    found = word_probe(**spoken())
    assert found.rank.shape == (20,) and found.rank.mean() > 0.95 and found.validation > 0.8


def test_noise_is_at_chance_and_constants_are_exactly_there() -> None:
    rows = spoken()
    noise = np.random.default_rng(1).normal(size=(60, 12))
    found = word_probe(**{**rows, "features": noise})
    assert abs(found.rank.mean() - 0.5) < 0.15 and found.validation < 0.1
    assert word_probe(**{**rows, "features": np.ones((60, 12))}).rank.mean() == pytest.approx(0.5)


def test_a_rank_is_the_share_of_other_texts_that_are_less_alike() -> None:
    """By hand, with a map that is the identity: three texts on a line through the centre."""
    rows = spoken(noise=0.0)
    rows["features"] = rows["meanings"].copy()
    rows["features"][40:] = rows["meanings"][[3] * 20]  # all test rows sound like text 3
    ranks = word_probe(**rows).rank
    centre = rows["meanings"][:40].mean(0)
    known = rows["meanings"][:10] - centre
    cosine = known @ known[3] / np.linalg.norm(known, axis=1) / np.linalg.norm(known[3])
    expected = [(cosine < cosine[row % 10]).sum() / 9 for row in range(20)]
    assert ranks == pytest.approx(expected, abs=1.01 / 9)  # the penalty may swap two texts that are nearly as alike
    assert ranks[3] == 1.0 and min(ranks) == 0.0


FAULTS: dict[Code, dict[str, Any]] = {
    "mismatch": {"texts": ["a"]},
    "nonfinite": {"features": np.full((60, 12), np.nan)},
    "conflict": {"speakers": ["s"] * 60},
    "empty": {"texts": ["a"] * 60},
}


@pytest.mark.parametrize("code", FAULTS)
def test_what_cannot_be_probed_is_refused(code: Code) -> None:
    with refused(code):
        word_probe(**{**spoken(), **FAULTS[code]})


def test_too_few_rows_to_learn_from() -> None:
    with refused("empty", "texts"):
        word_probe(**{**spoken(), "held_out": [row >= 2 for row in range(60)], "speakers": ["a", "a", *"b" * 58]})
