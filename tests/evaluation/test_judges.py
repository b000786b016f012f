"""Judges: every reply gets its own score or is counted, whatever the judge answers."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.errors import refused

from sottovoce.errors import Code, ConfigError
from sottovoce.evaluation import AWARENESS_JUDGES, JUDGES
from sottovoce.evaluation.awareness import Case
from sottovoce.evaluation.judges.base import Judge, Reply, Verdict
from sottovoce.evaluation.judges.llm import SCALES, ConversationJudge, QualityJudge, parse
from sottovoce.llms.answer_cache import CachedEngine
from sottovoce.llms.engines import Chat, Engine, Failure

REPLIES = [
    Reply(f"words {i}", ("happy", "sad")[i % 2], f"reply {i} {{braces}}", f"User: before {i}", "A sad voice.")
    for i in range(6)
]


@dataclass
class Script(Engine):
    """An LLM that answers by a rule of (prompt, seed) and keeps what it was asked."""

    rule: Callable[[str, int], str | Failure]
    name: str = "script"

    def __post_init__(self) -> None:
        self.asked: list[tuple[str, float, int]] = []

    def answer(self, chats: Sequence[Chat], *, seed: int = 0, **limits: Any) -> list[str | Failure]:
        self.asked += [(chat[-1]["content"], limits.get("temperature", 0.0), seed) for chat in chats]
        return [self.rule(chat[-1]["content"], seed) for chat in chats]


def number(prompt: str) -> int:
    """Of the reply that a prompt shows."""
    return int(prompt.split("<reply>reply ")[1].split()[0])


@pytest.mark.parametrize(
    ("scale", "judgement", "numbers"),
    [
        ("quality", "7", [7]), ("quality", " 10\n", [10]), ("quality", '{"score": 8}', [8]),
        ("quality", '```json\n{"score": "8", "why": "a 10 would need 2 more"}\n```', [8]),
        ("quality", "Score: 9/10", [9]), ("quality", "Rating is 6 out of 10.", [6]),
        ("quality", "**Score:** 5\nThe reply names 2 things.", [5]),
        ("quality", "8\n\nThe reply takes up 3 of the words.", [8]), ("quality", "I would give it a 4.", [4]),
        ("quality", "<think>first 3, or 5?</think>7", [7]),
        ("quality", "7.0", [7]), ("quality", '{"score": 7.0}', [7]), ("quality", "Score (1-10): 7", [7]),
        ("quality", '{"score": {"value": 7}, "n": 3}', [7]), ("quality", "评分：７", [7]),
        ("quality", "Score: 8.0/10", [8]),
        ("quality", '{"quality": {"why": "2 of 3", "score": 7}}', [7]), ("quality", "7.05", None),
        ("quality", '{"score": 7.5}', None), ("quality", "Score (7): 3 reasons", [7]), ("awareness", "-1.0", [-1]),
        ("cs", "Content score: 4\nStyle score: 5", [4, 5]), ("cs", "Content (1-5): 4\nStyle (1-5): 5", [4, 5]),
        ("cs", "**Content Score (out of 5)**: 4.0\n**Style score [1-5]:** 5/5", [4, 5]),
        ("cs", '{"content": {"score": 4, "why": "3"}, "style": {"why": "1 or 2", "score": 5.0}}', [4, 5]),
        ("cs", '{"scores": {"Content": 4, "Style": 5}}', [4, 5]),
        ("cs", '{"content": {"score": 4.5}, "style": 5}', None),
        ("cs", '{"content": true, "style": 5}', None), ("cs", '{"content": {"min": 1, "max": 4}, "style": 5}', None),
        ("quality", "score: 11", None), ("quality", "0", None), ("quality", "score: -3", None), ("quality", "-3", None),
        ("quality", "score: \u22123", None), ("quality", "7.5", None), ("quality", "score: 7-8", None),
        ("quality", "score: 7 to 10", None), ("quality", "between 7 and 8", None), ("quality", "very good", None),
        ("quality", "Score: 3. But in the end my score is 6", None), ("quality", "", None), ("quality", "9" * 99, None),
        ("cs", '{"content": 4, "style": 5}', [4, 5]), ("cs", '```json\n{"Content": "4",\n "Style": "5"}\n```', [4, 5]),
        ("cs", "Content: 4\nStyle: 5", [4, 5]), ("cs", "**Content:** 4/5, **style** = 5 out of 5", [4, 5]),
        ("cs", '<think>"content": 1</think>{"content":4,"style":5}', [4, 5]),
        ("cs", '{"content": 4}', None), ("cs", '{"content": 4, "style": 6}', None),
        ("cs", '{"content": 0, "style": 5}', None), ("cs", '{"content": -4, "style": 5}', None),
        ("cs", '{"content": 4.5, "style": 5}', None), ("cs", "Content: 3-4, style: 5", None),
        ("cs", '{"content": 4, "style": 5} or rather {"content": 3, "style": 5}', None),
        ("cs", "4 and 5", None), ("cs", "", None),
        ("egs", '{"C1": 10, "C2": 9, "C3": 1, "C4": 7}', [10, 9, 1, 7]),
        ("egs", '{"C1": 10, "C2": 9, "C3": 11, "C4": 7}', None),
        ("awareness", "1", [1]), ("awareness", "+1", [1]), ("awareness", "-1", [-1]), ("awareness", "\u22121", [-1]),
        ("awareness", "0", [0]), ("awareness", ' {"label": -1} ', [-1]), ("awareness", '{"label": "+1"}', [1]),
        ("awareness", "Label: 0", [0]), ("awareness", "**Label:** -1\nIt names 2 things.", [-1]),
        ("awareness", "My label is 1.", [1]), ("awareness", "label -1", [-1]), ("awareness", "I say -1.", [-1]),
        ("awareness", "<think>-1 or 0?</think>1", [1]), ("awareness", "1\n\nIt heeds 3 of them.", [1]),
        ("awareness", "2", None), ("awareness", "0.5", None), ("awareness", "1 or 0", None), ("awareness", "yes", None),
        ("awareness", "-1 to 1", None), ("awareness", "0-1", None), ("awareness", "0/1", None),
        ("awareness", "label: 10", None), ("awareness", "", None),
    ],
)  # fmt: skip
def test_numbers_are_read_and_never_guessed(scale: str, judgement: str, numbers: list[int] | None) -> None:
    keys = SCALES[scale].keys
    assert parse(judgement, SCALES[scale]) == (None if numbers is None else dict(zip(keys, numbers, strict=True)))


def test_every_aspect_has_its_own_rubric_and_every_reply_its_own_score() -> None:
    engine = Script(lambda prompt, _: f'{{"score": {number(prompt) + 1 if "able partner" in prompt else 10}}}')
    verdicts = QualityJudge(engine).judge(REPLIES)
    assert {aspect: v.scores for aspect, v in verdicts.items()} == {"quality": [1, 2, 3, 4, 5, 6], "emotion": [10] * 6}
    assert len(engine.asked) == 12
    for prompt, _, _ in engine.asked:
        reply = REPLIES[number(prompt)]
        assert reply.transcript in prompt and reply.emotion in prompt and reply.response in prompt
        assert '{"score": N}' in prompt and "Kang" not in prompt  # comments are not part of it


@pytest.mark.parametrize("late", [False, True])
def test_a_conversation_has_six_aspects(late: bool) -> None:
    """A judgement that lacks one of its numbers is asked for again as a whole."""

    def rule(prompt: str, seed: int) -> str:
        n = number(prompt)
        shown = f'"content": {n % 5 + 1}, "style": {5 - n % 5}, "C1": {n + 1}, "C2": {n + 2}, "C3": {n + 3}'
        return f"{{{shown}}}" if late and not seed else f'{{{shown}, "C4": {n + 4}}}'

    engine = Script(rule)
    verdicts = ConversationJudge(engine).judge(REPLIES)
    expected = {"cs_content": [1, 2, 3, 4, 5, 1], "cs_style": [5, 4, 3, 2, 1, 5]}
    expected |= {f"egs_c{k}": [i + k for i in range(6)] for k in (1, 2, 3, 4)}
    assert {aspect: v.scores for aspect, v in verdicts.items()} == expected
    assert {aspect[:3]: v.malformed for aspect, v in verdicts.items()} == {"cs_": 0, "egs": 6 if late else 0}
    for prompt, _, _ in engine.asked:
        assert f"User: before {number(prompt)}\n" in prompt and f"<said>words {number(prompt)}</said>" in prompt
        assert ("A sad voice." in prompt) == ('"C1": N' in prompt)  # EGS is shown the voice, CS is not
    assert tuple(ConversationJudge(engine, scales=["egs"]).judge(REPLIES)) == tuple(expected)[2:]


def test_awareness_is_shown_what_suits_each_speaker() -> None:
    due = {"child": "Ask a grown up.", "adult": "Switch it off."}
    engine = Script(lambda *_: '{"label": -1}')
    judge = AWARENESS_JUDGES.build({"type": "llm"}, engine)
    assert judge.judge([Case("age", "child", "reply {0}", due, "words 0")]).scores == [-1]
    shown = ("words 0", "reply {0}", "age was child", "child: Ask a grown up.\nadult: Switch it off.", '{"label": N}')
    assert all(part in engine.asked[0][0] for part in shown) and "PE-FT" not in engine.asked[0][0]


def test_malformed_judgements_are_asked_for_again_and_counted() -> None:
    def rule(prompt: str, seed: int) -> str | Failure:
        if number(prompt) == 5:
            return Failure("no answer within 5 s")
        if number(prompt) == 4:
            return "I cannot decide"
        return "well ..." if number(prompt) == 3 and seed < 12 else "6"

    engine = Script(rule)
    verdict = QualityJudge(engine, retries=2, seed=10).judge(REPLIES)["quality"]
    assert verdict == Verdict([6, 6, 6, 6, None, None], Counter({"no answer within 5 s": 1}), 1, 5)
    asked = [(number(p), temperature, seed) for p, temperature, seed in engine.asked[: 6 + 2 + 2]]
    assert asked[:6] == [(i, 0.0, 10) for i in range(6)]
    assert asked[6:] == [(3, 0.7, 11), (4, 0.7, 11), (3, 0.7, 12), (4, 0.7, 12)]
    assert verdict.notes() == (
        "2 of 6 left out; 1 could not be judged: no answer within 5 s; 1 got judgements without a score; "
        "5 judgements had no score in all"
    )


def test_a_judge_that_is_gone_costs_a_count() -> None:
    verdict = QualityJudge(Script(lambda *_: Failure("gone"))).judge(REPLIES)["emotion"]
    assert verdict.scores == [None] * 6 and verdict.failed == Counter(gone=6)
    assert verdict.mean is None and verdict.interval is None
    assert QualityJudge(Script(lambda *_: "3")).judge([])["quality"] == Verdict([])


def test_judging_the_same_replies_again_asks_nothing(tmp_path: Path) -> None:
    engine = Script(lambda prompt, seed: "5" if seed or number(prompt) else "?")

    def judge(**knobs: Any) -> Judge:
        return QualityJudge(CachedEngine(engine, tmp_path / "cache"), **knobs)

    first, asked = judge().judge(REPLIES), len(engine.asked)
    assert judge().judge(REPLIES) == first and len(engine.asked) == asked
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("# a comment\nAnother question: {response}")
    engine.rule = lambda *_: "5"
    judge(quality=str(rubric)).judge(REPLIES)
    assert len(engine.asked) == asked + 6  # for the changed rubric alone
    judge().judge([*REPLIES, replace(REPLIES[0], emotion="angry")])
    assert len(engine.asked) == asked + 6 + 2  # and for the new case


def test_the_mean_and_its_interval_are_of_the_replies_with_a_score() -> None:
    draw = random.Random(0)
    scores = [float(draw.randint(3, 9)) for _ in range(400)]
    verdict = Verdict([None, *scores, None])
    assert verdict.mean == pytest.approx(np.mean(scores))
    half = 1.96 * np.std(scores) / 20
    assert verdict.interval == pytest.approx((np.mean(scores) - half, np.mean(scores) + half), abs=0.05)
    assert verdict.notes() == "2 of 402 left out" and Verdict(list(scores)).notes() == ""
    assert verdict.of([1, 0]).scores == [scores[0], None]


@pytest.mark.parametrize(
    ("registry", "node", "text", "code", "where"),
    [
        (JUDGES, {"type": "llm"}, None, "missing-key", "engine"),
        (JUDGES, {"type": "conversation"}, None, "missing-key", "engine"),
        (AWARENESS_JUDGES, {"type": "llm"}, None, "missing-key", "engine"),
        (JUDGES, {"type": "llm", "retries": -1}, "", "bad-value", "retries"),
        (AWARENESS_JUDGES, {"type": "llm", "max_new_tokens": 0}, "", "bad-value", "max_new_tokens"),
        (JUDGES, {"type": "conversation", "scales": ["csx"]}, "", "unknown-name", "scales"),
        (JUDGES, {"type": "llm", "emotion": "nowhere.txt"}, "", "not-found", "nowhere.txt"),
        (JUDGES, {"type": "llm", "quality": "rubric.txt"}, "{transcript}", "missing-key", "rubric.txt"),
        (JUDGES, {"type": "conversation", "cs": "rubric.txt"}, "{response} {emotions}", "unknown-name", "rubric.txt"),
        (AWARENESS_JUDGES, {"type": "llm", "rubric": "rubric.txt"}, "{response}{x}", "unknown-name", "rubric.txt"),
        (JUDGES, {"type": "llm", "quality": "rubric.txt"}, "{response:>9999999999}", "unsafe", "rubric.txt"),
        (JUDGES, {"type": "llm", "quality": "rubric.txt"}, "{response} }", "bad-value", "rubric.txt"),
    ],
)  # fmt: skip
def test_a_judge_that_cannot_be_is_refused(
    registry: Any, node: dict[str, Any], text: str | None, code: Code, where: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rubric.txt").write_text(text or "")
    with refused(code, where, ConfigError):
        registry.build(node, None if text is None else Script(lambda *_: "1"))


# The judge by rule

EXEMPLARS = {
    "neutral": ["I see. What will you do with {thing} next?"],
    "happy": ["That is wonderful news about {thing}! I am so glad for you."],
    "sad": ["I am sorry to hear that. Do you want to talk about {thing}?", "How sad. {thing} meant a lot to you."],
}
SAID = "we lost the red lamp yesterday"


def rule(**knobs: Any) -> Judge:
    return JUDGES.build({"type": "rule", "exemplars": EXEMPLARS, **knobs}, None)


def judged(response: str, emotion: str = "happy", transcript: str = SAID, **knobs: Any) -> tuple[float, float]:
    verdicts = rule(**knobs).judge([Reply(transcript, emotion, response)])
    quality, feeling = verdicts["quality"].scores[0], verdicts["emotion"].scores[0]
    assert quality is not None and feeling is not None
    return quality, feeling


@pytest.mark.parametrize("emotion", EXEMPLARS)
def test_the_exemplar_of_the_true_emotion_gets_full_marks_and_one_of_another_the_least(emotion: str) -> None:
    for other, texts in EXEMPLARS.items():
        for text in texts:
            due = 10, 10 if other == emotion else 1
            assert judged(text.format(thing="lamp"), emotion) == pytest.approx(due, abs=1e-5)


def test_marks_in_between_are_proportional() -> None:
    """Of 3 words of the reply, 2 are of the exemplar's 4: ROUGE-L is 4/7. The other exemplar shares 1 of 4: 2/7."""
    exemplars = {"happy": ["a b c d"], "sad": ["a x y z"]}  # alike by 1/4: room for 3/4
    quality, feeling = judged("a b q", "happy", "no", exemplars=exemplars)
    assert quality == pytest.approx(1 + 9 * 4 / 7, abs=1e-5)
    assert feeling == pytest.approx(1 + 9 * (4 / 7 - 2 / 7) / (3 / 4), abs=1e-5)


