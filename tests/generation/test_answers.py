"""Answers by a table: recordings become paired data, each line with the answers to all speakers of its category."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_tone
from tests.helpers.corpora import choices
from tests.helpers.errors import refused

from sottovoce.cli.main import main
from sottovoce.data.manifest import read_manifest
from sottovoce.errors import Code
from sottovoce.generation.answers import TABLE, read_answers, write_answers
from sottovoce.paths import resolve


@pytest.fixture
def source(tmp_path: Path) -> Path:
    lines: list[dict[str, Any]] = []
    for number, labels in enumerate(
        ({"age": "child"}, {"age": "adult", "emotion": "sad"}, {}, {"emotion": "surprised"})
    ):
        write_tone(tmp_path / f"{number}.wav", 0.4, 200.0)
        lines.append({"id": str(number), "audio": f"{number}.wav", "text": "we call it bear", "labels": labels})
    lines[0]["response"] = "An answer of before."
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return tmp_path / "train.jsonl"


def test_a_line_has_the_answer_to_its_speaker(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.with_name("train-paired.jsonl")
    assert main(["targets", str(source), "--kind", "answers", "category=age", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert f"{out}: 2 lines with answers" in told and "2 left out: no label age" in told
    child, adult = read_manifest(out, choices=choices()).utterances
    due = read_answers(resolve(TABLE))["age"]
    assert (child.response, adult.response) == (due["child"], due["adult"])
    assert child.answers == adult.answers == due and child.category == "age"


def test_labels_without_an_answer_are_left_out_and_a_table_may_be_ones_own(source: Path, tmp_path: Path) -> None:
    table = tmp_path / "mine.json"
    table.write_text(json.dumps({"emotion": {"sad": "Oh.", "happy": "Ah."}}), "utf-8")
    out = tmp_path / "out.jsonl"
    words = ["targets", str(source), "--kind", "answers", "--out", str(out), "category=emotion", f"answers={table}"]
    assert main(words) == 0
    (line,) = read_manifest(out, choices=choices()).utterances
    assert line.response == "Oh."
    assert "1 left out: no answer for 'surprised'" in write_answers(source, out, "emotion", read_answers(table))


def test_every_label_of_the_tasks_that_the_starter_scores_has_an_answer() -> None:
    table, known = read_answers(resolve(TABLE)), choices()
    for category in ("age", "gender"):
        assert set(table[category]) == set(known[category])
    assert set(table["emotion"]) == {"neutral", "happy", "sad", "angry", "disgusted", "fearful"}


@pytest.mark.parametrize(
    ("words", "code", "where"),
    [
        ("{}", "missing-key", "category"),
        ('{"category": "ages"}', "unknown-name", "category"),
        ('{"category": "age", "checkpoint": "x"}', "unknown-key", "checkpoint"),
        ('{"category": "age", "answers": "none.json"}', "not-found", "none.json"),
        ('{"category": "gender"}', "empty", "train.jsonl"),
    ],
)
def test_refusals(words: str, code: Code, where: str, source: Path) -> None:
    from sottovoce.generation.answers import answers

    with refused(code, where):
        answers(source, source.with_name("out.jsonl"), json.loads(words))
    assert not source.with_name("out.jsonl").exists()


@pytest.mark.parametrize(
    "table",
    ["[]", '{"age": {"child": "a"}}', '{"age": {"child": "a", "adult": "a"}}', '{"age": {"child": 1, "adult": "a"}}'],
)
def test_tables_that_tell_no_speakers_apart_are_refused(table: str, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(table, "utf-8")
    with refused("bad-value", "table.json"):
        read_answers(tmp_path / "table.json")
    (tmp_path / "table.json").write_text("{", "utf-8")
    with refused("damaged", "table.json"):
        read_answers(tmp_path / "table.json")


def test_a_broken_line_or_a_copy_elsewhere_is_refused(source: Path, tmp_path: Path) -> None:
    with refused("conflict", "elsewhere/out.jsonl"):
        write_answers(source, tmp_path / "elsewhere/out.jsonl", "age", read_answers(resolve(TABLE)))
    source.write_text(source.read_text() + "{broken\n")
    with refused("damaged", "train.jsonl:5"):
        write_answers(source, tmp_path / "out.jsonl", "age", read_answers(resolve(TABLE)))
