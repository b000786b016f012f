"""Encoders of transformers return the frames that it returns, each clip heard alone; broken ones are named."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.helpers import listening
from tests.helpers.errors import refused
from tests.helpers.listening import clips, close, scramble

from sottovoce.encoders import ENCODERS
from sottovoce.encoders.hf import PUBLISHED, HFEncoder
from sottovoce.errors import MissingError
from sottovoce.frames import Frames


def save_w2v_bert(folder: Path, **changed: Any) -> Any:
    config = transformers.Wav2Vec2BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, conv_depthwise_kernel_size=5,
        left_max_position_embeddings=4, right_max_position_embeddings=2, **changed,
    )  # fmt: skip
    model: Any = transformers.Wav2Vec2BertModel(config)
    extractor: Any = transformers.SeamlessM4TFeatureExtractor(padding_value=1)  # type: ignore[no-untyped-call]
    return _save(model, extractor, folder)


def save_parakeet(folder: Path, ctc: bool = False, **changed: Any) -> Any:
    config = transformers.ParakeetEncoderConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, conv_kernel_size=5,
        subsampling_conv_channels=4, **changed,
    )  # fmt: skip
    model: Any = transformers.ParakeetEncoder(config)
    if ctc:
        model = transformers.ParakeetForCTC(transformers.ParakeetCTCConfig(encoder_config=config, vocab_size=9))
    extractor: Any = transformers.ParakeetFeatureExtractor()  # type: ignore[no-untyped-call]
    return _save(model, extractor, folder)


def save_parakeet_ctc(folder: Path) -> Any:
    model, extractor = save_parakeet(folder, ctc=True)
    return model.encoder, extractor


SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "conv_dim": (8, 8, 8), "conv_kernel": (10, 8, 4), "conv_stride": (5, 8, 8), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
KIN: dict[str, tuple[str, dict[str, Any]]] = {  # the class's name in transformers, and what differs from SMALL
    "wav2vec2": ("Wav2Vec2", {}),  # group norm, as base
    "wav2vec2, layer norm": ("Wav2Vec2", LAYER),  # as large
    "hubert": ("Hubert", {}),
    "hubert, layer norm": ("Hubert", LAYER),
    "hubert, batch norm": ("Hubert", {**LAYER, "conv_pos_batch_norm": True}),
    "wavlm": ("WavLM", {}),
    "wavlm, layer norm": ("WavLM", LAYER),
    "data2vec": ("Data2VecAudio", {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 3}),
    "unispeech": ("UniSpeech", LAYER),
    "unispeech-sat": ("UniSpeechSat", LAYER),
    "wav2vec2-conformer": ("Wav2Vec2Conformer", LAYER),
    "sew": ("SEW", {}),
    "sew-d": ("SEWD", {}),
    "mms": ("Wav2Vec2", {**LAYER, "adapter_attn_dim": 4}),
}


def save_waveform_encoder(kind: str) -> Callable[[Path], Any]:
    name, changed = KIN[kind]

    def save(folder: Path, **more: Any) -> Any:
        config = getattr(transformers, f"{name}Config")(**{**SMALL, **changed, **more})
        extractor: Any = transformers.Wav2Vec2FeatureExtractor(return_attention_mask="layer" in kind)  # type: ignore[no-untyped-call]
        return _save(getattr(transformers, f"{name}Model")(config), extractor, folder)

    return save


def save_hf_whisper(folder: Path) -> Any:
    """With windows of a second."""
    config = transformers.WhisperConfig(
        num_mel_bins=80, max_source_positions=50, d_model=32, encoder_layers=2, encoder_attention_heads=4,
        encoder_ffn_dim=128, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=16, vocab_size=100,
        decoder_start_token_id=0, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    extractor: Any = transformers.WhisperFeatureExtractor(chunk_length=1)  # type: ignore[no-untyped-call]
    model, _ = _save(transformers.WhisperForConditionalGeneration(config), extractor, folder)
    return model.get_encoder(), extractor


def _save(model: Any, extractor: Any, folder: Path) -> Any:
    scramble(model.eval())
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return model, extractor


PUBLIC = pytest.mark.parametrize(
    ("save", "frame_rate"), [(save_w2v_bert, 50.0), (save_parakeet, 12.5), (save_parakeet_ctc, 12.5)]
)
WAVES = pytest.mark.parametrize("kind", [*KIN, "whisper"])
SAVE = pytest.mark.parametrize("save", [save_w2v_bert, save_parakeet])
STILL: dict[Any, dict[str, float]] = {  # without dropout
    save_w2v_bert: {"conformer_conv_dropout": 0.0},
    save_parakeet: {"dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0},
}


def public(folder: Path, kind: str = "hf_conformer") -> HFEncoder:
    encoder = ENCODERS.build({"type": kind, "checkpoint": str(folder)})
    assert isinstance(encoder, HFEncoder)
    encoder.load()
    return encoder


@PUBLIC
def test_frames_are_those_of_transformers(save: Any, frame_rate: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, extractor = save(tmp_path)
    encoder, waveforms = public(tmp_path), clips(3_000, 16_000, 5_555)
    assert (encoder.sample_rate, encoder.frame_rate, encoder.dim) == (16_000, frame_rate, 16)
    for batch in (waveforms, *([waveform] for waveform in waveforms)):
        inputs = extractor([clip.numpy() for clip in batch], sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs)
        mask = getattr(expected, "attention_mask", None)
        counts = (inputs.attention_mask if mask is None else mask).sum(-1)
        out = encoder(*Frames.pad(batch))
        assert out.lengths.equal(counts) and out.x.shape[1] == counts.max()
        for clip, ours, theirs in zip(batch, out.rows(), expected.last_hidden_state, strict=True):
            close(ours, theirs[: len(ours)])
            assert abs(len(ours) - len(clip) / 16_000 * frame_rate) < 2


@SAVE
def test_a_clip_of_a_public_conformer_does_not_depend_on_its_batch(save: Any, tmp_path: Path) -> None:
    save(tmp_path, **STILL[save])
    encoder, waveforms = public(tmp_path), clips(3_000, 16_000, 800, 5_555)
    for mode in (False, True):  # but for dropout, in training too: batch norms keep their statistics
        listening.check_clips_do_not_depend_on_their_batch(encoder.train(mode), waveforms)
    listening.check_refuses_bad_batches(encoder)


@WAVES
def test_an_encoder_that_reads_waveforms_hears_each_clip_as_if_alone(kind: str, tmp_path: Path) -> None:
    """By the model of transformers on one clip, which has no padding; every number of samples gives what is told."""
    torch.manual_seed(0)
    whisper = kind == "whisper"
    model, extractor = (save_hf_whisper if whisper else save_waveform_encoder(kind))(tmp_path)
    encoder = public(tmp_path, "hf")
    together = listening.check_clips_do_not_depend_on_their_batch(
        encoder, waveforms := clips(3_000, 16_000, 800, 5_555)
    )
    listening.check_refuses_bad_batches(encoder)
    for clip, ours in zip(waveforms, together.rows(), strict=True):
        inputs = extractor(clip.numpy(), sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            theirs = model(inputs["input_features" if whisper else "input_values"]).last_hidden_state[0]
        assert whisper or len(ours) == len(theirs)
        close(ours, theirs[: len(ours)])
    for samples in (encoder.shortest, encoder.shortest + 1, 1599, 1600, 1601, 33_333):
        out = encoder(*Frames.pad(clips(samples)))
        assert out.lengths.item() == out.x.shape[1] == encoder.output_length(samples)
    assert encoder.frame_rate == 50.0 and encoder.train()(*Frames.pad(waveforms)).x.requires_grad


def test_whisper_in_the_format_of_transformers_is_the_same_by_either_type(tmp_path: Path) -> None:
    save_hf_whisper(tmp_path)
    batch = Frames.pad(clips(5_555, 16_000, 20_000))  # the last one takes two windows
    whisper = ENCODERS.build({"type": "whisper", "checkpoint": str(tmp_path), "dtype": "float32"})
    whisper.load()
    close(whisper(*batch).x, public(tmp_path, "hf")(*batch).x)
    save_waveform_encoder("wavlm")(tmp_path / "wavlm")
    with refused("mismatch", "encoder.checkpoint"):
        ENCODERS.build({"type": "whisper", "checkpoint": str(tmp_path / "wavlm")})
    named = ENCODERS.build({"type": "whisper", "checkpoint": "openai/whisper-large-v3"})
    assert (named.dim, named.depth) == (1280, 32)


def test_a_checkpoint_of_tensors_in_pickle_is_read(tmp_path: Path) -> None:
    """As most of WavLM's and HuBERT's are published, with the old names of normalised weights."""
    save_waveform_encoder("wavlm")(tmp_path)
    batch = Frames.pad(clips(5_555))
    expected = public(tmp_path, "hf")(*batch).x
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        name = next(name for name in weights if name.endswith(new))
        weights[name.replace(f"parametrizations.weight.{new}", old)] = weights.pop(name)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    torch.testing.assert_close(public(tmp_path, "hf")(*batch).x, expected, atol=0, rtol=0)


@SAVE
def test_every_weight_of_a_public_conformer_learns(save: Any, tmp_path: Path) -> None:
    save(tmp_path)
    encoder = public(tmp_path)
    assert not encoder.training
    encoder.train()(*Frames.pad(clips(3_000, 9_000))).x.square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []
    encoder.requires_grad_(False)
    assert not encoder(*Frames.pad(clips(3_000))).x.requires_grad


@SAVE
def test_a_public_conformer_is_known_by_its_fingerprint(save: Any, tmp_path: Path) -> None:
    save(tmp_path / "a")
    encoder, batch = public(tmp_path / "a"), Frames.pad(clips(3_000))
    (tmp_path / "a").rename(tmp_path / "b")
    again = public(tmp_path / "b")
    assert again.fingerprint() == encoder.fingerprint()
    taken = HFEncoder(checkpoint=str(tmp_path / "b"))
    with torch.device("meta"):
        taken.build()
    taken.load_trained(copy.deepcopy(encoder.state_dict()))
    assert taken.fingerprint() == encoder.fingerprint() and torch.equal(taken(*batch).x, encoder(*batch).x)
    with torch.no_grad():
        next(again.parameters()).view(-1)[0] += 1e-3
    assert again.fingerprint() != encoder.fingerprint()
    file = tmp_path / "b" / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "padding_value": 0.5}))
    assert public(tmp_path / "b").fingerprint() != encoder.fingerprint()


def test_published_names_need_no_network() -> None:
    for name, samples, frame_rate, millions in (
        ("microsoft/wavlm-base-plus", 16_000, 50.0, 94.4),
        ("microsoft/wavlm-large", 16_000, 50.0, 315.5),
        ("facebook/hubert-large-ll60k", 16_000, 50.0, 315.4),
        ("facebook/wav2vec2-base", 16_000, 50.0, 94.4),
        ("openai/whisper-large-v3", 16_000, 50.0, 637.0),
        ("facebook/w2v-bert-2.0", 16_000, 50.0, 580.5),
        ("nvidia/parakeet-ctc-1.1b", 16_000, 12.5, 1_061.5),  # 4.25 GB in float32, its head of 1 M included
    ):
        encoder = ENCODERS.build({"type": "hf_conformer", "checkpoint": name})
        with torch.device("meta"):
            encoder.build()
        assert (encoder.sample_rate, encoder.frame_rate) == (samples, frame_rate)
        assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
        listening.check_needs_weights(lambda: encoder(*Frames.pad(clips(3_000))))  # noqa: B023
    assert {"openai/whisper-tiny", "facebook/wav2vec2-large-lv60"} < PUBLISHED.keys()


def test_a_checkpoint_that_cannot_be_had_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("sottovoce.hub.snapshot_download", no_network)
    for checkpoint, parts in (
        (str(tmp_path / "absent"), ["there is no folder"]),
        ("facebook/w2v-bert-2.0", ["no route to host", "Hugging Face cache", "https://", "quickstart.yaml"]),
        ("facebook/w2v-bert-2", ["Did you mean 'facebook/w2v-bert-2.0'", "encoder.checkpoint=/path/to/folder"]),
    ):
        with refused("not-found", "encoder.checkpoint", MissingError) as caught:
            HFEncoder(checkpoint=checkpoint).load()
        assert all(part in str(caught.value) for part in [checkpoint, *parts])


def test_a_hub_checkpoint_is_read_from_where_it_was_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the cache, then the hub; and a published name whose files are of another size is refused."""
    asked: list[bool] = []

    def download(name: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append(local_files_only)
        if local_files_only:
            raise OSError("not in the cache")
        return str(tmp_path)

    save_parakeet(tmp_path)
    monkeypatch.setattr("sottovoce.hub.snapshot_download", download)
    encoder = HFEncoder(checkpoint="some/parakeet")
    encoder.load()
    assert encoder.dim == 16 and asked == [True, False] * 2
    with refused("mismatch", "encoder.checkpoint"):
        HFEncoder(checkpoint="nvidia/parakeet-ctc-1.1b").load()


@SAVE
def test_broken_public_checkpoints_are_named(save: Any, tmp_path: Path) -> None:
    save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "layers.0" in name)

    def refused_for(message: str) -> None:
        with refused("not-found", "encoder.checkpoint", MissingError) as caught:
            public(tmp_path)
        assert message in str(caught.value)

    rest = {key: value for key, value in weights.items() if key != name}
    save_file(rest, tmp_path / "model.safetensors", {"format": "pt"})
    refused_for(f"lacks {name}")
    (tmp_path / "model.safetensors").write_bytes(b"junk" * 99)
    refused_for("cannot be loaded")
    (tmp_path / "model.safetensors").unlink()
    refused_for("safetensors")
    torch.save({**weights, "code": exec}, tmp_path / "pytorch_model.bin")  # pickle is read as tensors alone
    refused_for("cannot be loaded")
    (tmp_path / "preprocessor_config.json").unlink()
    refused_for("preprocessor_config")


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: save_w2v_bert(folder, feature_projection_input_dim=80),  # the extractor makes 160
        lambda folder: save_parakeet(folder, num_mel_bins=128),  # the extractor makes 80
        lambda folder: transformers.BertConfig().save_pretrained(folder),
        lambda folder: (folder / "config.json").write_text('{"model_type": "nobody-knows"}'),
    ],
)
def test_configurations_that_do_not_fit_are_refused(write: Any, tmp_path: Path) -> None:
    write(tmp_path)
    with refused("mismatch", "encoder.checkpoint"):
        HFEncoder(checkpoint=str(tmp_path))


def test_what_only_training_has_and_what_comes_behind_the_conformer_is_off(tmp_path: Path) -> None:
    extras = {"add_adapter": True, "layerdrop": 1.0, "mask_time_prob": 1.0, "mask_time_length": 2}
    save_w2v_bert(tmp_path, **extras, **STILL[save_w2v_bert])
    encoder, batch = public(tmp_path), Frames.pad(clips(5_000))
    assert not [name for name in encoder.state_dict() if "adapter" in name or "masked" in name]
    trained = encoder.train()(*batch).x
    close(encoder.eval()(*batch).x, trained)


@SAVE
def test_clips_that_are_too_short_are_named(save: Any, tmp_path: Path) -> None:
    save(tmp_path)
    encoder = public(tmp_path)
    shortest = encoder.shortest
    out = encoder(*Frames.pad(clips(shortest, 800)))  # 0.05 s is long enough
    assert out.x.isfinite().all() and out.lengths.min() == 1
    with refused("bad-value", "row 1"):
        encoder(*Frames.pad(clips(800, shortest - 1)))
