"""The Conformer is the paper's, hears how loud a clip is, and hears every clip alone."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from safetensors.torch import save
from tests.helpers import listening
from tests.helpers.errors import refused
from tests.helpers.listening import clips, close, scramble
from torch import Tensor, nn

from sottovoce.encoders import ENCODERS
from sottovoce.encoders.conformer import FILE, ConformerEncoder, RotaryAttention, rotary
from sottovoce.encoders.log_mel import SILENCE, log_mel, stack
from sottovoce.frames import Frames

TINY: dict[str, Any] = {"layers": 2, "width": 16, "feedforward": 24, "heads": 2, "kernel": 5}


def tiny(**knobs: Any) -> ConformerEncoder:
    torch.manual_seed(0)
    encoder = ConformerEncoder(**{**TINY, **knobs})
    encoder.load()
    scramble(encoder)
    return encoder


# ---------------------------------------------------------------------------------------------------------- log-mel


def test_log_mels_are_those_of_librosa() -> None:
    (clip,) = clips(16_000)
    mel = log_mel(clip[None], torch.tensor([16_000]))
    # librosa lays its window of 400 in the middle of 512 samples: 56 before, 120 for the centre of the first 10 ms
    padded = np.pad(clip.numpy(), (176, 512))
    power = librosa.feature.melspectrogram(
        y=padded, sr=16_000, n_fft=512, win_length=400, hop_length=160, n_mels=80, center=False
    )
    expected = (np.log10(np.maximum(power, 1e-10)) + 4) / 2
    assert mel.x.shape == (1, 100, 80) and mel.x.dtype == torch.float32 and mel.lengths.tolist() == [100]
    torch.testing.assert_close(mel.x[0], torch.from_numpy(expected.T[:100]), atol=2e-5, rtol=1e-5)


def test_a_pulse_is_seen_in_the_middle_of_its_ten_milliseconds() -> None:
    clip = torch.zeros(1, 1600)
    clip[0, 5 * 160 + 80] = 1.0
    loudest = log_mel(clip, torch.tensor([1600])).x[0].mean(-1)
    assert loudest.argmax() == 5
    close(loudest[4], loudest[6])


def test_loudness_stays_visible() -> None:
    (clip,) = clips(8_000)
    mels = [log_mel(gain * clip[None], torch.tensor([8_000])) for gain in (0.1, 1.0)]
    quiet, loud = (mel.x for mel in mels)
    torch.testing.assert_close(loud - quiet, torch.ones_like(loud), atol=1e-4, rtol=0)  # 20 dB are 1
    silent = log_mel(torch.zeros(1, 8_000), torch.tensor([8_000])).x
    close(silent, torch.full_like(silent, SILENCE))
    encoder = tiny()
    assert encoder.network is not None
    before, after = (encoder.layer_outputs(stack(mel)) for mel in mels)
    gained = encoder.network.project.weight.sum(-1)  # nothing between log-mel and projection normalises
    torch.testing.assert_close(after[0].x - before[0].x, gained.expand(1, 12, 16), atol=1e-3, rtol=1e-3)
    assert (after[-1].x - before[-1].x).abs().amax() > 1e-2


@pytest.mark.parametrize(
    ("samples", "frames", "stacked"),
    [(1, 1, 1), (160, 1, 1), (161, 2, 1), (800, 5, 1), (1_280, 8, 2), (16_000, 100, 25)],
)
def test_lengths(samples: int, frames: int, stacked: int) -> None:
    mel = log_mel(*Frames.pad(clips(samples)))
    assert mel.x.shape == (1, frames, 80)
    assert stack(mel).x.shape == (1, stacked, 320) and stack(mel).lengths.tolist() == [stacked]
    assert tiny()(*Frames.pad(clips(samples))).x.shape == (1, stacked, 16)


def test_stacking_lays_four_frames_side_by_side_and_fills_up_with_silence() -> None:
    mel = Frames.pad([torch.randn(11, 80), torch.randn(3, 80)])
    stacked = stack(mel)
    close(stacked.x[0, 1], mel.x[0, 4:8].reshape(-1))
    assert stacked.lengths.tolist() == [2, 1] and not stacked.x[1, 1:].any()
    close(stacked.x[1, 0], torch.cat([mel.x[1, :3].reshape(-1), torch.full((80,), SILENCE)]))
    close(stack(Frames.pad([mel.x[1, :3]])).x[0], stacked.x[1, :1])


def test_padding_wider_than_the_longest_clip_changes_nothing() -> None:
    encoder, (x, lengths) = tiny(), Frames.pad(clips(3_000, 9_000))
    assert torch.equal(log_mel(x, lengths).x[0, 19:], torch.zeros(38, 80))
    wider = nn.functional.pad(x, (0, 5_000), value=1.0)
    torch.testing.assert_close(encoder(wider, lengths).x, encoder(x, lengths).x, atol=0, rtol=0)


@pytest.mark.parametrize("encode", [log_mel, lambda *batch: tiny()(*batch)], ids=["log_mel", "encoder"])
def test_bad_batches_name_the_row(encode: Any) -> None:
    listening.check_refuses_bad_batches(encode)


# -------------------------------------------------------------------------------------------------------- the paper's


def test_the_defaults_are_the_papers_billion() -> None:
    encoder = ENCODERS.build({"type": "conformer"})
    with torch.device("meta"):
        encoder.build()
    assert (encoder.sample_rate, encoder.frame_rate, encoder.dim) == (16_000, 25.0, 1536)
    assert 0.995e9 < sum(p.numel() for p in encoder.parameters()) < 1.010e9


def test_a_clip_does_not_depend_on_its_batch() -> None:
    encoder, waveforms = tiny(), clips(3_000, 16_000, 50, 20_001, 640, 9_999)
    together = listening.check_clips_do_not_depend_on_their_batch(encoder, waveforms)
    states = encoder.hidden_states(*Frames.pad(waveforms))
    assert len(states) == 3 and all(state.lengths.equal(together.lengths) for state in states)
    close(states[-1].x, together.x)
    for i, waveform in enumerate(waveforms):
        stacked = stack(log_mel(*Frames.pad([waveform])))
        for state, alone in zip(states, encoder.layer_outputs(stacked), strict=True):
            close(state.rows()[i], alone.x[0])
        close(together.rows()[i], encoder.contextualize(stacked).x[0])
    assert not any(state.x[~state.mask()].any() for state in states)


def attention(frames: Tensor, places: Tensor, module: RotaryAttention) -> np.ndarray[Any, Any]:
    """Su et al. (2021), equations 14 to 16, complex: the pair (j, j + half) turns by place * base^(-j/half)."""
    query, key, value = (
        np.stack(np.split(layer(frames).detach().double().numpy(), module.num_heads, -1))
        for layer in (module.linear_q, module.linear_k, module.linear_v)
    )
    half = query.shape[-1] // 2
    turn = np.exp(1j * places.numpy()[:, None] * 10_000.0 ** (-np.arange(half) / half))
    query, key = ((x[..., :half] + 1j * x[..., half:]) * turn for x in (query, key))
    scores = np.exp((query @ key.conj().swapaxes(1, 2)).real / np.sqrt(2 * half))
    mixed = (scores / scores.sum(-1, keepdims=True)) @ value
    weight, bias = (p.detach().double().numpy() for p in (module.linear_out.weight, module.linear_out.bias))
    return np.asarray(np.concatenate(list(mixed), -1) @ weight.T + bias)


def first_attention(encoder: ConformerEncoder) -> RotaryAttention:
    assert encoder.network is not None
    return next(module for module in encoder.network.modules() if isinstance(module, RotaryAttention))


@pytest.mark.parametrize("shift", [0, 1000])
def test_attention_is_rotary_and_sees_distances_alone(shift: int) -> None:
    module, frames = first_attention(tiny()), torch.randn(13, 16)
    mask = torch.ones(1, 1, 1, 13, dtype=torch.bool)
    out, _ = module(frames[None], mask, rotary(13, 8, frames.device))
    expected = attention(frames, torch.arange(13) + shift, module)  # the same from whatever place one counts
    close(out[0], torch.from_numpy(expected).float())
    assert not torch.allclose(out[0], torch.from_numpy(attention(frames, torch.zeros(13), module)).float(), atol=1e-3)


def test_the_convolution_is_gulatis() -> None:
    """Pointwise, GLU, depthwise over frames on both sides, norm, swish, pointwise; in torch's own functions."""
    encoder = tiny()
    assert encoder.network is not None
    module: Any = encoder.network.layers[0].conv_module
    x = torch.randn(1, 9, 16)
    inside = nn.functional.glu(nn.functional.conv1d(module.layer_norm(x).mT, module.pointwise_conv1.weight), 1)
    inside = nn.functional.conv1d(inside, module.depthwise_conv.weight, padding=2, groups=16)
    inside = nn.functional.silu(module.depthwise_layer_norm(inside.mT)).mT
    expected = nn.functional.conv1d(inside, module.pointwise_conv2.weight).mT
    close(module(x, torch.ones(1, 9, dtype=torch.bool)), expected)


