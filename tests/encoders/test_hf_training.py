"""Runs and estimates with encoders of transformers, with adapters of peers, and with a quantised LLM."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.encoders.test_hf import save_hf_whisper, save_waveform_encoder
from tests.helpers.runs import Fit, Write

from sottovoce.cli.main import main

WIDE = {"width": 24, "feedforward": 48, "heads": 2}


@pytest.mark.parametrize(
    ("save", "adapter"),
    [
        (save_waveform_encoder("wavlm, layer norm"), {"type": "qformer", "tokens": 3, **WIDE}),
        (save_waveform_encoder("hubert"), {"type": "windowed_qformer", "window": 9, **WIDE}),
        (save_waveform_encoder("wav2vec2"), {"type": "conv1d", "hidden": 16}),
        (save_hf_whisper, {"type": "linear"}),
    ],
    ids=["wavlm", "hubert", "wav2vec2", "whisper"],
)
def test_an_encoder_of_transformers_trains_with_an_adapter_of_its_peers(
    save: Callable[[Path], Any], adapter: dict[str, Any], fit: Fit, tree: dict[str, Any], write_recipe: Write,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    save(tmp_path / "encoder")
    slots = {"voice": {"adapter": adapter, "text": "caption", "layers": "all", "carries": ["paralinguistic"]}}
    changes: dict[str, Any] = {
        "encoder": {"type": "hf", "checkpoint": str(tmp_path / "encoder")}, "slots": slots,
        "stages": {"joint": {**tree["stages"]["joint"], "epochs": 1}},
    }  # fmt: skip
    folder = fit(**changes)
    assert (folder / "bundle" / "trained.safetensors").is_file()
    assert main(["estimate", "--config", write_recipe(**changes), "--gpu", "h100", "--utterances", "8"]) == 0
    assert "joint" in capsys.readouterr().out


def test_an_estimate_knows_a_quantised_llm(write_recipe: Write, tree: dict[str, Any]) -> None:
    from sottovoce.config import recipe as recipes
    from sottovoce.estimation.estimate import estimate
    from sottovoce.estimation.hardware import hardware_of
    from sottovoce.estimation.placeholders import placeholder_splits

    sizes = []
    for bits in (None, "8bit", "4bit"):
        recipe = recipes.parse({**tree, "llm": {**tree["llm"], "quantization": bits}})
        sizes.append(estimate(recipe, hardware_of("h100", "gpu"), placeholder_splits(recipe, 8, 1.0)).memory("ddp"))
    assert sizes[0] > sizes[1] > sizes[2]
