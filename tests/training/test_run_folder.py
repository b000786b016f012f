"""What a restart may change: all that the weights so far do not depend on; the rest is named with both values."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.helpers.errors import refused

from sottovoce.config import recipe as recipes
from sottovoce.training.run_folder import check_data, check_folder, only_run, open_folder


@pytest.fixture
def plain(recipe: recipes.Recipe) -> dict[str, Any]:
    return recipe.plain()


def begin(folder: Path, recipe: dict[str, Any], *stages: str) -> None:
    open_folder(folder, recipe)
    for number, name in enumerate(recipe["stages"], 1):
        if name in stages:
            (folder / "stages" / f"{number}-{name}").mkdir(parents=True)
            (folder / "stages" / f"{number}-{name}" / "last.ckpt").touch()


def changed(recipe: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    return {**recipe, head: changed(recipe[head], rest, value) if rest else value}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.num_workers", 3),
        ("data.cache", None),
        ("data.policy", "skip"),
        ("data.max_seconds", 20.0),
        ("data.test", []),
        ("checkpoint_every", 7),
        ("trainer", {"devices": 4}),
        ("output_dir", "elsewhere"),
        ("evaluation.batch_size", 2),
        ("evaluation.limit", 5),
        ("tasks.asr.metric", "cer"),
        ("tasks.asr.normalizer", "basic"),
        ("evaluation.max_new_tokens", 1),  # targets have a key of their own
        ("stages.joint.batch_size", 1),
        ("stages.joint.accumulate_grad_batches", 4),
        ("stages.holistic.lr", 0.5),  # has not begun
        ("stages.holistic.epochs", 9),
    ],
)
def test_what_weights_do_not_depend_on_may_change(tmp_path: Path, plain: dict[str, Any], key: str, value: Any) -> None:
    begin(tmp_path, plain, "joint")
    open_folder(tmp_path, changed(plain, key, value))
    check_folder(tmp_path, plain)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 99),
        ("stages.joint.lr", 0.5),
        ("stages.joint.epochs", 99),
        ("slots.linguistic.text", "tagged"),
        ("llm.dtype", "bfloat16"),
        ("data.validate", "lazy"),
        ("data.target_max_new_tokens", 1),  # of the replies that the LLM made to learn from
    ],
)
def test_what_they_depend_on_is_named_with_both_values(
    tmp_path: Path, plain: dict[str, Any], key: str, value: Any
) -> None:
    begin(tmp_path, plain, *plain["stages"])
    with refused("mismatch", key) as told:
        check_folder(tmp_path, changed(plain, key, value))
    node: Any = plain
    for part in key.split("."):
        node = node[part]
    assert f"{key}: {node} " in str(told.value) and f" {value} " in str(told.value)
    assert "delete" not in str(told.value)


def test_a_run_goes_on_after_an_update_that_brings_options(tmp_path: Path, plain: dict[str, Any]) -> None:
    brought = ("task_overrides", "captions")
    older = [{key: value for key, value in node.items() if key not in brought} for node in plain["data"]["train"]]
    slots = {
        name: {key: value for key, value in slot.items() if not key.startswith("layer")}
        for name, slot in plain["slots"].items()
    }
    begin(tmp_path, changed({**plain, "slots": slots}, "data.train", older), "joint")
    check_folder(tmp_path, plain)
    with refused("mismatch", "slots.linguistic.layers"):
        check_folder(tmp_path, changed(plain, "slots.linguistic.layers", "all"))
    with refused("mismatch", "data.train"):
        check_folder(
            tmp_path, changed(plain, "data.train", [{**older[0], "task_overrides": {"asr": {"prompts": "x"}}}])
        )


def test_a_run_of_an_older_build_goes_on(tmp_path: Path) -> None:
    """Its recipe as commit 6e4c775 wrote it, and as it reads now that there are more keys."""
    older = yaml.safe_load(Path(__file__).with_name("older_quickstart.yaml").read_text("utf-8"))
    begin(tmp_path, older, *older["stages"])
    now = recipes.parse(older).plain()
    assert now.keys() == older.keys() and now != older
    check_folder(tmp_path, now)
    with refused("mismatch", "slots.linguistic.ctc_compression"):
        check_folder(tmp_path, changed(now, "slots.linguistic.ctc_compression", True))
    with refused("mismatch", "stages.joint.warmup_steps"):  # a number is no option that is off
        check_folder(tmp_path, changed(now, "stages.joint.warmup_steps", 0))
    without = changed(now, "stages.joint.warmup_steps", None)
    begin(tmp_path / "other", changed(now, "stages.joint.warmup_steps", 0), *now["stages"])
    with refused("mismatch", "stages.joint.warmup_steps"):
        check_folder(tmp_path / "other", without)


def test_the_evaluations_limit_is_that_of_targets_where_these_have_none(tmp_path: Path, plain: dict[str, Any]) -> None:
    plain = changed(plain, "data.target_max_new_tokens", None)
    begin(tmp_path, plain, *plain["stages"])
    with refused("mismatch", "evaluation.max_new_tokens"):
        check_folder(tmp_path, changed(plain, "evaluation.max_new_tokens", 1))


def test_a_run_without_weights_leaves_no_claim_on_the_name(tmp_path: Path, plain: dict[str, Any]) -> None:
    rows: dict[str, list[object]] = {"train": [("a", 1.0, 1.0)], "validation": []}
    open_folder(tmp_path, plain)
    check_data(tmp_path, rows)
    open_folder(tmp_path, changed(plain, "seed", 99))
    check_data(tmp_path, {**rows, "train": []})


def test_stages_that_are_done_keep_their_order(tmp_path: Path, plain: dict[str, Any]) -> None:
    begin(tmp_path, plain, "joint", "disentangle")
    stages = {name: plain["stages"][name] for name in ("disentangle", "joint", "holistic")}
    with refused("mismatch", "stages"):
        check_folder(tmp_path, {**plain, "stages": stages})


def test_the_second_of_two_runs_in_one_folder_is_refused_at_once(tmp_path: Path) -> None:
    with only_run(tmp_path), refused("conflict", tmp_path), only_run(tmp_path):
        pass
    with only_run(tmp_path):  # given back
        pass


def test_a_stage_is_not_taken_for_another_whose_name_it_begins_with(tmp_path: Path, plain: dict[str, Any]) -> None:
    """`joint` has not begun and is free; `joint2` has."""
    stages = plain["stages"]
    plain = {**plain, "stages": {"joint2": stages["joint"], "joint": stages["disentangle"]}}
    begin(tmp_path, plain, "joint2")
    check_folder(tmp_path, changed(plain, "stages.joint.lr", 0.5))
    with refused("mismatch", "stages.joint2.lr"):
        check_folder(tmp_path, changed(plain, "stages.joint2.lr", 0.5))
