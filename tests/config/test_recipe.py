"""Recipes: what is shipped is right, and every fault of a recipe is named at once, by its kind and its key."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from omegaconf import OmegaConf
from tests.config.test_golden import FILES, GOLDEN, command
from tests.helpers.errors import faulty, refused
from tests.helpers.runs import Write

from sottovoce.analysis.config import AnalysisRecipe
from sottovoce.cli.main import main
from sottovoce.cli.recipe_schema import KINDS
from sottovoce.config import recipe as recipes
from sottovoce.config_model import RENAMED
from sottovoce.config_tree import merge, read_overrides, read_tree, read_yaml
from sottovoce.errors import Code, ConfigError
from sottovoce.lightning_modules.trainer_settings import check_trainer
from sottovoce.paths import resolve

CONF = Path(__file__).parents[2] / "conf"
QUICKSTART = CONF / "quickstart.yaml"
SHIPPED = [CONF / file for file in FILES if command(file) == "fit"]


def changed(tree: dict[str, Any], *overrides: str) -> recipes.Recipe:
    return recipes.parse(merge(tree, read_overrides(overrides)))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_recipe_builds_without_weights_and_survives_a_round_trip(path: Path) -> None:
    assert main(["fit", "--config", str(path), "--dry-run"]) == 0
    recipe = recipes.load(path)
    assert recipes.parse(recipe.plain()) == recipe


@pytest.mark.parametrize(("name", "linguistic"), [("dual_adapter", "20,452,864"), ("dual_adapter_llama", "21,501,952")])
def test_the_papers_parameter_counts(name: str, linguistic: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", str(CONF / f"{name}.yaml"), "--dry-run"])
    assert linguistic in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "code", "where"),
    [
        ("tasks.emotion.sentence='not neutral: {label}'", "conflict", "tasks.emotion"),
        ("tasks.asr={normalizer: whisper}", "bad-value", "tasks.asr.normalizer"),
        ("data.test=[{manifest: m, task_overrides: {ars: {}}}]", "unknown-name", "data.test[0].task_overrides"),
        ("data.test=[{manifest: m, task_overrides: {asr: {metric: ter}}}]", "bad-value", "task_overrides.asr.metric"),
        ("data.train=[{manifest: m}, {manifest: n, captions: none.txt}]", "not-found", "none.txt"),
        (
            "data.train=[{manifest: m, task_overrides: {emotion: {sentence: 'sad {label}'}}}]",
            "conflict", "data.train[0].task_overrides.emotion",
        ),
    ],
)  # fmt: skip
def test_scores_and_languages_are_checked_with_the_recipe(
    tree: dict[str, Any], override: str, code: Code, where: str
) -> None:
    with refused(code, where, ConfigError):
        changed(tree, override)


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
    assert {key for key in qwen if qwen[key] != llama[key]} == {"name", "llm", "published"}


@pytest.mark.parametrize(
    ("code", "override", "where"),
    faulty({
        "unknown-key": [
            "stagse={}", "stages.joint.task={}", "slots.paralinguistic.adapter.token=3", "tasks.emotion.choice=[a,b]",
        ],
        "missing-key": [
            ("slots.p={text: caption}", "slots.p.adapter"),
            ("slots.p={text: caption, adapter: {tokens: 3}}", "slots.p.adapter.type"),
            ("stages.more={tasks: {asr: 1}}", "stages.more.lr"),
            ("llm.tuning={method: frozen, layers: auto}", "llm.tuning.analysis"),
            "stages={joint: null, disentangle: null, holistic: null}",
        ],
        "bad-value": [
            "name=null", "name=true", ("evaluation.tasks=[asr,[emotion]]", "evaluation.tasks[1]"),
            ("data.train=[{manifest: m.jsonl, allow: [{a: 1}]}]", "data.train[0].allow[0]"),
            "stages.joint.tasks.asr=[1]", "stages.joint.tasks.asr=-1",
            "stages.joint.tasks={asr: 0, gender: 0, emotion: 0}", "stages.joint.err={speech: 0, text: 1}",
            "stages.joint.lr=0", "stages.joint.lr=.nan",
            ("auxiliary_head={layer: 0, categories: {e: [a]}, weight: nan}", "auxiliary_head.weight"),
            "stages.joint.lr=fast", "stages.joint.betas=[0.9]",
            ("stages.joint.betas=[0.9,1.0]", "stages.joint.betas[1]"), "stages.joint.epochs=yes",
            "stages.joint.epochs=1.5", "stages.joint.epochs=1000000000000",
            ("stages.joint.parts={all: -1}", "stages.joint.parts.all"), "slots.paralinguistic.text=captoin",
            "slots.paralinguistic.adapter.tokens=1e16", "slots={paralinguistic: null, linguistic: null}",
            "llm.dtype=int8", "llm.tuning.layers=0-", "llm.tuning.rank=0", "llm.tuning.alpha=0",
            "llm.tuning.dropout=1", "evaluation.text.linguistic=words", ("trainer.x=[.inf]", "trainer.x[0]"),
            "checkpoint_every=0", "seed=-1", "name=0x" + "f" * 5000,
            ("auxiliary_head={layer: 0, categories: {emotion: []}}", "auxiliary_head.categories.emotion"),
        ],
        "unknown-name": [
            "encoder.type=wisper", ("data={corpus: {type: demo_word}}", "data.corpus.type"),
            ("tasks.emotoin={}", "tasks"), ("stages.joint.tasks.asrr=1", "stages.joint.tasks"),
            "stages.joint.train=[linguistics]", "stages.joint.err={speech: 1, txt: 1}",
            "stages.joint.parts={boks: 0.1}", ("data.test=[{manifest: m.jsonl, tasks: [asrr]}]", "data.test[0].tasks"),
            "evaluation.slots=[linguistik]", "evaluation.tasks=[asrr]",
            ("evaluation.text.linguistics=tagged", "evaluation.text"),
            ("evaluation.task_overrides.respons={}", "evaluation.task_overrides"),
        ],
        "conflict": [
            "slots.llm={text: caption, adapter: {type: pooled_soft_prompt}}", "data.corpus={type: demo_world}",
            ("stages.disentangle.train=[encoder]", "stages.disentangle.err"),
            ("stages.joint.train=[llm]", "llm.tuning.method"), "llm.tuning.method=lora",
            "auxiliary_head={layer: 0, categories: {emotion: [sad]}}", "cascade={}",
            "trainer.max_steps=3",
        ],
    }),
)  # fmt: skip
def test_a_fault_is_named_by_its_kind_and_key(tree: dict[str, Any], code: Code, override: str, where: str) -> None:
    with refused(code, where, ConfigError) as caught:
        changed(tree, override)
    assert where in str(caught.value)


@pytest.mark.parametrize(
    ("override", "nearest"),
    [("sede=3", "'seed'"), ("stages.joint.tasks.asrr=1", "'asr'"), ("encoder.type=wisper", "'whisper'"),
     ("slots.linguistic.adapter.hiden=3", "'hidden'"), ("stages.joint.train=[linguistc]", "'linguistic'"),
     ("data={corpus: {type: demo_word}}", "'demo_world'")],
)  # fmt: skip
def test_the_nearest_spelling_is_suggested(tree: dict[str, Any], override: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean {nearest}"):
        changed(tree, override)


@pytest.mark.parametrize("key", RENAMED)
def test_a_renamed_key_gets_one_hint(tree: dict[str, Any], key: str) -> None:
    group = {"checks": "data.", "workers": "data.", "knobs": "evaluation."}.get(key, "stages.joint.")
    place = key if key in ("runs", "init", "adch") else f"{group}{key}"
    with refused("unknown-key", place, ConfigError) as caught:
        changed(tree, f"{place}=before")
    assert f"`{key}` is now `{RENAMED[key]}`" in str(caught.value)
    assert ("before is eager" in str(caught.value)) == (key == "checks")


def test_a_former_name_of_the_package_is_told() -> None:
    with refused("bad-value", "undertone:demo/backbones/llm", ConfigError) as caught:
        resolve("undertone:demo/backbones/llm")
    assert "sottovoce:demo/backbones/llm" in str(caught.value)


def test_all_faults_are_reported_at_once(tree: dict[str, Any]) -> None:
    wrong = ["sede=1", "llm.dtype=int8", "encoder=3", "slots.linguistic.adapter.stak=1", "stages.joint.lr=0"]
    with pytest.raises(ConfigError) as caught:
        recipes.parse(merge(tree, read_overrides(wrong)), "my.yaml")
    assert all(line.startswith("my.yaml: ") for line in str(caught.value).splitlines())
    expected = {"sede", "llm.dtype", "encoder", "slots.linguistic.adapter.stak", "stages.joint.lr"}
    assert {fault.where for fault in caught.value.faults} == expected and len(caught.value.faults) == 5
    with pytest.raises(ConfigError) as caught:  # what concerns several keys, once each is right
        changed(tree, "stages.joint.train=[linguistics]", "llm.tuning.method=lora", "evaluation.slots=[x]")
    assert {fault.where for fault in caught.value.faults} == {
        "stages.joint.train", "llm.tuning.method", "evaluation.slots"
    }  # fmt: skip


def test_a_fault_for_every_value_is_no_message_without_end(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        recipes.parse({**tree, "evaluation": {"tasks": [[]] * 50_000}})
    assert len(caught.value.faults) == 101 and "49900 more" in str(caught.value)


@pytest.mark.parametrize(
    "override", ["stages.jiont=null", "slots.linguistc=null", "evaluation.judges.lama=null"]
)  # fmt: skip
def test_a_null_that_would_switch_nothing_off_is_refused(override: str) -> None:
    with refused("unknown-name", override.removesuffix("=null"), ConfigError):
        recipes.load(QUICKSTART, [override])


def test_overrides_reach_any_key_and_null_switches_an_entry_off() -> None:
    overrides = ["stages.holistic.lr=1e-4", "stages.joint=null", "slots.paralinguistic=null", "evaluation.limit=3"]
    recipe = recipes.load(QUICKSTART, overrides)
    assert recipe.stages["holistic"].lr == 1e-4 and recipe.evaluation.limit == 3
    assert list(recipe.slots) == ["linguistic"] and "joint" not in recipe.stages


def test_values_are_coerced_where_nothing_is_lost(tree: dict[str, Any]) -> None:
    recipe = changed(tree, "name=7", "stages.joint.lr=1", "stages.joint.epochs='2'", "llm.tuning.layers=1")
    assert (recipe.name, recipe.stages["joint"].epochs, recipe.llm.tuning.layers) == ("7", 2, "1")
    assert isinstance(recipe.stages["joint"].lr, float)


def test_references_are_resolved_with_defaults_and_the_environment(
    write_recipe: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERY", "5")
    config = write_recipe(name="${output_dir}-${instructions}", checkpoint_every="${oc.env:EVERY}")
    recipe = recipes.load(config, ["output_dir=out"])
    assert (recipe.name, recipe.checkpoint_every) == ("out-system", 5)


def test_recipes_share_no_defaults(tree: dict[str, Any]) -> None:
    one, two = recipes.parse(tree), recipes.parse(tree)
    one.stages["joint"].betas[0] = 0.5
    assert two.stages["joint"].betas == [0.9, 0.999] and AnalysisRecipe().allow is not AnalysisRecipe().allow


@pytest.mark.parametrize(
    ("trainer", "told"),
    [
        ({"devises": 2}, "takes no 'devises'. Did you mean: 'devices'|'devises'"),
        ({"accelerator": "tpuu"}, "no accelerator 'tpuu'"), ({"precision": "bf17"}, "no precision 'bf17'"),
        ({"devices": 0}, "devices: a positive whole number is needed, found 0"),
        ({"devices": []}, "devices: a positive"), ({"num_nodes": "all"}, "num_nodes: a positive"),
        ({"num_nodes": -1}, "num_nodes: a positive"),
    ],
)  # fmt: skip
def test_what_lightning_would_refuse_is_told_before_anything_is_read(
    tree: dict[str, Any], trainer: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        check_trainer(recipes.parse({**tree, "trainer": trainer}))
    for fine in ({"devices": "auto"}, {"devices": "2"}, {"devices": [0, 1]}, {"precision": 32}, {"accelerator": "gpu"}):
        check_trainer(recipes.parse({**tree, "trainer": fine}))


def test_children_win_and_a_new_type_starts_afresh() -> None:
    base = {"a": {"type": "x", "knob": 1}, "b": {"c": 1, "d": [1, 2]}}
    child = {"a": {"type": "y"}, "b": {"d": [3]}}
    assert merge(base, child) == {"a": {"type": "y"}, "b": {"c": 1, "d": [3]}}


@pytest.mark.parametrize(
    ("text", "code", "where"),
    [
        ("extends: r.yaml", "conflict", "r.yaml"),
        ("extends: nowhere.yaml", "not-found", "nowhere.yaml"),
        ("- 1\n- 2\n", "bad-value", "r.yaml"),
        ("a: [1\n", "damaged", "r.yaml"),
        ("\x00", "damaged", "r.yaml"),
        ("name: ${nowhere}\n", "bad-value", "name"),
        ("name: ${output_dir}\noutput_dir: ${name}\n", "bad-value", ""),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, code: Any, where: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with refused(code, where, ConfigError):
        recipes.load(tmp_path / "r.yaml")


def test_a_recipe_of_the_package_asked_for_by_its_bare_name_is_pointed_at(tmp_path: Path) -> None:
    with refused("not-found", "table", ConfigError) as caught:
        recipes.load(tmp_path / "table")
    assert "sottovoce:conf/speech_emotion_llama/table.yaml" in str(caught.value)


@pytest.mark.parametrize("entry", ["data.train.0", "data.train[0]"])
def test_an_entry_of_a_list_is_overridden_by_its_number(entry: str, write_recipe: Write, tree: dict[str, Any]) -> None:
    first, second = {"manifest": "a", "weight": 2.0}, {"manifest": "b", "name": "b"}
    file = write_recipe(data={**tree["data"], "train": [first, second]})
    recipe = recipes.load(file, [f"{entry}.manifest=x", f"{entry}.name=7"])
    assert [(n.manifest, n.name, n.weight) for n in recipe.data.train] == [("x", "7", 2.0), ("b", "b", 1.0)]
    with refused("unknown-name", "data.train.2.manifest", ConfigError):
        recipes.load(file, ["data.train[2].manifest=x"])


def test_dashes_before_a_key_get_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(QUICKSTART), "--stages.joint.lr=1"])
    assert "no dashes: stages.joint.lr=1" in capsys.readouterr().err


def test_a_chat_template_is_text_or_a_file_of_it(tree: dict[str, Any], tmp_path: Path) -> None:
    text = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "chat.jinja").write_text(text)
    for given in (text, str(tmp_path / "chat.jinja")):
        assert recipes.parse({**tree, "llm": {**tree["llm"], "chat_template": given}}).llm.chat_template == text
    with refused("not-found", "llm.chat_template", ConfigError):
        recipes.parse({**tree, "llm": {**tree["llm"], "chat_template": "absent.jinja"}})


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["encoder.checkpoint=b", "encoder.type=hf"], {"type": "hf", "checkpoint": "b"}),
        (["encoder.type=hf", "encoder.checkpoint=b", "encoder.type=own"], {"type": "own", "checkpoint": "b"}),
        (["encoder.layers=2", "encoder={type: hf, checkpoint: c}", "encoder.type=own"], {"type": "own"}),
    ],
)
def test_a_type_may_follow_the_keys_that_belong_to_it(
    overrides: list[str], found: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("encoder: {type: whisper, checkpoint: a}")
    assert read_tree(file, overrides)["encoder"] == found


def test_an_override_needs_a_value() -> None:
    with refused("bad-value", "stages.joint.lr", ConfigError):
        read_tree(QUICKSTART, ["stages.joint.lr"])


def test_missing_manifests_say_where_and_what_to_do(
    write_recipe: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"train": [{"manifest": "no/train.jsonl"}], "validation": [{"manifest": "no/val.jsonl"}]}
    assert main(["fit", "--config", write_recipe(data=data)]) == 2
    told = capsys.readouterr().err
    assert "no/train.jsonl" in told and "no/val.jsonl" in told and str(Path.cwd()) in told and "quickstart" in told


def printed_schema(kind: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["schema", kind]) == 0
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("kind", KINDS)
def test_the_json_schema_takes_what_is_shipped_and_refuses_slips(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    schema = printed_schema(kind, capsys)
    shipped = {"analyze": CONF.glob("**/analysis*.yaml"), "table": CONF.glob("**/table*.yaml")}
    files: Iterable[Path] = shipped.get(kind, [GOLDEN / file for file in FILES if command(file) == kind])
    trees = [read_yaml(file) or {} for file in [*files, *([QUICKSTART] if kind == "fit" else [])]]
    assert trees
    for tree in trees:
        jsonschema.validate(tree, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**tree, "sede": 1}, schema)
    if kind == "fit":
        trees[0]["slots"]["linguistic"]["adapter"]["hiden"] = 1
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(trees[0], schema)


def test_print_config_shows_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", str(QUICKSTART), "--print-config"])
    printed = OmegaConf.create(capsys.readouterr().out)
    assert printed.stages.joint.weight_decay == 0.05 and printed.slots.linguistic.adapter.stack == 5


def test_a_packaged_recipe_is_read_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("extends: sottovoce:conf/quickstart.yaml\nseed: 7\n")
    assert replace(recipes.load("mine.yaml"), seed=1) == replace(recipes.load("sottovoce:conf/quickstart.yaml"), seed=1)


@pytest.mark.parametrize("written", ["2026_11_28", "1e3", "12:30", "010", "0x10", "no", "true", "1.5"])
def test_text_that_yaml_takes_for_something_else_is_never_changed(
    written: str, write_recipe: Write, tmp_path: Path
) -> None:
    """In a file it is to be quoted; on the command line, where the shell takes quotes away, it is as it was typed."""
    config = write_recipe()
    (child := tmp_path / "child.yaml").write_text(f"extends: {config}\nname: {written}\n")
    with refused("bad-value", "name", ConfigError):
        recipes.load(child)
    child.write_text(f"extends: {config}\nname: '{written}'\nslots: {{linguistic: {{after: {written}}}}}\n")
    with refused("bad-value", "slots.linguistic.after", ConfigError):
        recipes.load(child)
    recipe = recipes.load(config, [f"name={written}", f"evaluation.tasks=[{written}]", "evaluation.tasks=[asr]"])
    assert recipe.name == written and recipe.seed == 3


def test_a_whole_number_may_be_a_name(write_recipe: Write) -> None:
    assert recipes.load(write_recipe(name=7)).name == "7"


def test_what_is_decided_for_each_prompt_is_no_argument_of_the_template(tree: dict[str, Any]) -> None:
    assert changed(tree, "llm.chat_template_kwargs={enable_thinking: true}").llm.chat_template_kwargs
    with refused("conflict", "llm.chat_template_kwargs"):
        changed(tree, "llm.chat_template_kwargs={add_generation_prompt: false}")
