"""Labels that the auxiliary head does not know are told by file and line before anything trains."""

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_lines, write_tone
from tests.helpers.errors import refused
from tests.helpers.runs import quiet_run

from sottovoce.config import recipe as recipes
from sottovoce.errors import ConfigError, ManifestError
from sottovoce.training.category_labels import check_head_labels
from sottovoce.training.splits import read_splits

HEAD = {"layer": 1, "categories": {"emotion": ["neutral", "happy"], "gender": ["male", "female"]}}


@pytest.fixture
def paired(tree: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Its third line has an emotion that the head lacks; its fourth is no pair, and may have any."""
    lines: list[dict[str, Any]] = []
    for name, category, label in (
        ("a", "emotion", "happy"), ("b", "gender", "male"), ("c", "emotion", "sad"), ("d", None, "sad"),
    ):  # fmt: skip
        write_tone(tmp_path / f"{name}.wav", 0.4, 200)
        line = {"id": name, "audio": f"{name}.wav", "text": name, "labels": {category or "emotion": label}}
        answers = {"male": "yes", "female": "no"} if category == "gender" else {"happy": "yes", "sad": "no"}
        pair = {"category": category, "answers": answers, "response": answers[label]} if category else {}
        lines.append({**line, **pair})
    manifest = write_lines(tmp_path / "pairs.jsonl", lines)
    tune = {"tasks": {"dialogue": 1}, "train": ["llm"], "lr": 1e-2}
    tree["llm"] = {**tree["llm"], "tuning": {"method": "lora", "layers": "0", "rank": 2}}
    return {**tree, "data": {"train": [{"manifest": str(manifest)}]}, "stages": {"tune": tune}, "auxiliary_head": HEAD}


def test_an_unknown_label_is_told_by_its_line(paired: dict[str, Any]) -> None:
    with refused("unknown-name", "pairs.jsonl:3", ManifestError):
        quiet_run(paired)  # before any weight is read


def test_a_category_without_a_head_is_told_by_its_line(paired: dict[str, Any]) -> None:
    head = {"layer": 1, "categories": {"emotion": ["neutral", "happy", "sad"]}}
    recipe = recipes.parse({**paired, "auxiliary_head": head})
    with refused("unknown-name", "pairs.jsonl:2", ManifestError):
        check_head_labels(recipe, read_splits(recipe))


def test_such_lines_can_be_left_out(paired: dict[str, Any]) -> None:
    paired["data"]["policy"] = "skip"
    recipe = recipes.parse(paired)
    data = read_splits(recipe)
    check_head_labels(recipe, data)
    assert [u.id for u in data.splits["train"].utterances] == ["a", "b", "d"]
    assert [fault.where.rpartition("/")[2] for fault in data.faults] == ["pairs.jsonl:3"]


def test_a_value_that_no_manifest_may_have_is_refused_with_the_recipe(paired: dict[str, Any]) -> None:
    head = {"layer": 1, "categories": {"emotion": ["neutral", "hapy"]}}
    with refused("unknown-name", "auxiliary_head.categories.emotion", ConfigError):
        recipes.parse({**paired, "auxiliary_head": head})