def test_every_weight_learns_unless_it_is_frozen() -> None:
    encoder, batch = tiny(), Frames.pad(clips(3_000, 9_000))
    encoder(*batch).x.square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []
    encoder.requires_grad_(False)
    assert not encoder(*batch).x.requires_grad


def test_dropout_is_for_training_alone() -> None:
    encoder, batch = tiny(dropout=0.5), Frames.pad(clips(9_000))
    assert not encoder.training and torch.equal(encoder(*batch).x, encoder(*batch).x)
    encoder.train()
    assert not torch.equal(encoder(*batch).x, encoder(*batch).x)
    still = tiny(dropout=0.0)
    before = still(*batch).x
    close(still.train()(*batch).x, before)


def test_autocast_reaches_training_alone() -> None:
    encoder, batch = tiny(dropout=0.0), Frames.pad(clips(5_000))
    exact = encoder(*batch).x
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(*batch).x, exact)
        mixed = encoder.train()(*batch).x
    assert mixed.dtype == torch.float32 and not torch.equal(mixed, exact)
    torch.testing.assert_close(mixed, exact, atol=0.3, rtol=0.1)


# -------------------------------------------------------------------------------------------------------- checkpoints


def test_what_was_saved_is_loaded_bit_by_bit(tmp_path: Path) -> None:
    encoder, batch = tiny(), Frames.pad(clips(5_000, 700))
    encoder.save(tmp_path / "new" / "folder")
    again = ConformerEncoder(checkpoint=str(tmp_path / "new" / "folder"), **TINY, dropout=0.3)
    with torch.device("meta"):
        again.build()
    again.load()
    assert again.fingerprint() == encoder.fingerprint() and not again.training
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(again(*batch).x, encoder(*batch).x)
    assert [file.name for file in (tmp_path / "new" / "folder").iterdir()] == [FILE]
    (tmp_path / "new" / "folder" / FILE).write_bytes(b"")  # what is loaded does not change with its file
    assert again.fingerprint() == encoder.fingerprint()


