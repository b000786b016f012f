"""What the tests of the page share: the tiny bundle as the page asks it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

import sottovoce as sv
from sottovoce.webpage.listener import Listener


@pytest.fixture(scope="module")
def listener(tiny_run: Path) -> Listener:
    return Listener(sv.load(tiny_run, device="cpu"))


@pytest.fixture(scope="session")
def clip(manifests: dict[str, Path]) -> str:
    return str(manifests["test"].parent / "test-1.wav")


@pytest.fixture(scope="session")
def unusable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Clips that nobody can answer, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("unusable")
    (folder / "broken.wav").write_bytes(b"RIFF and no more")
    soundfile.write(folder / "silence.wav", np.zeros(16_000), 16_000)
    soundfile.write(folder / "long.wav", 0.1 * np.sin(np.arange(61 * 8_000) / 5), 8_000)
    return {name: str(folder / f"{name}.wav") for name in ("broken", "silence", "long")}
