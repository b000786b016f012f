"""Laws of every registered adapter, third-party ones included; the two of the dual adapter against their formulas."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.helpers.errors import refused
from torch import Tensor

from sottovoce.adapters import ADAPTERS, Adapter
from sottovoce.adapters.frame_stacking_mlp import FrameStackingMLP
from sottovoce.adapters.pooled_soft_prompt import PooledSoftPrompt, masked_adaptive_mean
from sottovoce.frames import Frames

D_AUDIO, D_LLM = 16, 24
LENGTHS = (23, 61, 10, 5)
FITTED = {"kimi_audio_projector"}  # to the sizes of one model: tests/llms/test_kimi_audio.py
EVERY = pytest.mark.parametrize("name", sorted({*ADAPTERS.names()} - FITTED))
SMALL: dict[str, dict[str, Any]] = {
    "emotion_aligned": {"width": 32, "feedforward": 48, "heads": 2},  # a hundred million parameters otherwise
    "qformer": {"width": 24, "feedforward": 48, "heads": 2},
    "windowed_qformer": {"tokens": 2, "width": 24, "feedforward": 48, "heads": 2},  # one has nobody to attend to
    "checkpoint_projector": {"checkpoint": "Qwen/Qwen2.5-Omni-7B"},  # whose weights are not fetched here
}


def build(name: str, seed: int = 0, **knobs: Any) -> Adapter:
    torch.manual_seed(seed)
    return ADAPTERS.build({"type": name, **SMALL.get(name, {}), **knobs}, D_AUDIO, D_LLM).eval()


@pytest.mark.parametrize("node", [{"type": name, "width": 30, "heads": 4} for name in ("qformer", "windowed_qformer")])
def test_heads_that_do_not_divide_the_width_are_refused(node: dict[str, Any]) -> None:
    with refused("bad-value", "adapter.heads"):
        ADAPTERS.build(node, D_AUDIO, D_LLM)


def test_a_convolution_that_skips_frames_is_refused() -> None:
    with refused("bad-value", "adapter.kernel"):
        build("conv1d", stride=3, kernel=2)


@torch.no_grad()
def test_a_window_of_the_windowed_qformer_hears_itself_alone() -> None:
    """And the whole clip as one window is what the Q-Former without windows makes of it."""
    (clip,) = rows(40)
    adapter = build("windowed_qformer", window=10, tokens=2)
    out = adapter(Frames.pad([clip])).x
    changed = clip.clone()
    changed[10:20] = -changed[10:20]
    differs = (adapter(Frames.pad([changed])).x != out).any(-1)[0]
    assert differs.tolist() == [False, False, True, True, False, False, False, False]
    whole, plain = build("windowed_qformer", window=40, tokens=3), build("qformer", tokens=3)
    plain.load_state_dict(whole.state_dict())
    torch.testing.assert_close(plain(Frames.pad([clip])).x, whole(Frames.pad([clip])).x)


@torch.no_grad()
def test_a_convolution_as_wide_as_its_stride_is_a_map_of_stacked_frames() -> None:
    (clip,) = rows(20)
    adapter = build("conv1d", stride=4)
    kernel = adapter.convolve.weight.transpose(1, 2).flatten(1)
    stacked = clip.reshape(5, 4 * D_AUDIO) @ kernel.T + adapter.convolve.bias
    torch.testing.assert_close(adapter(Frames.pad([clip])).x[0], adapter.mlp(stacked))


def rows(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, D_AUDIO, generator=generator) for length in lengths]


@pytest.fixture(params=["fast path", "slow path"])
def path_of_attention(request: pytest.FixtureRequest) -> Iterator[str]:
    """PyTorch has a second implementation of its Transformer layer, for eval without gradients."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(request.param == "fast path")
    yield request.param
    torch.backends.mha.set_fastpath_enabled(before)


@EVERY
@torch.no_grad()
def test_padding_never_changes_a_real_row(name: str, path_of_attention: str) -> None:
    adapter, clips = build(name), rows(*LENGTHS)
    x, lengths = Frames.pad(clips)
    for row, length in enumerate(LENGTHS):
        x[row, length:] = 100.0  # what lies behind a clip is nobody's business
    batch = adapter(Frames(F.pad(x, (0, 0, 0, 9)), lengths))  # a batch may be wider than its longest row
    for clip, together in zip(clips, batch.rows(), strict=True):
        alone = adapter(Frames.pad([clip]))
        torch.testing.assert_close(together, alone.rows()[0], atol=1e-5, rtol=1e-5)


