"""Records survive their files, and the tables say what the records say."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tests.helpers.errors import refused

from sottovoce.errors import MissingError
from sottovoce.evaluation import SLOTS, Prediction, Record, read_predictions, read_results, score_all, write_results
from sottovoce.evaluation.reports.results import results_markdown, results_table
from sottovoce.evaluation.reports.tables import published_beside

ATTRIBUTES = ("gender", "pitch", "tempo", "energy", "emotion")
RIVALS = {"happy": "how nice", "sad": "poor you"}


def predictions() -> list[Prediction]:
    """Four rows of every task for each choice of slots; the text rows of one attribute name no label once."""
    rows = []
    for slots in reversed(SLOTS):
        for i, label in enumerate(["sad", "happy", "happy", "happy"]):
            said = None if slots == "text" and i == 0 else label
            rows.append(Prediction(f"u{i}", "dialogue", slots, "", "how nice", RIVALS[label], label, rivals=RIVALS))
            heard = "a dog" if i else "a cat"
            rows.append(Prediction(f"u{i}", "asr", slots, "repeat", "a “cat”\n", heard, speaker="s"))
            rows += [Prediction(f"u{i}", task, slots, "?", f"It is {said}.", label, label, said) for task in ATTRIBUTES]
    return rows


def shown(records: Sequence[Record]) -> str:
    page = io.StringIO()
    Console(file=page, width=100).print(results_table(records))
    return page.getvalue()


def record(value: float = 0.975, **changed: str | float | None) -> Record:
    return replace(Record("ours", "asr", "wer", "both", value, 0.95, 0.992, 300, None), **changed)  # type: ignore[arg-type]


def test_every_task_gets_its_metrics_for_every_choice_of_slots() -> None:
    records = score_all("ours", predictions())
    expected = [("asr", "wer")]
    expected += [(task, metric) for task in ATTRIBUTES for metric in ("accuracy", "balanced_accuracy")]
    expected += [("dialogue", "rouge_l"), ("dialogue", "emotion_fit")]
    assert [(r.task, r.metric, r.slots) for r in records] == [(*pair, slots) for pair in expected for slots in SLOTS]
    assert {r.system for r in records} == {"ours"} and {r.n for r in records} == {4}
    found = {(r.task, r.metric, r.slots): r for r in records}
    assert found["asr", "wer", "both"].value == 0.375
    assert [found["pitch", "accuracy", slots].value for slots in SLOTS] == [1, 1, 1, 0.75]
    assert [found["pitch", "balanced_accuracy", slots].value for slots in SLOTS] == [1, 1, 1, 0.5]
    assert [found["pitch", metric, "both"].baseline for metric in ("accuracy", "balanced_accuracy")] == [0.75, 0.5]
    assert found["dialogue", "emotion_fit", "text"].value == found["dialogue", "rouge_l", "text"].value == 0.75


def test_a_dialogue_without_rivals_has_no_fit() -> None:
    rows = [Prediction("u1", "dialogue", "both", "", "how nice", "how nice")]
    assert [r.metric for r in score_all("ours", rows)] == ["rouge_l"]


def test_nothing_to_score_is_an_error() -> None:
    with refused("empty", "ours"):
        score_all("ours", [])


def test_results_come_back_as_written(tmp_path: Path) -> None:
    rows = predictions()
    records = score_all("ours", rows)
    write_results(tmp_path / "new" / "evaluation", records[::-1], rows)
    folder = tmp_path / "new" / "evaluation"
    assert sorted(file.name for file in folder.iterdir()) == ["predictions.jsonl", "results.json", "results.md"]
    assert read_results(folder) == [replace(r, notes="") for r in records]
    assert read_predictions(folder) == rows
    assert (folder / "results.md").read_text(encoding="utf-8") == results_markdown(records)


def test_results_json_is_the_contract(tmp_path: Path) -> None:
    write_results(tmp_path, [record(1 / 3, notes="remark", baseline=2 / 3)], [])
    text = (tmp_path / "results.json").read_text()
    assert text.endswith("]\n")
    (row,) = json.loads(text)
    assert list(row) == ["system", "task", "metric", "slots", "value", "low", "high", "n", "baseline"]
    assert (row["value"], row["baseline"]) == (0.333333, 0.666667)
    write_results(tmp_path, [record(speakers=12)], [])
    assert (
        json.loads((tmp_path / "results.json").read_text())[0]["speakers"] == read_results(tmp_path)[0].speakers == 12
    )


def test_a_failed_write_leaves_the_results_of_before(tmp_path: Path) -> None:
    write_results(tmp_path, [record()], predictions()[:1])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="Out of range float"):
        write_results(tmp_path, [record(float("nan"))], [])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_interrupted_write_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Path, target: Path) -> Path:
        raise OSError(f"no space for {target.name}")

    monkeypatch.setattr(Path, "replace", interrupted)
    with refused("storage", "predictions.jsonl"):
        write_results(tmp_path, [record()], [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "where"),
    [("[{}]", "results.json: record 1"), ("{}", "results.json"), ("[", "results.json"), ("[3]", ": record 1")],
)
def test_damaged_results_are_refused(tmp_path: Path, text: str, where: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with refused("damaged", where):
        read_results(tmp_path)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    write_results(tmp_path, [], predictions()[:1])
    with (tmp_path / "predictions.jsonl").open("a") as file:
        file.write("{}\n")
    with refused("damaged", "predictions.jsonl:2"):
        read_predictions(tmp_path)


def test_results_that_are_not_there_are_missing(tmp_path: Path) -> None:
    for read, name in ((read_results, "results.json"), (read_predictions, "predictions.jsonl")):
        with refused("not-found", name, MissingError):
            read(tmp_path)


def test_slots_of_a_recipes_own_stand_after_the_papers() -> None:
    rows = [record(slots="accent"), record(0.25)]
    assert "| asr | WER (english) ↓ | 25.0 [95.0-99.2] | 97.5 [95.0-99.2] | - | 300 |" in results_markdown(rows)
    assert "accent" in shown(rows)


def test_the_markdown_table() -> None:
    rows = [record(), record(0.05, slots="paralinguistic", low=0.04, high=1.0, n=298)]
    for metric, baseline in (("accuracy", 0.4), ("balanced_accuracy", 0.5)):
        rows.append(record(task="pitch", metric=metric, baseline=baseline, notes="1 of 300 responses name no label"))
    assert results_markdown(rows[::-1]).split("\n")[4:] == [
        "## ours",
        "",
        "| task | metric | both | paralinguistic | baseline | n |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| asr | WER (english) ↓ | 97.5 [95.0-99.2] | 5.0 [4.0-100] | - | 298-300 |",
        "| pitch | accuracy ↑ | 97.5 [95.0-99.2] | - | 40.0 | 300 |",
        "| pitch | balanced ↑ | 97.5 [95.0-99.2] | - | 50.0 | 300 |",
        "",
        "- pitch, both: 1 of 300 responses name no label",
        "",
    ]


def test_an_llm_that_cannot_say_what_it_reads_is_told() -> None:
    read = record(2.96, slots="text", metric="cer/basic")
    assert "- asr, text: 296.0 %: this LLM cannot say these words" in results_markdown([read])
    assert "diagnose" in shown([read])
    for other in (record(2.96), record(0.4, slots="text"), record(slots="text", task="pitch", metric="accuracy")):
        assert "cannot say" not in results_markdown([other])


@pytest.mark.parametrize("text", [results_markdown, shown])
def test_systems_stand_apart_and_twins_are_refused(text: object) -> None:
    assert callable(text)
    both = text([record(system="with [err]", metric="[new]"), record(0.25, system="without ERR")])
    places = [both.index(part) for part in ("with [err]", "[new]", "97.5", "without ERR", "25.0")]
    assert places == sorted(places)
    with refused("conflict", "ours"):
        text([record(), record(0.25)])


def test_the_terminal_table_fits_in_100_columns() -> None:
    wide = {"value": 0.999, "low": 0.993, "high": 1.0}
    scored = enumerate(score_all("ours", predictions()))
    records = [replace(r, **wide, n=12345 + i, baseline=0.9 + i / 1000) for i, r in scored]  # type: ignore[arg-type]
    page = shown(records)
    assert max(map(len, page.splitlines())) <= 100
    assert page.count("99.9 [99.3-100]") == len(records)  # no cell is broken over two lines
    assert "text: 1 of 4 responses name no label" in page
    lines = [line.split() for line in page.splitlines()]
    assert (
        lines[4][:2] == ["asr", "WER"]
        and lines[4][-2:] == ["90.0-", "12345-"]
        and lines[5] == ["(english)", "90.3", "12348"]
    )
    assert all(row in [line[:2] for line in lines] for row in (["emotion", "balanced"], ["dialogue", "fits"]))


def test_a_score_too_wide_for_its_column_is_still_whole() -> None:
    rows = [record(12.345, slots=slots, low=11.222, high=13.333) for slots in SLOTS]
    page = shown(rows).partition("In percent")[0]
    assert page.count("1234.5") == page.count("[1122.2-1333.3]") == len(SLOTS)


def test_published_numbers_stand_beside_those_of_a_run() -> None:
    """In our units, with half of the interval; where there is no such score of ours, too."""
    published = {
        "both": {"dialogue (styletalk)": {"cs_content/qwen": [4.28, 0.1], "rouge_l": [0.2]}, "asr": {"wer": [0.025]}}
    }
    mine = [record(3.5, task="dialogue (styletalk)", metric="cs_content/qwen", slots="both")]
    page = io.StringIO()
    Console(file=page, width=120).print(published_beside(mine, published))
    rows = [line.split() for line in page.getvalue().splitlines() if "both" in line]
    assert [row[-2:] for row in rows] == [["-", "2.5"], ["-", "20.0"], ["4.28", "±0.10"]]
    assert "3.50" in rows[-1]
    assert published_beside(mine, {}) is None


def test_an_error_rate_names_its_normalizer_and_fewer_errors_are_better() -> None:
    rows = [record(metric="cer/basic"), record(metric="mer/none"), record(metric="hallucinated")]
    page = results_markdown(rows)
    for label in ("| CER (basic) ↓ |", "| MER (none) ↓ |", "| hallucinated ↓ |"):
        assert label in page
    assert "CER ↓" in shown(rows) and "(basic)" in shown(rows)


def test_points_of_a_judge_are_no_percent() -> None:
    rows = [
        record(7.25, task="dialogue", metric=f"{aspect}/mine", low=7.0, high=7.5) for aspect in ("quality", "emotion")
    ]
    page = results_markdown(rows)
    assert page.count("| 7.25 [7.00-7.50] |") == 2 and "| quality (1-10) (mine) ↑ |" in page


def test_the_table_says_whom_the_intervals_are_over() -> None:
    rows = [record(speakers=12), record(metric="cer/basic", speakers=9)]
    assert "- intervals: over 9-12 speakers, with all that each says\n" in results_markdown(rows)
    assert "or over rows" in results_markdown([*rows, record(metric="mer/basic")])
    assert "speakers" not in results_markdown([record()])


def test_one_test_side_may_hold_several_languages() -> None:
    """Each row by the error rate that it names; clips without speech of all of them together."""
    rows = [
        Prediction("u1", "asr", "both", "", "a cat", "a dog"),
        Prediction("u2", "asr", "both", "", "今天天气很号", "今天天气很好", metric="cer/basic"),
        Prediction("u3", "asr", "both", "", "我想买 iPhone 手机", "我想买一个iPhone手机", metric="mer/basic"),
        Prediction("u4", "asr", "both", "", "", "", metric="cer/basic"),
        Prediction("u5", "asr", "both", "", "hm hm", ""),
        Prediction("u6", "asr", "both", "", "嗯", "", metric="mer/basic"),
    ]
    found = {r.metric: (r.value, r.n) for r in score_all("x", rows)}
    assert found == {
        "wer": (1.5, 2), "cer/basic": (0.166667, 2), "mer/basic": (0.375, 2),  # 2 of 8 are missing, one is inserted
        "hallucinated": (0.666667, 3),
    }  # fmt: skip
    assert {r.metric for r in score_all("x", rows[4:])} == {"hallucinated"}  # a part without a word has no error rate
