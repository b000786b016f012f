"""The shipped tables of PE-FT on small random models: rows side by side, and frozen weights keep their bits."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.helpers.audio_llms import save_thinker
from tests.helpers.kimi_audio import save_kimi_audio, save_speech_tokenizer
from tests.lightning_modules.test_untuned import write_pairs

from sottovoce.cli.main import main
from sottovoce.comparison.table_config import load, system_recipe
from sottovoce.evaluation.layers.split import read_split
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.paths import resolve

CONF = resolve("sottovoce:conf")
LAYERS = 16  # one more than the published recipes tune
HERE = [
    "llm.dtype=float32", "data.num_workers=0", "evaluation.awareness=null", "evaluation.max_new_tokens=4",
    "trainer.accelerator=cpu", "trainer.devices=1", "trainer.strategy=auto", "trainer.precision=32-true",
    "trainer.enable_progress_bar=false",
]  # fmt: skip


@pytest.fixture(params=["qwen2_5_omni", "kimi_audio"])
def model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    """A model's name in `conf`, and overrides that put a small random one in its place; data lie where it looks."""
    folder = tmp_path / "checkpoint"
    words = [*HERE, *(f"{part}.checkpoint={folder}" for part in ("encoder", "llm", "slots.audio.adapter"))]
    if request.param == "kimi_audio":
        save_kimi_audio(folder, LAYERS)
        words.append(f"encoder.speech_tokenizer={save_speech_tokenizer(tmp_path / 'tokenizer')}")
    else:
        save_thinker(folder, LAYERS)
    manifests = tmp_path / "manifests" / "pe_ft"
    manifests.mkdir(parents=True)
    for split, texts in (("train", 3), ("validation", 1), ("test", 2), ("held_out", 1)):
        write_pairs(manifests, split, texts)
    monkeypatch.chdir(tmp_path)
    return request.param, words


def test_untuned_selective_full_and_auto_stand_on_one_page(model: tuple[str, list[str]], tmp_path: Path) -> None:
    """As docs/pe_ft.md has it: the table; the analysis of the untuned model; its layers; one comparison."""
    name, words = model
    rows, left_out = ("vanilla", "pe_ft", "layers_all"), ("layers_0_14", "layers_0_6", "layers_7_14", "layers_all_head",
                                                          "head_0", "head_7")  # fmt: skip
    config = CONF / "pe_ft" / f"table_{name}.yaml"
    without = [f"systems.{row}=null" for row in left_out]
    assert main(["table", str(config), f"overrides={json.dumps(words)}", *without]) == 0
    runs = Path("runs") / f"pe_ft_{name}_table" / "seed-0"
    folders = {row: runs / row for row in rows}

    manifest = "manifest=manifests/pe_ft/train.jsonl"
    bundle = str(folders["vanilla"] / "bundle")
    quick = ["folds=2", "intent_folds=2"]
    assert main(["analyze", bundle, "--config", str(CONF / "analysis.yaml"), manifest, *quick]) == 0
    analysis = folders["vanilla"] / "analysis" / "layers.json"
    last = read_split(analysis)[-1]
    auto = [*words, f"name=pe_ft_{name}_table/seed-0/auto", "llm.tuning.layers=auto", f"llm.tuning.analysis={analysis}"]
    auto += [f"auxiliary_head.layer={last}", "published=null"]
    assert main(["fit", "--config", str(CONF / "pe_ft" / f"{name}.yaml"), *auto]) == 0
    folders["auto"] = runs / "auto"
    assert main(["compare", *map(str, folders.values()), "--out", "page"]) == 0

    for folder in (Path("page"), runs.parent):
        page = (folder / "comparison.html").read_text()
        found = list(csv.DictReader((folder / "comparison.csv").open()))
        systems = [*folders] if folder.name == "page" else [*rows]
        for metric in ("pa_score", "pa_rate"):
            scored = [r["system"] for r in found if (r["kind"], r["metric"], r["task"]) == ("score", metric, "age")]
            assert scored == systems
        gaps = {(r["system"], r["against"]) for r in found if (r["kind"], r["metric"]) == ("difference", "pa_rate")}
        assert {(system, "vanilla") for system in systems[1:]} <= gaps
        paper = {(r["system"], r["task"], r["metric"]): r["value"] for r in found if r["kind"] == "published"}
        assert paper == published(config, rows) and "As published" in page
        assert all(f">{system}" in page for system in systems)

    untuned = read_bundle(folders["vanilla"] / "bundle").state_dict()
    for row, layers in (("pe_ft", range(15)), ("layers_all", range(LAYERS)), ("auto", range(last + 1))):
        tuned = load_file(folders[row] / "bundle" / "trained.safetensors")
        state = read_bundle(folders[row] / "bundle").state_dict()
        own = {key: value for key, value in state.items() if ".lora_" not in key and "auxiliary_head." not in key}
        kept = {key.replace(".base_layer.", "."): value for key, value in own.items()}
        assert kept.keys() == untuned.keys() and all(torch.equal(kept[key], untuned[key]) for key in kept)
        changed = {key for key, value in tuned.items() if key not in untuned or not torch.equal(value, untuned[key])}
        assert all(".lora_" in key for key in changed)
        moved = {int(key.partition(".layers.")[2].partition(".")[0]) for key in changed if ".lora_B." in key}
        assert moved == {*layers} and all(tuned[key].any() for key in changed)


def published(config: Path, rows: tuple[str, ...]) -> dict[tuple[str, str, str], str]:
    """What the table's recipes say of their rows."""
    table = load(config)
    return {
        (row, task, metric): str(values[0])
        for row in rows
        for task, scores in system_recipe(table, row, 0).published["both"].items()
        for metric, values in scores.items()
    }


@pytest.mark.parametrize("name", ["qwen2_5_omni", "kimi_audio", "qwen2_audio"])
def test_the_rows_are_those_of_the_paper(name: str) -> None:
    """Layers and place of the head, one recipe in all else; a row never has the numbers of another."""
    table = load(CONF / "pe_ft" / f"table_{name}.yaml")
    made = {row: system_recipe(table, row, 0) for row in table.systems}
    heads = {row: recipe.auxiliary_head.layer if recipe.auxiliary_head else None for row, recipe in made.items()}
    assert {row: (recipe.llm.tuning.layers, heads[row]) for row, recipe in made.items() if recipe.stages} == {
        "pe_ft": ("0-14", 14), "layers_0_14": ("0-14", None), "layers_all": ("all", None),
        "layers_all_head": ("all", 14), "layers_0_6": ("0-6", None), "layers_7_14": ("7-14", None),
        "head_7": ("0-14", 7), "head_0": ("0-14", 0),
    }  # fmt: skip
    assert made["vanilla"].untuned and next(iter(made)) == "vanilla"
    told = [json.dumps(recipe.published) for recipe in made.values() if recipe.published]
    assert len(set(told)) == len(told) == {"qwen2_5_omni": 4, "kimi_audio": 7, "qwen2_audio": 0}[name]
    plain: list[dict[str, Any]] = [recipe.plain() for recipe in made.values() if recipe.stages]
    for recipe in plain:
        del recipe["name"], recipe["published"], recipe["auxiliary_head"], recipe["llm"]["tuning"]["layers"]
    assert all(recipe == plain[0] for recipe in plain)
    assert {stage["weight_decay"] for stage in plain[0]["stages"].values()} == {0.05}
