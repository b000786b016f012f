"""The benchmark of recorded people tests everybody once, trains on nobody whom it tests, and keeps its answers."""

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sottovoce.evaluation.metrics import Prediction

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("recorded_people")


@pytest.fixture
def data() -> dict[str, list[dict[str, Any]]]:
    shared = {"text": "YES", "language": "en", "gender": "male"}

    def rows(folder: str, speakers: list[str], takes: int, **keys: Any) -> list[dict[str, Any]]:
        takes_of = ((one, i) for one in speakers for i in range(takes))
        return [{"audio": f"{folder}/{one}-{i}.wav", "speaker": one, **shared, **keys} for one, i in takes_of]

    readers = [f"{i:04}" for i in range(60)]
    children, adults = {"age_group": "child", "text_match": "a"}, {"age_group": "adult", "text_match": "a"}
    return {
        "speechocean762": [
            *rows("speechocean762", readers[:30], 3, **children),
            *rows("speechocean762", readers[30:], 3, **adults),
        ],
        "speechocean762_more": rows("speechocean762_more", readers[30:], 2, age_group="adult"),
        "emodb_2s": rows("emodb_2s", ["03", "08", "09", "10", "11", "13"], 20, emotion="anger", language="de"),
        "fsdd": rows("fsdd", ["a", "b", "c", "d"], 8),
    }


def speakers(lines: list[dict[str, Any]]) -> set[str]:
    return {line["speaker"] for line in lines}


def test_everybody_is_tested_once_and_by_parts_that_did_not_hear_them(benchmark: Any, data: Any) -> None:
    sides = [benchmark.Sides(data, part) for part in (1, 2, 3, 4, 5)]
    for name, folders in (("readers", ("speechocean762", "speechocean762_more")), ("actors", ("emodb_2s",))):
        tested = Counter(one for side in sides for one in speakers(side.test.get(name, [])))
        assert tested == Counter(speakers([row for folder in folders for row in data[folder]]))
    for side in sides:
        tested_here = set().union(*map(speakers, side.test.values()))
        assert not tested_here & set().union(*map(speakers, (*side.train.values(), *side.validation.values())))
        assert not speakers(side.train["readers"]) & speakers(side.validation["readers"])


def test_gender_is_learned_from_grown_readers_alone(benchmark: Any, data: Any) -> None:
    """Children have none that can be heard, and a few actors would be learned by heart."""
    train = benchmark.Sides(data, 1).train
    adults = {row["speaker"] for row in data["speechocean762"] if row["age_group"] == "adult"}
    assert speakers([line for lines in train.values() for line in lines if "gender" in line["labels"]]) <= adults
    assert all(line["labels"] == {"emotion": "angry"} and line["text"] is None for line in train["actors"])
    assert all(not line["labels"] and line["text"] == "yes" for line in train["digits"])


def test_age_is_asked_where_texts_do_not_tell(benchmark: Any, data: Any) -> None:
    matched = {row["audio"] for row in data["speechocean762"]}
    for line in benchmark.Sides(data, 2).test["readers"]:
        assert ("age" in line["labels"]) == (line["id"] in matched)


def test_answers_are_kept_and_read_again(benchmark: Any, tmp_path: Path) -> None:
    answers = [Prediction("a", "gender", "both", "Who?", "male", "male", label="male", predicted="male", speaker="s")]
    file = tmp_path / "err-1-1.jsonl"
    made = benchmark.kept(file, lambda: answers)
    assert made == benchmark.kept(file, lambda: pytest.fail("made again"))
    assert [(one.id, one.response, one.predicted, one.speaker) for one in made] == [("a", "male", "male", "s")]
    assert benchmark.kept(file, list, anew=True) == []
