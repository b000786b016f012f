"""Judges: every reply gets its own score or is counted, whatever the judge answers."""

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sottovoce.errors import ConfigError
from sottovoce.evaluation import JUDGES
from sottovoce.evaluation.judges import exemplar as rule_judge  # noqa: F401  (importing a module registers it)
from sottovoce.evaluation.judges.llm import ASPECTS, Judge, LLMJudge, Reply, Rubric, Verdict, parse_score
from sottovoce.llms.answer_cache import CachedEngine
from sottovoce.llms.engines import Chat, Engine, Failure

REPLIES = [Reply(f"words {i}", ("happy", "sad")[i % 2], f"reply {i} {{braces}}") for i in range(6)]


@dataclass
class Script(Engine):
    """An LLM that answers by a rule of (prompt, temperature, seed) and keeps what it was asked."""

    rule: Callable[[str, float, int], str | Failure]
    name: str = "script"

    def __post_init__(self) -> None:
        self.asked: list[tuple[str, float, int]] = []

    def answer(
        self, chats: Sequence[Chat], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[str | Failure]:
        asked = [(chat[-1]["content"], temperature, seed) for chat in chats]
        self.asked += asked
        return [self.rule(*each) for each in asked]


def number(prompt: str) -> int:
    """Of the reply that a prompt shows."""
    return int(prompt.split("<reply>reply ")[1].split()[0])


@pytest.mark.parametrize(
    ("judgement", "score"),
    [
        ("7", 7),
        (" 10\n", 10),
        ('{"score": 8}', 8),
        ('```json\n{"score": "8", "why": "a 10 would need 2 more"}\n```', 8),
        ("Score: 9/10", 9),
        ("Rating is 6 out of 10.", 6),
        ("**Score:** 5\nThe reply names 2 things.", 5),
        ("8\n\nThe reply takes up 3 of the words.", 8),
        ("I would give it a 4.", 4),
        ("<think>first 3, or 5?</think>7", 7),
        ("score: 11", None),
        ("0", None),
        ("score: -3", None),
        ("-3", None),
        ("7.5", None),
        ("score: 7-8", None),
        ("score: 7 to 10", None),
        ("between 7 and 8", None),
        ("Score: 3. But in the end my score is 6", None),
        ("very good", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_scores_are_read_and_never_guessed(judgement: str, score: int | None) -> None:
    assert parse_score(judgement) == score


def test_every_aspect_has_a_rubric_that_shows_the_whole_case() -> None:
    engine = Script(lambda prompt, *_: f'{{"score": {number(prompt) + 1 if "able partner" in prompt else 10}}}')
    verdicts = LLMJudge(engine).judge(REPLIES)
    assert set(verdicts) == set(ASPECTS)
    assert verdicts["quality"].scores == [1, 2, 3, 4, 5, 6] and verdicts["emotion"].scores == [10] * 6
    assert len(engine.asked) == 12
    for prompt, _, _ in engine.asked:
        reply = REPLIES[number(prompt)]
        assert reply.transcript in prompt and reply.emotion in prompt and reply.response in prompt
        assert '{"score": N}' in prompt and "Kang" not in prompt  # comments are not part of it


def test_malformed_judgements_are_asked_for_again_and_counted() -> None:
    def rule(prompt: str, temperature: float, seed: int) -> str | Failure:
        if number(prompt) == 5:
            return Failure("no answer within 5 s")
        if number(prompt) == 4:
            return "I cannot decide"
        return "well ..." if number(prompt) == 3 and seed < 12 else "6"

    engine = Script(rule)
    verdict = LLMJudge(engine, retries=2, seed=10).judge(REPLIES)["quality"]
    assert verdict.scores == [6, 6, 6, 6, None, None]
    assert verdict.malformed == 5 and verdict.unclear == 1 and verdict.failed == {"no answer within 5 s": 1}
    asked = [(number(p), temperature, seed) for p, temperature, seed in engine.asked[: 6 + 2 + 2]]
    assert asked[:6] == [(i, 0.0, 10) for i in range(6)]
    assert asked[6:] == [(3, 0.7, 11), (4, 0.7, 11), (3, 0.7, 12), (4, 0.7, 12)]
    assert verdict.notes() == (
        "2 of 6 left out; 1 could not be judged: no answer within 5 s; 1 got judgements without a score; "
        "5 judgements had no score in all"
    )


def test_a_judge_that_is_gone_costs_a_count() -> None:
    verdict = LLMJudge(Script(lambda *_: Failure("gone"))).judge(REPLIES)["emotion"]
    assert verdict.scores == [None] * 6 and verdict.failed == Counter(gone=6)
    assert verdict.mean is None and verdict.interval is None
    assert LLMJudge(Script(lambda *_: "3")).judge([])["quality"] == Verdict([])


def test_judging_the_same_replies_again_asks_nothing(tmp_path: Path) -> None:
    engine = Script(lambda prompt, temperature, seed: "5" if seed or number(prompt) else "?")
    first = LLMJudge(CachedEngine(engine, tmp_path / "kept")).judge(REPLIES)
    asked = len(engine.asked)
    assert LLMJudge(CachedEngine(engine, tmp_path / "kept")).judge(REPLIES) == first and len(engine.asked) == asked
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("Another question: {response}")
    engine.rule = lambda *_: "5"
    LLMJudge(CachedEngine(engine, tmp_path / "kept"), quality=str(rubric)).judge(REPLIES)
    assert len(engine.asked) == asked + 6  # for the changed rubric alone
    LLMJudge(CachedEngine(engine, tmp_path / "kept")).judge([*REPLIES, replace(REPLIES[0], emotion="angry")])
    assert len(engine.asked) == asked + 6 + 2  # and for the new case


def test_the_mean_and_its_interval_are_of_the_replies_with_a_score() -> None:
    draw = random.Random(0)
    scores = [float(draw.randint(3, 9)) for _ in range(400)]
    verdict = Verdict([None, *scores, None])
    assert verdict.mean == pytest.approx(np.mean(scores))
    half = 1.96 * np.std(scores) / 20
    assert verdict.interval == pytest.approx((np.mean(scores) - half, np.mean(scores) + half), abs=0.05)
    assert verdict.notes() == "2 of 402 left out" and Verdict(list(scores)).notes() == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{transcript} and {emotion}", "never shows the {response}"),
        ("{response} {emotions}", "unknown field {emotions}. Did you mean 'emotion'"),
        ('{response} {"score": 1}', "braces that are meant go twice"),
        ("{response} }", "rubric.txt: the rubric cannot be used"),
    ],
)
def test_a_rubric_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "rubric.txt"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Rubric(file)
    assert message in str(caught.value) and str(file) in str(caught.value)


def test_knobs_that_make_no_sense() -> None:
    for knobs in ({"retries": -1}, {"max_new_tokens": 0}, {"emotion": "nowhere.txt"}):
        with pytest.raises(ConfigError):
            JUDGES.build({"type": "llm", **knobs}, Script(lambda *_: "1"))
    with pytest.raises(ConfigError, match="needs an engine"):
        JUDGES.build({"type": "llm"}, None)


# The judge by rule

EXEMPLARS = {
    "neutral": ["I see. What will you do with {thing} next?"],
    "happy": ["That is wonderful news about {thing}! I am so glad for you."],
    "sad": ["I am sorry to hear that. Do you want to talk about {thing}?", "How sad. {thing} meant a lot to you."],
}
SAID = "we lost the red lamp yesterday"


def rule(**knobs: Any) -> Judge:
    return JUDGES.build({"type": "rule", **(knobs or {"exemplars": EXEMPLARS})}, None)


def judged(response: str, emotion: str = "happy", transcript: str = SAID, **knobs: Any) -> tuple[float, float]:
    verdicts = rule(**knobs).judge([Reply(transcript, emotion, response)])
    quality, feeling = verdicts["quality"].scores[0], verdicts["emotion"].scores[0]
    assert quality is not None and feeling is not None
    return quality, feeling


@pytest.mark.parametrize("emotion", EXEMPLARS)
def test_the_exemplar_of_the_true_emotion_gets_full_marks_and_one_of_another_the_least(emotion: str) -> None:
    for other, texts in EXEMPLARS.items():
        for text in texts:
            quality, feeling = judged(text.format(thing="lamp"), emotion)
            assert quality == pytest.approx(10, abs=1e-5)
            assert feeling == pytest.approx(10 if other == emotion else 1, abs=1e-5)


def test_a_reply_on_another_subject_loses_half_of_its_quality() -> None:
    exemplar = EXEMPLARS["happy"][0]
    assert judged(exemplar.format(thing="lamp"))[0] == pytest.approx(10)
    assert judged(exemplar.format(thing="kettle"))[0] < 5.5 < judged(exemplar.format(thing="kettle"))[1]
    assert judged(exemplar.format(thing="it"), transcript="and so it is")[0] > 9  # there was nothing to name
    only_nouns: dict[str, Any] = {"exemplars": EXEMPLARS, "things": ["lamp", "kettle"]}
    assert judged(exemplar.format(thing="red"), **only_nouns)[0] < 5.5 < judged(exemplar.format(thing="red"))[0]


def test_half_a_reply_gets_marks_in_between() -> None:
    quality, feeling = judged("That is wonderful about the lamp")
    assert 3 < quality < 9 and 3 < feeling < 9


@pytest.mark.parametrize("response", ["", "xyzzy", "...", "日本語"])
def test_a_reply_like_no_exemplar_gets_the_least(response: str) -> None:
    assert judged(response) == (1, 1)


def test_an_emotion_without_exemplars_is_counted() -> None:
    verdicts = rule().judge([Reply(SAID, "angry", "I see."), Reply(SAID, "sad", "How sad.")])
    assert verdicts["emotion"].scores[0] is None and verdicts["emotion"].scores[1] is not None
    assert [reason[:32] for reason in verdicts["emotion"].failed] == ["there is no exemplar for 'angry'"]
    assert None not in verdicts["quality"].scores
    assert rule().judge([])["emotion"].mean is None


@pytest.mark.parametrize("name", ["exemplars.yaml", "exemplars.json"])
def test_exemplars_from_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps(EXEMPLARS))
    replies = [Reply(SAID, "sad", "I am sorry to hear that.")]
    assert rule(file=str(tmp_path / name)).judge(replies) == rule().judge(replies)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"things": ["lamp"]}, "either exemplars"),
        ({"exemplars": EXEMPLARS, "file": "also.yaml"}, "either exemplars"),
        ({"exemplars": {"sad": ["a"]}}, "at least two emotions"),
        ({"exemplars": {"sad": ["a"], "happy": []}}, "lists of replies"),
        ({"exemplars": {"sad": ["a"], "happy": ["{name}"]}}, "field other than {thing}"),
        ({"exemplars": {"sad": ["a"], "happy": ["{thing}!"]}}, "no word"),
        ({"exemplars": {"sad": ["a"], "happy": ["a }"]}}, "is no reply"),
        ({"file": "nowhere.yaml"}, "nowhere.yaml"),
    ],
)
def test_exemplars_that_cannot_be_used(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rule(**knobs)
