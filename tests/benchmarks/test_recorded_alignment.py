"""SpeechEmotionLlama on real parts: nobody tested was trained on, and systems differ by their tasks alone."""

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.benchmarks.test_recorded_people import FOLDER, data, speakers

from sottovoce.config.recipe import load
from sottovoce.evaluation.metrics import Prediction

__all__ = ["data"]  # a fixture


@pytest.fixture
def benchmark(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark on readers who say numbers of four words, one sentence a clip, and a silent synthesizer."""
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("recorded_alignment")
    for name in module.READERS:
        for number, row in enumerate(data[name]):
            row["text"] = f"This is number {number % 100}"
    for number, row in enumerate(data["emodb_2s"]):
        row.update(emotion=("anger", "boredom")[number % 2], sentence_id="a01")
    monkeypatch.setattr(module, "SENTENCES", {"train": 6, "validation": 3, "test": 3})
    monkeypatch.setattr(module, "read", lambda folder, name: data[name])

    class Silent:
        def speak(self, text: str, **_: Any) -> Any:
            return np.zeros(160, np.float32)

    monkeypatch.setattr(module, "ESpeakSynthesizer", Silent)
    return module


def test_who_and_what_is_tested_was_not_trained_on(benchmark: Any, tmp_path: Path) -> None:
    sides: dict[str, dict[str, Any]] = {}
    for side, name, lines in benchmark.sides_of(tmp_path / "speech", tmp_path / "made", 2):
        sides.setdefault(side, {})[name] = lines
    train, validation, test = (sides[side] for side in ("train", "validation", "test"))
    assert set(test) == {"made", "acted"} and all(test.values())
    heard = [line for part in (*train.values(), *validation.values()) for line in part]
    for name in ("made", "acted"):
        assert not speakers(test[name]) & speakers(heard)
    assert not {line["text"] for line in test["made"]} & {line["text"] for line in heard}
    assert {line["labels"]["emotion"] for line in test["made"]} == set(benchmark.FELT)
    assert {line["labels"]["emotion"] for line in test["acted"]} == {"angry"}  # boredom is none of the four
    assert all(Path(line["audio"]).is_absolute() for line in heard)


def test_systems_differ_by_their_tasks_alone(benchmark: Any) -> None:
    arguments = argparse.Namespace(data=Path("speech"), whisper=Path("w.pt"), llm=Path("llm"), runs=Path("runs"))
    files = {side: {name: Path(f"{side}-{name}.jsonl") for name in benchmark.SERVED} for side in ("train", "test")}
    recipes = {
        system: load(benchmark.RECIPE, benchmark.overrides(arguments, files, system, 1, 1))
        for system in benchmark.SYSTEMS
    }
    first = recipes["baseline_1"]
    assert list(first.stages) == ["words", "respond"] and first.init_from is None
    for system, recipe in recipes.items():
        asked = {task for task, weight in recipe.stages["respond"].tasks.items() if weight}
        assert asked == set(benchmark.TASKS[system])
        if system != "baseline_1":
            assert list(recipe.stages) == ["respond"] and "baseline_1-1-1" in str(recipe.init_from)
    plain, felt = recipes["baseline_2"].plain(), recipes["v1"].plain()
    for recipe in (plain, felt):
        recipe.pop("name")
    changed = {key for key in plain if plain[key] != felt[key]}
    assert changed == {"tasks", "evaluation", "slots"}  # of a slot, the text that stands for it
    changed = {key for key in plain["evaluation"] if plain["evaluation"][key] != felt["evaluation"][key]}
    assert changed == {"task_overrides", "text"}


def test_replies_are_held_against_the_llms_own_to_every_feeling(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        {"id": e, "speaker": "f5", "text": "it rains", "labels": {"emotion": e}, "response": f"To {e}."}
        for e in benchmark.FELT
    ]
    for name in ("made", "acted"):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = {"test": {name: tmp_path / name for name in ("made", "acted")}}
    told = [
        Prediction(e, "response", slots, "", "To sad.", f"To {e}.", label=e, speaker="f5", source="made")
        for e in benchmark.FELT
        for slots in ("both", "text")
    ]
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(benchmark, "manifests", lambda *_: files)
    monkeypatch.setattr(benchmark, "overrides", lambda *a: [f"system={a[2]}"])
    monkeypatch.setattr(benchmark, "sottovoce", lambda *words: asked.append(words))
    monkeypatch.setattr(benchmark, "read_predictions", lambda _: told)
    monkeypatch.setattr(benchmark, "_probed", lambda *_: [])
    arguments = argparse.Namespace(runs=tmp_path, answers=tmp_path / "answers")
    found = benchmark.answered(arguments, "v1", 1, 1)
    assert [words[-1] for words in asked] == ["system=baseline_1", "system=v1"]
    assert [p.slots for p in found] == ["both"] * 4
    assert all(p.rivals == {e: f"To {e}." for e in benchmark.FELT} for p in found)
    fit = list(benchmark.cells(found, "made"))[1]
    assert fit.startswith("25.0 ")  # always a reply to sadness
    assert benchmark.answered(arguments, "v1", 1, 1) == found and len(asked) == 2  # kept
