"""Recipes: what is shipped is right, what is wrong is named, and everything wrong is named at once."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.config_tree import merge, read_tree
from sottovoce.errors import ConfigError
from sottovoce.lightning_modules.distributed import check_trainer
from sottovoce.paths import resolve

CONF = Path(__file__).parents[2] / "conf"
OTHERS = (
    "_",
    "best_rq",
    "table",
    "analysis",
    "paired_data",
)  # what recipes extend, and what is no recipe of a SpeechLLM
SHIPPED = sorted(file for file in CONF.glob("**/*.yaml") if not file.name.startswith(OTHERS))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_recipe_is_right_and_survives_a_round_trip(path: Path) -> None:
    recipe = recipes.load(path)
    assert recipes.parse(recipe.plain()) == recipe


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_recipe_builds_without_weights(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(path), "--dry-run"]) == 0
    assert "what trains" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "linguistic"), [("dual_adapter", "20,452,864"), ("dual_adapter_llama", "21,501,952")])
def test_the_papers_parameter_counts(name: str, linguistic: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", str(CONF / f"{name}.yaml"), "--dry-run"])
    assert linguistic in capsys.readouterr().out


def test_the_papers_training_details() -> None:
    """Section IV-C."""
    stages = recipes.load(CONF / "dual_adapter.yaml").stages
    assert [(s.lr, s.warmup_steps, s.epochs, s.weight_decay, s.lr_schedule) for s in stages.values()] == [
        (5e-5, 1000, 3, 0.05, "linear"),
        (5e-6, 1000, 3, 0.05, "linear"),
        (5e-6, 0, 3, 0.05, "linear"),
    ]
    assert [s.err for s in stages.values()] == [None, *[{"speech": 1, "text": 1, "none": 1}] * 2]
    assert all(s.batch_size * 4 == 48 for s in stages.values())


def test_llama_differs_from_qwen_in_the_llm_alone() -> None:
    qwen, llama = (recipes.load(CONF / f"{name}.yaml").plain() for name in ("dual_adapter", "dual_adapter_llama"))
    assert {key for key in qwen if qwen[key] != llama[key]} == {"name", "llm"}


MISTAKES = [
    ({"stagse": {}}, r"unknown key 'stagse'.*Did you mean 'stages'"),
    ({"evaluation": {"tasks": ["asr", ["emotion"]]}}, r"evaluation\.tasks\[1\]: one value is needed, found \['emo"),
    ({"data": {"train": [{"manifest": "m.jsonl", "allow": [{"a": 1}]}]}}, r"data\.train\[0\]\.allow\[0\]: one value"),
    ({"stages": {"joint": {"tasks": {"asr": [1]}, "lr": 1e-3}}}, r"stages\.joint\.tasks\.asr: one value is needed"),
    ({"stages": {"joint": {"task": {"asr": 1}}}}, r"stages\.joint.*task"),
    ({"stages": {"joint": {"tasks": {"asrr": 1}, "lr": 1.0}}}, r"stages\.joint\.tasks: there is no task 'asrr'.*'asr'"),
    (
        {"stages": {"joint": {"tasks": {"asr": 1}, "lr": 1.0, "train": ["linguistics"]}}},
        r"no slot 'linguistics'.*'linguistic'",
    ),
    (
        {"stages": {"joint": {"tasks": {"asr": 1}, "lr": 1.0, "err": {"speech": 1, "txt": 1}}}},
        r"no source 'txt'.*'text'",
    ),
    ({"stages": {"joint": {"tasks": {"asr": 0}, "lr": 1.0}}}, r"joint\.tasks: weights"),
    ({"stages": {"joint": {"tasks": {"asr": 1}, "lr": -1.0}}}, r"joint\.lr: must be positive"),
    ({"stages": {"joint": {"tasks": {"asr": 1}}}}, r"lr"),
    ({"stages": {}}, r"stages: a run needs at least one"),
    (
        {"slots": {"p": {"adapter": {"type": "pooled_soft_promt"}, "text": "caption"}}},
        r"slots\.p\.adapter.*'pooled_soft_prompt'",
    ),
    ({"slots": {"p": {"adapter": {"type": "pooled_soft_prompt", "token": 3}, "text": "caption"}}}, r"token.*'tokens'"),
    ({"slots": {"p": {"adapter": {"tokens": 3}, "text": "caption"}}}, r"slots\.p\.adapter: `type` is missing"),
    ({"slots": {"p": {"adapter": {"type": "pooled_soft_prompt"}, "text": "captoin"}}}, r"captoin"),
    ({"encoder": {"type": "wisper", "checkpoint": "tiny"}}, r"encoder: no encoder is called 'wisper'.*'whisper'"),
    ({"llm": {"checkpoint": "x", "dtype": "int8"}}, r"llm\.dtype.*int8.*float32"),
    ({"tasks": {"emotoin": {}}}, r"tasks: there is no task 'emotoin'.*'emotion'"),
    ({"tasks": {"emotion": {"choice": ["a", "b"]}}}, r"tasks\.emotion.*choice"),
    ({"evaluation": {"slots": ["linguistik"]}}, r"no choice of slots 'linguistik'.*'linguistic'"),
    ({"data": {"corpus": {"type": "demo_word"}}}, r"data\.corpus.*'demo_world'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"), MISTAKES, ids=lambda value: str(value)[:40] if isinstance(value, dict) else ""
)
def test_a_mistake_is_named(tree: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipes.parse({**tree, **change})


def test_all_mistakes_are_told_at_once(tree: dict[str, Any]) -> None:
    wrong = {**tree, "sede": 1, "llm": {"dtype": "int8", "checkpoint": "x"}, "encoder": 3}
    with pytest.raises(ConfigError) as error:
        recipes.parse(wrong, "my.yaml")
    lines = str(error.value).splitlines()
    assert len(lines) == 3 and all(line.startswith("my.yaml: ") for line in lines)


def test_err_needs_something_for_an_utterance_without_text(tree: dict[str, Any]) -> None:
    tree["stages"]["disentangle"]["err"] = {"text": 1, "none": 0}
    with pytest.raises(ConfigError, match=r"stages\.disentangle\.err: an utterance may lack the text"):
        recipes.parse(tree)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("stages.jiont=null", "there is no 'jiont' in stages. Did you mean 'joint'"),
        ("slots.linguistc=null", "Did you mean 'linguistic'"),
        ("evaluation.judges.lama=null", "Did you mean 'llama'"),
        ("data.train=[{manifest: mine.jsonl}]", "those of train would not be heard: data.corpus=null"),
    ],
)
def test_a_slip_that_would_change_nothing_is_told(override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        recipes.load(resolve("sottovoce:conf/quickstart.yaml"), [override])
    assert "joint" not in recipes.load(resolve("sottovoce:conf/quickstart.yaml"), ["stages.joint=null"]).stages


@pytest.mark.parametrize(
    ("trainer", "told"),
    [
        ({"devises": 2}, "takes no 'devises'. Did you mean: 'devices'|'devises'"),
        ({"accelerator": "tpuu"}, "Lightning has no 'tpuu'"),
        ({"precision": "bf17"}, "Lightning has no 'bf17'"),
        ({"devices": 0}, "devices: a positive whole number is needed, found 0"),
        ({"devices": []}, "devices: a positive"),
        ({"num_nodes": "all"}, "num_nodes: a positive"),
        ({"num_nodes": -1}, "num_nodes: a positive"),
    ],
)
def test_what_lightning_would_refuse_is_told_before_anything_is_read(
    tree: dict[str, Any], trainer: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        check_trainer(recipes.parse({**tree, "trainer": trainer}))
    for fine in ({"devices": "auto"}, {"devices": "2"}, {"devices": [0, 1]}, {"precision": 32}, {"accelerator": "gpu"}):
        check_trainer(recipes.parse({**tree, "trainer": fine}))


def test_a_part_that_is_not_there_or_has_no_weight_is_told(tree: dict[str, Any]) -> None:
    tree["data"]["train"][0]["name"] = "books"
    tree["stages"]["holistic"]["parts"] = {"books": 0.1}
    assert recipes.parse(tree).stages["holistic"].parts == {"books": 0.1}
    tree["stages"]["holistic"]["parts"] = {"boks": 0.1, "books": -1.0}
    with pytest.raises(
        ConfigError, match=r"(?s)no part, .*'boks'\. Did you mean 'books'.*parts\.books: must be from 0"
    ):
        recipes.parse(tree)


def test_overrides_reach_any_key_and_null_switches_a_slot_off() -> None:
    recipe = recipes.load(
        CONF / "quickstart.yaml", ["stages.joint.lr=1e-4", "slots.paralinguistic=null", "evaluation.limit=3"]
    )
    assert recipe.stages["joint"].lr == 1e-4 and list(recipe.slots) == ["linguistic"] and recipe.evaluation.limit == 3


@pytest.mark.parametrize(("override", "message"), [("stages.joint.lr", "key=value"), ("sede=3", "Did you mean 'seed'")])
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipes.load(CONF / "quickstart.yaml", [override])


def test_children_win_and_a_new_type_starts_afresh() -> None:
    base = {"a": {"type": "x", "knob": 1}, "b": {"c": 1, "d": [1, 2]}}
    child = {"a": {"type": "y"}, "b": {"d": [3]}}
    assert merge(base, child) == {"a": {"type": "y"}, "b": {"c": 1, "d": [3]}}


def test_extending_in_a_circle_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml")
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    with pytest.raises(ConfigError, match="extends itself"):
        read_tree(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("extends: nowhere.yaml")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: there is no such recipe"):
        read_tree(tmp_path / "c.yaml")


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "a: [1\n", "\x00", "a: ${nowhere}\n"])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    assert main(["fit", "--config", str(file)]) == 2
    assert "sottovoce:" in capsys.readouterr().err


def test_print_config_shows_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", str(CONF / "quickstart.yaml"), "--print-config"])
    printed = OmegaConf.create(capsys.readouterr().out)
    assert printed.stages.joint.weight_decay == 0.05 and printed.slots.linguistic.adapter.stack == 5


def test_missing_manifests_say_where_and_what_to_do(
    write_recipe: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"train": [{"manifest": "no/train.jsonl"}], "validation": [{"manifest": "no/val.jsonl"}]}
    assert main(["fit", "--config", write_recipe(data=data)]) == 2
    told = capsys.readouterr().err
    assert "no/train.jsonl" in told and "no/val.jsonl" in told and str(Path.cwd()) in told and "quickstart" in told
