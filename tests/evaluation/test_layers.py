"""The layer-wise analyses: each against plain loops or planted states, and the split against shapes of curves."""

import json
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.errors import refused

from sottovoce.errors import Code, MissingError
from sottovoce.evaluation.layers.html import layer_page
from sottovoce.evaluation.layers.probes import attribute_probe, intent_probe, lens_agreement
from sottovoce.evaluation.layers.similarity import attribute_similarity, intent_similarity
from sottovoce.evaluation.layers.split import Curve, Kind, drawn, make_curve, propose, read_split

N = 28


def made(kind: Kind, value: Sequence[float] | np.ndarray[Any, Any], chance: float = 0.5, half: float = 0.02) -> Curve:
    """A curve with intervals of +-half, from independent normal resamples."""
    values = np.asarray([value[0], *value], dtype=np.float64)  # the embeddings are as the first layer
    draws = values + np.random.default_rng(0).normal(0, half / 1.96, (1000, len(values)))
    return make_curve(kind, values.tolist(), draws, chance=chance, unit="", n=100, notes="")


def falling(start: int, end: int, n: int = N) -> np.ndarray[Any, Any]:
    """1 up to `start`, 0 from `end` on."""
    return np.clip((end - np.arange(n)) / (end - start), 0, 1)


def published() -> dict[str, Curve]:
    """Curves in the shape of the paper's: the voice strong in 0-6, the meaning complete at 14, the answer late."""
    voice, meaning = falling(3, 8), 1 - falling(5, 14)
    lens = 1 - falling(16, 27)
    return {
        "age probe": made("paralinguistic", 0.7 + 0.28 * voice),
        "emotion probe": made("paralinguistic", 0.35 + 0.4 * voice, chance=1 / 6),
        "age similarity": made("paralinguistic", 0.02 + 0.2 * voice, chance=0.0),
        "intent probe": made("semantic", 0.3 + 0.65 * meaning, chance=0.1),
        "intent similarity": made("semantic", 0.25 * meaning, chance=0.0),
        "logit lens": made("lens", lens, chance=0.0),
    }


def test_curves_in_the_shape_of_the_papers_give_its_split() -> None:
    split = propose(published())
    assert split.paralinguistic == (0, 6) and split.semantic == (7, 14)
    assert split.transition and split.end
    assert "overtakes the voice after layer 6" in split.words and "complete at layer 14" in split.words


@pytest.mark.parametrize("layer", [2, 20])
def test_one_noisy_layer_does_not_move_the_transition(layer: int) -> None:
    curves = published()
    for name, curve in curves.items():
        value = np.asarray(curve.value)[1:]
        if curve.kind != "lens":
            value[layer] = value.min() if (curve.kind == "paralinguistic") == (layer < 7) else value.max()
        curves[name] = made(curve.kind, value, curve.chance[0])
    assert propose(curves).paralinguistic == (0, 6)


def test_the_scale_of_a_measure_does_not_matter() -> None:
    curves = published()
    small = np.asarray(curves["age similarity"].value)[1:] / 50
    curves["age similarity"] = made("paralinguistic", small, 0.0, half=0.0004)
    assert propose(curves).paralinguistic == (0, 6)


def test_a_late_answer_and_an_early_one() -> None:
    """Where the meaning goes on growing to the top, the logit lens ends the semantic layers."""
    curves = {**published(), "intent probe": made("semantic", 0.3 + 0.6 * (1 - falling(5, 27)), 0.1)}
    del curves["intent similarity"]
    split = propose(curves)
    assert split.semantic[1] == 21 and "logit lens" in split.words  # half of its rise is between 21 and 22


def test_flat_curves_say_so_and_fall_back_on_the_published_proportions() -> None:
    flat = {
        "age probe": made("paralinguistic", np.full(N, 0.98)),
        "intent probe": made("semantic", np.full(N, 0.1), 0.1),
        "logit lens": made("lens", np.full(N, 1.0), 0.0),
    }
    split = propose(flat)
    assert split.paralinguistic == (0, 6) and split.semantic == (7, 14)
    assert not split.transition and not split.end and split.voice is None and split.meaning is None
    assert "published share" in split.words and "age probe, intent probe, logit lens" in split.words


def test_voice_and_meaning_that_rise_together_are_not_parted() -> None:
    rise = 1 - falling(0, N - 1)
    split = propose({"a": made("paralinguistic", 0.5 + 0.4 * rise), "b": made("semantic", 0.5 + 0.4 * rise)})
    assert not split.transition and "do not part" in split.words