def test_a_reply_on_another_subject_loses_half_of_its_quality() -> None:
    exemplar = EXEMPLARS["happy"][0]
    on, off = judged(exemplar.format(thing="lamp")), judged(exemplar.format(thing="kettle"))
    assert on[0] == pytest.approx(10) and off[0] < 5.5 < off[1]
    assert judged(exemplar.format(thing="it"), transcript="and so it is")[0] > 9  # there was nothing to name
    red = exemplar.format(thing="red")
    assert judged(red, things=["lamp", "kettle"])[0] < 5.5 < judged(red)[0]


@pytest.mark.parametrize("response", ["", "xyzzy", "...", "日本語"])
def test_a_reply_like_no_exemplar_gets_the_least(response: str) -> None:
    assert judged(response) == (1, 1)


def test_an_emotion_without_exemplars_is_counted() -> None:
    verdicts = rule().judge([Reply(SAID, "angry", "I see."), Reply(SAID, "sad", "How sad.")])
    assert verdicts["emotion"].scores[0] is None and verdicts["emotion"].scores[1] is not None
    assert sum(verdicts["emotion"].failed.values()) == 1 and None not in verdicts["quality"].scores
    assert rule().judge([])["emotion"].mean is None


@pytest.mark.parametrize(
    ("exemplars", "code", "where"),
    [
        ({"sad": ["a"]}, "missing-key", "exemplars"),
        ({"sad": ["a"], "happy": []}, "missing-key", "exemplars"),
        ({"sad": ["a"], "happy": ["{name}"]}, "unknown-name", "exemplars.happy"),
        ({"sad": ["a"], "happy": ["{thing}!"]}, "bad-value", "exemplars.happy"),
        ({"sad": ["a"], "happy": ["a }"]}, "bad-value", "exemplars.happy"),
        ({"sad": ["a"], "happy": "a"}, "bad-value", "exemplars.happy"),
    ],
)
def test_exemplars_that_cannot_be_used(exemplars: Any, code: Code, where: str) -> None:
    with refused(code, where, ConfigError):
        rule(exemplars=exemplars)
