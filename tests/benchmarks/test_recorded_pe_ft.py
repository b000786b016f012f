"""The rows of PE-FT on recorded people: who is tested was not trained on, and only the voice tells the right answer."""

import argparse
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks.test_recorded_people import FOLDER, data, speakers

__all__ = ["data"]  # a fixture


def test_manifests_have_readers_by_age_with_their_words(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    benchmark = importlib.import_module("recorded_pe_ft")
    monkeypatch.setattr(benchmark, "read", lambda folder, name: data[name])
    asked: list[tuple[str, ...]] = []

    def targets(*arguments: str) -> None:
        asked.append(arguments)
        shutil.copy(arguments[1], arguments[-1])

    monkeypatch.setattr(benchmark, "sottovoce", targets)
    sides = importlib.import_module("recorded_people").Sides(data, 2)
    arguments = argparse.Namespace(data=tmp_path / "speech")
    nodes = [json.loads(override.partition("=")[2])[0] for override in benchmark.manifests(arguments, sides, tmp_path)]
    train, validation, test = ([json.loads(line) for line in Path(node["manifest"]).open()] for node in nodes)
    assert train and validation and test
    assert not speakers(test) & (speakers(train) | speakers(validation))
    for line in (*train, *validation, *test):
        assert line["text"] == "yes" and set(line["labels"]) == {"age"} and Path(line["audio"]).is_absolute()
    assert all(line["audio"].split("/")[-2] == "speechocean762" for line in test)  # whose texts both ages read
    assert [node["tasks"] for node in nodes] == [["asr", "age", "response"], ["asr", "age", "response"], ["response"]]
    benchmark.manifests(arguments, sides, tmp_path)
    assert len(asked) == 3  # made once
