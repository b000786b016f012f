"""Finished audio LLMs as they are: scored, analysed and compared without training; their bundle has no weights."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tests.conftest import write_lines, write_tone
from tests.helpers import kimi_audio
from tests.helpers.audio_llms import recipe as audio_llm
from tests.helpers.errors import refused
from tests.helpers.runs import quiet_run
from tests.helpers.servers import Serve

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.errors import BundleError, ConfigError
from sottovoce.evaluation import read_predictions, read_results
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.scoring.evaluate import evaluate

AGES = ("child", "adult")
CONF = Path(__file__).parents[2] / "conf"
STAGE = {"tasks": {"response": 1}, "train": ["llm"], "lr": 1e-2, "epochs": 1, "batch_size": 4}
LORA = {"method": "lora", "layers": "0-1", "rank": 2}
Config = Callable[..., str]


def write_pairs(folder: Path, split: str, texts: int) -> Path:
    """Each text by two children and two adults, who are due other answers."""
    lines = []
    for number in range(4 * texts):
        text, speaker = divmod(number, 4)
        name, age = f"{split}-{number}.wav", AGES[speaker % 2]
        write_tone(folder / name, 0.5 + 0.05 * text, 150 + 200 * (speaker % 2) + 9 * speaker + len(split))
        answers = {each: f"so you are a {each} and {text}" for each in AGES}
        lines.append(
            {"id": name, "audio": name, "text": f"question {split} {text}", "speaker": f"{split}-s{speaker}",
             "labels": {"age": age}, "category": "age", "topic": f"things {text % 2}", "answers": answers,
             "response": answers[age]}
        )  # fmt: skip
    return write_lines(folder / f"{split}.jsonl", lines)


@pytest.fixture
def config(checkpoints: dict[str, Path], kimi: tuple[Path, Path], tmp_path: Path) -> Config:
    """Write the recipe of an untuned audio LLM, changed as said, and return its path."""
    sides = {split: [{"manifest": str(write_pairs(tmp_path, split, 3))}] for split in ("train", "validation", "test")}

    def write(kind: str = "qwen2_audio", **changes: Any) -> str:
        node = kimi_audio.recipe(*kimi) if kind == "kimi" else audio_llm(kind, checkpoints[kind])
        data = {"cache": str(tmp_path / "cache"), "test": sides["test"]}
        trained = {"data": {**data, **sides}} if changes.get("stages") else {}
        node |= {
            "name": "vanilla", "stages": {}, "data": data, "output_dir": str(tmp_path / "runs"), **trained,
            "evaluation": {"tasks": ["response"], "slots": ["both"], "batch_size": 6, "max_new_tokens": 4},
            "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}, **changes,
        }  # fmt: skip
        file = tmp_path / f"{node['name']}.yaml"
        file.write_text(OmegaConf.to_yaml(node))
        return str(file)

    return write


@pytest.mark.parametrize("kind", ["qwen2_audio", "whole omni", "kimi"])
def test_an_untuned_model_is_scored_analysed_and_compared(
    config: Config, kind: str, tmp_path: Path, capsys: Any
) -> None:
    """From the vanilla row to layers by its analysis, in the documented order."""
    vanilla = config(kind, published={"both": {"age": {"pa_rate": [0.505]}}})
    assert main(["fit", "--config", vanilla]) == 0
    folder = tmp_path / "runs" / "vanilla"
    bundle = folder / "bundle"
    assert load_file(bundle / "trained.safetensors") == {}
    assert {"encoder", "llm"} <= json.loads((bundle / "fingerprints.json").read_text()).keys()
    assert {r.metric for r in read_results(folder / "evaluation")} >= {"rouge_l", "pa_score", "pa_rate"}
    run, module = quiet_run(recipes.load(vanilla)), read_bundle(bundle)
    for name, value in run.module.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name

    clip, manifest = str(tmp_path / "test-0.wav"), str(tmp_path / "test.jsonl")
    assert main(["chat", str(bundle), "--audio", clip, "--once"]) == 0
    assert main(["evaluate", str(bundle), "--test", manifest]) == 0
    again = read_predictions(folder / "evaluation" / "test")
    assert [p.response for p in again] == [p.response for p in read_predictions(folder / "evaluation")]
    with refused("empty", "stages"):
        evaluate(str(folder), None)
    words = ["folds=2", "intent_folds=2", f"manifest={tmp_path / 'train.jsonl'}"]
    assert main(["analyze", str(bundle), "--config", str(CONF / "analysis.yaml"), *words]) == 0

    auto = {"method": "lora", "layers": "auto", "rank": 2, "analysis": str(folder / "analysis" / "layers.json")}
    llm = {"checkpoint": recipes.load(vanilla).llm.checkpoint, "dtype": "float32", "tuning": auto}
    tuned = config(kind, name="tuned", stages={"tune": STAGE}, llm=llm, init_from=str(bundle))
    assert main(["fit", "--config", tuned]) == 0
    capsys.readouterr()
    assert main(["compare", str(folder), str(tmp_path / "runs" / "tuned")]) == 0
    assert "As published" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "runs" / "comparison" / "comparison.csv").open()))
    assert [(r["system"], r["task"], r["metric"], r["value"]) for r in rows if r["kind"] == "published"] == [
        ("vanilla", "age", "pa_rate", "0.505")
    ]
    assert {row["metric"] for row in rows if row["kind"] == "difference"} >= {"pa_score", "pa_rate", "rouge_l"}


def test_a_model_with_a_random_part_is_refused(config: Config, tmp_path: Path) -> None:
    slots = {"audio": {"adapter": {"type": "frame_stacking_mlp"}, "text": "transcript"}}
    with refused("conflict", "slots.audio.adapter", ConfigError):
        recipes.load(config(slots=slots))
    with refused("conflict", "encoder.checkpoint", ConfigError):
        recipes.load(config(encoder={"type": "conformer", "layers": 2, "width": 16, "heads": 2}))
    with refused("missing-key", "stages", ConfigError):
        recipes.load(config(evaluation={}))
    with refused("conflict", "auxiliary_head", ConfigError):
        recipes.load(config(auxiliary_head={"layer": 1, "categories": {"age": list(AGES)}}))


def test_a_bundle_without_weights_serves_untuned_models_alone(config: Config, tmp_path: Path) -> None:
    """An empty file in the bundle of a training is still a damaged bundle."""
    assert main(["fit", "--config", config()]) == 0
    bundle = tmp_path / "runs" / "vanilla" / "bundle"
    slots = {"audio": {"adapter": {"type": "frame_stacking_mlp", "hidden": 8}, "text": "transcript"}}
    other = recipes.load(config(name="other", stages={"tune": {**STAGE, "train": None}}, slots=slots,
                                init_from=str(bundle)))  # fmt: skip
    with refused("mismatch", bundle / "trained.safetensors", BundleError):
        quiet_run(other)


def test_pa_by_a_judge_who_is_away_costs_pa_alone_and_comes_later(
    config: Config, tmp_path: Path, serve: Serve, capsys: Any
) -> None:
    """A key that is refused: answers and other scores are there; the judge is asked by the command that was told."""

    def judge(url: str) -> dict[str, Any]:
        return {"judge": {"type": "llm"}, "engine": {"type": "openai", "base_url": url, "model": "m", "retries": 0}}

    def says(_: str, __: int) -> Any:
        return {"choices": [{"message": {"content": '{"label": 1}'}, "finish_reason": "stop"}]}

    locked, open_one = serve(lambda *_: (401, {"error": {"message": "no such key"}}, {})), serve(says)
    evaluation = {"tasks": ["response"], "slots": ["both"], "batch_size": 6, "max_new_tokens": 4}
    assert main(["fit", "--config", config(evaluation={**evaluation, "awareness": judge(locked.url)})]) == 0
    folder = tmp_path / "runs" / "vanilla"
    told = " ".join(capsys.readouterr().err.split())
    assert f"sottovoce judge {folder} evaluation.awareness" in told
    answers = read_predictions(folder / "evaluation")
    assert len(answers) == 12 and all(p.awareness is None for p in answers)
    assert {r.metric for r in read_results(folder / "evaluation")} == {"rouge_1", "rouge_2", "rouge_l"}

    plain = config(name="plain", evaluation={**evaluation, "awareness": judge(open_one.url)})
    assert main(["fit", "--config", plain]) == 0
    runs = [str(tmp_path / "runs" / name) for name in ("plain", "vanilla")]
    assert main(["compare", *runs]) == 0  # what one lacks costs no other score
    assert main(["judge", str(folder), f"evaluation.awareness.engine.base_url={open_one.url}"]) == 0
    records = {(r.task, r.metric): r.value for r in read_results(folder / "evaluation")}
    assert records["age", "pa_score"] == records["age", "pa_rate"] == 1.0
    assert [p.response for p in read_predictions(folder / "evaluation")] == [p.response for p in answers]
    assert main(["judge", str(folder)]) == 0  # the refused key again: labels stay
    assert {(r.task, r.metric): r.value for r in read_results(folder / "evaluation")} == records


PE_FT = sorted(file.name for kind in ("qwen2*", "kimi*") for file in (CONF / "pe_ft").glob(f"{kind}.yaml"))


@pytest.mark.parametrize("name", PE_FT)
def test_recipes_of_data_and_of_training_fit(name: str) -> None:
    """One list of labels, one folder, the held-out topics among what is scored, an LLM as judge of free replies."""
    paired = OmegaConf.to_container(OmegaConf.load(CONF / "paired_data.yaml"))
    assert isinstance(paired, dict)
    made = recipes.load(CONF / "pe_ft" / name)
    if made.auxiliary_head:
        assert made.auxiliary_head.categories == {key: node["values"] for key, node in paired["categories"].items()}
    nodes = [*made.data.train, *made.data.validation, *made.data.test]
    assert {str(Path(node.manifest).parent) for node in nodes} == {paired["out"]}
    assert "held_out.jsonl" in {Path(node.manifest).name for node in made.data.test}
    assert paired["held_out_topics"] == [node.name for node in made.data.test if node.name]
    assert made.evaluation.awareness and made.evaluation.awareness.judge["type"] == "llm"
    assert made.untuned == ("vanilla" in name)
