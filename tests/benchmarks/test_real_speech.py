"""The benchmark of real speech tests every speaker once, and lets pre-training hear none that it tests."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sottovoce.evaluation.metrics import Prediction

Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """As when it is run: what lies beside it can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield importlib.import_module("real_speech")


@pytest.fixture
def rows() -> Rows:
    speakers = {
        "speechocean762": [f"{i:04}" for i in range(23)],
        "emodb_2s": ["03", "08", "09", "10", "11", "13"],
        "fsdd": ["theo"], "ljspeech_mini": ["lj"], "jfk": ["jfk"],
    }  # fmt: skip
    return {name: [{"speaker": one, "audio": f"{name}/{one}"} for one in ones] for name, ones in speakers.items()}


def test_every_speaker_is_tested_in_one_part(benchmark: ModuleType, rows: Rows) -> None:
    tested = [one for part in benchmark.PARTS for one in benchmark.tested_in(part, rows)]
    assert sorted(tested) == sorted(row["speaker"] for name in ("speechocean762", "emodb_2s") for row in rows[name])


def test_pre_training_hears_nobody_who_is_tested(benchmark: ModuleType, rows: Rows, tmp_path: Path) -> None:
    known = {row["audio"]: row["speaker"] for of_folder in rows.values() for row in of_folder}
    for part in benchmark.PARTS:
        tested = benchmark.tested_in(part, rows)
        benchmark.write_manifests(tmp_path, tmp_path, rows, tested, part)
        sides = [(tmp_path / f"{side}-{part}.jsonl").read_text().splitlines() for side in ("train", "validation")]
        train, validation = ({known[json.loads(line)["audio"]] for line in side} for side in sides)
        assert not train & validation
        assert train | validation == set(known.values()) - tested


def test_a_speaker_is_drawn_with_all_clips(benchmark: ModuleType) -> None:
    said = [("a", "x", "x"), ("a", "x", "y"), ("a", "y", "y"), ("b", "x", "y")]  # speaker, truth, answer
    import speaker_scores

    predictions = [Prediction("", "probe", "", "", found, true, true, found, who) for who, true, found in said]
    np.testing.assert_array_equal(speaker_scores.recalls_by_speaker(predictions), [[1, 1, 2, 1], [0, 0, 1, 0]])


def test_the_told_are_trained_on_other_speakers(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The LLM is asked about matched clips alone, of readers that its adapter has not heard."""
    import real_age

    rows = [
        {
            "audio": f"{i}.wav",
            "speaker": f"{i // 2:02}",
            "text": "YES",
            "age_group": "child",
            "text_match": i % 2 or None,
        }
        for i in range(46)
    ]
    asked: list[str] = []
    monkeypatch.setattr(real_age, "fit", lambda config, overrides: asked.extend(overrides))
    monkeypatch.setattr(real_age, "read_predictions", lambda folder: [])
    people = {"speechocean762": rows, "emodb_2s": []}
    real_age.told(tmp_path, tmp_path, people, 4)
    sides = {
        side: [json.loads(line) for line in (tmp_path / f"age-{side}-4.jsonl").read_text().splitlines()]
        for side in ("train", "validation", "test")
    }
    heard = {side: {line["speaker"] for line in lines} for side, lines in sides.items()}
    assert heard["test"] == {f"{i:02}" for i in range(3, 23, 5)} and len(sides["test"]) == len(heard["test"])
    assert not heard["test"] & (heard["train"] | heard["validation"]) and not heard["train"] & heard["validation"]
    assert sides["test"][0]["labels"] == {"age": "child"} and "seed=4" in asked