@EVERY
@torch.no_grad()
def test_shapes_and_lengths_match(name: str, path_of_attention: str) -> None:
    out = build(name)(Frames.pad(rows(*LENGTHS)))
    assert out.x.shape == (len(LENGTHS), int(out.lengths.max()), D_LLM)
    assert out.lengths.dtype == torch.long and out.lengths.min() >= 1
    assert out.x.dtype == torch.float32 and out.x.isfinite().all()


@EVERY
def test_gradients_reach_every_parameter_and_the_frames(name: str) -> None:
    adapter, (x, lengths) = build(name).train(), Frames.pad(rows(*LENGTHS))
    x.requires_grad_()
    out = adapter(Frames(x, lengths))
    weight = torch.randn(out.x.shape, generator=torch.Generator().manual_seed(2))
    (out.x * weight * out.mask()[..., None]).sum().backward()
    for parameter, value in adapter.named_parameters():
        assert value.requires_grad and value.grad is not None and value.grad.abs().sum() > 0, parameter
    assert x.grad is not None
    for row, length in enumerate(LENGTHS):
        assert x.grad[row, :length].abs().sum() > 0 and x.grad[row, length:].abs().sum() == 0, row


@EVERY
def test_eval_is_deterministic_and_agrees_with_and_without_gradients(name: str) -> None:
    adapter, frames = build(name), Frames.pad(rows(*LENGTHS))
    with torch.no_grad():
        first, second = adapter(frames), adapter(frames)
    assert torch.equal(first.x, second.x) and torch.equal(first.lengths, second.lengths)
    torch.testing.assert_close(adapter(frames).x, first.x, atol=1e-5, rtol=1e-5)


@EVERY
def test_an_adapter_survives_its_state_dict(name: str) -> None:
    adapter, frames = build(name), Frames.pad(rows(*LENGTHS))
    other = build(name, seed=9)
    other.load_state_dict(adapter.state_dict())
    assert torch.equal(other(frames).x, adapter(frames).x)


