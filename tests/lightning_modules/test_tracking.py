"""What a training logs, and where: TensorBoard, Weights & Biases, MLflow, metrics.csv."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.runs import Fit

Tree = dict[str, Any]
STAGES = ("joint", "disentangle")


@pytest.fixture
def two_stages(tree: Tree) -> Tree:
    """Two stages of some steps, the second of which replaces slots."""
    return {
        "stages": {name: tree["stages"][name] for name in STAGES},
        "evaluation": {**tree["evaluation"], "tasks": ["gender"], "slots": ["both"]},
        "trainer": {**tree["trainer"], "log_every_n_steps": 1},
    }


def steps_of(run: Path) -> list[int]:
    """Steps of each stage."""
    reports = sorted(run.glob("stages/*/done.json"))
    return [json.loads(report.read_text())["steps"] for report in reports]


def read_events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "audio": 0})
    found.Reload()
    return found


def test_tensorboard_has_all_stages_one_after_another(fit: Fit, two_stages: Tree) -> None:
    run = fit(**two_stages, logging={"tensorboard": True, "samples": 2})
    first, second = steps_of(run)
    events = read_events(run / "tensorboard")
    tags = set(events.Tags()["scalars"])
    print(sorted(tags), events.Tags())
    assert [e.step for e in events.Scalars("train/loss")] == list(range(first + second))
