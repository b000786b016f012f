"""What the tests of the page share: models with untrained adapters on the demo's backbones; they answer in words."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import sottovoce as sv
from sottovoce.config import recipe as recipes
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.webpage.listener import Listener


def untrained(seed: int) -> Listener:
    """A model as the quickstart builds it, with other adapters for every seed; it answers some words to anything."""
    torch.manual_seed(seed)
    module = SpeechLLM(recipes.load("conf/quickstart.yaml"))
    module.configure_model()
    return Listener(sv.Model(module))


@pytest.fixture(scope="session")
def listener() -> Listener:
    return untrained(0)


@pytest.fixture(scope="session")
def other() -> Listener:
    return untrained(1)


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
