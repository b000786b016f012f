"""A run's result in its checkpoint's own format: plain transformers opens it, and says what the run says."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from tests.helpers.audio_llms import KINDS, Native, batch, chat, clips, close, native_chat, our_logits, ours, recipe
from tests.helpers.errors import refused
from tests.helpers.families import chat_template, save_family
from transformers import AutoModelForCausalLM, AutoTokenizer

from sottovoce.audio_llm_layouts import shards
from sottovoce.cli.main import main
from sottovoce.config.recipe import parse
from sottovoce.lightning_modules.bundle import write_bundle
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.serving.export import _native_parts, command, export, export_lora, merged, rounded_away

EVERY = pytest.mark.parametrize("kind", KINDS)
WAVES = clips(23_456, 8_000)
MERGED = 1e-4  # (W + BA)x is summed in another order than Wx + B(Ax)
LORA = {"method": "lora", "layers": "0-1", "rank": 4}


def tuned(kind: str, folder: Path, **tuning: Any) -> SpeechLLM:
    """A module in which everything that can learn has changed."""
    llm = {"checkpoint": str(folder), "dtype": "float32", "tuning": tuning}
    stages = {"sft": {"tasks": {"asr": 1}, "lr": 1e-4, "train": ["audio", "encoder", "llm"]}}
    module = ours(kind, folder, llm=llm, stages=stages)
    return disturbed(module)


def disturbed(module: SpeechLLM, by: float = 0.1) -> SpeechLLM:
    with torch.no_grad():
        torch.manual_seed(5)
        for weight in module.trained().values():
            weight += by * torch.randn(weight.shape)
    return module


def native_logits(kind: str, folder: Path) -> list[torch.Tensor]:
    return Native(kind, folder).logits(WAVES, [native_chat(0), native_chat(1)])


@pytest.fixture
def tiny_llm(tmp_path: Path) -> str:
    """One whose logits are all of like size."""
    return str(save_family("qwen2", tmp_path / "llm"))


@EVERY
@pytest.mark.parametrize("tuning", [LORA, {"method": "weights", "layers": "1-2", "targets": ["o_proj", "mlp.up_proj"]}])
def test_the_native_class_opens_it_and_agrees(
    kind: str, tuning: dict[str, Any], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Tower, projector and LLM trained: 1e-5 for weights that trained themselves, 1e-4 for LoRA, which is merged."""
    module = tuned(kind, checkpoints[kind], **tuning)
    expected = our_logits(module, WAVES, [chat(0), chat(1)])
    before = native_logits(kind, checkpoints[kind])
    told = export(module, tmp_path / "out")
    assert told == [f"{tmp_path / 'out'}: llm, encoder, adapters.audio, as {checkpoints[kind]} has them"]
    close(native_logits(kind, tmp_path / "out"), expected, MERGED if tuning is LORA else 1e-5)
    assert max(float((a - b).abs().max()) for a, b in zip(expected, before, strict=True)) > 0.1
    close(our_logits(module, WAVES, [chat(0), chat(1)]), expected)  # the module itself is as it was


@EVERY
def test_a_run_can_begin_from_what_was_exported(kind: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    module = tuned(kind, checkpoints[kind], **LORA)
    export(module, tmp_path / "out")
    again = ours(kind, tmp_path / "out")
    found = our_logits(again, WAVES, [chat(0), chat(1)])
    close(found, native_logits(kind, tmp_path / "out"), MERGED)
    close(found, our_logits(module, WAVES, [chat(0), chat(1)]), MERGED)


@EVERY
def test_files_and_what_was_not_trained_stay_as_they_were(
    kind: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    source, out = checkpoints[kind], tmp_path / "out"
    export(ours(kind, source), out)
    assert {file.name for file in out.iterdir()} == {file.name for file in source.iterdir()}
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            assert (out / file.name).read_bytes() == file.read_bytes(), file.name
    for file in shards(source):
        before, after = load_file(file), load_file(out / file.name)
        assert before.keys() == after.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_tensors_keep_the_dtype_of_their_checkpoint(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "bf16"
    shutil.copytree(checkpoints["qwen2_audio"], source)
    KINDS["qwen2_audio"][2].from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
    module = tuned("qwen2_audio", source, **LORA)
    export(module, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}
        name = "model.layers.0.self_attn.q_proj.weight"
        written = file.get_tensor(f"language_model.{name}")
    torch.testing.assert_close(written, merged(module.llm.model)[name].bfloat16(), rtol=0, atol=0)


def composed(llm: str, whisper: str, dtype: str = "float32", by: float = 0.1) -> SpeechLLM:
    """Whisper, an adapter and a text model with a LoRA, `by` so much changed."""
    tree = {
        "name": "composed",
        "encoder": {"type": "whisper", "checkpoint": whisper},
        "llm": {"checkpoint": llm, "dtype": dtype, "tuning": LORA},
        "slots": {"audio": {"adapter": {"type": "frame_stacking_mlp", "hidden": 8}, "text": "transcript"}},
        "stages": {"sft": {"tasks": {"asr": 1}, "lr": 1e-4, "train": ["audio", "llm"]}},
    }
    module = SpeechLLM(parse(tree))
    module.configure_model()
    return disturbed(module, by).eval()


def test_a_small_lora_is_rounded_away_in_bfloat16_and_this_is_told(
    tiny_llm: str, tiny_whisper: str, tmp_path: Path
) -> None:
    """An update of relative norm 1e-3 or so: what is written in bfloat16 is wrong by most of it."""
    module = composed(tiny_llm, tiny_whisper, "bfloat16", 0.001)
    ids = torch.arange(5, 20)[None]
    lost = rounded_away(module.llm.model, torch.bfloat16)
    assert lost > 0.5 and rounded_away(module.llm.model, torch.float32) < 1e-3
    name = "model.layers.0.self_attn.q_proj.weight"
    for dtype, kept in ((None, torch.bfloat16), ("float32", torch.float32)):
        told = export(module, tmp_path / str(dtype), dtype)
        assert any("rounded away" in line and f"{100 * lost:.2g} %" in line for line in told) == (dtype is None)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / str(dtype))
        assert plain.dtype == kept
        written, whole = plain.state_dict()[name].float(), merged(module.llm.model, torch.float32)[name]
        assert ((written - whole).abs().max() < 1e-6) == (dtype is not None)
    assert plain(ids).logits.isfinite().all()


def test_a_lora_of_its_own_is_opened_by_peft(tiny_llm: str, tiny_whisper: str, tmp_path: Path) -> None:
    module = composed(tiny_llm, tiny_whisper)
    bundle = write_bundle(tmp_path / "bundle", module, [])
    assert main(["export", str(bundle), "--out", str(tmp_path / "lora"), "--lora"]) == 0
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llm), tmp_path / "lora")
    ids = torch.arange(5, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, module.llm.model(ids).logits, atol=1e-4, rtol=1e-4)