def test_frame_stacking_is_the_published_formula() -> None:
    """E = Linear(ReLU(Linear(H))), H the concatenation of 5 adjacent frames (Wang et al., equation 5)."""
    adapter = FrameStackingMLP(D_AUDIO, D_LLM, hidden=32)
    w1, b1, w2, b2 = adapter.parameters()
    (clip,) = rows(20)
    stacked = [torch.cat([clip[start + i] for i in range(5)]) for start in range(0, 20, 5)]
    expected = torch.stack([w2 @ (w1 @ frames + b1).clamp(min=0) + b2 for frames in stacked])
    torch.testing.assert_close(adapter(Frames.pad([clip])).x[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("frames", "embeddings"), [(10, 2), (11, 2), (14, 2), (15, 3), (4, 0)])
def test_tail_frames_are_dropped(frames: int, embeddings: int) -> None:
    adapter, (clip,) = FrameStackingMLP(D_AUDIO, D_LLM), rows(frames)
    out = adapter(Frames.pad([clip]))
    assert out.x.shape == (1, embeddings, D_LLM) and out.lengths.tolist() == [embeddings]
    assert torch.equal(out.x, adapter(Frames.pad([clip[: embeddings * 5]])).x)


@pytest.mark.parametrize(("d_llm", "count"), [(3584, 20_452_864), (4096, 21_501_952)])
def test_published_sizes(d_llm: int, count: int) -> None:
    """Whisper-large-v3 to Qwen2.5-7B and to Llama-3.1-8B."""
    with torch.device("meta"):
        linguistic = ADAPTERS.build({"type": "frame_stacking_mlp"}, 1280, d_llm)
        paralinguistic = ADAPTERS.build({"type": "pooled_soft_prompt"}, 1280, d_llm)
    assert sum(p.numel() for p in linguistic.parameters()) == count
    attention, feedforward = 4 * 1280 * 1280 + 4 * 1280, 2 * 1280 * 2048 + 2048 + 1280
    layer = attention + feedforward + 4 * 1280
    assert sum(p.numel() for p in paralinguistic.parameters()) == layer + 1280 * d_llm + d_llm


def test_pooling_is_torchs_adaptive_pooling_of_each_row() -> None:
    clips = rows(*LENGTHS, 1, 2, 3, 100)
    pooled = masked_adaptive_mean(Frames.pad(clips), bins=10)
    for clip, row in zip(clips, pooled, strict=True):
        expected = torch.nn.AdaptiveAvgPool1d(10)(clip.T[None])[0].T
        torch.testing.assert_close(row, expected, atol=1e-6, rtol=1e-6)


def test_a_row_shorter_than_the_tokens_repeats_frames() -> None:
    (clip,) = rows(5)
    assert torch.equal(masked_adaptive_mean(Frames.pad([clip]), 10)[0], clip.repeat_interleave(2, dim=0))
    (single,) = rows(1)
    assert torch.equal(masked_adaptive_mean(Frames.pad([single]), 3)[0], single.expand(3, -1))


def test_pooled_soft_prompt_is_the_published_formula() -> None:
    """E = Linear(Pool(Transformer(frames))), the layer written out, norms first (Wang et al., equation 4)."""
    torch.manual_seed(0)
    adapter, (clip,) = PooledSoftPrompt(D_AUDIO, D_LLM, tokens=4, heads=2).eval(), rows(13)
    for value in adapter.parameters():
        torch.nn.init.normal_(value, 0.1, 0.2)
    layer: Any = adapter.transformer[0]
    normed = layer.norm1(clip)
    query, key, value = (normed @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias).chunk(3, dim=-1)
    heads = []
    for at in (slice(0, 8), slice(8, 16)):
        heads.append((query[:, at] @ key[:, at].T / 8**0.5).softmax(-1) @ value[:, at])
    x = clip + layer.self_attn.out_proj(torch.cat(heads, dim=-1))
    x = x + layer.linear2(layer.linear1(layer.norm2(x)).relu())
    edges = [(0, 4), (3, 7), (6, 10), (9, 13)]  # floor(13 i / 4) to ceil(13 (i + 1) / 4)
    expected = adapter.project(torch.stack([x[start:stop].mean(0) for start, stop in edges]))
    torch.testing.assert_close(adapter(Frames.pad([clip])).x[0], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pytorchs_fast_path_gives_the_same_result_at_full_length() -> None:
    adapter: Any = build("pooled_soft_prompt")
    x, lengths = Frames.pad(rows(*LENGTHS))
    wide = Frames(F.pad(x, (0, 0, 0, 20)), lengths)  # no row fills the batch
    hidden: list[Tensor] = []
    adapter.transformer[0].register_forward_hook(lambda *seen: hidden.append(seen[2]))
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        slow = adapter(wide)
        torch.backends.mha.set_fastpath_enabled(True)
        fast = adapter(wide)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert [layer.shape for layer in hidden] == [wide.x.shape, wide.x.shape]
    torch.testing.assert_close(fast.x, slow.x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["pooled_soft_prompt", "emotion_aligned"])
def test_dropout_is_there_in_training_only(name: str) -> None:
    adapter, still, frames = build(name), build(name, dropout=0.0).train(), Frames.pad(rows(30))
    assert not torch.equal(adapter.train()(frames).x, adapter(frames).x)
    assert torch.equal(adapter.eval()(frames).x, adapter(frames).x)
    assert torch.equal(still(frames).x, still(frames).x)


BAD_KNOBS: dict[str, list[dict[str, Any]]] = {
    "frame_stacking_mlp": [{"stack": "five"}, {"stack": 0}, {"hidden": 0}],
    "pooled_soft_prompt": [
        {"layers": -1}, {"layers": 1001}, {"tokens": 0}, {"tokens": 10_001}, {"dropout": 1.5}, {"heads": 0},
        {"heads": 3},  # does not divide 16
    ],
    "emotion_aligned": [
        {"width": 0}, {"feedforward": 0}, {"stride": -1}, {"heads": 3}, {"kernel": 4},
        {"heads": 32}, {"kernel": 1, "stride": 2},  # an odd share of the width; frames would be skipped
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "knobs"), [(name, knobs) for name, rows in BAD_KNOBS.items() for knobs in rows])
def test_a_bad_knob_is_named(name: str, knobs: dict[str, Any]) -> None:
    with refused("bad-value", f"adapter.{next(iter(knobs))}"):
        ADAPTERS.build({"type": name, **SMALL.get(name, {}), **knobs}, D_AUDIO, D_LLM)


def test_a_name_that_nothing_has_is_told() -> None:
    with refused("unknown-name", "adapter.type"):
        ADAPTERS.build({"type": "pooled_soft_prompts"}, D_AUDIO, D_LLM)
    with refused("missing-key", "adapter.type"):
        ADAPTERS.build({"type": None, "stack": 5}, D_AUDIO, D_LLM)
    with refused("unknown-key", "adapter.stak"):
        ADAPTERS.build({"type": "frame_stacking_mlp", "stak": 5}, D_AUDIO, D_LLM)


@pytest.mark.parametrize("name", ["frame_stacking_mlp", "pooled_soft_prompt", "emotion_aligned"])
def test_adapters_begin_as_quietly_as_word_embeddings(name: str) -> None:
    torch.manual_seed(0)
    adapter = ADAPTERS.build({"type": name, **SMALL.get(name, {})}, 64, 128).eval()
    out = adapter(Frames(torch.randn(4, 50, 64), torch.full((4,), 50)))
    assert 0.001 < out.x.std() < 0.06
