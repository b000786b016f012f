"""Cosine similarity of utterances in every state of an LLM: same intent or attribute against other.

Two of the five layer-wise analyses of PE-FT (Resurfacing Paralinguistic Awareness in Large Audio Language Models, 2026,
section 4), which gives no formula; what is done here is said with each function.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import SottovoceError
from sottovoce.evaluation.layers.split import Codes, Curve, Kind, codes_of, drawn, make_curve

Array = NDArray[np.float64]
States = NDArray[np.float32]  # (utterances, states, dim)
Mask = NDArray[np.bool_]

GAP = "cosine, same minus other"


def intent_similarity(
    states: States, intents: Sequence[str], speakers: Sequence[str], texts: Sequence[str], *, seed: int = 0
) -> Curve:
    """Intent-conditioned cosine similarity: same intent less other intent, by other speakers in other words.

    The mean cosine of such pairs less that of pairs of different intents (other speakers and words, too). Intervals
    from speakers and texts, both resampled (Owen, 2007, the pigeonhole bootstrap). Arguments as in `intent_probe`.

    Raises:
        SottovoceError: there are no pairs of one of the two kinds.
    """
    who, words = codes_of(speakers), codes_of(texts)
    paired = _differ(who) & _differ(words)
    return _gap_curve("semantic", states, intents, paired, drawn(seed, who, words), "intent")


def attribute_similarity(
    states: States, labels: Sequence[str], speakers: Sequence[str], texts: Sequence[str], *, seed: int = 0
) -> Curve:
    """Attribute-conditioned cosine similarity: same attribute, such as age, less other, of speakers of the same words.

    The mean cosine of such pairs less that of pairs of unlike attribute. All pairs say one text each. Intervals from
    speakers and texts, both resampled. Arguments as in `attribute_probe`; errors as in `intent_similarity`.
    """
    who, words = codes_of(speakers), codes_of(texts)
    paired = ~_differ(words) & _differ(who)
    # Both of a pair share the text, which is to count once in the pair's weight.
    weights = drawn(seed, who) * np.sqrt(drawn(seed + 1, words))
    return _gap_curve("paralinguistic", states, labels, paired, weights, "value")


def _gap_curve(kind: Kind, states: States, names: Sequence[str], paired: Mask, weights: Array, what: str) -> Curve:
    """Pairs of the same name against pairs of different names, among those in `paired`: (utterances, utterances)."""
    differ = _differ(codes_of(names))
    same, other = ~differ & paired, differ & paired
    if not same.any() or not other.any():
        missing = "the same" if not same.any() else "another"
        message = f"similarity: no pair of utterances by two speakers has {missing} {what}, as it needs"
        raise SottovoceError(message, code="empty", where=what)
    gaps = [_gap(x, same, other, weights) for x in states.swapaxes(0, 1)]
    draws = np.stack([each for _, each in gaps], axis=1)
    pairs = int(same.sum() + other.sum()) // 2
    notes = f"{int(same.sum()) // 2} pairs of the same {what}, {int(other.sum()) // 2} of another."
    return make_curve(kind, [value for value, _ in gaps], draws, chance=0.0, unit=GAP, n=pairs, notes=notes)


def _gap(x: NDArray[np.float32], same: Mask, other: Mask, weights: Array) -> tuple[float, Array]:
    """Difference of two mean cosines, and the same with each row of weights (resamples, utterances).

    The mean over all utterances is taken off first: the states of an LLM all point much the same way (Ethayarajh,
    2019), which differs from layer to layer and says nothing about pairs.
    """
    centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    draws = _weighted(cosine, same, weights) - _weighted(cosine, other, weights)
    return float(cosine[same].mean() - cosine[other].mean()), draws


def _weighted(cosine: Array, pairs: Mask, weights: Array) -> Array:
    """The mean cosine of the pairs by each row of weights, nan where it draws no pair."""
    total = ((weights @ (cosine * pairs)) * weights).sum(1)
    count = ((weights @ pairs.astype(np.float64)) * weights).sum(1)
    mean: Array = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return mean


def _differ(codes: Codes) -> Mask:
    return np.asarray(codes[:, None] != codes[None, :])
