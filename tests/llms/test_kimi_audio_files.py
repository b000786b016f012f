"""Kimi-Audio's files: what is read of them, what is refused, what is written."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.helpers import kimi_audio
from tests.helpers.audio_llms import chat, clips, close, our_logits
from tests.helpers.errors import refused
from tests.helpers.kimi_audio import encoder_of, ours
from tests.helpers.kimi_audio_reference import Reference, heard

from sottovoce.adapters import ADAPTERS
from sottovoce.encoders import ENCODERS
from sottovoce.errors import ConfigError, MissingError
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.serving.export import export

WITHIN = 1e-4


def test_only_the_tensors_that_are_asked_for_are_read(kimi: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the branch that speaks, nor Whisper's decoder, nor the layers behind the codebook."""
    read: list[str] = []

    @contextmanager
    def recording(file: Path, framework: str) -> Iterator[Any]:
        with safe_open(file, framework) as opened:
            yield SimpleNamespace(
                keys=opened.keys, get_tensor=lambda name: read.append(name) or opened.get_tensor(name)
            )

    monkeypatch.setattr("sottovoce.tensor_files.safe_open", recording)
    encoder_of(kimi)
    assert read and all(name.startswith("model.encoder.") for name in read)
    assert not [name for name in read if ".layers.3." in name or "embed_positions2" in name]
    read.clear()
    ADAPTERS.build({"type": "kimi_audio_projector", "checkpoint": str(kimi[0])}, 34, 32).load()
    assert all(name.startswith("model.vq_adaptor.") or name == "model.embed_tokens.weight" for name in read)
    read.clear()
    CausalLLM(str(kimi[0]), "float32").load()
    assert read and not [name for name in read if "mimo" in name or "vq_adaptor" in name or "inv_freq" in name]


def test_published_sizes_need_no_network() -> None:
    """The checkpoint's index names 19,532,673,280 bytes of bfloat16, constants of the rotary embeddings included."""
    name = "moonshotai/Kimi-Audio-7B-Instruct"
    with torch.device("meta"):
        encoder = ENCODERS.build({"type": "kimi_audio", "checkpoint": name})
        hearing = ENCODERS.build(
            {"type": "kimi_audio", "checkpoint": name, "speech_tokenizer": "THUDM/glm-4-voice-tokenizer"}
        )
        encoder.build()
        hearing.build()
        text = CausalLLM(name)
        text.build()
        adapter = ADAPTERS.build({"type": "kimi_audio_projector", "checkpoint": name}, hearing.dim, text.dim)
    assert (encoder.sample_rate, encoder.frame_rate, encoder.dim, hearing.dim) == (16_000, 12.5, 5120, 5122)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (encoder, hearing, adapter, text)]
    assert sizes == [636_968_960, 980_088_320, 31_209_472, 7_733_057_024]
    layer = sum(p.numel() for p in text.layers[0].parameters())
    speaks = 6 * layer + 3584 + 168_448 * 3584  # layers, norm and head
    assert 2 * (sizes[2] + sizes[3] + speaks + 34 * 64) == 19_532_673_280


