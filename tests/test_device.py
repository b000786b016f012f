"""Devices: the best one there is, and the one that --device names."""

import pytest
import torch
from torch import nn

from sottovoce import device
from sottovoce.cli.commands import COMMANDS
from sottovoce.cli.main import parser
from sottovoce.errors import ConfigError
from tests.helpers.errors import refused


def test_the_cpu_is_taken_only_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.best_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device.best_device() == torch.device("cuda", 3)


def test_a_module_goes_to_the_gpu_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nn.Linear, "to", lambda self, place: moved.append(place))
    monkeypatch.setattr(nn.Linear, "cpu", lambda self: moved.append("back"))
    part = nn.Linear(2, 2)
    with device.on_device(part):
        moved.append("work")
    assert moved == [torch.device("cuda", 0), "work", "back"]
    moved.clear()
    with device.use_device("cpu"), device.on_device(part):
        moved.append("work")
    assert moved == ["work"] and device.best_device().type == "cuda"  # chosen for the block alone


@pytest.mark.parametrize(("name", "code"), [("gpu", "bad-value"), ("cuda:99", "unavailable"), ("meta", "unavailable")])
def test_a_device_that_is_not_there_is_refused(name: str, code: str) -> None:
    with refused(code, "--device", ConfigError), device.use_device(name):  # type: ignore[arg-type]
        raise AssertionError("it was taken")


def test_every_command_that_answers_takes_a_device() -> None:
    answering = ("chat", "demo", "predict", "evaluate", "analyze", "diagnose", "judge", "targets", "paired", "serve")
    assert {command.name for command in COMMANDS if command.device} == set(answering)
    assert parser().parse_args(["chat", "b", "--device", "cuda:1"]).device == "cuda:1"
