"""Tables of systems: every one trained or reused, scored by one judge, and the published numbers never mixed in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from tests.conftest import CONFORMER, EMOTIONS
from tests.helpers.errors import refused

from sottovoce.cli.main import main
from sottovoce.comparison.table_config import load, overrides, system_recipe
from sottovoce.data.audio import load_audio
from sottovoce.demo.world import NOUNS, REPLIES
from sottovoce.errors import ConfigError
from sottovoce.evaluation.reports.systems_table import (
    Cell,
    Comparison,
    comparison_markdown,
    comparison_table,
    write_comparison,
)
from sottovoce.frames import Frames
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.paths import resolve
from sottovoce.scoring.speech_tokens import pooled_tokens
from sottovoce.training.splits import read_splits

JUDGE = {"type": "rule", "exemplars": {name: [f"{name} words about {{thing}}"] for name in EMOTIONS}}


@pytest.fixture
def write_table(alignment: dict[str, Any], tmp_path: Path) -> Callable[..., str]:
    """A baseline and a cascade on it, as files, and the table of both; returns the path of the table's recipe."""
    evaluation = {"batch_size": 5, "max_new_tokens": 4, "tasks": ["response", "emotion"], "slots": ["both"]}
    baseline = {**alignment, "encoder": CONFORMER, "name": "seed-${seed}/baseline", "evaluation": evaluation}
    cascade = {
        **baseline, "name": "seed-${seed}/cascade", "init_from": "${output_dir}/seed-${seed}/baseline/bundle",
        "stages": {},
        "cascade": {"epochs": 2, "pool": 4},
    }  # fmt: skip
    for name, made in (("baseline", baseline), ("cascade", cascade)):
        (tmp_path / f"{name}.yaml").write_text(OmegaConf.to_yaml(made))
    (tmp_path / "shared.yaml").write_text(OmegaConf.to_yaml({**baseline, "name": "shared"}))

    def write(**changes: Any) -> str:
        systems = {
            "baseline": {"title": "Baseline", "recipe": "baseline.yaml", "paper": {"quality": [5.46, 0.13]}},
            "cascade": {"title": "Cascade", "recipe": "cascade.yaml", "probe": False},
        }
        node = {
            "name": "table", "seeds": [1, 2], "systems": systems, "judge": JUDGE, "picture": ["baseline"],
            "bert_score": {"checkpoint": alignment["llm"]["checkpoint"], "layer": 1},
            "output_dir": str(tmp_path / "runs"), **changes,
        }  # fmt: skip
        file = tmp_path / "table.yaml"
        file.write_text(OmegaConf.to_yaml(node))
        return str(file)

    return write


