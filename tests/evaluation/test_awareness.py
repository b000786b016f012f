"""PA-score and PA-rate: labels that really read the reply, judges that cost a count and never the run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.errors import refused

from sottovoce.config import recipe as recipes
from sottovoce.errors import ConfigError, SottovoceError
from sottovoce.evaluation import AWARENESS_JUDGES, Prediction, Record, read_predictions, score_all, write_results
from sottovoce.evaluation.awareness import AwarenessJudge, AwarenessRule, Case, groups, labelled
from sottovoce.evaluation.judges.awareness import AwarenessLLM, parse_label
from sottovoce.llms.answer_cache import CachedEngine
from sottovoce.llms.engines import Chat, Engine, Failure
from sottovoce.scoring.judging import aware

AGES = {
    "child": "Please ask a grown up to help you with the kettle.",
    "adult": "Switch the kettle off, unplug it and check the fuse.",
}
MOODS = {
    "neutral": "I see, you found the lamp.",
    "happy": "How lovely that you found the lamp!",
    "sad": "I am sorry about the lamp, do you want to talk?",
    "angry": "Calm down, nobody will take the lamp away.",
}


def rule(response: str, label: str, due: dict[str, str] = AGES, **knobs: Any) -> float | None:
    category = "age" if label in AGES else "emotion"
    return AwarenessRule(**knobs).judge([Case(category, label, response, due)]).scores[0]


@pytest.mark.parametrize("due", [AGES, MOODS])
def test_each_due_answer_is_right_for_its_speaker_and_wrong_for_others(due: dict[str, str]) -> None:
    for label in due:
        for value, answer in due.items():
            expected = 1 if value == label else 0 if value == "neutral" else -1
            assert rule(answer, label, due) == expected
            assert rule(answer.upper().replace(",", " ; "), label, due) == expected


def test_the_order_of_the_values_does_not_matter() -> None:
    turned = dict(reversed(MOODS.items()))
    for label in MOODS:
        for said in (*MOODS.values(), "How lovely, a lamp", "sorry about the lamp"):
            assert rule(said, label, MOODS) == rule(said, label, turned)


@pytest.mark.parametrize(
    ("response", "label"),
    [
        ("Please ask a grown up to help.", 1),
        ("Ask a grown up about the kettle", 1),
        ("Switch it off, unplug it and check the fuse.", -1),
        ("The kettle.", 0),  # of both
        ("It is a fine day today.", 0),  # of neither
        ("", 0),
        ("...", 0),
        ("你好", 0),
        ("Ask a grown up to help, unplug it and check the fuse.", 0),  # half and half
    ],
)
def test_free_replies_to_a_child(response: str, label: int) -> None:
    assert rule(response, "child") == label
    assert rule(response, "adult") == -label


def test_a_margin_and_a_floor_are_what_they_are_said_to_be() -> None:
    due = {"child": "a b c d e f g h", "adult": "a b c d w x y z"}  # alike by 1/2: a lean is twice the difference
    said = "a b c d e f w x"  # 6/8 like both
    assert rule(said, "child", due) == 0
    nearer = "a b c d e f g x"  # 7/8 and 5/8: a lean of a half
    assert [rule(nearer, "child", due, margin=margin) for margin in (0.25, 0.49, 0.51)] == [1, 1, 0]
    assert [rule(nearer, "adult", due, margin=margin) for margin in (0.25, 0.49, 0.51)] == [-1, -1, 0]
    assert [rule("e f", "child", due, floor=floor) for floor in (0.39, 0.41)] == [1, 0]  # 2 x 2 / (2 + 8)
    assert [rule(MOODS["neutral"], "sad", MOODS, plain=plain) for plain in (("neutral",), ())] == [0, -1]


def test_replies_that_the_rule_cannot_judge_are_counted() -> None:
    same = {"child": "Wait!", "adult": "wait"}
    odd = (("teen", AGES), ("child", same), ("child", {**AGES, "c": ""}))
    cases = [Case("age", label, "x", due) for label, due in odd]
    verdict = AwarenessRule().judge([*cases, Case("age", "child", AGES["child"], AGES)])
    assert verdict.scores == [None, None, None, 1] and sum(verdict.failed.values()) == 3
    assert "no answer is due to 'teen'. Known: adult, child" in verdict.notes()
    assert "the same answer is due to every speaker" in verdict.notes() and "no word in a-z" in verdict.notes()
    three = {**same, "sad": "How sad."}  # what is due to two of three is right for both
    assert [rule("Wait.", label, three) for label in three] == [1, 1, -1]


# An LLM


@dataclass
class Script(Engine):
    """An LLM that answers by a rule of (prompt, seed) and keeps what it was asked."""

    rule: Callable[[str, int], str | Failure]
    name: str = "script"

    def __post_init__(self) -> None:
        self.asked: list[tuple[str, float, int]] = []

    def answer(
        self, chats: Sequence[Chat], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[str | Failure]:
        self.asked += [(chat[-1]["content"], temperature, seed) for chat in chats]
        return [self.rule(chat[-1]["content"], seed) for chat in chats]


CASES = [Case("age", "child", f"reply {i} {{braces}}", AGES, f"words {i}") for i in range(5)]


def test_the_rubric_shows_the_whole_case() -> None:
    engine = Script(lambda *_: '{"label": 1}')
    assert AwarenessLLM(engine).judge(CASES).scores == [1] * 5
    for case, (prompt, temperature, seed) in zip(CASES, engine.asked, strict=True):
        shown = (case.transcript, case.response, "age was child", *AGES.values(), "child: Please", '{"label": N}')
        assert all(part in prompt for part in shown), prompt
        assert (temperature, seed) == (0, 0) and "PE-FT" not in prompt  # comments are not part of it


def test_malformed_labels_are_asked_for_again_and_failures_are_counted() -> None:
    def answer(prompt: str, seed: int) -> str | Failure:
        number = int(prompt.split("<reply>reply ")[1].split()[0])
        if number == 4:
            return Failure("no answer within 5 s")
        return "I cannot say" if number == 3 or (number == 2 and seed < 8) else str(number - 1)

    engine = Script(answer)
    verdict = AwarenessLLM(engine, retries=2, seed=6).judge(CASES)
    assert verdict.scores == [-1, 0, 1, None, None]
    assert (verdict.malformed, verdict.unclear, dict(verdict.failed)) == (5, 1, {"no answer within 5 s": 1})
    assert [(temperature, seed) for _, temperature, seed in engine.asked[5:]] == [(0.7, 7)] * 2 + [(0.7, 8)] * 2


@pytest.mark.parametrize(
    ("judgement", "label"),
    [
        ("1", 1), ("+1", 1), ("-1", -1), ("\u22121", -1), ("0", 0), (' {"label": -1} ', -1), ('{"label": "+1"}', 1),
        ("Label: 0", 0), ("**Label:** -1\nIt names 2 things.", -1), ("My label is 1.", 1), ("label -1", -1),
        ("<think>-1 or 0?</think>1", 1), ("I say -1.", -1), ("1\n\nIt heeds 3 of them.", 1),
        ("2", None), ("0.5", None), ("1 or 0", None), ("-1 to 1", None), ("label: 10", None), ("yes", None), ("", None),
    ],
)  # fmt: skip
def test_labels_are_read_and_never_guessed(judgement: str, label: int | None) -> None:
    assert parse_label(judgement) == label


def test_judges_are_components(tmp_path: Path) -> None:
    node = {"type": "rule", "margin": 0.5, "plain": ["calm"]}
    assert AWARENESS_JUDGES.build(AWARENESS_JUDGES.check(node), None).name == "rule(margin=0.5, floor=0.3, plain=calm)"
    file = tmp_path / "rubric.txt"
    file.write_text("{response} {emotion}")
    engine = Script(lambda *_: "1")
    for knobs in ({"retries": -1}, {"max_new_tokens": 0}, {"rubric": str(file)}, {"rubric": "nowhere.txt"}):
        with pytest.raises(ConfigError):
            AWARENESS_JUDGES.build({"type": "llm", **knobs}, engine)
    with pytest.raises(ConfigError, match="needs an engine"):
        AWARENESS_JUDGES.build({"type": "llm"}, None)
    for knobs in ({"margin": 0}, {"floor": 1.1}):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            AWARENESS_JUDGES.build({"type": "rule", **knobs}, None)
    kept = CachedEngine(engine, tmp_path / "kept")
    assert AwarenessLLM(kept).judge(CASES) == AwarenessLLM(kept).judge(CASES) and len(engine.asked) == len(CASES)


# Records


def said(
    row: int, response: str, label: str, topic: str | None = "kettle", task: str = "dialogue", slots: str = "both"
) -> Prediction:
    due = AGES if label in AGES else MOODS
    return Prediction(
        f"u{row}", task, slots, "", response, due[label], label,
        rivals=due, category="age" if label in AGES else "emotion", topic=topic,
    )  # fmt: skip


def scores(rows: list[Prediction]) -> dict[tuple[str, str], Record]:
    return {(r.task, r.metric): r for r in score_all("ours", rows) if r.metric.startswith("pa_")}


def test_every_category_has_both_scores_with_intervals() -> None:
    rows = [said(i, AGES["child"], ("child", "adult")[i % 4 == 0]) for i in range(40)]
    rows += [said(i + 40, MOODS["sad"], ("sad", "happy", "angry", "neutral")[i % 4]) for i in range(40)]
    found = scores(rows)
    assert set(found) == {(name, metric) for name in ("age", "emotion") for metric in ("pa_score", "pa_rate")}
    assert [found["age", metric].value for metric in ("pa_score", "pa_rate")] == [0.5, 0.75]
    assert [found["emotion", metric].value for metric in ("pa_score", "pa_rate")] == [-0.5, 0.25]
    for record in found.values():
        assert record.low < record.value < record.high and record.n == 40 and "labels by rule(" in record.notes
    half = 1.96 * np.std([1.0] * 30 + [-1.0] * 10) / np.sqrt(40)
    assert found["age", "pa_score"].low == pytest.approx(0.5 - half, abs=0.08)
    assert (found["age", "pa_rate"].baseline, found["emotion", "pa_rate"].baseline) == (0.5, 0.25)


def test_a_model_that_hears_nothing_scores_nothing_on_pairs() -> None:
    rows = [said(i, AGES["adult"], ("child", "adult")[i % 2]) for i in range(20)]
    found = scores(rows)
    assert (found["age", "pa_score"].value, found["age", "pa_rate"].value) == (0, 0.5)


def test_replies_with_a_category_are_no_replies_to_an_emotion() -> None:
    rows = [said(0, AGES["child"], "child"), Prediction("v", "dialogue", "both", "", "x", "x", "sad", rivals=MOODS)]
    records = {r.metric: r for r in score_all("ours", rows)}
    assert records["emotion_fit"].n == 1 and records["rouge_l"].n == 2 and records["pa_rate"].n == 1
    assert "emotion_fit" not in {r.metric for r in score_all("ours", rows[:1])}


def test_a_group_of_topics_is_scored_apart_and_child_safety_on_the_childs_side() -> None:
    rows = [said(i, AGES["adult"], ("child", "adult")[i % 2], "child safety/knives") for i in range(10)]
    rows += [said(i + 10, AGES["child"], "child") for i in range(3)]
    rows += [said(i + 13, AGES["child"], "child", "unseen/boats") for i in range(2)]
    found = scores(rows)
    assert {(name, r.n) for (name, _), r in found.items()} == {("child safety", 5), ("age", 3), ("unseen", 2)}
    assert (found["child safety", "pa_score"].value, found["child safety", "pa_rate"].value) == (-1, 0)
    assert found["age", "pa_rate"].value == 1


def test_several_tasks_and_slots_stay_apart() -> None:
    rows = [
        said(i, AGES["child"], "child", task=t, slots=s) for i, t in enumerate(("dialogue", "response")) for s in "ab"
    ]
    assert {(g.name, g.slots, len(g.rows)) for g in groups(rows)} == {
        (f"age ({task})", slots, 1) for task in ("dialogue", "response") for slots in "ab"
    }


def test_labels_of_a_judge_are_kept_and_take_the_rules_place(tmp_path: Path) -> None:
    rows = [said(0, AGES["adult"], "child"), said(1, "x", "adult"), Prediction("v", "asr", "both", "", "a", "a")]
    engine = Script(lambda prompt, _: "1" if "the words 0" in prompt else "no idea")
    with pytest.warns(UserWarning, match="1 of 2 left out"):
        told = labelled(rows, AwarenessLLM(engine), {"u0": "the words 0"})
    assert [(p.judge, p.awareness) for p in told] == [("llm:script", 1), ("llm:script", None), (None, None)]
    records = score_all("ours", told)
    write_results(tmp_path, records, told)
    assert read_predictions(tmp_path) == told
    record = next(r for r in records if r.metric == "pa_rate")
    assert (record.value, record.n) == (1, 1)
    assert record.notes == "labels by llm:script; 1 of 2 replies could not be judged and were left out"


def test_a_judge_that_is_gone_costs_its_scores_and_nothing_else() -> None:
    with pytest.warns(UserWarning, match="gone"):
        told = labelled([said(0, "x", "child")], AwarenessLLM(Script(lambda *_: Failure("gone"))))
    assert [r.metric for r in score_all("ours", told)] == ["rouge_l"]


def test_predictions_of_older_runs_are_read(tmp_path: Path) -> None:
    row = Prediction("u", "asr", "both", "", "a", "a")
    write_results(tmp_path, score_all("ours", [row]), [row])
    file = tmp_path / "predictions.jsonl"
    file.write_text(file.read_text().replace(', "category": null, "topic": null, "judge": null, "awareness": null', ""))
    assert "category" not in file.read_text() and read_predictions(tmp_path) == [row]


@pytest.mark.parametrize(("change", "message"), [({"label": None}, "no true label"), ({"rivals": None}, "needs `riv")])
def test_a_row_that_lacks_what_its_score_needs_is_an_error(change: dict[str, Any], message: str) -> None:
    rows = [replace(said(0, "x", "child"), **change)]
    with pytest.raises(SottovoceError, match=message):
        score_all("ours", rows)


def test_the_rule_is_a_judge() -> None:
    assert isinstance(AwarenessRule(), AwarenessJudge) and AwarenessRule().judge([]).scores == []


def test_a_recipe_names_the_judge_of_awareness(tree: dict[str, Any], tmp_path: Path) -> None:
    """Its labels stand with the replies; other replies, and recipes that name none, are left as they are."""
    due = {"child": "Please ask a grown-up to help you.", "adult": "Then follow the steps in the manual."}
    said = [
        Prediction("a", "response", "both", "", due["child"], due["child"], "child", rivals=due, category="age"),
        Prediction("b", "asr", "both", "", "hello", "hello"),
    ]
    tree["evaluation"]["awareness"] = {"judge": {"type": "rule", "margin": 0.9}}
    told = aware(recipes.parse(tree), said, [], tmp_path)
    assert told[0].awareness == 1 and "margin=0.9" in str(told[0].judge) and told[1] == said[1]
    tree["evaluation"]["awareness"] = None
    assert aware(recipes.parse(tree), said, [], tmp_path) == said
    tree["evaluation"]["awareness"] = {"judge": {"type": "rule", "margins": 0.9}}
    with refused("unknown-key", "evaluation.awareness.judge.margins", ConfigError):
        recipes.parse(tree)
