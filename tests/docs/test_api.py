"""What docs/api.md shows runs as it stands there."""

import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs/api.md"


def test_the_page_runs(
    tiny_run: Path, manifests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its order, on a small bundle: a loop of one's own gets its gradient."""
    for name in ("question.wav", "a.wav", "b.wav"):
        shutil.copy(manifests["test"].parent / "test-1.wav", tmp_path / name)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/quickstart").symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"(?s)```python\n(.*?)```", PAGE.read_text("utf-8"))
    there: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # each task that it names has been learned
        for block in blocks:
            exec(block, there)  # our own page
    assert len(blocks) == 3
    adapter = there["adapter"]
    assert isinstance(adapter, torch.nn.Linear) and adapter.weight.grad is not None and adapter.weight.grad.any()
