"""Audio LLMs as encoder, adapter and LLM: the logits are those of transformers' own classes."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.helpers import audio_llms
from tests.helpers.audio_llms import KINDS, SAMPLES, batch, chat, clips, close, native_chat, native_of, our_logits, ours
from tests.helpers.errors import refused

from sottovoce.adapters import ADAPTERS
from sottovoce.config.recipe import parse
from sottovoce.encoders import ENCODERS, Encoder
from sottovoce.errors import AudioError, ConfigError, MissingError
from sottovoce.frames import Frames
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.llms.chat_template import ChatTurn

EVERY = pytest.mark.parametrize("kind", KINDS)


@EVERY
def test_logits_are_the_native_models(kind: str, checkpoints: dict[str, Path]) -> None:
    """One at a time, and in a batch of different lengths; 1e-5."""
    waves, folder = clips(*SAMPLES), checkpoints[kind]
    module, native = audio_llms.ours_as_it_is(kind, folder), native_of(kind, folder)
    chats = [chat(i) for i in range(len(waves))]
    together = our_logits(module, waves, chats)
    close(together, native.logits(waves, [native_chat(i) for i in range(len(waves))]))
    for i, wave in enumerate(waves):
        alone = our_logits(module, [wave], [chat(i, clip=0)])
        close(alone, native.logits([wave], [native_chat(i)]))
        close(alone, [together[i]])
    assert max(float(row.abs().max()) for row in together) > 0.5  # or a tolerance of 1e-5 would say little


@EVERY
def test_a_dialogue_of_several_clips_is_the_native_models(kind: str, checkpoints: dict[str, Path]) -> None:
    """Qwen2-Audio numbers its clips; a line break stands behind each."""
    waves, folder = clips(9_000, 12_000), checkpoints[kind]
    module, native = audio_llms.ours_as_it_is(kind, folder), native_of(kind, folder)
    turns = [*chat(0), ChatTurn("assistant", ("A dog.",)), *chat(1)]
    said = [*native_chat(0), {"role": "assistant", "content": "A dog."}, *native_chat(1)]
    close(our_logits(module, waves, [turns]), native.logits(waves, [said]))


@EVERY
def test_answers_are_the_native_models(kind: str, checkpoints: dict[str, Path]) -> None:
    waves, folder = clips(*SAMPLES), checkpoints[kind]
    module, native = audio_llms.ours_as_it_is(kind, folder), native_of(kind, folder)
    made = native.inputs(waves, [native_chat(i) for i in range(len(waves))])
    with torch.no_grad():
        ids = native.model.generate(**made, max_new_tokens=6, do_sample=False)[:, made["input_ids"].shape[1] :]
    expected = [text.strip() for text in native.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    assert module.generate(batch(waves), [chat(i) for i in range(len(waves))], 6) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("kind", ["qwen2_audio", "thinker"])
def test_marks_are_special_tokens_in_the_prompt(kind: str, checkpoints: dict[str, Path]) -> None:
    module = audio_llms.ours_as_it_is(kind, checkpoints[kind])
    before, _, after = module.llm.chat.prompt(chat(0))
    assert isinstance(before, list) and isinstance(after, list)
    names = module.llm.tokenizer.convert_ids_to_tokens
    assert names(before[-1]) == "<|audio_bos|>" and names(after[0]) == "<|audio_eos|>"


def test_a_mark_that_the_tokenizer_does_not_know_is_refused(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["thinker"]
    slots = {"audio": {**audio_llms.recipe("thinker", folder)["slots"]["audio"], "after": "<|audio_end|>"}}
    with pytest.raises(ConfigError, match=r"slots.audio: '<\|audio_end\|>'.*<\|audio_eos\|>"):
        ours("thinker", folder, slots=slots)


@pytest.mark.parametrize("kind", ["qwen2_audio", "thinker"])
def test_text_in_the_place_of_speech_has_no_marks(kind: str, checkpoints: dict[str, Path]) -> None:
    module = audio_llms.ours_as_it_is(kind, checkpoints[kind])
    (text,) = module.llm.chat.prompt([ChatTurn("user", ("a dog", "What is it?"))])
    assert isinstance(text, list) and "<|audio_bos|>" not in module.llm.tokenizer.convert_ids_to_tokens(text)


@EVERY
def test_frames_do_not_depend_on_the_batch_or_on_what_lies_behind(kind: str, checkpoints: dict[str, Path]) -> None:
    encoder = encoder_of(kind, checkpoints[kind])
    waves = clips(*SAMPLES)
    x, lengths = Frames.pad(waves)
    for row, length in enumerate(SAMPLES):
        x[row, length:] = 100.0
    with torch.no_grad():
        together = encoder(x, lengths)
        alone = [encoder(*Frames.pad([wave])).rows()[0] for wave in waves]
    assert together.lengths.tolist() == [((math.ceil(n / 160) - 1) // 2 + 1 - 2) // 2 + 1 for n in SAMPLES]
    assert together.lengths[-1] == 1 and together.x.shape[2] == encoder.dim == 16 and encoder.frame_rate == 25.0
    close(together.rows(), alone)


@pytest.mark.parametrize("kind", ["qwen2_audio", "thinker"])
def test_clips_that_the_model_cannot_hear_are_named(kind: str, checkpoints: dict[str, Path]) -> None:
    encoder = encoder_of(kind, checkpoints[kind])
    longest = int(encoder.extractor.n_samples)  # type: ignore[attr-defined]
    with refused("bad-value", "row 1", AudioError):
        encoder(*Frames.pad(clips(1_000, 320)))
    with refused("bad-value", "row 0", AudioError) as caught:
        encoder(*Frames.pad(clips(longest + 1)))
    assert f"data.max_seconds={longest // 16_000}" in str(caught.value)
    assert encoder(*Frames.pad(clips(longest, 321))).lengths.tolist() == [longest // 640, 1]


def encoder_of(kind: str, folder: Path) -> Encoder:
    encoder = ENCODERS.build({"type": KINDS[kind][0], "checkpoint": str(folder)})
    encoder.load()
    return encoder


def test_only_the_tensors_that_are_asked_for_are_read(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    @contextmanager
    def recording(file: Path, framework: str) -> Iterator[Any]:
        with safe_open(file, framework) as opened:
            yield SimpleNamespace(
                keys=opened.keys, get_tensor=lambda name: read.append(name) or opened.get_tensor(name)
            )

    monkeypatch.setattr("sottovoce.tensor_files.safe_open", recording)
    folder = checkpoints["whole omni"]
    encoder_of("whole omni", folder)
    assert read and all(name.startswith("thinker.audio_tower.") and ".proj." not in name for name in read)
    read.clear()
    ADAPTERS.build({"type": "checkpoint_projector", "checkpoint": str(folder)}, 16, 32).load()
    assert sorted(read) == ["thinker.audio_tower.proj.bias", "thinker.audio_tower.proj.weight"]
    read.clear()
    CausalLLM(str(folder), "float32").load()
    assert read and all(name.startswith(("thinker.model.", "thinker.lm_head.")) for name in read)


def test_published_sizes_need_no_network() -> None:
    """Qwen2-Audio has 8.4 billion parameters in all; the LLM in Omni-7B is Qwen2.5-7B, a tower 0.64 billion."""
    for name, encoder_type, tower, projector, llm in (
        ("Qwen/Qwen2-Audio-7B-Instruct", "qwen2_audio", 636_968_960, 1280 * 4096 + 4096, 7_754_878_976),
        ("Qwen/Qwen2.5-Omni-7B", "qwen2_5_omni", 635_048_960, 1280 * 3584 + 3584, 7_615_616_512),
    ):
        with torch.device("meta"):
            encoder = ENCODERS.build({"type": encoder_type, "checkpoint": name})
            encoder.build()
            text = CausalLLM(name)
            text.build()
            adapter = ADAPTERS.build({"type": "checkpoint_projector", "checkpoint": name}, encoder.dim, text.dim)
        assert (encoder.sample_rate, encoder.frame_rate, encoder.dim) == (16_000, 25.0, 1280)
        sizes = [sum(p.numel() for p in part.parameters()) for part in (encoder, adapter, text)]
        assert sizes == [tower, projector, llm]
        with pytest.raises(RuntimeError, match=r"load\(\)"):
            encoder(*Frames.pad(clips(3_000)))


def test_another_model_is_refused(checkpoints: dict[str, Path], tiny_llm: str) -> None:
    with refused("mismatch", "encoder.checkpoint", ConfigError) as caught:
        ENCODERS.build({"type": "qwen2_5_omni", "checkpoint": str(checkpoints["qwen2_audio"])})
    assert "mean 'qwen2_audio'" in str(caught.value)  # the type that fits
    builds: dict[str, Callable[[str], object]] = {
        "encoder": lambda name: ENCODERS.build({"type": "qwen2_audio", "checkpoint": name}),
        "adapter": lambda name: ADAPTERS.build({"type": "checkpoint_projector", "checkpoint": name}, 16, 32),
    }
    for part, build in builds.items():
        with refused("mismatch", f"{part}.checkpoint", ConfigError):
            build(tiny_llm)
        with refused("not-found", f"{part}.checkpoint", MissingError):
            build("./nowhere")


@pytest.mark.parametrize(
    ("missing", "part"),
    [
        ("audio_tower.layers.1.fc1.bias", "encoder"),
        ("multi_modal_projector.linear.bias", "adapter"),
        ("language_model.model.layers.1.mlp.up_proj.weight", "LLM"),
    ],
)
def test_a_weight_that_the_files_lack_is_named(missing: str, part: str, tmp_path: Path) -> None:
    """Where transformers would go on with random numbers."""
    audio_llms.save_qwen2_audio(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[missing]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    name = missing.removeprefix("language_model.").removeprefix("multi_modal_projector.linear.")
    with refused("not-found", f"{part.lower()}.checkpoint", MissingError) as caught:
        ours("qwen2_audio", tmp_path)
    assert name in str(caught.value)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    audio_llms.save_qwen2_audio(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"junk" * 99)
    with refused("not-found", "encoder.checkpoint"):
        ours("qwen2_audio", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with refused("not-found", "encoder.checkpoint") as caught:
        ours("qwen2_audio", tmp_path)
    assert "preprocessor_config" in str(caught.value)


@pytest.mark.parametrize("kind", ["qwen2_audio", "thinker"])
def test_weights_that_were_given_are_not_overwritten(kind: str, checkpoints: dict[str, Path]) -> None:
    """A bundle's weights come before `configure_model`."""
    module = ours(kind, checkpoints[kind])
    weights = {key: value + 1 for key, value in module.adapters.state_dict().items()}
    tower = {key: value + 1 for key, value in module.encoder.state_dict().items()}
    other = SpeechLLM(parse(audio_llms.recipe(kind, checkpoints[kind])))
    other.adapters.load_state_dict(weights)
    other.encoder.load_trained(tower)
    other.configure_model()
    for key, value in {**weights, **tower}.items():
        assert torch.equal({**other.adapters.state_dict(), **other.encoder.state_dict()}[key], value), key
    assert other.encoder.fingerprint() != module.encoder.fingerprint()
