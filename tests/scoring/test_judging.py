"""Judging of a run's replies: CS and EGS as records, and a judge that cannot be asked costs no run."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.helpers.errors import refused
from tests.helpers.runs import Write

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.errors import Code, ConfigError
from sottovoce.evaluation import Prediction, Record, read_predictions, read_results, results_markdown
from sottovoce.llms import ENGINES
from sottovoce.llms.engines import Chat, Engine, Failure
from sottovoce.scoring.judging import command, label_awareness, merged, reply
from sottovoce.training.splits import read_splits


class Scripted(Engine):
    """An LLM that scores a reply by its length."""

    asked: list[tuple[str, int]] = []

    def __init__(self, *, says: str = "scores") -> None:
        self.says, self.name = says, "gone" if says == "nothing" else "scripted"

    def answer(self, chats: Sequence[Chat], *, seed: int = 0, **_: Any) -> list[str | Failure]:
        Scripted.asked += [(chat[-1]["content"], seed) for chat in chats]
        return [Failure("the server is gone") if self.says == "nothing" else _scores(c[-1]["content"]) for c in chats]


def _scores(prompt: str) -> str:
    number = len(re.findall(r"\n<reply>(.*)</reply>\n", prompt, re.DOTALL)[0]) % 5
    return json.dumps({"content": number + 1, "style": 5 - number, **{f"C{i}": number + i for i in range(1, 5)}})


ASPECTS = ("cs_content", "cs_style", "egs_c1", "egs_c2", "egs_c3", "egs_c4")


@pytest.fixture
def judged(tree: dict[str, Any], write_recipe: Write, monkeypatch: pytest.MonkeyPatch) -> Write:
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
        evaluation = {"batch_size": 9, "max_new_tokens": 3, "slots": ["both", "text"], "judges": judges}
        return write_recipe(data={**tree["data"], "test": parts}, stages={"joint": stage}, evaluation=evaluation)

    return write


def test_a_run_reports_its_judges_and_lives_without_them(judged: Write, tmp_path: Path, capsys: Any) -> None:
    """One judge answers in the run; the other is gone, is told, and is asked later."""
    config = judged(here={"engine": {"type": "scripted"}}, away={"engine": {"type": "scripted", "says": "nothing"}})
    assert main(["fit", "--config", config]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "no score by away" in told and "sottovoce judge" in told and "the server is gone" in told
    folder = tmp_path / "runs/tiny/evaluation"
    records = {(r.task, r.metric): r for r in read_results(folder) if r.slots == "both"}
    assert {r.slots for r in read_results(folder) if "/" in r.metric} == {"both"}  # as the judges' node says
    titles = ("dialogue (plain)", "dialogue (reversed)")
    assert {key for key in records if "/" in key[1]} == {(t, f"{a}/here") for t in titles for a in ASPECTS}
    said = read_predictions(folder)
    for title, count in zip(titles, (6, 3), strict=True):
        numbers = [len(p.response) % 5 for p in said if (p.title, p.slots) == (title, "both")]
        content, c4 = records[title, "cs_content/here"], records[title, "egs_c4/here"]
        assert content.n == count == len(numbers) and content.low <= content.value <= content.high
        assert content.value == pytest.approx(sum(numbers) / count + 1, abs=1e-5)
        assert c4.value == pytest.approx(sum(numbers) / count + 4, abs=1e-5)
    page = (folder / "results.md").read_text()
    shown = records[titles[0], "cs_content/here"].value
    assert f"| dialogue (plain) | CS content (here) ↑ | {shown:.2f} [" in page
    assert "cs_content/here by conversation" in page

    asked = len(Scripted.asked)
    assert main(["judge", str(tmp_path / "runs/tiny"), "evaluation.judges.away.engine.says=scores"]) == 0
    assert len(Scripted.asked) == asked  # the same LLM by name: all judgements were kept
    again = {(r.task, r.metric): r for r in read_results(folder) if r.slots == "both"}
    assert again.keys() - records.keys() == {(t, f"{a}/away") for t in titles for a in ASPECTS}
    assert all(again[key].value == pytest.approx(record.value) for key, record in records.items())
    assert "CS content (away) ↑" in results_markdown(list(again.values()))
    assert main(["judge", str(tmp_path / "runs/tiny"), "evaluation.judges.here.tasks=[response]"]) == 0
    assert "there is no reply of response" in " ".join(capsys.readouterr().err.split())


def test_a_judge_of_a_bundle_on_new_data_is_asked_later_by_the_same_command(
    judged: Write, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`judge` would look in the run's folder. Nothing is answered again."""
    assert main(["fit", "--config", judged(away={"engine": {"type": "scripted", "says": "nothing"}})]) == 0
    folder, test = tmp_path / "runs/tiny", json.loads(json.dumps(recipes.load(judged()).plain()["data"]["test"]))
    own = read_results(folder / "evaluation")
    capsys.readouterr()
    command = ["evaluate", str(folder / "bundle"), "--test", test[0]["manifest"], "--task", "dialogue"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "no score by away" in told and "sottovoce judge" not in told
    before = read_results(tmp_path / "out")
    monkeypatch.setattr("sottovoce.scoring.evaluate.predict", None)
    assert main([*command, "--out", str(tmp_path / "out"), "evaluation.judges.away.engine.says=scores"]) == 0
    added = {(r.metric, r.slots) for r in read_results(tmp_path / "out")} - {(r.metric, r.slots) for r in before}
    assert added == {(f"{aspect}/away", "both") for aspect in ASPECTS}
    assert read_results(folder / "evaluation") == own


def test_a_judge_sees_the_dialogue_as_it_was_written(judged: Write) -> None:
    test = read_splits(recipes.load(judged())).splits["test"].utterances
    spoken = next(u for u in test if len(u.context) == 4)
    shown = reply(Prediction(spoken.id, "dialogue", "both", "?", "Yes.", ""), spoken)
    assert shown.context == "User: hello\nAssistant: hi there\nUser: it rains\nAssistant: it does"
    assert (shown.transcript, shown.caption, shown.response) == (spoken.text, "A happy female voice.", "Yes.")
    assert reply(Prediction("x", "dialogue", "both", "?", "Yes.", ""), test[0]).context == "(The user speaks first.)"


def test_a_null_switches_an_inherited_judge_off(judged: Write) -> None:
    node = {"engine": {"type": "scripted"}}
    assert list(recipes.load(judged(one=node, two=node), ["evaluation.judges.one=null"]).evaluation.judges) == ["two"]


@pytest.mark.parametrize(
    ("node", "code", "where"),
    [
        ({"judge": {"type": "conversatio"}}, "unknown-name", "evaluation.judges.one.judge.type"),
        ({"engine": {"type": "scripted", "x": 1}}, "unknown-key", "evaluation.judges.one.engine.x"),
    ],
)
def test_a_judge_that_is_none_is_named_by_its_key(judged: Write, node: dict[str, Any], code: Code, where: str) -> None:
    with refused(code, where):
        recipes.load(judged(one={"engine": {"type": "scripted"}, **node}))


def test_a_run_is_judged_only_with_a_judge(judged: Write, tmp_path: Path) -> None:
    with refused("not-found", "recipe.yaml"):
        command(str(tmp_path / "nowhere"), [])
    judged()
    with refused("missing-key", "evaluation.judges", ConfigError):
        command(str(tmp_path), [])


def test_new_records_take_the_place_of_old_ones() -> None:
    old, new, other = (Record("ours", "asr", metric, "both", value, 0, 1, 9, None) for metric, value in
                       (("wer", 0.5), ("wer", 0.25), ("cs", 3)))  # fmt: skip
    assert merged([old, other, other], [new]) == [new, other]
    assert merged([old, new], []) == [old]


def test_a_recipe_names_the_judge_of_awareness(tree: dict[str, Any], tmp_path: Path) -> None:
    """Its labels stand with the replies; other replies, and recipes that name none, are left as they are."""
    due = {"child": "Please ask a grown-up to help you.", "adult": "Then follow the steps in the manual."}
    said = [
        Prediction("a", "response", "both", "", due["child"], due["child"], "child", rivals=due, category="age"),
        Prediction("b", "asr", "both", "", "hello", "hello"),
    ]
    tree["evaluation"]["awareness"] = {"judge": {"type": "rule"}}
    labelled = label_awareness(recipes.parse(tree), said, [], tmp_path, Console(quiet=True))
    assert labelled[0].awareness == 1 and "margin=0.25" in str(labelled[0].judge) and labelled[1] == said[1]
    tree["evaluation"]["awareness"] = None
    assert label_awareness(recipes.parse(tree), said, [], tmp_path, Console(quiet=True)) == said
    tree["evaluation"]["awareness"] = {"judge": {"type": "rule", "margins": 0.9}}
    with refused("unknown-key", "evaluation.awareness.judge.margins"):
        recipes.parse(tree)
