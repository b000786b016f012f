"""The benchmark of real speech tests every speaker once, and trains on none that it tests."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sottovoce.evaluation.metrics import Prediction

Rows = dict[str, list[dict[str, Any]]]
FILE = Path(__file__).parents[2] / "benchmarks" / "real_speech.py"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    spec = spec_from_file_location("real_speech", FILE)
    assert spec and spec.loader
    module = sys.modules["real_speech"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def rows() -> Rows:
    speakers = {
        "speechocean762": [f"{i // 2:04}" for i in range(46)],
        "emodb_2s": ["03", "08", "09", "10", "11", "13"],
        "fsdd": ["theo"], "ljspeech_mini": ["lj"], "jfk": ["jfk"],
    }  # fmt: skip
    shared = {"text": "YES", "age_group": "child"}
    return {
        name: [
            {**shared, "speaker": one, "audio": f"{name}/{i}.wav", "text_match": i % 2 or None}
            for i, one in enumerate(ones)
        ]
        for name, ones in speakers.items()
    }


def speakers_of(file: Path, rows: Rows) -> set[str]:
    known = {row["audio"]: row["speaker"] for of_folder in rows.values() for row in of_folder}
    return {known[json.loads(line)["audio"]] for line in file.read_text().splitlines()}


def test_every_speaker_is_tested_in_one_part(benchmark: Any, rows: Rows) -> None:
    tested = [one for part in benchmark.PARTS for one in benchmark.tested_in(part, rows)]
    assert sorted(tested) == sorted({row["speaker"] for name in ("speechocean762", "emodb_2s") for row in rows[name]})


def test_pre_training_has_nobody_who_is_tested(benchmark: Any, rows: Rows, tmp_path: Path) -> None:
    everybody = {row["speaker"] for of_folder in rows.values() for row in of_folder}
    for part in benchmark.PARTS:
        benchmark.pretraining_sources(tmp_path, tmp_path, rows, part)
        train, validation = (speakers_of(tmp_path / f"{side}-{part}.jsonl", rows) for side in ("train", "validation"))
        assert validation and not train & validation
        assert train | validation == everybody - benchmark.tested_in(part, rows)


def test_the_llm_is_asked_about_matched_clips_of_readers_that_its_adapter_has_not_met(
    benchmark: Any, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides: list[str] = []
    monkeypatch.setattr(benchmark, "fit", lambda config, given: overrides.extend(given))
    monkeypatch.setattr(benchmark, "read_predictions", lambda folder: [])
    benchmark.spoken_answers(tmp_path, tmp_path, rows, 4)
    train, validation, test = (
        speakers_of(tmp_path / f"age-{side}-4.jsonl", rows) for side in ("train", "validation", "test")
    )
    assert test == {f"{i:04}" for i in range(3, 23, 5)} and not test & (train | validation) and not train & validation
    lines = [json.loads(line) for line in (tmp_path / "age-test-4.jsonl").read_text().splitlines()]
    assert len(lines) == len(test) and lines[0]["labels"] == {"age": "child"} and "seed=4" in overrides


def test_a_speaker_is_resampled_with_all_clips(benchmark: Any) -> None:
    clips = [("a", "x", "x"), ("a", "x", "y"), ("a", "y", "y"), ("b", "x", "y")]  # speaker, truth, answer
    predictions = [Prediction("", "probe", "", "", answer, true, true, answer, who) for who, true, answer in clips]
    np.testing.assert_array_equal(benchmark.recalls_by_speaker(predictions), [[1, 1, 2, 1], [0, 0, 1, 0]])
    page = benchmark.results([benchmark.Answers("gender", benchmark.BASELINE, predictions)])
    assert "| gender | 2 | 4 | 50.0 | 92 | 66.7 [" in page and "- gender, log-mel + pitch: 66.7" in page
