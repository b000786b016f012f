"""What a training logs, and where: TensorBoard, Weights & Biases, MLflow, metrics.csv."""

import csv
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.errors import refused
from tests.helpers.runs import Fit, Write, quiet_run

from sottovoce.config import recipe as recipes
from sottovoce.config.logging_config import LoggingConfig
from sottovoce.errors import ConfigError, MissingError
from sottovoce.lightning_modules import trackers
from sottovoce.lightning_modules.curriculum import train_stages
from sottovoce.lightning_modules.fit import fit as fit_recipe
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.lightning_modules.trackers import check_logging, opened
from sottovoce.llms.answer_text import Cut
from sottovoce.signals import Terminated

Tree = dict[str, Any]
LOSSES = {f"train/{name}/loss" for name in ("asr", "gender", "emotion", "linguistic/speech", "paralinguistic/speech")}
SHARED = LOSSES | {
    "train/loss", "val/loss", "val/asr/loss", "lr-AdamW", "train/grad_norm", "train/tokens_per_second",
    "train/audio_seconds_per_second", "train/seconds_per_step", "train/peak_memory_mb", "test/both/gender/accuracy",
}  # fmt: skip


@pytest.fixture
def stages(tree: Tree) -> Tree:
    """Two stages, the second of which replaces slots; every step is logged."""
    return {
        "stages": {name: tree["stages"][name] for name in ("joint", "disentangle")},
        "evaluation": {**tree["evaluation"], "tasks": ["gender"], "slots": ["both"]},
        "trainer": {**tree["trainer"], "log_every_n_steps": 1},
    }


def steps_of(run: Path) -> list[int]:
    """Steps of each stage."""
    return [json.loads(report.read_text())["steps"] for report in sorted(run.glob("stages/*/done.json"))]


def read_events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "audio": 0})
    found.Reload()
    return found


def read_wandb(file: Path) -> Iterator[Any]:
    """Records of an offline run: behind seven bytes, a log in LevelDB's format, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while place < len(content):
        if 32_768 - place % 32_768 < 7:  # no header fits: padding
            place += 32_768 - place % 32_768
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)  # after a checksum
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            yield record
        parts = parts if kind in (2, 3) else b""


def read_csv(run: Path) -> dict[str, dict[int, float]]:
    """Name -> step -> value, of the first stage."""
    found: dict[str, dict[int, float]] = {}
    with next(run.glob("stages/1-*/metrics/version_0/metrics.csv")).open() as stream:
        for row in csv.DictReader(stream):
            for name, value in row.items():
                if value:
                    found.setdefault(name, {})[int(row["step"])] = float(value)
    return found


def test_tensorboard_has_all_stages_one_after_another(fit: Fit, stages: Tree) -> None:
    run = fit(**stages, logging={"tensorboard": True, "samples": 2})
    first, second = steps_of(run)
    events = read_events(run / "tensorboard")
    tags = events.Tags()
    assert SHARED <= set(tags["scalars"]) and not {"epoch", "hp_metric"} & set(tags["scalars"])
    assert [e.step for e in events.Scalars("train/loss")] == list(range(first + second))
    assert {e.step for e in events.Scalars("train/linguistic/text/loss")} <= set(range(first, first + second))
    assert {e.step for e in events.Scalars("test/both/gender/accuracy")} == {first + second}
    assert tags["audio"] == ["samples/validation-0", "samples/validation-1"]
    heard = events.Audio(tags["audio"][0])
    assert len(heard) == 1 and heard[0].sample_rate == 16_000 and heard[0].length_frames == 6400
    told = events.Tensors("samples/asr/validation-0/text_summary")
    assert len(told) == 3 and b"**target**: we found the lamp" in told[0].tensor_proto.string_val[0]
    assert b"name: tiny" in events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0]
    plugin = events.PluginTagToContent("hparams")
    assert b"stages.joint.lr" in b"".join(plugin.values())
    assert not (run / "wandb").exists()


def test_losses_by_task_and_slot_add_up_to_the_loss(fit: Fit, stages: Tree) -> None:
    """In metrics.csv, too, whose steps are the stage's own. No tracker, no samples."""
    found = read_csv(fit(**stages))
    for step, loss in found["train/loss"].items():
        parts = [found[f"train/{task}/loss"][step] for task in ("asr", "gender", "emotion")
                 if step in found.get(f"train/{task}/loss", {})]  # fmt: skip
        assert min(parts) - 1e-5 <= loss <= max(parts) + 1e-5
        assert found["train/linguistic/speech/loss"][step] == pytest.approx(loss, rel=1e-5)
        for name in ("tokens_per_second", "audio_seconds_per_second", "seconds_per_step", "peak_memory_mb"):
            assert found[f"train/{name}"][step] > 0
    assert LOSSES - {"train/asr/loss"} <= found.keys()
    assert found["val/loss"].keys() == found["val/gender/loss"].keys()


