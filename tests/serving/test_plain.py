"""A folder for plain transformers: its loader needs nothing of ours, and says what we say."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.adapters.test_adapters import EVERY, SMALL
from tests.conftest import CONFORMER, write_tone
from tests.helpers.errors import refused
from tests.helpers.hub import FakeHub, Repository
from tests.serving.test_graphs import model

import sottovoce as sv
from sottovoce.cli.main import main
from sottovoce.errors import SottovoceError
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.serving import plain
from sottovoce.serving.plain import difference, export_plain, loader_source

LORA = {"method": "lora", "layers": "0-1", "rank": 4}
ASK = """
import sys
sys.modules["sottovoce"] = None  # to import it is an error
import soundfile
from loader import SpeechModel
model = SpeechModel(sys.argv[1])
clips = [soundfile.read(clip, dtype="float32")[0] for clip in sys.argv[3:]]
print([model.answer(clip, sys.argv[2], max_new_tokens=6) for clip in clips])
"""


def loaded(tree: dict[str, Any], adapter: dict[str, Any], **slot: Any) -> SpeechLLM:
    module = model(tree, adapter, **slot)
    module.configure_model()
    return module


def test_the_loader_answers_as_the_bundle_does_where_sottovoce_is_not(tiny_run: Path, tmp_path: Path) -> None:
    clips = [str(tmp_path / f"{number}.wav") for number in range(3)]
    for number, clip in enumerate(clips):
        write_tone(Path(clip), (0.5, 0.93, 2.4)[number], 130 + 70 * number)  # the last one is more than two windows
    out, ours = tmp_path / "plain", sv.load(tiny_run, device="cpu")
    assert main(["export", str(tiny_run / "bundle"), "--to", str(out), "--format", "plain"]) == 0
    layout = json.loads((out / "model.json").read_text())
    assert (layout["encoder"]["checkpoint"], layout["llm"]["checkpoint"]) == ("./encoder", "./llm")
    assert str(tmp_path).encode() not in b"".join(f.read_bytes() for f in out.rglob("*.json"))
    assert {*layout["prompts"]} >= {*ours.tasks}
    told = {**os.environ, "PYTHONPATH": str(out)}
    for task in ("asr", "emotion"):
        words = [sys.executable, "-c", ASK, str(out), task, *clips]
        done = subprocess.run(words, capture_output=True, text=True, env=told, cwd=tmp_path)
        expected = [str(ours(clip, task, max_new_tokens=6)) for clip in clips]
        assert done.stdout.strip() == str(expected), done.stderr
        assert len({*expected}) > 1 or task == "emotion"


@EVERY
def test_every_adapter_goes_along_or_is_refused(name: str, tree: dict[str, Any], tmp_path: Path) -> None:
    if name == "checkpoint_projector":  # whole audio LLMs have a format of their own
        with refused("conflict", "slots.speech.adapter"):
            export_plain(model(tree, {"type": name, **SMALL[name]}), tmp_path / "out")
        return
    (line,) = export_plain(loaded(tree, {"type": name, **SMALL.get(name, {})}), tmp_path / "out")
    assert "loader.py" in line and {f.stat().st_mode & 0o777 for f in (tmp_path / "out").iterdir()} <= {0o644, 0o755}


def test_layers_and_a_tuned_llm_go_along(tree: dict[str, Any], tmp_path: Path) -> None:
    """A LoRA is merged into the LLM that is saved."""
    tuned = {**tree, "llm": {**tree["llm"], "tuning": LORA}}
    module = loaded(tuned, {"type": "linear"}, layers="all", layer_norm=True)
    with torch.no_grad():
        for weight in module.trained().values():
            weight += 0.2 * torch.randn(weight.shape)
    export_plain(module, tmp_path / "out")
    x = torch.randn(1, 9, module.llm.dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = loaded(tree, {"type": "linear"}).llm.model(inputs_embeds=x).logits
        ours, theirs = (llm(inputs_embeds=x).logits for llm in (module.llm.model, opened(tmp_path / "out").llm))
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-5)
    assert float((before - ours).abs().max()) > 0.1
    assert set(load_file(tmp_path / "out" / "adapters.safetensors")) == set(module.adapters.state_dict())


def opened(folder: Path) -> Any:
    """What a user's `from loader import SpeechModel` gives."""
    space: dict[str, Any] = {"__name__": "loader"}
    exec(compile((folder / "loader.py").read_text(), "loader.py", "exec", dont_inherit=True), space)
    return space["SpeechModel"](folder)


def test_a_frozen_llm_of_the_hub_is_named_and_not_saved(
    hub: FakeHub, tree: dict[str, Any], tiny_llm: str, tmp_path: Path
) -> None:
    hub.repositories["lab/llm"] = Repository(private=False)
    files = {file.name: file.read_bytes() for file in Path(tiny_llm).iterdir() if file.is_file()}
    hub.repositories["lab/llm"].commit("main", files)
    module = loaded({**tree, "llm": {"checkpoint": "lab/llm", "dtype": "float32"}}, {"type": "linear"})
    export_plain(module, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "model.json").read_text())["llm"]["checkpoint"] == "lab/llm"
    assert not (tmp_path / "out" / "llm").exists() and opened(tmp_path / "out").llm is not None


def test_another_embedding_is_no_export(tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = loaded(tree, {"type": "linear"})
    bent = loader_source(module).replace("self.project(stack_frames", "1.01 * self.project(stack_frames")
    monkeypatch.setattr(plain, "loader_source", lambda module: bent)
    with refused("mismatch", "loader.py", SottovoceError):
        export_plain(module, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    export_plain(module, tmp_path / "out")
    with torch.no_grad():
        module.adapters["speech"].project.bias += 1.0
    assert difference(module, tmp_path / "out") == pytest.approx(1.0, abs=1e-3)


def test_what_transformers_has_no_form_of_is_refused(
    tree: dict[str, Any], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(
        "from sottovoce.adapters.linear import LinearProjection as Own\nclass Mine(Own): ...\n"
    )
    other = {"encoder.type": CONFORMER, "encoder.window": {**tree["encoder"], "window": "longest"}}
    for where, encoder in other.items():
        with refused("conflict", where):
            export_plain(model(tree, {"type": "linear"}, encoder), tmp_path / "out")
    with refused("conflict", "slots.speech.adapter"):
        export_plain(model(tree, {"type": f"{tmp_path}/own.py:Mine"}), tmp_path / "out")
    whole = {**tree, "llm": {"checkpoint": str(checkpoints["qwen2_audio"]), "dtype": "float32"}}
    with refused("conflict", "llm.checkpoint"):
        export_plain(model(whole, {"type": "linear"}), tmp_path / "out")
    assert main(["export", "x", "--to", str(tmp_path / "out"), "--format", "plain", "--lora"]) == 2
    assert not (tmp_path / "out").exists()
