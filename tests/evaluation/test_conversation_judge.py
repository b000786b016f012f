"""CS and EGS: every number is read and never guessed, and a judge that cannot be asked costs no run."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.errors import refused

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.errors import ConfigError
from sottovoce.evaluation import Prediction, Reply, read_predictions, read_results, results_markdown, score_all
from sottovoce.evaluation.judges.conversation import ASPECTS, SCALES, ConversationJudge, parse_scores
from sottovoce.llms import ENGINES
from sottovoce.llms.engines import Chat, Engine, Failure
from sottovoce.scoring.judging import reply
from sottovoce.training.splits import read_splits

CS, EGS = SCALES["cs"], SCALES["egs"]


@pytest.mark.parametrize(
    ("judgement", "scores"),
    [
        ('{"content": 4, "style": 5}', (4, 5)),
        ('```json\n{"Content": "4",\n "Style": "5"}\n```', (4, 5)),
        ("Content: 4\nStyle: 5", (4, 5)),
        ("**Content:** 4/5, **style** = 5 out of 5", (4, 5)),
        ('<think>"content": 1</think>{"content":4,"style":5}', (4, 5)),
        ('{"content": 4}', None),
        ('{"content": 4, "style": 6}', None),
        ('{"content": 0, "style": 5}', None),
        ('{"content": -4, "style": 5}', None),
        ('{"content": 4.5, "style": 5}', None),
        ("Content: 3-4, style: 5", None),
        ('{"content": 4, "style": 5} or rather {"content": 3, "style": 5}', None),
        ("4 and 5", None),
        ("", None),
    ],
)
def test_both_numbers_or_none(judgement: str, scores: tuple[int, int] | None) -> None:
    assert parse_scores(judgement, CS) == (None if scores is None else dict(zip(CS.keys, scores, strict=True)))


def test_four_criteria_go_up_to_ten() -> None:
    assert parse_scores('{"C1": 10, "C2": 9, "C3": 1, "C4": 7}', EGS) == {"c1": 10, "c2": 9, "c3": 1, "c4": 7}
    assert parse_scores('{"C1": 10, "C2": 9, "C3": 11, "C4": 7}', EGS) is None


class Scripted(Engine):
    """An LLM that scores a reply by the last digit of its words."""

    asked: list[tuple[str, int]] = []

    def __init__(self, *, says: str = "scores") -> None:
        self.says, self.name = says, "gone" if says == "nothing" else "scripted"

    def answer(
        self, chats: Sequence[Chat], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[str | Failure]:
        Scripted.asked += [(chat[-1]["content"], seed) for chat in chats]
        return [self._one(chat[-1]["content"], seed) for chat in chats]

    def _one(self, prompt: str, seed: int) -> str | Failure:
        number = len(re.findall(r"\n<reply>(.*)</reply>\n", prompt, re.DOTALL)[0]) % 5
        if self.says == "nothing":
            return Failure("the server is gone")
        if self.says == "late" and not seed:
            return '{"content": 3, "C1": 9}'
        return json.dumps({"content": number + 1, "style": 5 - number, **{f"C{i}": number + i for i in range(1, 5)}})


REPLIES = [Reply(f"said {i}", "sad", "x" * i, f"User: {{before}} {i}", "A sad voice.") for i in range(7)]


def test_each_reply_gets_its_own_numbers() -> None:
    for says in ("scores", "late"):
        verdicts = ConversationJudge(Scripted(says=says)).judge(REPLIES)
        assert tuple(verdicts) == ASPECTS
        for i in range(len(REPLIES)):
            assert [v.scores[i] for v in verdicts.values()] == [i % 5 + 1, 5 - i % 5, *(i % 5 + k for k in range(1, 5))]
        assert {verdict.malformed for verdict in verdicts.values()} == {7 if says == "late" else 0}
    gone = ConversationJudge(Scripted(says="nothing"), scales=["egs"]).judge(REPLIES)
    assert tuple(gone) == ASPECTS[2:] and gone["egs_c1"].mean is None
    assert "7 could not be judged: the server is gone" in gone["egs_c1"].notes()


def test_the_rubrics_show_the_dialogue_and_egs_the_voice() -> None:
    judge = ConversationJudge(Scripted())
    for name, rubric in judge.rubrics.items():
        shown = rubric.fill(REPLIES[3])
        assert all(part in shown for part in ("said 3", "<reply>xxx</reply>", "User: {before} 3"))
        assert ("A sad voice." in shown) == (name == "egs")
        assert all(f'"{key}": N' in shown for key in (CS.keys if name == "cs" else ("C1", "C2", "C3", "C4")))


def test_a_judge_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rubric.txt").write_text("Rate {response} by {charm}")
    for knobs, message in (
        ({"scales": ["csx"]}, "unknown scale 'csx'. Did you mean 'cs'"),
        ({"retries": -1}, "retries"),
        ({"cs": str(tmp_path / "rubric.txt")}, "unknown field {charm}"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            ConversationJudge(Scripted(), **knobs)
    with pytest.raises(ConfigError, match="needs an engine"):
        ConversationJudge(None)


def test_parts_of_the_test_side_are_scored_apart() -> None:
    said = [
        Prediction(str(i), "asr", "both", "?", text, "we found it", source=source)
        for i, (text, source) in enumerate((("we found it", "clean"), ("we lost it", "other"), ("we found it", None)))
    ]
    scores = {record.task: (record.value, record.n) for record in score_all("x", said)}
    assert scores == {"asr (clean)": (0, 1), "asr (other)": (0.333333, 1), "asr": (0, 1)}


@pytest.fixture
def judged(
    tree: dict[str, Any], write_recipe: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """A recipe of one short stage, two named parts of the test side, and judges whose LLM is scripted."""
    monkeypatch.setitem(ENGINES._classes, "scripted", Scripted)
    Scripted.asked = []
    test = tree["data"]["test"][0]["manifest"]
    lines = Path(test).read_text().splitlines()
    half = Path(test).with_name("half.jsonl")
    half.write_text("".join(line.replace('"id": "', '"id": "half-') + "\n" for line in lines[:3]))
    parts = [{"manifest": test, "name": "plain"}, {"manifest": str(half), "name": "reversed"}]
    stage = {"tasks": {"dialogue": 1}, "lr": 1e-2, "epochs": 1, "batch_size": 12}

    def write(**judges: Any) -> str:
        return write_recipe(
            data={**tree["data"], "test": parts},
            stages={"joint": stage},
            evaluation={"batch_size": 9, "max_new_tokens": 3, "slots": ["both"], "judges": judges},
        )

    return write


def test_a_run_reports_its_judges_and_lives_without_them(
    judged: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One judge answers in the run; the other is gone, is told, and is asked later."""
    config = judged(here={"engine": {"type": "scripted"}}, away={"engine": {"type": "scripted", "says": "nothing"}})
    assert main(["fit", "--config", config]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "no score by away" in told and "sottovoce judge" in told and "the server is gone" in told
    folder = tmp_path / "runs/tiny/evaluation"
    records = {(r.task, r.metric): r for r in read_results(folder)}
    titles = ("dialogue (plain)", "dialogue (reversed)")
    assert {key for key in records if "/" in key[1]} == {(t, f"{a}/here") for t in titles for a in ASPECTS}
    said = read_predictions(folder)
    for title, count in zip(titles, (6, 3), strict=True):
        numbers = [len(p.response) % 5 for p in said if p.title == title]
        content, c4 = records[title, "cs_content/here"], records[title, "egs_c4/here"]
        assert content.n == count == len(numbers) and content.low <= content.value <= content.high
        assert content.value == pytest.approx(sum(numbers) / count + 1, abs=1e-5)
        assert c4.value == pytest.approx(sum(numbers) / count + 4, abs=1e-5)
    page = (folder / "results.md").read_text()
    shown = records[titles[0], "cs_content/here"].value
    assert (
        f"| dialogue (plain) | CS content (here) ↑ | {shown:.2f} [" in page
        and "cs_content/here by conversation" in page
    )

    asked = len(Scripted.asked)
    assert main(["judge", str(tmp_path / "runs/tiny"), "evaluation.judges.away.engine.says=scores"]) == 0
    assert len(Scripted.asked) == asked  # the same LLM by name: all judgements were kept
    again = {(r.task, r.metric): r for r in read_results(folder)}
    assert again.keys() - records.keys() == {(t, f"{a}/away") for t in titles for a in ASPECTS}
    assert all(again[key].value == pytest.approx(record.value) for key, record in records.items())
    assert "CS content (away) ↑" in results_markdown(list(again.values()))
    assert main(["judge", str(tmp_path / "runs/tiny"), "evaluation.judges.here.tasks=[response]"]) == 0
    assert "there is no reply of response" in " ".join(capsys.readouterr().out.split())


def test_a_judge_sees_the_dialogue_as_it_was_written(judged: Callable[..., str]) -> None:
    test = read_splits(recipes.load(judged())).splits["test"].utterances
    spoken = next(u for u in test if len(u.context) == 4)
    shown = reply(Prediction(spoken.id, "dialogue", "both", "?", "Yes.", ""), spoken)
    assert shown.context == "User: hello\nAssistant: hi there\nUser: it rains\nAssistant: it does"
    assert (shown.transcript, shown.caption, shown.response) == (spoken.text, "A happy female voice.", "Yes.")
    assert reply(Prediction("x", "dialogue", "both", "?", "Yes.", ""), test[0]).context == "(The user speaks first.)"


def test_a_null_switches_an_inherited_judge_off(judged: Callable[..., str]) -> None:
    node = {"engine": {"type": "scripted"}}
    assert list(recipes.load(judged(one=node, two=node), ["evaluation.judges.one=null"]).evaluation.judges) == ["two"]
    with refused("unknown-name", "evaluation.judges.one.judge.type", ConfigError):
        recipes.load(judged(one={**node, "judge": {"type": "conversatio"}}))
    with refused("unknown-key", "evaluation.judges.one.engine.say", ConfigError):
        recipes.load(judged(one={"engine": {"type": "scripted", "say": "x"}}))
