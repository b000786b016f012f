"""The adapter of SpeechEmotionLlama against its parts written out, and its sizes against the published ones."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sottovoce.adapters import ADAPTERS
from sottovoce.adapters.emotion_aligned import EmotionAligned
from sottovoce.frames import Frames

D_AUDIO, D_LLM, SMALL = 6, 10, {"width": 16, "feedforward": 20, "heads": 2}
LENGTHS = (23, 8, 2, 1)


def build(**knobs: Any) -> EmotionAligned:
    """A small one whose every weight, norms and biases included, is far from 0 and 1."""
    torch.manual_seed(0)
    adapter = EmotionAligned(D_AUDIO, D_LLM, **{**SMALL, **knobs}).eval()
    for value in adapter.parameters():
        torch.nn.init.normal_(value, 0.1, 0.4)
    return adapter


def rows(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, D_AUDIO, generator=generator) for length in lengths]


def convolved(adapter: EmotionAligned, clip: Tensor) -> Tensor:
    """Every `stride`th frame with its neighbours, silence beyond both ends, times the kernel."""
    kernel: Tensor = adapter.convolve.weight  # (width, d_audio, kernel)
    assert adapter.convolve.bias is not None
    half = kernel.shape[2] // 2
    padded = F.pad(clip, (0, 0, half, half))
    seen = [padded[at : at + kernel.shape[2]] for at in range(0, len(clip), adapter.stride)]
    return torch.stack([torch.einsum("wdk,kd->w", kernel, window) for window in seen]) + adapter.convolve.bias


def turned(x: Tensor) -> Tensor:
    """Su et al. (2021), equation 13, in complex numbers: (places, size), whose halves are real and imaginary parts."""
    half = x.shape[1] // 2
    angles = torch.arange(len(x))[:, None] * 10_000 ** (-torch.arange(half) / half)
    turn = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turn.real, turn.imag], dim=1)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def transformed(layer: Any, x: Tensor, heads: int) -> Tensor:
    """A rotary Transformer layer, norms first, SwiGLU, every place seeing every other: (places, width) to the same."""
    attention, feedforward = layer.self_attn, layer.mlp
    normed = rms(x, layer.input_layernorm.weight)
    parts = [
        (normed @ part.weight.T).chunk(heads, dim=1) for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    ]
    mixed = [
        (turned(query) @ turned(key).T / query.shape[1] ** 0.5).softmax(-1) @ value
        for query, key, value in zip(*parts, strict=True)
    ]
    x = x + torch.cat(mixed, dim=1) @ attention.o_proj.weight.T
    normed = rms(x, layer.post_attention_layernorm.weight)
    gate = normed @ feedforward.gate_proj.weight.T
    gated = gate * gate.sigmoid() * (normed @ feedforward.up_proj.weight.T)
    return x + gated @ feedforward.down_proj.weight.T


@pytest.mark.parametrize("knobs", [{}, {"heads": 4}, {"kernel": 5, "stride": 3}, {"kernel": 1, "stride": 1}])
@pytest.mark.parametrize("frames", [1, 2, 13])
@torch.no_grad()
def test_it_is_the_published_stack(knobs: dict[str, int], frames: int) -> None:
    adapter, (clip,) = build(**knobs).double(), rows(frames)
    clip = clip.double()
    x = transformed(adapter.transformer, convolved(adapter, clip), knobs.get("heads", SMALL["heads"]))
    expected = x @ adapter.project.weight.T + adapter.project.bias
    torch.testing.assert_close(adapter(Frames.pad([clip])).x[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 3), (1, 1), (3, 3)])
@torch.no_grad()
def test_a_row_is_the_same_alone_and_in_a_batch(kernel: int, stride: int) -> None:
    adapter, clips = build(kernel=kernel, stride=stride), rows(*LENGTHS)
    x, lengths = Frames.pad(clips)
    wide = F.pad(x, (0, 0, 0, 7))
    wide[~Frames(wide, lengths).mask()] = float("nan")  # what lies behind a clip is nobody's business
    batch = adapter(Frames(wide, lengths))
    assert batch.lengths.tolist() == [-(-length // stride) for length in LENGTHS]
    for clip, together in zip(clips, batch.rows(), strict=True):
        alone = adapter(Frames.pad([clip]))
        assert alone.x.shape == (1, len(together), D_LLM)
        torch.testing.assert_close(together, alone.x[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_layer_looks_ahead() -> None:
    adapter, (clip,) = build(), rows(40)
    changed = clip.clone()
    changed[-1] += 1
    first, other = (adapter(Frames.pad([x])).x[0, 0] for x in (clip, changed))
    assert (first - other).abs().max() > 1e-4


def test_places_count_from_each_other() -> None:
    """Rotary scores depend on distance alone, whatever lies before: the layer gives the same values further on."""
    adapter: Any = build()
    x = torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(3))
    here, further = (adapter.rotary(x, torch.arange(start, start + 9)[None]) for start in (0, 700))
    everywhere = torch.ones(1, 1, 1, 9, dtype=torch.bool)
    near = adapter.transformer(x, attention_mask=everywhere, position_embeddings=here)
    far = adapter.transformer(x, attention_mask=everywhere, position_embeddings=further)
    backwards = adapter.transformer(x.flip(1), attention_mask=everywhere, position_embeddings=here).flip(1)
    torch.testing.assert_close(near, far, atol=1e-3, rtol=1e-3)
    assert (near - backwards).abs().max() > 0.1  # but order matters


def test_a_minute_of_speech_is_750_embeddings() -> None:
    """25 frames per second in, 12.5 embeddings per second out: one every 80 ms (section II-B)."""
    out = build()(Frames(torch.zeros(1, 60 * 25, D_AUDIO), torch.tensor([60 * 25])))
    assert out.x.shape == (1, 60 * 12.5, D_LLM) and out.lengths.tolist() == [750]


def test_published_size() -> None:
    """The Conformer to Llama-3-8B: "a 100M parameter adapter module"."""
    with torch.device("meta"):
        adapter = ADAPTERS.build({"type": "emotion_aligned"}, 1536, 4096)
    convolution, attention, feedforward = 3 * 1536 * 3072 + 3072, 4 * 3072**2, 3 * 3072 * 4096
    layer, linear = attention + feedforward + 2 * 3072, 3072 * 4096 + 4096
    assert sum(p.numel() for p in adapter.parameters()) == convolution + layer + linear == 102_249_472