def test_what_is_saved_is_on_the_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def record(handle: int) -> None:
        synced.append(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    tiny().save(tmp_path)
    assert (tmp_path / FILE).stat().st_ino in synced and tmp_path.stat().st_ino in synced


def test_weights_may_be_given_instead() -> None:
    encoder, batch = tiny(), Frames.pad(clips(5_000))
    taken = ConformerEncoder(**TINY)
    taken.load_trained(copy.deepcopy(encoder.state_dict()))
    assert taken.fingerprint() == encoder.fingerprint() and torch.equal(taken(*batch).x, encoder(*batch).x)


def test_fingerprint_knows_every_weight_and_number() -> None:
    encoder = tiny()
    before = encoder.fingerprint()
    assert before == tiny(dropout=0.7).fingerprint() != tiny(heads=4).fingerprint()
    for parameter in encoder.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        assert encoder.fingerprint() != before
        before = encoder.fingerprint()


def test_random_weights_come_from_torchs_generator_even_after_a_build_on_meta() -> None:
    prints = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        encoder = ConformerEncoder(**TINY)
        with torch.device("meta"):
            encoder.build()
        encoder.load()
        prints.append(encoder.fingerprint())
        encoder.load()  # idempotent
        assert encoder.fingerprint() == prints[-1]
    assert prints[0] == prints[1] != prints[2]


def test_nothing_runs_without_weights() -> None:
    encoder = ConformerEncoder(**TINY)
    forward = lambda: encoder(*Frames.pad(clips(800)))  # noqa: E731
    listening.check_needs_weights(encoder.fingerprint, forward, lambda: encoder.save(Path("nowhere")))


def test_knobs_that_disagree_with_a_checkpoint_are_named_with_its_own(tmp_path: Path) -> None:
    tiny().save(tmp_path)
    with refused("mismatch", "encoder.layers") as caught:
        ConformerEncoder(checkpoint=str(tmp_path), **{**TINY, "layers": 24, "width": 32})
    assert "encoder.width=32" in str(caught.value) and "encoder.layers=2 encoder.width=16" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("layers", 0), ("heads", 3), ("heads", 16), ("kernel", 6), ("dropout", 1.0)]
)
def test_numbers_out_of_range_are_refused(name: str, value: float) -> None:
    with refused("bad-value", f"encoder.{name}"):
        ENCODERS.build({"type": "conformer", **TINY, name: value})


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "not-found"),
        (b"", "damaged"),
        (b"junk" * 100, "damaged"),
        (save({"x": torch.zeros(2)}), "damaged"),
        (save({"x": torch.zeros(2)}, {"conformer": json.dumps(TINY)}), "mismatch"),
    ],
)
def test_a_bad_checkpoint_is_named(content: bytes | None, code: Any, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    with refused(code, FILE):
        ConformerEncoder(checkpoint=str(tmp_path), **TINY).load()
