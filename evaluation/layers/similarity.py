"""How alike utterances are in every state of an LLM, if they share an intent, or a kind of speaker.

Two of the five layer-wise analyses of PE-FT (Resurfacing Paralinguistic Awareness in Large Audio Language Models, 2026,
section 4), which gives no formula; what is done here is said with each function.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import SottovoceError
from sottovoce.evaluation.layers.split import Curve, Kind, drawn, make_curve

Array = NDArray[np.float64]
States = NDArray[np.float32]  # (utterances, states, dim)
Codes = NDArray[np.intp]
Mask = NDArray[np.bool_]

GAP = "cosine, same minus other"


def intent_similarity(
    states: States, intents: Sequence[str], speakers: Sequence[str], texts: Sequence[str], *, seed: int = 0
) -> Curve:
    """How much more alike two utterances are that mean the same, said by other speakers in other words.

    The mean cosine of such pairs less that of pairs of different intents (other speakers and words, too). Intervals
    from speakers and texts, both resampled (Owen, 2007, the pigeonhole bootstrap).

    Args:
        states: as in `attribute_probe`.
        intents: (utterances,), what each is about or wants.
        speakers: (utterances,), who spoke.
        texts: (utterances,), the words.
        seed: of the resamples.

    Raises:
        SottovoceError: there are no pairs of one of the two kinds.
    """
    what, who, words = _codes(intents), _codes(speakers), _codes(texts)
    other = _differ(who) & _differ(words)
    same = ~_differ(what) & other
    weights = _draws(who, seed) * _draws(words, seed + 1)
    return _gap_curve("semantic", states, same, _differ(what) & other, weights, "intent", seed)


def attribute_similarity(
    states: States, labels: Sequence[str], speakers: Sequence[str], texts: Sequence[str], *, seed: int = 0
) -> Curve:
    """How much more alike two speakers are who say the same words and share an attribute, such as age.

    The mean cosine of such pairs less that of pairs of unlike attribute. All pairs say one text each. Intervals from
    speakers and texts, both resampled.

    Args:
        states: as in `attribute_probe`.
        labels: (utterances,), such as `child`.
        speakers: (utterances,), who spoke.
        texts: (utterances,), the words.
        seed: of the resamples.

    Raises:
        SottovoceError: there are no pairs of one of the two kinds.
    """
    kind, who, words = _codes(labels), _codes(speakers), _codes(texts)
    paired = ~_differ(words) & _differ(who)
    # Both of a pair share the text, which is to count once in the pair's weight.
    weights = _draws(who, seed) * np.sqrt(_draws(words, seed + 1))
    return _gap_curve("paralinguistic", states, ~_differ(kind) & paired, _differ(kind) & paired, weights, "value", seed)


def _gap_curve(kind: Kind, states: States, same: Mask, other: Mask, weights: Array, what: str, seed: int) -> Curve:
    if not same.any() or not other.any():
        missing = "the same" if not same.any() else "another"
        raise SottovoceError(f"similarity: no pair of utterances by two speakers has {missing} {what}, as it needs")
    gaps = [_gap(x, same, other, weights) for x in states.swapaxes(0, 1)]
    draws = np.stack([each for _, each in gaps], axis=1)
    pairs = int(same.sum() + other.sum()) // 2
    notes = f"{int(same.sum()) // 2} pairs of the same {what}, {int(other.sum()) // 2} of another."
    return make_curve(kind, [value for value, _ in gaps], draws, chance=0.0, unit=GAP, n=pairs, notes=notes)


def _gap(x: NDArray[np.float32], same: Mask, other: Mask, weights: Array) -> tuple[float, Array]:
    """The difference of two mean cosines, and what it is with each row of weights (resamples, utterances).

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


def _draws(groups: Codes, seed: int) -> Array:
    """How often each utterance's group is drawn in each resample: (resamples, utterances)."""
    return drawn(groups, seed)[:, groups]


def _codes(names: Sequence[str]) -> Codes:
    return np.asarray(np.unique(np.asarray(names, dtype=np.str_), return_inverse=True)[1], dtype=np.intp)


def _differ(codes: Codes) -> Mask:
    return np.asarray(codes[:, None] != codes[None, :])
