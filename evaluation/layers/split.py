"""Split of an LLM's layers into paralinguistic and semantic ones, by a stated rule over curves of analyses."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import MissingError, SottovoceError

Kind = Literal["paralinguistic", "semantic", "lens"]
Array = NDArray[np.float64]
Layers = NDArray[np.float64]  # (decoder layers,)
Codes = NDArray[np.intp]  # (utterances,)

LAYERS = "layers.json"
RESAMPLES = 1000  # of the bootstrap
SURE = 0.99  # the two layers that are compared were picked out of all
COMPLETE = 0.9  # of the semantic signal's range: from there on it is saturated
PARTED = 0.5  # by how much the signals' difference (of range 2) must fall at the transition
QUARTER, HALF = 7 / 28, 15 / 28  # what the paper read off by eye: layers 0-6 and 7-14 of 28

RULE = (
    "A curve counts if some layer is above chance by its 95 % interval, and the highest layer is above the lowest by "
    "the 99 % interval of their difference in the same resamples; over the decoder layers it is rescaled to 0 .. 1. "
    "The paralinguistic signal is the mean of the probes and of the attribute-conditioned similarities that count, the "
    "semantic signal that of the intent probe and the intent-conditioned similarity. Paralinguistic layers end where "
    "the running sum of (paralinguistic - semantic) is greatest: after that the meaning has overtaken the voice. "
    f"Semantic layers end where the semantic signal has first reached {COMPLETE:g} of its range, or one layer before "
    "the logit lens has made half of its rise, whichever comes first. What the curves do not say is taken from the "
    "published proportions (7 and 15 of 28 layers), and said so."
)


@dataclass(frozen=True)
class Curve:
    """One analysis over the states of an LLM, (decoder layers + 1,) each: the embeddings first, then every output.

    `value` is what was measured, `low` to `high` its 95 % interval.
    """

    kind: Kind  # which signal it speaks of
    value: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    chance: Sequence[float]  # what a guess, or a state that knows nothing, would get
    differs: bool  # whether layers differ by more than chance
    unit: str  # of all of these, as an axis names it
    n: int  # utterances, or pairs of them, that it was measured on
    notes: str = ""


def make_curve(
    kind: Kind, value: Sequence[float], draws: Array, *, chance: float, unit: str, n: int, notes: str
) -> Curve:
    """A curve with its intervals: percentiles of `draws`, (resamples, states), where nan is a resample without a score.

    A resample draws the same for all states, so that layers are compared within it.
    """
    low, high = np.nanquantile(draws, [0.025, 0.975], axis=0)
    layers = np.asarray(value)[1:]
    swing = draws[:, 1 + layers.argmax()] - draws[:, 1 + layers.argmin()]
    differs = bool(np.nanquantile(swing, (1 - SURE) / 2) > 0)
    return Curve(kind, list(value), low.tolist(), high.tolist(), [chance] * len(value), differs, unit, n, notes)


def codes_of(names: Sequence[str]) -> Codes:
    """Each name as the number of its group."""
    return np.asarray(np.unique(np.asarray(names, dtype=np.str_), return_inverse=True)[1], dtype=np.intp)


def drawn(seed: int, *groupings: Codes) -> Array:
    """How often each row is drawn, (resamples, rows), if its groups are drawn apart (Owen, 2007, the pigeonhole)."""
    weights = np.ones((RESAMPLES, len(groupings[0])))
    for number, groups in enumerate(groupings):
        n = int(groups.max()) + 1
        draws = np.random.default_rng(seed + number).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
        weights *= draws[:, groups]
    return weights


@dataclass(frozen=True)
class Split:
    """Ranges of decoder layers, counted from 0, both ends included; the semantic ones follow the paralinguistic ones.

    `transition` and `end` are whether the curves themselves placed the two ends; `words` says how, or why not.
    The signals are (decoder layers,), or None where no curve counts.
    """

    layers: int
    paralinguistic: tuple[int, int]
    semantic: tuple[int, int]
    transition: bool
    end: bool
    words: str
    voice: list[float] | None
    meaning: list[float] | None


def propose(curves: Mapping[str, Curve]) -> Split:
    """Split an LLM into paralinguistic, semantic and remaining layers by `RULE`.

    The authors of PE-FT (Resurfacing Paralinguistic Awareness in Large Audio Language Models, 2026, section 4) read
    layers 0-6 and 7-14 of 28 off such curves by eye, and name no rule. This one needs no threshold in the unit of a
    measure: signals are compared by where in the model they are strong. The transition is a best split and no first
    crossing, so that one noisy layer does not move it; it is believed only if the signals' difference falls enough.

    Raises:
        SottovoceError: there are no curves, they differ in length, or there are fewer than two layers to split.
    """
    n = _layers(curves)
    counting = {name: _rescaled(curve) for name, curve in curves.items() if _counts(curve)}
    voice, meaning, lens = (
        _mean([signal for name, signal in counting.items() if curves[name].kind == kind])
        for kind in ("paralinguistic", "semantic", "lens")
    )
    last, why_last = _transition(voice, meaning, n)
    transition = last is not None
    last = max(0, min(round(QUARTER * n) - 1, n - 2)) if last is None else last
    end, why_end = _end(meaning, lens, last)
    found = end is not None
    end = min(max(last + 1, round(HALF * n) - 1), n - 1) if end is None else end
    words = f"{why_last} {why_end}"
    if silent := sorted(set(curves) - set(counting)):
        words += f" Not counted, as flat or at chance: {', '.join(silent)}."
    signals = (None if signal is None else signal.tolist() for signal in (voice, meaning))
    return Split(n, (0, last), (last + 1, end), transition, found, words, *signals)


def _layers(curves: Mapping[str, Curve]) -> int:
    lengths = {len(part) for c in curves.values() for part in (c.value, c.low, c.high, c.chance)}
    if len(lengths) != 1:
        message = f"layers: expected curves of one length, got lengths {sorted(lengths) or 'of no curve'}"
        raise SottovoceError(message, code="mismatch" if lengths else "empty", where="curves")
    n = lengths.pop() - 1
    if n < 2:
        raise SottovoceError(f"layers: {n} decoder layers cannot be split in two", code="bad-value", where="layers")
    return n


def _counts(curve: Curve) -> bool:
    """Whether a curve says anything about layers: it beats chance somewhere, and is not the same everywhere."""
    low, chance = np.asarray(curve.low)[1:], np.asarray(curve.chance)[1:]
    return bool((low > chance).any() and curve.differs and np.ptp(np.asarray(curve.value)[1:]) > 0)


def _rescaled(curve: Curve) -> Layers:
    value = np.asarray(curve.value, dtype=np.float64)[1:]
    scaled: Layers = (value - value.min()) / (value.max() - value.min())
    return scaled


def _mean(signals: list[Layers]) -> Layers | None:
    return np.mean(signals, axis=0) if signals else None


def _transition(voice: Layers | None, meaning: Layers | None, n: int) -> tuple[int | None, str]:
    """The last paralinguistic layer, and in words how it was found; None if the curves do not place it."""
    if voice is None and meaning is None:
        return None, "No measure of voice or meaning changes over the layers: the transition is the published share."
    half = np.full(n, 0.5)
    lead = (half if voice is None else voice) - (half if meaning is None else meaning)
    last = int(np.argmax(np.cumsum(lead)[: n - 1]))
    fall = float(lead[: last + 1].mean() - lead[last + 1 :].mean())
    if fall < (PARTED if voice is not None and meaning is not None else PARTED / 2):
        words = f"Voice and meaning do not part anywhere (at best by {fall:.2f})"
        return None, f"{words}: the transition is the published share."
    if meaning is None:
        return last, f"The voice has lost half of its signal after layer {last}; no measure of meaning changes."
    if voice is None:
        return last, f"The meaning has half of its signal after layer {last}; no measure of voice changes."
    return last, f"The meaning overtakes the voice after layer {last}."


def _end(meaning: Layers | None, lens: Layers | None, last: int) -> tuple[int | None, str]:
    """The last semantic layer, after layer `last`, and in words how it was found; None if nothing places it."""
    ends: list[tuple[int, str]] = []
    if meaning is not None and (ripe := np.flatnonzero(meaning[last + 1 :] >= COMPLETE)).size:
        at = last + 1 + int(ripe[0])
        ends.append((at, f"The meaning is complete at layer {at}."))
    if lens is not None:
        shape = int(np.argmax(lens >= 0.5))
        ends.append((max(last + 1, shape - 1), f"The answer takes shape in layer {shape} (logit lens)."))
    if not ends:
        return None, "Neither meaning nor logit lens says where understanding ends: the published share is taken."
    return min(ends)


def read_split(path: Path) -> tuple[int, int]:
    """The first and the last layer that an analysis names, paralinguistic and semantic together, counted from 0.

    Raises:
        SottovoceError: it is not the `layers.json` of an analysis, or its ranges do not fit its layers.
    """
    if not path.is_file():
        hint = f" Did you mean {path / LAYERS}?" if path.is_dir() else ""
        why = f"there is no such analysis.{hint} `sottovoce analyze BUNDLE` writes one"
        raise MissingError.at(path, "not-found", why)
    try:
        analysis = json.loads(path.read_text("utf-8"))
        layers = analysis["layers"]
        (first, last), (begin, end) = analysis["paralinguistic"], analysis["semantic"]
    except (ValueError, KeyError, TypeError) as error:
        message = f"{path} is not the {LAYERS} of an analysis ({type(error).__name__}: {error})"
        message += ": it needs `layers`, and `paralinguistic` and `semantic`, each [first, last]"
        raise SottovoceError(message, code="damaged", where=path) from None
    whole = all(type(number) is int for number in (layers, first, last, begin, end))
    if not whole or not 0 <= first <= last < begin <= end < layers or begin != last + 1:
        ranges = f"paralinguistic {first}-{last} and semantic {begin}-{end}"
        raise SottovoceError.at(path, "bad-value", f"{ranges} are no neighbouring ranges of {layers} layers")
    return int(first), int(end)