def test_a_curve_below_chance_does_not_count() -> None:
    curves = {**published(), "pitch probe": made("paralinguistic", 0.3 + 0.15 * (1 - falling(10, 20)))}
    split = propose(curves)
    assert split.paralinguistic == (0, 6) and "Not counted, as flat or at chance: pitch probe." in split.words


@pytest.mark.parametrize(("kind", "value"), [("paralinguistic", falling(4, 9)), ("semantic", 1 - falling(4, 9))])
def test_one_kind_alone_places_the_transition(kind: Kind, value: np.ndarray[Any, Any]) -> None:
    split = propose({"one": made(kind, 0.5 + 0.4 * value)})
    assert split.transition and split.paralinguistic == (0, 6)
    assert split.semantic == ((7, 9) if kind == "semantic" else (7, 14))


@pytest.mark.parametrize("n", [2, 3, 4, 12, 80])
def test_a_split_always_fits_its_layers(n: int) -> None:
    random = np.random.default_rng(n)
    for _ in range(20):
        kinds: list[Kind] = ["paralinguistic", "semantic", "lens"]
        split = propose({kind: made(kind, random.uniform(0.4, 1, n)) for kind in kinds})
        (first, last), (begin, end) = split.paralinguistic, split.semantic
        assert 0 == first <= last < begin == last + 1 <= end < n == split.layers


@pytest.mark.parametrize(
    ("curves", "code"),
    [
        ({}, "empty"),
        ({"a": made("lens", [0.2])}, "bad-value"),
        ({"a": made("lens", [0.2, 0.3]), "b": made("lens", [0.2, 0.3, 0.4])}, "mismatch"),
    ],
)
def test_what_cannot_be_split_is_refused(curves: dict[str, Curve], code: Code) -> None:
    with refused(code):
        propose(curves)


def test_the_ends_of_a_split_by_hand() -> None:
    """The lead of voice over meaning is positive up to layer 2; the meaning reaches 0.9 of its range in layer 4."""
    curves = {
        "v": made("paralinguistic", [0.9, 0.9, 0.8, 0.6, 0.6, 0.6]),
        "m": made("semantic", [0, 0, 0.3, 0.7, 0.92, 1]),
    }
    split = propose(curves)
    assert (split.paralinguistic, split.semantic) == ((0, 2), (3, 4))
    assert split.voice == pytest.approx([1, 1, 2 / 3, 0, 0, 0])
    assert split.meaning == pytest.approx([0, 0, 0.3, 0.7, 0.92, 1])
    lens = {**curves, "lens": made("lens", [0, 0, 0, 0, 0.5, 1], chance=-0.1)}  # half of its rise is made in layer 4
    assert propose(lens).semantic == (3, 3)


def test_a_curves_interval_and_whether_its_layers_differ() -> None:
    """Layers differ where 99 % of the resamples put the highest above the lowest; the embeddings do not count."""
    steps = np.linspace(-1, 1, 1001)
    draws = np.stack([0 * steps + 5, 0.1 * steps, 0.5 + steps, 0 * steps + 0.2], axis=1)
    curve = make_curve("lens", [5, 0, 0.5, 0.2], draws, chance=0.25, unit="", n=1, notes="")
    assert curve.low == pytest.approx([5, -0.095, -0.45, 0.2]) and curve.high == pytest.approx([5, 0.095, 1.45, 0.2])
    assert curve.chance == [0.25] * 4 and not curve.differs
    for shift, differs in ((0.88, False), (0.9, True)):  # 0.9 x steps is above -0.89 in 99.5 %
        part = np.stack([0 * steps, 0 * steps, shift + 0.9 * steps], axis=1)
        assert make_curve("lens", [0, 0, shift], part, chance=0, unit="", n=1, notes="").differs is differs


def test_resamples_draw_whole_groups_and_groupings_apart() -> None:
    a, b = np.asarray([0, 0, 1, 1, 2, 2]), np.asarray([0, 1, 0, 1, 0, 1])
    alone = drawn(0, a)
    assert alone.shape == (1000, 6) and (alone[:, ::2] == alone[:, 1::2]).all() and (alone[:, ::2].sum(1) == 3).all()
    np.testing.assert_array_equal(drawn(0, a, b), alone * drawn(1, b))


