"""Plug-ins: a stranger's adapter, in a package of its own, trains from YAML; a broken one harms nobody else."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.errors import refused
from tests.helpers.runs import Fit

from sottovoce.adapters import ADAPTERS, Adapter
from sottovoce.cli.main import main
from sottovoce.errors import ConfigError
from sottovoce.evaluation.reports.results import MEANING, METRICS
from sottovoce.registry import Registry

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "my-lab"
version = "1.0"
[project.entry-points."sottovoce.adapter"]
prosody = "my_lab:Prosody"
broken = "my_lab:Nothing"
[tool.setuptools]
py-modules = ["my_lab"]
"""
MODULE = '''
from torch import nn
from sottovoce.adapters import Adapter
from sottovoce.frames import Frames

class Prosody(Adapter):
    """One embedding: the mean of all frames."""

    def __init__(self, d_audio: int, d_llm: int, *, width: int = 8, scales: list[float] = [1.0]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(d_audio, width), nn.Tanh(), nn.Linear(width, d_llm))

    def forward(self, frames: Frames) -> Frames:
        real = frames.mask()[..., None]
        mean = (frames.x * real).sum(1, keepdim=True) / frames.lengths[:, None, None]
        return Frames(self.net(mean), frames.lengths * 0 + 1)
'''


@pytest.fixture
def my_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small package, built and installed as anybody's would be, in a folder of its own."""
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "my_lab.py").write_text(MODULE)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, capture_output=True)
    monkeypatch.syspath_prepend(str(site))
    yield site
    sys.modules.pop("my_lab", None)


def test_a_third_party_adapter_trains_from_yaml(my_lab: Path, fit: Fit, tree: dict[str, Any]) -> None:
    slots = {**tree["slots"], "paralinguistic": {"adapter": {"type": "prosody", "width": 4}, "text": "caption"}}
    folder = fit(slots=slots, stages={"joint": tree["stages"]["joint"]})
    assert "| paralinguistic | prosody |" in (folder / "bundle" / "README.md").read_text()


def test_plugins_are_listed_checked_and_fail_alone(my_lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {"prosody", "broken", "frame_stacking_mlp"} <= set(ADAPTERS.names())
    filled = ADAPTERS.check({"type": "prosody", "scales": [1, 2]})
    assert filled == {"type": "prosody", "width": 8, "scales": [1.0, 2.0]}
    with refused("unknown-key", "adapter.widht", ConfigError) as caught:
        ADAPTERS.check({"type": "prosody", "widht": 3})
    assert "'width'" in str(caught.value)
    with refused("unavailable", "type", ConfigError) as caught:
        ADAPTERS.get("broken")
    assert "my_lab:Nothing" in str(caught.value)
    main(["list"])
    shown = capsys.readouterr().out
    assert "prosody" in shown and "cannot be loaded" in shown and "frame_stacking_mlp" in shown


def test_list_shows_every_component_with_its_knobs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list"])
    shown = capsys.readouterr().out
    for word in ("whisper", "pooled_soft_prompt", "tokens: int = 10", "stack: int = 5", "dialogue", "demo_world"):
        assert word in shown
    assert MEANING.keys() == METRICS.keys()
    for metric in METRICS:
        assert f" {metric} " in shown


def test_a_name_is_taken_once_and_built_ins_win() -> None:
    registry: Registry[Adapter] = Registry("adapter")
    registry.register("mine")(Adapter)
    with pytest.raises(ValueError, match="already"):
        registry.register("mine")(Adapter)
