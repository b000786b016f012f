"""Verdicts by thresholds: each once, what comes before what, and what is not measured decides nothing."""

from dataclasses import replace
from typing import Any

import pytest

from sottovoce.analysis.verdicts import MEANING, TaskDiagnosis, is_near_chance, overfits, skill, verdict_of
from sottovoce.evaluation.metrics import Score


def share(value: float, chance: float | None = 0.5, low: float | None = None) -> Score:
    return Score(value, value - 0.05 if low is None else low, min(1.0, value + 0.05), 40, chance, "")


def attribute(
    answers: float, frames: float, heard: float, tokens: float, topline: float = 1.0, **more: Any
) -> TaskDiagnosis:
    found = TaskDiagnosis("gender", "attribute", "balanced_accuracy", 40, 160, ("voice",), told=1.0)
    found.answers, found.topline = share(answers), share(topline)
    found.frames = {"last": share(heard), "best": share(frames), "voice": share(heard), "words": share(heard)}
    found.tokens = {"voice": share(tokens), "words": share(0.99)}  # a slot that does not carry the task
    found.loss = {"train": {"speech": 0.4, "none": 0.5}, "test": {"speech": 0.4, "none": 0.5}}
    return replace(found, **more)


def words(answers: float, decoder: float | None, frames: float, tokens: float, topline: float = 0.0) -> TaskDiagnosis:
    found = TaskDiagnosis("asr", "asr", "wer", 40, 160, ("words",))
    found.answers, found.topline = share(answers, None), share(topline, None)
    found.decoder = None if decoder is None else share(decoder, None)
    found.frames = {"last": share(frames), "best": share(frames), "words": share(frames)}
    found.tokens = {"words": share(tokens)}
    return found


LOST = {"train": {"speech": 0.1, "none": 0.9}, "test": {"speech": 0.8, "none": 0.9}}
CASES = {
    "learned": attribute(0.92, 0.95, 0.95, 0.95),
    "llm": attribute(0.5, 0.95, 0.95, 0.95, topline=0.55),
    "encoder": attribute(0.5, 0.52, 0.52, 0.52),
    "layers": attribute(0.6, 0.95, 0.65, 0.65),
    "overfits": attribute(0.6, 0.95, 0.95, 0.95, loss=LOST),
    "adapter": attribute(0.5, 0.95, 0.95, 0.6),
    "tokens": attribute(0.5, 0.95, 0.95, 0.95),
    "partly": replace(attribute(0.7, 0.95, 0.95, 0.95), frames={}, tokens={}),
    "unknown": replace(attribute(0.5, 0.95, 0.95, 0.95), frames={}, tokens={}),
}
WORDS = {
    "learned": words(0.3, 0.25, 0.9, 0.9),
    "llm": words(1.0, 0.25, 0.9, 0.9, topline=0.8),
    "encoder": words(1.0, 1.0, 0.52, 0.52),
    "adapter": words(1.0, 0.25, 0.9, 0.6),
    "tokens": words(1.0, 0.25, 0.9, 0.9),
}


@pytest.mark.parametrize(("expected", "found"), [*CASES.items(), *WORDS.items()])
def test_each_verdict_by_its_figures(expected: str, found: TaskDiagnosis) -> None:
    found.judge()
    assert found.verdict == expected
    assert found.sentence.startswith(MEANING[found.verdict]) and "not known" not in found.sentence.partition("none")[0]


def test_every_verdict_is_reached() -> None:
    assert {verdict_of(found) for found in CASES.values()} == set(MEANING)


def test_what_is_near_chance() -> None:
    assert skill(share(0.75)) == 0.5 and skill(share(0.25, None), "asr") == 0.75 and skill(share(1.4, None), "asr") == 0
    assert is_near_chance(share(0.56)) and is_near_chance(share(0.7, low=0.45)) and not is_near_chance(share(0.7))
    assert is_near_chance(share(0.9, None), "asr") and not is_near_chance(share(0.8, None), "asr")


def test_a_test_side_of_one_label_tells_nothing() -> None:
    found = attribute(1.0, 0.95, 0.95, 0.95)
    found.answers = found.topline = share(1.0, chance=1.0)
    found.judge()
    assert found.verdict == "unknown" and "same label" in found.sentence


def test_a_topline_counts_only_where_the_text_tells_the_label() -> None:
    assert verdict_of(attribute(0.5, 0.95, 0.95, 0.95, topline=0.55, told=0.2)) == "tokens"


def test_a_decoder_that_reads_the_frames_speaks_for_the_encoder() -> None:
    assert verdict_of(words(1.0, 0.2, 0.52, 0.52)) != "encoder"
    assert verdict_of(words(0.9, None, 0.52, 0.52)) == "encoder"
    assert verdict_of(words(0.5, 0.2, 0.9, 0.9)) == "tokens"  # more than 1.5 times the decoder's
    assert verdict_of(words(0.5, 0.4, 0.9, 0.9)) == "learned"


def test_a_share_of_next_to_nothing_is_not_learned() -> None:
    assert verdict_of(words(0.733, None, 0.9, 0.9, topline=0.9)) == "llm"
    assert verdict_of(words(0.733, 0.7, 0.9, 0.9, topline=0.9)) == "llm"
    assert verdict_of(words(0.3, None, 0.9, 0.9, topline=0.9)) == "learned"  # speech says what the text does not


def test_overfitting_needs_something_learned() -> None:
    assert overfits(LOST)
    assert not overfits({"train": {"speech": 0.88, "none": 0.9}, "test": {"speech": 0.95, "none": 0.9}})
    assert not overfits({"train": {"speech": 0.1, "none": 0.9}, "test": {"speech": 0.3, "none": 0.9}})
    assert not overfits({"train": {"speech": 0.1}, "test": {"speech": 0.3, "none": 0.9}})


@pytest.mark.parametrize(
    ("speech", "train", "expected"),
    [(0.35, 0.3, "learned"), (0.7, 0.6, "partly"), (0.88, 0.1, "overfits"), (0.88, 0.87, "unknown")],
)
def test_replies_are_judged_by_what_speech_saves(speech: float, train: float, expected: str) -> None:
    found = TaskDiagnosis("dialogue", "generated", "rouge_l", 40, 160, ("voice",))
    test = {"speech": speech, "text": 0.3, "none": 0.9}
    found.loss = {"train": {"speech": train, "none": 0.9}, "test": test}
    found.judge()
    assert found.verdict == expected and f"{speech:.2f}" in found.sentence