def test_a_split_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "layers.json"
    file.write_text(json.dumps({"layers": 28, "paralinguistic": [0, 6], "semantic": [7, 14]}))
    assert read_split(file) == (0, 14)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("{", "damaged"), ("[]", "damaged"), ('{"layers": 28}', "damaged"),
        ('{"layers": 28, "paralinguistic": [0], "semantic": [7, 14]}', "damaged"),
        ('{"layers": 28, "paralinguistic": [0, 6.5], "semantic": [7.5, 14]}', "bad-value"),
        ('{"layers": "28", "paralinguistic": [0, 6], "semantic": [7, 14]}', "bad-value"),
        ('{"layers": 14, "paralinguistic": [0, 6], "semantic": [7, 14]}', "bad-value"),
        ('{"layers": 28, "paralinguistic": [0, 6], "semantic": [9, 14]}', "bad-value"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_analysis_is_refused(content: str, code: Code, tmp_path: Path) -> None:
    file = tmp_path / "layers.json"
    file.write_text(content)
    with refused(code, file):
        read_split(file)


def test_a_missing_analysis_is_named(tmp_path: Path) -> None:
    with refused("not-found", kind=MissingError) as caught:
        read_split(tmp_path)
    assert "Did you mean" in str(caught.value) and "layers.json" in str(caught.value)


# States with known contents: 8 speakers, 4 intents of 3 texts each; every speaker says every text.
SPEAKERS = [f"s{i}" for i in range(8) for _ in range(12)]
TEXTS = [f"t{j}" for _ in range(8) for j in range(12)]
INTENTS = [f"i{j % 4}" for _ in range(8) for j in range(12)]
AGES = ["child" if i % 2 else "adult" for i in range(8) for _ in range(12)]
RANDOM = np.random.default_rng(0)


def vectors(names: Sequence[str], size: float = 1.0) -> np.ndarray[Any, Any]:
    """The same random vector for the same name."""
    known = {name: size * RANDOM.normal(size=24) for name in sorted(set(names))}
    return np.stack([known[name] for name in names])


def states(*contents: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(96, len(contents), 24): each content with noise."""
    stacked = np.stack(contents, axis=1)
    return (stacked + 0.3 * RANDOM.normal(size=stacked.shape)).astype(np.float32)


def test_a_probe_finds_an_attribute_where_it_is_and_not_where_only_the_speaker_is() -> None:
    nothing = [np.zeros((96, 24))] * 4
    curve = attribute_probe(states(vectors(AGES), vectors(SPEAKERS), *nothing), AGES, SPEAKERS, folds=4)
    assert curve.value[0] > 0.95 and curve.low[0] > 0.5
    assert curve.value[1] < 0.9 and curve.low[1] < 0.5  # a voice is no age
    assert abs(np.mean(curve.value[2:]) - 0.5) < 0.1
    assert curve.chance == [0.5] * 6 and curve.n == 96 and curve.kind == "paralinguistic"


def test_an_intent_is_not_known_by_its_sentences() -> None:
    """States that hold which text was said, and no more, tell nothing about the intents of other texts."""
    curve = intent_probe(states(vectors(INTENTS), vectors(TEXTS)), INTENTS, SPEAKERS, TEXTS)
    assert curve.value[0] > 0.95
    assert curve.low[1] < 0.35 and curve.value[1] < 0.6
    assert curve.n == 96 and curve.chance[0] == 0.25
    by_speakers_alone = attribute_probe(states(*[vectors(TEXTS)] * 2), INTENTS, SPEAKERS, folds=4)
    assert by_speakers_alone.value[0] > 0.95  # which is what holding out the texts is for


def test_the_only_text_of_an_intent_is_not_tested() -> None:
    intents = ["alone" if text == "t0" else intent for text, intent in zip(TEXTS, INTENTS, strict=True)]
    curve = intent_probe(states(*[vectors(INTENTS)] * 2), intents, SPEAKERS, TEXTS)
    assert curve.n == 88 and "8 utterances not tested" in curve.notes


def test_intents_without_other_words_are_refused() -> None:
    with refused("empty", "intents"):
        intent_probe(states(vectors(TEXTS)), TEXTS, SPEAKERS, TEXTS)


def centred_cosine(x: np.ndarray[Any, Any], i: int, j: int) -> float:
    a, b = x[i] - x.mean(0), x[j] - x.mean(0)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def looped(x: np.ndarray[Any, Any], same: list[tuple[int, int]], other: list[tuple[int, int]]) -> float:
    one, two = ([centred_cosine(x, i, j) for i, j in pairs] for pairs in (same, other))
    return float(np.mean(one) - np.mean(two))


@pytest.mark.parametrize(
    ("similarity", "names", "same_text", "layers"),
    [
        (intent_similarity, INTENTS, False, lambda: states(vectors(INTENTS) + vectors(SPEAKERS), vectors(SPEAKERS))),
        (attribute_similarity, AGES, True, lambda: states(vectors(AGES) + vectors(TEXTS, 3.0), vectors(TEXTS))),
    ],
)
def test_a_similarity_is_that_of_plain_loops(
    similarity: Callable[..., Curve], names: list[str], same_text: bool, layers: Callable[[], np.ndarray[Any, Any]]
) -> None:
    """Pairs of other speakers: intents in other words, attributes in the same."""
    x = layers()
    curve = similarity(x, names, SPEAKERS, TEXTS)
    pairs = [(i, j) for i, j in combinations(range(96), 2) if SPEAKERS[i] != SPEAKERS[j]]
    pairs = [(i, j) for i, j in pairs if (TEXTS[i] == TEXTS[j]) == same_text]
    same, other = ([p for p in pairs if (names[p[0]] == names[p[1]]) == equal] for equal in (True, False))
    expected = [looped(x[:, layer].astype(np.float64), same, other) for layer in range(2)]
    np.testing.assert_allclose(curve.value, expected, atol=1e-6)
    assert curve.low[0] > 0 and curve.low[1] < 0 < curve.high[1]
    assert curve.n == len(pairs) and f"{len(same)} pairs of the same" in curve.notes


def test_a_similarity_without_pairs_is_refused() -> None:
    with refused("empty", "value"):
        attribute_similarity(states(vectors(AGES)), SPEAKERS, SPEAKERS, TEXTS)


def test_the_interval_of_a_similarity_covers_other_speakers() -> None:
    """Of many worlds in which nothing but the speaker is heard, the interval holds 0 in most."""
    speakers = np.repeat(np.arange(24), 4)
    names, ages, texts = [str(i) for i in speakers], [str(i % 2) for i in speakers], [str(i % 4) for i in range(96)]
    held = 0
    for seed in range(10):
        random = np.random.default_rng(seed)
        x = random.normal(size=(24, 24))[speakers] + 0.5 * random.normal(size=(96, 24))
        curve = attribute_similarity(x[:, None].repeat(3, 1).astype(np.float32), ages, names, texts, seed=seed)
        held += curve.low[0] <= 0 <= curve.high[0]
    assert held >= 8


def test_the_logit_lens_counts_the_top_three() -> None:
    ranks = np.asarray([[9, 3, 2, 0], [9, 2, 2, 0], [1, 2, 9, 0], [0, 0, 0, 0]], dtype=np.int32)
    curve = lens_agreement(ranks, [5, 5, 6, 5], ["a", "b", "c", "d"], vocabulary=300)
    assert curve.value == [0.5, 0.75, 0.75, 1.0] and curve.chance == [0.01] * 4
    assert curve.low[3] == curve.high[3] == 1.0 and curve.low[0] < 0.5 < curve.high[0]
    assert "2 different tokens" in curve.notes


@pytest.mark.parametrize("picture", [b"\x89PNG...", None])
def test_the_page_has_every_number_and_needs_nothing(picture: bytes | None) -> None:
    curves = {name: curve for name, curve in published().items() if name != "age probe"}
    split = propose(curves)
    heard = {"utterances": 96, "speakers": 8, "texts": 12, "instruction": "", "intent": "<intent>"}
    report = {
        "layers": N, "paralinguistic": split.paralinguistic, "semantic": split.semantic, "words": split.words,
        "rule": "the rule", "heard": heard, "model": {"llm": "abc"}, "left_out": {"age probe": "one age"},
    }  # fmt: skip
    page = layer_page(report, curves, picture)
    for curve in curves.values():
        assert all(f"<td>{value:.3f}<small>" in page for value in curve.value)
    assert page.count('<tr class="voice">') == 7 and page.count('<tr class="meaning">') == 8
    assert "layer 27" in page and "left out: one age" in page and "&lt;intent&gt;" in page and "href" not in page
    assert page.count("src=") == page.count("data:image/png;base64") == bool(picture)
    assert ("matplotlib is not installed" in page) == (picture is None)
