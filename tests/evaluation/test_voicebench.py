"""VoiceBench: scores computed by hand, and judgements."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tests.helpers.errors import refused

from sottovoce.errors import Code, MissingError
from sottovoce.evaluation.judges.base import Failed
from sottovoce.evaluation.judges.voicebench import VoiceBenchJudge, rating, vote
from sottovoce.evaluation.voicebench import KINDS
from sottovoce.evaluation.voicebench.answers import pedant
from sottovoce.evaluation.voicebench.scores import Answer, Part, measures, part_of, read_answers, write_answers

# Scores by hand: the right answer to each subset, and a wrong one.
RULED: dict[str, list[tuple[Answer, float]]] = {
    "mmsu": [
        (Answer("m1", "mmsu", "?", "The answer is B.", "B"), 1.0), (Answer("m2", "mmsu", "?", "A.", "D"), 0.0),
        (Answer("m3", "mmsu", "?", "Who knows", "C"), 0.25),
    ],
    "openbookqa": [(Answer("o1", "openbookqa", "?", "c", " c "), 1.0)],
    "bbh": [
        (Answer("b1", "bbh", "?", "No.", "no", {"original_id": "navigate_1"}), 1.0),
        (Answer("b2", "bbh", "?", "Option A is the correct one", "(B)", {"original_id": "hyperbaton_1"}), 0.0),
        (Answer("b3", "bbh", "?", "Hm.", "Yes", {"original_id": "web_of_lies_4"}), 0.5),
    ],
    "advbench": [(Answer("a1", "advbench", "?", "Sorry."), 1.0), (Answer("a2", "advbench", "?", "Take a pin."), 0.0)],
}  # fmt: skip
OPEN = [Answer("w1", "wildvoice", "?", "Hi", judged=(3, 4, 5)), Answer("w2", "wildvoice", "?", "Ho", judged=(1, 1, 1))]
QA = [
    Answer("q1", "sd-qa", "?", "It is Rome.", "Rome", judged=(1, 1, 0)),  # both say right
    Answer("q2", "sd-qa", "?", "The city.", "Rome", judged=(1, 0, 1)),  # the judge alone
    Answer("q3", "sd-qa", "?", "Rome", "Rome", judged=(0, 0, 0)),  # the reference alone
    Answer("q4", "sd-qa", "?", "Paris", "Rome", judged=(0, 1, 0)),
]
FOLLOWING = [
    Answer("i1", "ifeval", "?", "Yes", None,
           {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}),
    Answer("i2", "ifeval", "?", '**"A, b"**', None,  # quoted once asterisks are gone, and never without a comma
           {"instruction_id_list": ["punctuation:no_comma", "startend:quotation", "detectable_format:json_format"],
            "kwargs": [{}, {}, {}]}),
]  # fmt: skip


def value(part: Part, metric: str, subset: str) -> float:
    return measures({subset: part})[f"voicebench ({subset})", metric].value


@pytest.mark.parametrize("subset", RULED)
def test_subsets_that_rules_score(subset: str) -> None:
    answers, due = zip(*RULED[subset], strict=True)
    part = part_of(subset, answers)
    assert value(part, "score", subset) == pytest.approx(np.mean(due))
    assert ("count as a guess" in part.notes) == (subset in ("mmsu", "bbh"))


def test_ratings_are_averaged_and_enter_the_overall_score_twentyfold() -> None:
    part = part_of("wildvoice", OPEN)
    assert value(part, "rating", "wildvoice") == pytest.approx((4 + 1) / 2)
    assert sum(row[0] for row in part.main.values()) / 2 == pytest.approx(20 * 2.5 / 100)
    half = part_of("wildvoice", [OPEN[0], replace(OPEN[1], judged=None)])
    assert value(half, "rating", "wildvoice") == 4 and "1 of 2" in half.notes
    assert not part_of("wildvoice", [replace(OPEN[0], judged=None)]).main


def test_sd_qa_is_the_mean_of_reference_and_judge() -> None:
    part = part_of("sd-qa", QA)
    assert (value(part, "panda", "sd-qa"), value(part, "judged", "sd-qa")) == (0.5, 0.5)
    assert value(part, "score", "sd-qa") == 0.5 == (1 + 0.5 + 0.5 + 0) / 4
    never = part_of("sd-qa", QA, panda=lambda response, reference, prompt: False)
    assert (value(never, "panda", "sd-qa"), value(never, "score", "sd-qa")) == (0, 0.25)
    unjudged = part_of("sd-qa", [replace(answer, judged=None) for answer in QA])
    assert set(measures({"sd-qa": unjudged})) == {("voicebench (sd-qa)", "panda")}  # and no score


def test_ifeval_is_the_mean_of_four_accuracies() -> None:
    part = part_of("ifeval", FOLLOWING)
    assert value(part, "strict_prompt", "ifeval") == 1 / 2
    assert value(part, "strict_each", "ifeval") == 1 / 4
    assert value(part, "loose_prompt", "ifeval") == 1 / 2
    assert value(part, "loose_each", "ifeval") == 3 / 4  # quoted, and a JSON text
    assert value(part, "score", "ifeval") == pytest.approx((1 / 2 + 1 / 4 + 1 / 2 + 3 / 4) / 4)
    marked = replace(FOLLOWING[0], response="<1> \"Yes\"<|user|>",
                     fields={"instruction_id_list": ["startend:quotation"], "kwargs": [{}]})  # fmt: skip
    assert value(part_of("ifeval", [marked]), "strict_prompt", "ifeval") == 1


def all_parts() -> dict[str, Part]:
    named = {"wildvoice": OPEN, "sd-qa": QA, "ifeval": FOLLOWING}
    named |= {subset: [answer for answer, _ in rows] for subset, rows in RULED.items()}
    for subset, judged in (("alpacaeval", (5.0, 5.0, 5.0)), ("commoneval", (3.0, 3.0, 3.0))):
        named[subset] = [Answer(subset, subset, "?", "Yes", judged=judged)]
    return {subset: part_of(subset, named[subset]) for subset in KINDS}


def test_the_overall_score_is_the_mean_of_nine() -> None:
    parts = all_parts()
    open_ended, sd_qa, ifeval = [1.0, 0.6, 0.5], 0.5, 0.5
    right = [(1 + 0 + 0.25) / 3, 1.0, (1 + 0 + 0.5) / 3, 0.5]
    overall = measures(parts)["voicebench", "score"]
    assert overall.value == pytest.approx(sum([*open_ended, sd_qa, ifeval, *right]) / 9)
    score = overall.score()
    assert score.low <= score.value <= score.high and score.n == sum(len(part.main) for part in parts.values())
    for absent in KINDS:
        rest = {subset: part for subset, part in parts.items() if subset != absent}
        assert ("voicebench", "score") not in measures(rest)


def test_the_overall_score_of_the_leaderboard() -> None:
    """Kimi-Audio's row, as published: 4.46, 3.97, 4.20, 63.12, 62.17, 83.52, 69.70, 61.10, 100 make 76.91."""
    shares = [4.46 / 5, 3.97 / 5, 4.20 / 5, 0.6312, 0.6217, 0.8352, 0.6970, 0.6110, 1.0]
    parts = {subset: Part({}, {subset: [share, 1.0]}, "") for subset, share in zip(KINDS, shares, strict=True)}
    assert round(100 * measures(parts)["voicebench", "score"].value, 2) == 76.91


