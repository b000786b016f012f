"""Public Conformers return the frames that transformers returns, each clip heard alone; broken ones are named."""

import copy
import json
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
from sottovoce.encoders.hf_conformer import PUBLISHED, HFConformerEncoder
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


def _save(model: Any, extractor: Any, folder: Path) -> Any:
    scramble(model.eval())
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return model, extractor


PUBLIC = pytest.mark.parametrize(
    ("save", "frame_rate"), [(save_w2v_bert, 50.0), (save_parakeet, 12.5), (save_parakeet_ctc, 12.5)]
)
SAVE = pytest.mark.parametrize("save", [save_w2v_bert, save_parakeet])
STILL: dict[Any, dict[str, float]] = {  # without dropout
    save_w2v_bert: {"conformer_conv_dropout": 0.0},
    save_parakeet: {"dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0},
}


def public(folder: Path) -> HFConformerEncoder:
    encoder = HFConformerEncoder(checkpoint=str(folder))
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
    taken = HFConformerEncoder(checkpoint=str(tmp_path / "b"))
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
        ("facebook/w2v-bert-2.0", 16_000, 50.0, 580.5),
        ("nvidia/parakeet-ctc-1.1b", 16_000, 12.5, 1_061.5),  # 4.25 GB in float32, its head of 1 M included
    ):
        encoder = ENCODERS.build({"type": "hf_conformer", "checkpoint": name})
        with torch.device("meta"):
            encoder.build()
        assert (encoder.sample_rate, encoder.frame_rate, encoder.dim) == (samples, frame_rate, 1024)
        assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
        listening.check_needs_weights(lambda: encoder(*Frames.pad(clips(3_000))))  # noqa: B023
    assert len(PUBLISHED) == 2


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
            HFConformerEncoder(checkpoint=checkpoint).load()
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
    encoder = HFConformerEncoder(checkpoint="some/parakeet")
    encoder.load()
    assert encoder.dim == 16 and asked == [True, False] * 2
    with refused("mismatch", "encoder.checkpoint"):
        HFConformerEncoder(checkpoint="nvidia/parakeet-ctc-1.1b").load()


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
    torch.save(weights, tmp_path / "pytorch_model.bin")  # pickle is never read
    refused_for("safetensors")
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
        HFConformerEncoder(checkpoint=str(tmp_path))


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
