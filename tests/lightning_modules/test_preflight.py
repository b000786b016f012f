"""What is told before a clip is encoded, by `fit` and by its dry run; a compiled LLM; what a profiler leaves."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.helpers.errors import refused
from tests.helpers.runs import Write, quiet_run

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.data.examples import collate
from sottovoce.lightning_modules import preflight
from sottovoce.lightning_modules.bundle import PRINTS, WEIGHTS
from sottovoce.lightning_modules.curriculum import train_stages
from sottovoce.lightning_modules.preflight import check_devices, check_room
from sottovoce.lightning_modules.run import prepare_run
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.training.audio_reader import AudioReader
from sottovoce.training.splits import read_splits

Tree = dict[str, Any]


@pytest.fixture
def bare(tree: Tree) -> Callable[[str], list[Tree]]:
    """A side without labels."""

    def write(side: str) -> list[Tree]:
        file = Path(tree["data"][side][0]["manifest"])
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        without = file.with_name(f"bare-{side}.jsonl")
        without.write_text("".join(json.dumps({**line, "labels": {}}) + "\n" for line in lines))
        return [{"manifest": str(without)}]

    return write


@pytest.fixture
def unheard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AudioReader, "prepare", lambda *_: pytest.fail("clips were encoded"))


def joint(tree: Tree, **changes: Any) -> Tree:
    return {"stages": {"joint": {**tree["stages"]["joint"], **changes}}}


@pytest.mark.usefixtures("unheard")
@pytest.mark.parametrize("command", [[], ["--dry-run"]], ids=["fit", "dry"])
@pytest.mark.parametrize("side", ["train", "validation"])
def test_data_that_serve_nothing_are_told_first(
    command: list[str], side: str, tree: Tree, bare: Any, write_recipe: Write, capsys: Any
) -> None:
    config = write_recipe(**joint(tree, tasks={"emotion": 1}), data={**tree["data"], side: bare(side)})
    assert main(["fit", "--config", config, *command]) == 2
    assert side in capsys.readouterr().err
    config = write_recipe(**joint(tree), data={**tree["data"], side: []})
    assert main(["fit", "--config", config, *command]) == 2
    assert f"data.{side}" in capsys.readouterr().err


@pytest.mark.usefixtures("unheard")
def test_a_monitored_score_without_labels_is_told_first(tree: Tree, bare: Any) -> None:
    changes = joint(tree, tasks={"asr": 1, "emotion": 1}, monitor="emotion/accuracy")
    with refused("empty", "stages.joint.monitor"):
        quiet_run({**tree, **changes, "data": {**tree["data"], "validation": bare("validation")}})


@pytest.mark.usefixtures("unheard")
def test_a_failed_try_has_not_taken_the_name(tree: Tree, monkeypatch: pytest.MonkeyPatch, bare: Any) -> None:
    with refused("empty"):
        quiet_run({**tree, **joint(tree), "data": {**tree["data"], "validation": []}})
    assert not (Path(tree["output_dir"]) / tree["name"] / "recipe.yaml").exists()


def test_a_test_side_that_is_not_scored_is_told(tree: Tree, bare: Any, write_recipe: Write, capsys: Any) -> None:
    config = write_recipe(**joint(tree, tasks={"asr": 1, "emotion": 1}), data={**tree["data"], "test": bare("test")})
    assert main(["fit", "--config", config, "--dry-run"]) == 0
    assert "no emotion will be scored" in capsys.readouterr().out
    config = write_recipe(**joint(tree, tasks={"asr": 1, "emotion": 1}))
    assert main(["fit", "--config", config, "--dry-run"]) == 0
    assert "will be scored" not in capsys.readouterr().out


# The bundle that it begins from


@pytest.mark.usefixtures("unheard")
@pytest.mark.parametrize("command", [[], ["--dry-run"]], ids=["fit", "dry"])
def test_a_bundle_of_other_slots_or_shapes_is_told_in_a_line(
    command: list[str], tree: Tree, write_recipe: Write, tmp_path: Path, capsys: Any
) -> None:
    own = {f"adapters.{name}": w for name, w in SpeechLLM(recipes.parse(tree)).adapters.state_dict().items()}
    name = next(iter(own))
    others = {
        "slots are linguistic, this recipe has": {key: w for key, w in own.items() if ".linguistic." in key},
        name: {**own, name: own[name][:1]},
    }
    config = write_recipe(**joint(tree), init_from=str(tmp_path))
    (tmp_path / PRINTS).write_text("{}")
    for told, weights in others.items():
        save_file(weights, tmp_path / WEIGHTS)
        assert main(["fit", "--config", config, *command]) == 2
        message = capsys.readouterr().err
        assert told in message and "\\n" not in message and "state_dict" not in message


def test_a_dry_run_tells_a_bundle_that_is_not_here(
    tree: Tree, write_recipe: Write, tmp_path: Path, capsys: Any
) -> None:
    own = {f"adapters.{name}": w for name, w in SpeechLLM(recipes.parse(tree)).adapters.state_dict().items()}
    config = write_recipe(**joint(tree), init_from=str(tmp_path / "bundle"))
    assert main(["fit", "--config", config, "--dry-run"]) == 0
    assert "init_from" in capsys.readouterr().out
    (tmp_path / "bundle").mkdir()
    save_file(own, tmp_path / "bundle" / WEIGHTS)
    assert main(["fit", "--config", config, "--dry-run"]) == 0
    assert "init_from" not in capsys.readouterr().out


# Devices


def test_a_compiler_that_is_not_here_is_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    check_devices({"accelerator": "cpu"})
    with refused("unavailable", "compile"):
        check_devices({"accelerator": "cpu"}, compiles=True)


@pytest.mark.parametrize(
    ("where", "trainer", "here"),
    [
        ("accelerator", {"accelerator": "gpu"}, 0), ("accelerator", {"accelerator": "cuda"}, 0),
        ("devices", {"accelerator": "gpu", "devices": 3}, 2), ("devices", {"devices": "0,1,2"}, 2),
    ],
)  # fmt: skip
def test_gpus_that_are_not_here_are_told_first(
    where: str, trainer: Tree, here: int, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with refused("unavailable", f"trainer.{where}"):
        check_devices(trainer)
    check_devices({"accelerator": "cpu", "devices": 3})
    check_devices({"accelerator": "auto", "devices": max(here, 1), "num_nodes": 2})
    monkeypatch.setattr("sottovoce.lightning_modules.run.read_splits", lambda *_: pytest.fail("data were read"))
    with refused("unavailable", f"trainer.{where}"):
        quiet_run({**tree, "trainer": trainer})


def test_a_dry_run_elsewhere_only_tells(write_recipe: Write, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert main(["fit", "--config", write_recipe(), "--dry-run", "trainer.accelerator=gpu"]) == 0
    assert "trainer.accelerator" in capsys.readouterr().out


# Disk


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000))


@pytest.mark.usefixtures("unheard", "full")
@pytest.mark.parametrize("command", [[], ["--dry-run"]], ids=["fit", "dry"])
def test_a_disk_without_room_is_told_first(command: list[str], write_recipe: Write, capsys: Any) -> None:
    assert main(["fit", "--config", write_recipe(), *command]) == 2
    assert "data.cache" in capsys.readouterr().err


def test_room_is_that_of_what_is_written(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features to the byte but for headers; and none for clips that the cache may have."""
    needed: list[float] = []
    features = preflight._features
    monkeypatch.setattr(preflight, "_features", lambda *a: needed.append(features(*a)) or features(*a))
    run = quiet_run(tree)
    cache = run.audio_reader.cache
    assert cache is not None
    size = sum(2 * cache.get(key).numel() for key in cache.shards.places)
    assert needed[0] == size > 0
    check_room(run.recipe, run.module, read_splits(run.recipe))
    assert needed[-1] == 0
    one = recipes.parse({**tree, **joint(tree, epochs=1)})
    promised = preflight._checkpoints(one, run.module)
    train_stages(quiet_run({**tree, **joint(tree, epochs=1)}))
    written = sum(file.stat().st_size for file in one.folder.rglob("*.ckpt"))
    assert 0.5 * written < promised < 2 * written