def test_changes_are_paired_and_on_what_was_scored_both_times() -> None:
    now, then = all_parts(), all_parts()
    same = measures(now, then)
    assert same["voicebench", "score_change"].score()[:3] == (0, 0, 0)
    worse = [replace(answer, response="Who knows") for answer, _ in RULED["mmsu"]]
    then["mmsu"] = part_of("mmsu", worse[:2])
    found = measures(now, then)
    at = "voicebench (mmsu)"
    assert (found[at, "score"].value, found[at, "score_before"].value) == (0.5, 0.25)  # of the two
    assert found[at, "score_change"].value == 0.25 and len(found[at, "score_change"].rows) == 2
    change = found["voicebench", "score"].value - found["voicebench", "score_before"].value
    assert found["voicebench", "score_change"].value == pytest.approx(change) and change == pytest.approx(0.25 / 9)
    assert ("voicebench", "score_before") not in measures(now, {"mmsu": then["mmsu"]})


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer("x", "mmsu", "?", "A"), "missing-key"),
        (Answer("x", "mmsu", "?", "A", "E"), "bad-value"),
        (Answer("x", "bbh", "?", "Yes", "maybe", {"original_id": "navigate_1"}), "bad-value"),
        (Answer("x", "bbh", "?", "Yes", "yes", {"original_id": "snarks_1"}), "unknown-name"),
        (Answer("x", "ifeval", "?", "Yes", None, {"instruction_id_list": ["punctuation:no_comma"]}), "missing-key"),
        (Answer("x", "sd-qa", "?", "Yes"), "missing-key"),
    ],
)
def test_rows_that_cannot_be_scored_are_named(answer: Answer, code: Code) -> None:
    with refused(code, "x"):
        part_of(answer.subset, [answer])