def test_a_table_trains_scores_and_reuses_every_system(
    write_table: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", write_table()]) == 0
    folder = tmp_path / "runs" / "table"
    cells = json.loads((folder / "table.json").read_text())
    found = {(cell["system"], cell["seed"], cell["column"]) for cell in cells}
    shared = {"rouge_1", "rouge_2", "rouge_l", "bert_score", "quality", "emotion", "ser"}
    columns = {"baseline": shared | {"probe"}, "cascade": shared}
    assert found == {(name, seed, c) for name in columns for seed in (1, 2) for c in columns[name]}
    assert all(cell["low"] <= cell["value"] <= cell["high"] and cell["n"] == 6 for cell in cells)
    assert (folder / "tokens.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "table.md").read_text()
    assert page.count("5.46 ±0.13") == 1 and page.index("As published") < page.index("5.46 ±0.13")
    assert "Judge: rule." in page
    runs = [tmp_path / "runs" / f"seed-{seed}" / name for seed in (1, 2) for name in ("baseline", "cascade")]
    stamps = [(run / "evaluation" / "results.json").stat().st_mtime_ns for run in runs]
    capsys.readouterr()
    assert main(["table", write_table()]) == 0
    assert "stage 1 of 1" not in capsys.readouterr().out
    assert stamps == [(run / "evaluation" / "results.json").stat().st_mtime_ns for run in runs]
    assert json.loads((folder / "table.json").read_text()) == cells


def test_the_frozen_llm_and_other_seeds_stay_apart(write_table: Callable[..., str], tmp_path: Path) -> None:
    assert main(["table", write_table(), "seeds=[1]"]) == 0
    folder = tmp_path / "runs" / "seed-1" / "baseline"
    prints = json.loads((folder / "bundle" / "fingerprints.json").read_text())
    assert prints["llm"] == read_bundle(folder / "bundle").llm.fingerprint()
    assert not (tmp_path / "runs" / "seed-2").exists()


@pytest.mark.parametrize(
    ("changes", "code", "where"),
    [
        ({"picture": ["baselin"]}, "unknown-name", "picture"),
        ({"seeds": []}, "bad-value", "seeds"),
        ({"systems": {}}, "bad-value", "systems"),
        ({"judge": {"type": "rul"}}, "unknown-name", "judge.type"),
        ({"systems": {"a": {"title": "A", "recipe": "shared.yaml"}}}, "conflict", "systems.a.recipe"),
        ({"systems": {"a": {"title": "A", "recipe": "none.yaml"}}}, "not-found", "none.yaml"),
        (
            {"systems": {"a": {"title": "A", "recipe": "baseline.yaml", "paper": {"rogue_1": [1.0]}}}},
            "unknown-name",
            "systems.a.paper",
        ),
    ],
)
def test_a_table_that_cannot_be_is_refused_before_anything_runs(
    write_table: Callable[..., str], tmp_path: Path, changes: dict[str, Any], code: Any, where: str
) -> None:
    with refused(code, where, ConfigError):
        load(Path(write_table(**{"picture": [], **changes})))
    assert not (tmp_path / "runs").exists()


def test_pooled_tokens_are_means_that_no_neighbour_changes(write_table: Callable[..., str], tmp_path: Path) -> None:
    """Against each clip alone through encoder and adapter."""
    assert main(["table", write_table(), "seeds=[1]"]) == 0
    made = system_recipe(load(Path(write_table())), "baseline", 1)
    module, test = read_bundle(made.folder / "bundle"), read_splits(made).splits["test"].utterances
    together = pooled_tokens(module, test)
    for row, utterance in zip(together, test, strict=True):
        clip = torch.from_numpy(load_audio(Path(utterance.audio), 16_000))[None]
        with torch.no_grad():
            tokens = module.adapters["speech"](module.encoder(*Frames.pad([clip[0]])))
        assert torch.allclose(row, tokens.x[0].mean(0), atol=1e-5)


def test_means_intervals_and_ranges_over_seeds(tmp_path: Path) -> None:
    cells = [
        Cell("a", 1, "ser", 0.5, 0.4, 0.6, 100), Cell("a", 2, "ser", 0.7, 0.65, 0.75, 100),
        Cell("b", 1, "ser", 0.2, 0.1, 0.3, 100), Cell("a", 1, "quality", 7.0, 6.5, 7.5, 100),
    ]  # fmt: skip
    page = Comparison("T", {"a": "A", "b": "B"}, cells, {"a": {"ser": [80.81]}})
    assert page.mean("a", "ser") == "60.0 ±7.5" and page.span("a", "ser") == "50.0-70.0"
    assert page.mean("b", "quality") == "-" and page.span("b", "ser") == "20.0"
    assert page.published("a", "ser") == "80.8" and page.published("b", "ser") == "-"
    write_comparison(tmp_path, page)
    assert "| A | - | - | - | - | 7.00 ±0.50 | - | 60.0 ±7.5 | - |" in (tmp_path / "table.md").read_text()
    assert "As published" not in comparison_markdown(Comparison("T", {"a": "A"}, cells, {}))
    console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))
    console.print(comparison_table(page))
    text = console.export_text()
    assert all(part in text for part in (" 60.0", " ±7.5", " ±0.50", " 50.0-", "a: A")) and "…" not in text


def test_the_demos_table_judges_by_what_the_demo_world_says() -> None:
    table = load(resolve("sottovoce:conf/speech_emotion_llama/table.yaml"))
    neutral_name = {emotion: [reply.replace("{name}", "")] for emotion, reply in REPLIES.items()}
    assert table.judge["exemplars"] == neutral_name
    assert table.judge["things"] == NOUNS


@pytest.mark.parametrize("name", ["table", "table_8b"])
def test_every_system_has_its_row_and_its_own_folder(name: str) -> None:
    table = load(resolve(f"sottovoce:conf/speech_emotion_llama/{name}.yaml"))
    made = [system_recipe(table, system, seed) for seed in table.seeds for system in table.systems]
    assert len({recipe.folder for recipe in made}) == len(made) == 7 * len(table.seeds)
    assert all(recipe.seed in table.seeds for recipe in made)
    assert np.all([system.paper.keys() >= {"ser", "emotion"} for system in table.systems.values()])


def test_overrides_go_to_every_recipe(write_table: Callable[..., str], tmp_path: Path) -> None:
    assert overrides(load(Path(write_table())), 2) == ["seed=2", f"output_dir={tmp_path / 'runs'}"]
