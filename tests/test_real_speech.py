"""The benchmark of real speech tests every speaker once, and lets pre-training hear none that it tests."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from undertone.evaluation.metrics import Prediction

Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    file = Path(__file__).parents[1] / "benchmarks/real_speech.py"
    spec = importlib.util.spec_from_file_location("real_speech", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    predictions = [Prediction("", "probe", "", "", found, true, true, found, who) for who, true, found in said]
    np.testing.assert_array_equal(benchmark.recalls_by_speaker(predictions), [[1, 1, 2, 1], [0, 0, 1, 0]])