def test_a_lora_that_is_not_there_or_has_no_place_is_told(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for tuning in ({"method": "weights"}, LORA):
        with refused("conflict", "--lora"):
            export_lora(tuned("thinker", checkpoints["thinker"], **tuning), tmp_path / "lora")


def test_a_composed_model_exports_its_llm(tiny_llm: str, tiny_whisper: str, tmp_path: Path, capsys: Any) -> None:
    """By the command, from a bundle. Speech adapters have no place in a text model's folder, and it says so."""
    module = composed(tiny_llm, tiny_whisper)
    bundle = write_bundle(tmp_path / "bundle", module, [])
    assert main(["export", str(bundle), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "out: llm, as" in told
    assert "no place for it: encoder" in told and "no place for it: adapters.audio" in told
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == chat_template("qwen2")
    ids = torch.tensor([tokenizer("Repeat what you hear, please.")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, module.llm.model(ids).logits, atol=MERGED, rtol=MERGED)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {file.name for file in Path(tiny_llm).iterdir()}
    folders = Path(tiny_llm), tmp_path / "out"
    generation = [json.loads((folder / "generation_config.json").read_text()) for folder in folders]
    assert generation[0] == generation[1]  # not our greedy one


def test_a_foreign_adapter_stays_in_the_bundle(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    source = checkpoints["thinker"]
    slots = {"audio": {"adapter": {"type": "frame_stacking_mlp", "hidden": 8}, "text": "transcript"}}
    (written, left) = export(ours("thinker", source, slots=slots), tmp_path / "out")
    assert ": llm, encoder, as" in written and "adapters.audio (it stays in the bundle)" in left


@pytest.mark.parametrize("change", [{"layers": "1"}, {"layers": "all"}, {"layer_norm": True}])
def test_a_projector_of_other_layers_has_no_place_in_the_checkpoint(
    change: dict[str, Any], checkpoints: dict[str, Path]
) -> None:
    folder = checkpoints["qwen2_audio"]
    slot = recipe("qwen2_audio", folder)["slots"]["audio"]
    module = ours("qwen2_audio", folder, slots={"audio": {**slot, **change}})
    assert [name for name, _ in _native_parts(module)] == ["encoder"]
    plain = ours("qwen2_audio", folder)
    assert [name for name, _ in _native_parts(plain)] == ["encoder", "adapters.audio"]


def test_nothing_is_overwritten(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with refused("conflict", tmp_path):
        export(ours("thinker", checkpoints["thinker"]), tmp_path)
    with refused("conflict", tmp_path):  # before the bundle is looked for
        command(str(tmp_path / "no-bundle"), str(tmp_path), [])
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_weight_without_a_place_is_an_error(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    module = ours("thinker", checkpoints["thinker"])
    module.encoder.encoder.register_buffer("stray", torch.zeros(3))  # type: ignore[union-attr]
    with refused("mismatch", "audio_tower.stray"):
        export(module, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_answers_are_the_same_after_bundle_and_export(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    module = tuned("qwen2_audio", checkpoints["qwen2_audio"], **LORA)
    bundle = write_bundle(tmp_path / "bundle", module, [])
    assert main(["export", str(bundle), "--out", str(tmp_path / "out")]) == 0
    asked = batch(WAVES), [chat(0), chat(1)], 5
    assert ours("qwen2_audio", tmp_path / "out").generate(*asked) == module.generate(*asked)