def test_a_run_that_was_stopped_goes_on_in_the_same_curves(
    write_recipe: Write, stages: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it made again after its checkpoint is there once."""
    config = write_recipe(**stages, logging={"tensorboard": True, "samples": 0}, checkpoint_every=2)
    step = SpeechLLM.training_step

    def dies(self: Any, batch: Any, number: int) -> Any:
        if number == 3:
            raise RuntimeError("the machine is gone")
        return step(self, batch, number)

    monkeypatch.setattr(SpeechLLM, "training_step", dies)
    with pytest.raises(RuntimeError, match="gone"):
        fit_recipe(config)
    monkeypatch.setattr(SpeechLLM, "training_step", step)
    fit_recipe(config)
    run = recipes.load(config).folder
    events = read_events(run / "tensorboard")
    assert [e.step for e in events.Scalars("train/loss")] == list(range(sum(steps_of(run))))
    assert len(events.Tensors("recipe/text_summary")) == 1


def test_wandb_offline_has_curves_config_and_players(fit: Fit, stages: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(SpeechLLM, "generate", lambda self, batch, chats, most: [Cut("I")] * len(chats))
    run = fit(**stages, logging={"wandb": {"project": "ours", "tags": ["tiny"]}, "samples": 1})
    [folder] = (run / "wandb").glob("offline-run-*")
    records = list(read_wandb(next(folder.glob("*.wandb"))))
    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    begun = next(record.run for record in records if record.HasField("run"))
    assert begun.project == "ours" and begun.display_name == "tiny" and list(begun.tags) == ["tiny"]
    assert json.loads((run / "trackers.json").read_text()) == {"wandb": begun.run_id}
    names = set().union(*history)
    assert SHARED <= names and "samples" in "".join(names)
    steps = [row["trainer/global_step"] for row in history if "train/loss" in row]
    assert steps == list(range(sum(steps_of(run))))
    assert list(folder.rglob("*.wav")) and list(folder.rglob("*.table.json"))
    assert any(record.exit.exit_code == 0 for record in records if record.HasField("exit"))


def test_mlflow_has_curves_parameters_and_artifacts(fit: Fit, stages: Tree, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")

    run = fit(**stages, logging={"mlflow": True, "samples": 1})
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    name = json.loads((run / "trackers.json").read_text())["mlflow"]
    kept = client.get_run(name)
    assert kept.info.status == "FINISHED" and kept.info.run_name == "tiny"
    assert SHARED <= kept.data.metrics.keys() and kept.data.params["stages/joint/lr"] == "0.01"
    curve = client.get_metric_history(name, "train/loss")
    assert sorted(point.step for point in curve) == list(range(sum(steps_of(run))))
    paths = {file.path for folder in ("samples", "samples/audio") for file in client.list_artifacts(name, folder)}
    assert "samples/audio/validation-0.wav" in paths and len(paths) == 5  # 3 validations, one clip and its folder
    assert "name: tiny" in mlflow.artifacts.load_text(f"{kept.info.artifact_uri}/recipe.yaml")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_read(
    name: str, write_recipe: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    config = write_recipe(logging={name: True}, data={"train": [{"manifest": "nowhere.jsonl"}]})
    with refused("unavailable", f"logging.{name}", MissingError) as caught:
        fit_recipe(config)
    assert f"sottovoce[{name}]" in str(caught.value)


@pytest.mark.parametrize(
    ("node", "where"),
    [
        ({"tensorboard": {"save_dri": "x"}}, "logging.tensorboard.save_dri"),
        ({"wandb": {"projekt": "x", "offline": True}}, "logging.wandb.projekt"),
        ({"mlflow": {"uri": "x"}}, "logging.mlflow.uri"),
    ],
)
def test_arguments_that_a_tracker_does_not_take_are_refused(node: Tree, where: str) -> None:
    pytest.importorskip(next(iter(node)))
    with refused("unknown-key", where, ConfigError):
        check_logging(LoggingConfig(**node))


def test_somebody_must_be_logged_in_at_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def login(*_: Any, **__: Any) -> bool:
        raise wandb.errors.UsageError("no tty")

    monkeypatch.setattr(wandb, "login", login)
    with refused("unavailable", "logging.wandb", ConfigError):
        check_logging(LoggingConfig(wandb=True))
    check_logging(LoggingConfig(wandb={"mode": "offline"}))
    check_logging(LoggingConfig(wandb={"offline": True}))
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_logging(LoggingConfig(wandb=True))


def test_lightnings_own_key_points_at_logging(tree: Tree) -> None:
    with refused("conflict", "trainer.logger", ConfigError) as caught:
        recipes.parse({**tree, "trainer": {"logger": "wandb"}})
    assert "`logging`" in str(caught.value)


def test_the_trackers_are_told_how_a_run_has_ended(recipe: recipes.Recipe) -> None:
    class Ended:
        def close(self, status: str) -> None:
            told.append(status)

    told: list[str] = []
    ended: list[Any] = [Ended()]
    for error in (None, Terminated(), KeyboardInterrupt()):
        try:
            with opened(recipe) as kept:
                kept.loggers = list(ended)
                if error is not None:
                    raise error
        except (Terminated, KeyboardInterrupt):
            pass
    assert told == ["success", "failed", "failed"]


def test_a_trial_and_another_process_open_no_tracker(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    run = quiet_run({**tree, "logging": {"tensorboard": True}, "trainer": {**tree["trainer"], "fast_dev_run": 1},
                     "stages": {"joint": tree["stages"]["joint"]}})  # fmt: skip
    with opened(run.recipe) as run.trackers:
        assert run.trackers.on
        train_stages(run)
        assert not run.trackers.loggers
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert not run.trackers.on


def test_samples_change_nothing_of_the_training(fit: Fit, stages: Tree) -> None:
    stages["stages"].pop("disentangle")
    plain, watched = (fit(name=name, **stages, logging=node) for name, node in (
        ("plain", {}), ("watched", {"tensorboard": True, "samples": 3}),
    ))  # fmt: skip
    weights = [
        torch.load(run / "stages/1-joint/best.ckpt", weights_only=True)["state_dict"] for run in (plain, watched)
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_lines_of_a_stage_in_a_log(
    fit: Fit, stages: Tree, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sottovoce.progress.EVERY", 0.0)
    fit(**stages)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("joint ")]
    assert lines[0].startswith("joint 1/") and " loss " in lines[0] and " lr " in lines[0]
    assert lines[-1].split()[1] == "/".join([lines[-1].split()[1].split("/")[0]] * 2)
    assert "s/step" in lines[1] and not any("poch" in line or "v_num" in line for line in lines)
