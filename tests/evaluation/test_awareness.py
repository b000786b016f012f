"""Awareness metrics: emotion fit, PA-score and PA-rate, and the rule that labels replies."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.errors import refused

from sottovoce.errors import Code
from sottovoce.evaluation import Prediction, Record, read_predictions, score_all, write_results
from sottovoce.evaluation.awareness import AwarenessJudge, AwarenessRule, Case, emotion_fit, groups, labelled
from sottovoce.evaluation.judges.base import Verdict

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


def rule(response: str, label: str, due: dict[str, str] = AGES) -> float | None:
    category = "age" if label in AGES else "emotion"
    return AwarenessRule().judge([Case(category, label, response, due)]).scores[0]


@pytest.mark.parametrize("due", [AGES, MOODS])
def test_each_due_answer_is_right_for_its_speaker_and_wrong_for_others(due: dict[str, str]) -> None:
    for label in due:
        for value, answer in due.items():
            expected = 1 if value == label else 0 if value == "neutral" else -1
            assert rule(answer, label, due) == expected
            assert rule(answer.upper().replace(",", " ; "), label, due) == expected


def test_a_warning_says_where_most_replies_are_in_other_words() -> None:
    """What the rule calls 0 may be right: an LLM is to be asked."""
    free = Case("age", "child", "Better fetch mum or dad before you touch that!", AGES)
    near = Case("age", "child", AGES["child"], AGES)
    with pytest.warns(UserWarning, match="2 of 3 replies"):
        assert AwarenessRule().judge([free, near, free]).scores == [0, 1, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AwarenessRule().judge([free, near])


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


WORDS = {"child": "a b c d e f g h", "adult": "a b c d w x y z"}  # alike by 1/2: a lean is twice the difference


@pytest.mark.parametrize(
    ("response", "label"),
    [
        ("a b c d e f g h", 1),
        ("a b c d e f g x", 1),  # 7/8 and 5/8: a lean of 1/2
        ("a b c d e f w x", 0),  # 6/8 like both
        ("a b c d e f w", 1),  # 12/15 and 10/15: a lean of 4/15, above the margin of 1/4
        ("a b c d e f g w x", 0),  # 14/17 and 12/17: 4/17, below it
        ("e f q q", 1),  # 4/12 and 0: above the floor of 0.3
        ("e f q q q q", 0),  # 4/14 and 0: below it
    ],
)
def test_a_lean_is_held_against_margin_and_floor(response: str, label: int) -> None:
    assert rule(response, "child", WORDS) == label
    assert rule(response.translate(str.maketrans("efghwxyz", "wxyzefgh")), "adult", WORDS) == label


def test_replies_that_the_rule_cannot_judge_are_counted() -> None:
    same = {"child": "Wait!", "adult": "wait"}
    odd = (("teen", AGES), ("child", same), ("child", {**AGES, "c": ""}))
    cases = [Case("age", label, "x", due) for label, due in odd]
    verdict = AwarenessRule().judge([*cases, Case("age", "child", AGES["child"], AGES)])
    assert verdict.scores == [None, None, None, 1] and sum(verdict.failed.values()) == 3
    assert "no answer is due to 'teen'. Known: adult, child" in verdict.notes()
    assert "the same answer is due to every speaker" in verdict.notes() and "an answer has no word" in verdict.notes()
    three = {**same, "sad": "How sad."}  # what is due to two of three is right for both
    assert [rule("Wait.", label, three) for label in three] == [1, 1, -1]


CHINESE = {"child": "请让大人帮你拿水壶。", "adult": "关掉水壶，检查保险丝。"}


@pytest.mark.parametrize("due", [CHINESE, {"sad": "मुझे दुख है।", "happy": "बहुत बढ़िया!"}])
def test_the_rule_reads_any_script(due: dict[str, str]) -> None:
    (first, own), (second, other) = due.items()
    cases = [Case("age", label, said, due) for label in (first, second) for said in (own, other)]
    assert AwarenessRule().judge(cases).scores == [1, -1, -1, 1]


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


def test_scores_of_labels_by_hand() -> None:
    rows = [replace(said(i, "x", "child"), judge="j", awareness=label) for i, label in enumerate((1, 0, -1, 1, None))]
    found = scores(rows)
    assert (found["age", "pa_score"].value, found["age", "pa_rate"].value, found["age", "pa_rate"].n) == (0.25, 0.5, 4)


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
    apart = [(task, slots) for task in ("dialogue", "response") for slots in "ab"]
    rows = [said(i, AGES["child"], "child", task=task, slots=slots) for i, (task, slots) in enumerate(apart)]
    assert {(g.name, g.slots, len(g.rows)) for g in groups(rows)} == {(f"age ({task})", s, 1) for task, s in apart}


class Half(AwarenessJudge):
    """A judge that knows the words 0 alone."""

    name = "half"

    def judge(self, cases: Sequence[Case]) -> Verdict:
        return Verdict([1 if case.transcript == "the words 0" else None for case in cases])


def test_labels_of_a_judge_are_kept_and_take_the_rules_place(tmp_path: Path) -> None:
    rows = [said(0, AGES["adult"], "child"), said(1, "x", "adult"), Prediction("v", "asr", "both", "", "a", "a")]
    with pytest.warns(UserWarning, match="1 of 2 left out"):
        judged = labelled(rows, Half(), {"u0": "the words 0"})
    assert [(p.judge, p.awareness) for p in judged] == [("half", 1), ("half", None), (None, None)]
    records = score_all("ours", judged)
    write_results(tmp_path, records, judged)
    assert read_predictions(tmp_path) == judged
    record = next(r for r in records if r.metric == "pa_rate")
    assert (record.value, record.n) == (1, 1)
    assert record.notes == "labels by half; 1 of 2 replies could not be judged and were left out"


def test_a_judge_that_is_gone_costs_its_scores_and_nothing_else() -> None:
    with pytest.warns(UserWarning, match="1 of 1 left out"):
        judged = labelled([said(0, "x", "child")], Half())
    assert [r.metric for r in score_all("ours", judged)] == ["rouge_l"]


def test_predictions_of_older_runs_are_read(tmp_path: Path) -> None:
    row = Prediction("u", "asr", "both", "", "a", "a")
    write_results(tmp_path, score_all("ours", [row]), [row])
    file = tmp_path / "predictions.jsonl"
    file.write_text(file.read_text().replace(', "category": null, "topic": null, "judge": null, "awareness": null', ""))
    assert "category" not in file.read_text() and read_predictions(tmp_path) == [row]


@pytest.mark.parametrize("missing", ["label", "rivals"])
def test_a_row_that_lacks_what_its_score_needs_is_an_error(missing: str) -> None:
    with refused("missing-key", missing):
        score_all("ours", [replace(said(0, "x", "child"), **{missing: None})])


# Emotion fit


def replied(response: str, label: str | None, rivals: dict[str, str] | None) -> Prediction:
    return Prediction("u1", "dialogue", "both", "", response, "", label, rivals=rivals)


RIVALS = {"happy": "how lovely that you saw birds", "sad": "so sorry that you saw birds", "angry": "calm down please"}


@pytest.mark.parametrize(
    ("response", "label", "fits"),
    [
        ("How lovely, you saw birds!", "happy", 1),
        ("How lovely, you saw birds!", "sad", 0),
        ("that you saw birds", "happy", 0),  # as near to happy as to sad
        ("nothing of the kind", "angry", 0),  # as far from all
        ("", "sad", 0),
        ("please calm down", "angry", 1),
    ],
)
def test_a_reply_fits_the_emotion_whose_rival_is_nearest(response: str, label: str, fits: int) -> None:
    for rivals in (RIVALS, dict(reversed(RIVALS.items()))):
        score = emotion_fit([replied(response, label, rivals)])
        assert (score.value, score.n) == (fits, 1)
        assert score.baseline == pytest.approx(1 / 3, abs=1e-6)


@pytest.mark.parametrize(
    "rivals",
    [
        {"happy": "太好了，恭喜你", "sad": "真遗憾，别难过", "angry": "请冷静一下"},
        {"happy": "यह बहुत अच्छा है", "sad": "मुझे बहुत दुख है", "angry": "कृपया शांत रहें"},
        {"happy": "ดีใจด้วยนะ", "sad": "เสียใจด้วย", "angry": "ใจเย็นๆ"},
        {"happy": "Как здорово", "sad": "Мне очень жаль", "angry": "Успокойтесь"},
    ],
)
def test_a_reply_in_any_script_fits_the_rival_that_it_is(rivals: dict[str, str]) -> None:
    for label, rival in rivals.items():
        assert emotion_fit([replied(rival, label, rivals)]).value == 1
        assert emotion_fit([replied(rival, next(other for other in rivals if other != label), rivals)]).value == 0


def test_replies_that_cannot_be_judged_are_left_out_and_counted() -> None:
    rows = [replied("calm down", "angry", RIVALS), replied("calm down", "angry", None)]
    score = emotion_fit(rows)
    assert (score.value, score.n) == (1, 1)
    assert score.notes == "1 of 2 replies have no rivals and were left out of the fit"
    with refused("empty"):
        emotion_fit(rows[1:])


def test_each_reply_meets_its_own_rivals() -> None:
    pair = {"happy": "great news", "sad": "bad news"}
    rows = [replied("so sorry you saw birds", "sad", RIVALS)]
    rows += [replied(news, "happy", pair) for news in ("bad news", "great news")]
    score = emotion_fit(rows)
    assert score.value == pytest.approx(2 / 3, abs=1e-6)
    assert score.baseline == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("row", "code", "where"),
    [
        (replied("x", "happy", {"happy": "x"}), "missing-key", "rivals"),
        (replied("x", None, RIVALS), "missing-key", "label"),
        (replied("x", "hapy", RIVALS), "unknown-name", "rivals"),
    ],
)
def test_a_dialogue_that_cannot_be_judged_is_an_error(row: Prediction, code: Code, where: str) -> None:
    with refused(code, where):
        emotion_fit([replied("x", "sad", RIVALS), row])