def test_parts_that_do_not_fit_are_refused(
    kimi: tuple[Path, Path], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder, tokenizer = kimi
    with refused("mismatch", "encoder.checkpoint", ConfigError):
        ENCODERS.build({"type": "kimi_audio", "checkpoint": str(checkpoints["qwen2_audio"])})
    with refused("mismatch", "encoder.checkpoint", ConfigError):
        ENCODERS.build({"type": "qwen2_audio", "checkpoint": str(folder)})
    for kind, other in (("kimi_audio_projector", checkpoints["qwen2_audio"]), ("checkpoint_projector", folder)):
        with refused("mismatch", "adapter.checkpoint", ConfigError):
            ADAPTERS.build({"type": kind, "checkpoint": str(other)}, 34, 32)
    with refused("mismatch", "adapter.checkpoint", ConfigError):
        ADAPTERS.build({"type": "kimi_audio_projector", "checkpoint": str(folder)}, 16, 32)
    for wrong in (str(folder / "whisper-large-v3"), str(_changed(tokenizer, tmp_path, pooling_type="max"))):
        with pytest.raises((ConfigError, MissingError)) as caught:
            ENCODERS.build({"type": "kimi_audio", "checkpoint": str(folder), "speech_tokenizer": wrong}).build()
        assert caught.value.where == "encoder.speech_tokenizer"
    more = _changed(tokenizer, tmp_path / "more", quantize_vocab_size=99)
    with refused("mismatch", "encoder.speech_tokenizer", ConfigError):
        ENCODERS.build({"type": "kimi_audio", "checkpoint": str(folder), "speech_tokenizer": str(more)}).build()


def _changed(source: Path, folder: Path, **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


@pytest.mark.parametrize(
    ("file", "missing", "where"),
    [
        ("model/whisper-large-v3/model.safetensors", "model.encoder.layers.1.fc1.bias", "encoder.checkpoint"),
        ("tokenizer/model.safetensors", "model.encoder.codebook.weight", "encoder.speech_tokenizer"),
        ("model/model-1-of-2.safetensors", "model.vq_adaptor.layers.0.bias", "adapter.checkpoint"),
        ("model/model-1-of-2.safetensors", "model.layers.1.mlp.up_proj.weight", "llm.checkpoint"),
    ],
)
def test_a_weight_that_the_files_lack_is_named(file: str, missing: str, where: str, tmp_path: Path) -> None:
    folder = kimi_audio.save_kimi_audio(tmp_path / "model")
    tokenizer = kimi_audio.save_speech_tokenizer(tmp_path / "tokenizer")
    path = tmp_path / file
    if missing not in load_file(path):
        path = path.with_name("model-2-of-2.safetensors")
    weights = load_file(path)
    del weights[missing]
    save_file(weights, path, {"format": "pt"})
    with refused("not-found", where, MissingError) as caught:
        ours(folder, tokenizer)
    assert missing.removeprefix("model.vq_adaptor.layers.") in str(caught.value)


def test_whisper_as_the_authors_fine_tuning_writes_it(kimi: tuple[Path, Path], tmp_path: Path) -> None:
    """Its tensors lack `model.`; an export keeps their names."""
    file = kimi_audio.save_kimi_audio(tmp_path / "model") / "whisper-large-v3" / "model.safetensors"
    weights = {name.removeprefix("model."): weight for name, weight in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    module, (wave,) = ours(tmp_path / "model", kimi[1]), clips(9_000)
    close(our_logits(module, [wave], [chat(0)]), [Reference(*kimi).logits(heard(0, wave))], WITHIN)
    export(module, tmp_path / "out")
    assert load_file(tmp_path / "out" / "whisper-large-v3" / file.name).keys() == weights.keys()


def test_a_tokenizer_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = kimi_audio.save_kimi_audio(tmp_path / "model")
    lines = (folder / "tiktoken.model").read_bytes().splitlines()
    (folder / "tiktoken.model").write_bytes(b"\n".join(lines[:-1]) + b"\n")
    with refused("mismatch", "llm.checkpoint", ConfigError):
        CausalLLM(str(folder), "float32").load()
    (folder / "tiktoken.model").unlink()
    with refused("not-found", "llm.checkpoint", MissingError):
        CausalLLM(str(folder), "float32").load()


def test_an_exported_run_has_the_published_layout(kimi: tuple[Path, Path], tmp_path: Path) -> None:
    """The reference reads it, and says what the run says; what speaks is copied."""
    tuning = {"method": "lora", "layers": "0-1", "rank": 4}
    llm = {"checkpoint": str(kimi[0]), "dtype": "float32", "tuning": tuning}
    stages = {"sft": {"tasks": {"asr": 1}, "lr": 1e-4, "train": ["audio", "encoder", "llm"]}}
    module, (wave,) = ours(*kimi, llm=llm, stages=stages), clips(23_456)
    with torch.no_grad():
        torch.manual_seed(5)
        for name, weight in module.trained().items():
            if ".tokenizer." not in name:
                weight += 0.1 * torch.randn(weight.shape)
    expected = our_logits(module, [wave], [chat(0)])
    told = export(module, tmp_path / "out")
    assert told == [f"{tmp_path / 'out'}: llm, encoder, adapters.audio, as {kimi[0]} has them"]
    close([Reference(tmp_path / "out", kimi[1]).logits(heard(0, wave))], expected, WITHIN)
    assert float((Reference(*kimi).logits(heard(0, wave)) - expected[0]).abs().max()) > 0.1
    files = {str(file.relative_to(kimi[0])) for file in kimi[0].rglob("*.*")}
    assert {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.*")} == files
    for file in kimi[0].glob("*.safetensors"):
        copied = load_file(tmp_path / "out" / file.name)
        for name, value in load_file(file).items():
            assert torch.equal(copied[name], value) or not name.startswith(("model.mimo", "mimo"))
    close(our_logits(ours(tmp_path / "out", kimi[1]), [wave], [chat(0)]), expected, WITHIN)