# A compiled LLM, profilers


def test_a_compiled_llm_has_the_same_losses(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, **knobs: compiled.append(model) or compile_(model, backend="eager", **knobs)
    )
    monkeypatch.setenv("CXX", "sh")  # is looked for, and not used by that backend
    losses = []
    for chosen in (False, True):
        run = quiet_run({**tree, "compile": chosen})
        run.module.start_stage("joint", 5)
        run.module.eval()
        drawn = [run.example_sampler("joint", cut=True)(u, 0, 0) for u in run.data.splits["train"].utterances[:6]]
        examples = [example for example in drawn if example]
        batches = [collate(part, run.audio_reader.read) for part in (examples[:2], examples[2:])]
        losses.append([run.module.loss(batch).per_row for batch in batches])
        names = run.module.state_dict()
    assert len(compiled) == run.module.llm.depth and not any("_orig_mod" in name for name in names)
    for one, other in zip(*losses, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert other.requires_grad is False or other.grad_fn is not None


def test_a_profiler_tells_where_its_report_is(tree: Tree, write_recipe: Write, capsys: Any) -> None:
    from rich.console import Console

    for profiler in ("simple", "advanced"):
        one = {**tree, **joint(tree, epochs=1), "name": profiler}
        one["trainer"] = {**tree["trainer"], "profiler": profiler}
        train_stages(prepare_run(recipes.parse(one), Console()))
        told = capsys.readouterr().out
        (file,) = Path(tree["output_dir"]).glob(f"{profiler}/**/fit-profile*")
        assert file.name in told and "training_step" not in told and "training_step" in file.read_text()