def test_pedant_is_asked_in_lower_case_and_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Pedant:
        def evaluate(self, references: list[str], response: str, prompt: str) -> bool:
            asked.append((references, response, prompt))
            return True

    fake = ModuleType("qa_metrics.pedant")
    fake.PEDANT = Pedant  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "qa_metrics", ModuleType("qa_metrics"))
    monkeypatch.setitem(sys.modules, "qa_metrics.pedant", fake)
    assert pedant()("In ROME", "Rome", "Where?") is True and asked == [(["rome"], "in rome", "where?")]
    monkeypatch.setitem(sys.modules, "qa_metrics.pedant", None)
    with refused("unavailable", "evaluation.voicebench.panda", MissingError):
        pedant()


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("4", 4), ("4.5", 4.5), ("[[3]]", 3), ("<think>1 or 2</think> 5", 5), ("Score: 2", 2), ("4/5", 4), ("6", None),
        ("0", None), ("nan", None), ("good", None), ("", None), ("Between [[7]]", None),
    ],
)  # fmt: skip
def test_ratings(said: str, score: float | None) -> None:
    assert rating(said) == score


@pytest.mark.parametrize(
    ("said", "right"),
    [("Yes", 1), ("no.", 0), ('"Yes"', 1), ("<think>yes</think>No, it is not", 0), ("Perhaps", None), ("", None)],
)
def test_votes(said: str, right: float | None) -> None:
    assert vote(said) == right


class Gone:
    reason = "the server is gone"


class Scripted:
    """An engine that rates by the seed, is unclear at first about one answer, and cannot be asked about another."""

    name = "scripted"

    def __init__(self) -> None:
        self.asked: list[tuple[list[dict[str, str]], float, int]] = []

    def answer(
        self, chats: Sequence[list[dict[str, str]]], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[str | Failed]:
        self.asked += [(chat, temperature, seed) for chat in chats]
        return [self._one(chat[-1]["content"], seed) for chat in chats]

    def _one(self, text: str, seed: int) -> str | Failed:
        if "unspeakable" in text:
            return Gone()
        if "<reference>" in text:
            return "Yes." if seed % 3 else "No."
        return "Hm" if "muddled" in text and seed < 3 else str(seed % 3 + 3)


def test_the_judge_asks_three_times_and_again_where_it_cannot_read() -> None:
    answers = [
        Answer("1", "alpacaeval", "Why?", "So."), Answer("2", "commoneval", "Why?", "muddled"),
        Answer("3", "wildvoice", "Why?", "unspeakable"), Answer("4", "sd-qa", "Who?", "I", "Me"), RULED["mmsu"][0][0],
    ]  # fmt: skip
    engine = Scripted()
    done = VoiceBenchJudge(engine).judge(answers)
    assert [answer.judged for answer in done.answers] == [(3, 4, 5), (3, 4, 5), None, (0, 1, 1), None]
    assert done.missing == 1 and done.failed == {"the server is gone": 3} and "the server is gone" in done.notes()
    assert {temperature for _, temperature, _ in engine.asked} == {0.5}
    first = engine.asked[0][0]
    assert [turn["role"] for turn in first] == ["system", "user"]
    assert "<said>Why?</said>" in first[1]["content"] and "<reply>So.</reply>" in first[1]["content"]
    asked = [chat[-1]["content"] for chat, _, _ in engine.asked]
    assert any("<reference>Me</reference>" in text for text in asked) and not any("The answer is B" in t for t in asked)


def test_a_rubric_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "open.txt"
    file.write_text("### [Instruction]: {prompt}\n### [Response]: {response}\n")
    engine = Scripted()
    VoiceBenchJudge(engine, open_rubric=str(file)).judge([Answer("1", "wildvoice", "Why?", "So {x}.")])
    assert engine.asked[0][0][-1]["content"] == "### [Instruction]: Why?\n### [Response]: So {x}."


def test_answers_are_kept_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "voicebench.jsonl"
    write_answers(file, [*OPEN, *FOLLOWING])
    assert read_answers(file) == [*OPEN, *FOLLOWING]
    file.write_text(json.dumps({"id": "x"}) + "\n")
    with refused("damaged", "voicebench.jsonl"):
        read_answers(file)
    with refused("not-found", "nowhere.jsonl", MissingError):
        read_answers(tmp_path / "nowhere.jsonl")
