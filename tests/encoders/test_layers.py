"""Layers of encoders: what each choice gives, whatever the batch, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import CONFORMER, save_tiny_whisper
from tests.encoders.test_hf import save_hf_whisper, save_parakeet, save_w2v_bert, save_waveform_encoder
from tests.helpers.audio_llms import KINDS
from tests.helpers.errors import refused
from tests.helpers.kimi_audio import save_kimi_audio, save_speech_tokenizer
from tests.helpers.listening import check_clips_do_not_depend_on_their_batch, clips, close
from torch import Tensor, nn

from sottovoce.encoders import ENCODERS, Encoder
from sottovoce.encoders.layer_choice import chosen_layers, readable
from sottovoce.errors import ConfigError
from sottovoce.frames import Frames

SAMPLES = (9_000, 16_000, 12_345)


def _saved(save: Callable[[Path], Any]) -> Callable[[Path], dict[str, Any]]:
    def node(folder: Path) -> dict[str, Any]:
        save(folder)
        return {"checkpoint": str(folder)}

    return node


MAKE: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
    "whisper": ("whisper", lambda folder: {"checkpoint": save_tiny_whisper(folder), "dtype": "float32"}),
    "whisper, longest": (
        "whisper",
        lambda folder: {"checkpoint": save_tiny_whisper(folder), "dtype": "float32", "window": "longest"},
    ),
    "conformer": ("conformer", lambda folder: {k: v for k, v in CONFORMER.items() if k != "type"}),
    "w2v-bert": ("hf_conformer", _saved(save_w2v_bert)),
    "parakeet": ("hf_conformer", _saved(save_parakeet)),
    "hf whisper": ("hf", _saved(save_hf_whisper)),
    **{
        kind: ("hf", _saved(save_waveform_encoder(kind)))
        for kind in ("wav2vec2", "wav2vec2, layer norm", "hubert", "wavlm", "wavlm, layer norm", "data2vec")
    },
    "qwen2_audio": ("qwen2_audio", _saved(KINDS["qwen2_audio"][1])),
    "qwen2_5_omni": ("qwen2_5_omni", _saved(KINDS["thinker"][1])),
    "kimi_audio": ("kimi_audio", lambda folder: {"checkpoint": str(save_kimi_audio(folder / "model"))}),
}


@pytest.fixture(scope="module", params=sorted(MAKE))
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    kind, node = MAKE[request.param]
    torch.manual_seed(0)
    made: Encoder = ENCODERS.build({"type": kind, **node(tmp_path_factory.mktemp("encoder"))})
    made.load()
    return made.eval()


def blocks(encoder: Encoder) -> nn.ModuleList:
    """The Transformer's blocks, found without the encoder's help: the longest list of equal modules."""
    lists = [m for m in encoder.modules() if isinstance(m, nn.ModuleList) and len(m) == encoder.depth]
    assert len(lists) == 1
    return lists[0]


def test_each_choice_of_layers_does_not_depend_on_the_batch(encoder: Encoder) -> None:
    for layers in ((1,), (encoder.depth,), (0, 1, encoder.depth)):
        read = check_clips_do_not_depend_on_their_batch(
            lambda x, lengths, layers=layers: encoder.layer_frames(x, lengths, layers),  # type: ignore[misc]
            clips(*SAMPLES),
        )
        assert read.x.shape[-1] == len(layers) * encoder.dim and torch.isfinite(read.x).all()


@torch.no_grad()
def test_the_last_layer_is_the_encoders_output_to_the_bit(encoder: Encoder) -> None:
    batch = Frames.pad(clips(*SAMPLES))
    last, all_of_them = encoder(*batch), encoder.layer_frames(*batch, range(encoder.depth + 1))
    assert torch.equal(encoder.layer_frames(*batch, (encoder.depth,)).x, last.x)
    assert torch.equal(all_of_them.lengths, last.lengths)
    assert torch.equal(all_of_them.x[..., -encoder.dim :], last.x)
    states = encoder.hidden_states(*batch)
    assert len(states) == encoder.depth + 1 and torch.equal(states[-1].x, last.x)
    assert torch.equal(encoder(*batch).x, last.x)  # nothing of the taps stays
    for number, state in enumerate(states):
        assert torch.equal(encoder.layer_frames(*batch, (number,)).x, state.x)
        assert not any(torch.equal(state.x, other.x) for other in states[:number])


# With its window as long as the clips, Whisper calls the parts of its blocks
@pytest.mark.parametrize("encoder", sorted(MAKE.keys() - {"whisper, longest"}), indirect=True)
@torch.no_grad()
def test_a_layer_is_what_the_next_block_is_given(encoder: Encoder) -> None:
    """Blocks are watched from outside."""
    seen: dict[int, Tensor] = {}

    def watch(number: int) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[number] = args[0] if args else kwargs["hidden_states"]

        return before

    batch = Frames.pad(clips(16_000))
    handles = [b.register_forward_pre_hook(watch(i), with_kwargs=True) for i, b in enumerate(blocks(encoder))]
    try:
        encoder(*batch)
    finally:
        for handle in handles:
            handle.remove()
    assert seen
    for number, state in seen.items():
        read = encoder.layer_frames(*batch, (number,)).x[0]
        flat = state.reshape(-1, state.shape[-1])
        if encoder.dim != flat.shape[-1]:  # frames are stacked
            flat = flat.reshape(-1, encoder.dim)
        elif type(encoder).__name__.startswith("Qwen"):  # and here pooled
            flat = flat[: 2 * len(read)].reshape(len(read), 2, -1).mean(1)
        close(read, flat[: len(read)])


@torch.no_grad()
def test_blocks_above_the_highest_layer_do_not_run(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    for number, block in enumerate(blocks(encoder), 1):
        inner = next(m for m in block.modules() if isinstance(m, nn.LayerNorm))
        forward = inner.forward

        def counted(*args: Any, number: int = number, forward: Any = forward, **kwargs: Any) -> Any:
            ran.append(number)
            return forward(*args, **kwargs)

        monkeypatch.setattr(inner, "forward", counted)
    encoder.layer_frames(*Frames.pad(clips(16_000)), (1,))
    assert ran and set(ran) == {1}


def test_layers_that_are_not_there_are_refused(encoder: Encoder) -> None:
    batch = Frames.pad(clips(16_000))
    for layers in ((encoder.depth + 1,), (-1,), ()):
        with pytest.raises(ValueError, match="layers"):
            encoder.layer_frames(*batch, layers)


def test_gradients_reach_the_blocks_below_a_layer(encoder: Encoder) -> None:
    encoder.requires_grad_(True)
    encoder.layer_frames(*Frames.pad(clips(16_000)), (1,)).x.sum().backward()  # type: ignore[no-untyped-call]
    first, *others = [any(p.grad is not None for p in block.parameters()) for block in blocks(encoder)]
    encoder.zero_grad(set_to_none=True)
    encoder.requires_grad_(False)
    assert first and not any(others)


def test_kimi_audio_with_discrete_tokens_has_no_layers(tmp_path: Path) -> None:
    model, tokenizer = save_kimi_audio(tmp_path / "model"), save_speech_tokenizer(tmp_path / "tokenizer")
    node = {"type": "kimi_audio", "checkpoint": str(model), "speech_tokenizer": str(tokenizer)}
    encoder: Encoder = ENCODERS.build(node)
    encoder.load()
    batch = Frames.pad(clips(16_000))
    with refused("conflict", "encoder.type", ConfigError):
        encoder.layer_frames(*batch, (1,))
    assert torch.equal(encoder.layer_frames(*batch, (encoder.depth,)).x, encoder(*batch).x)


@pytest.mark.parametrize(
    ("text", "layers"),
    [("last", (6,)), ("2", (2,)), ("0", (0,)), ("1-4", (1, 2, 3, 4)), ("2, 5-6,2", (2, 5, 6)),
     ("all", (1, 2, 3, 4, 5, 6))],
)  # fmt: skip
def test_layers_are_counted_from_one(text: str, layers: tuple[int, ...]) -> None:
    assert chosen_layers(readable(text), 6, "here") == layers


@pytest.mark.parametrize("text", ["", "first", "4-1", "1-", "-1", "1..3", "1,,2", "last,2", "2.5"])
def test_texts_that_name_no_layers_are_refused(text: str) -> None:
    with refused("bad-value", "", ConfigError):
        readable(text)


@pytest.mark.parametrize("text", ["7", "1-7", "2,9"])
def test_layers_that_an_encoder_lacks_are_refused_with_the_range(text: str) -> None:
    with refused("bad-value", "slots.voice.layers", ConfigError) as caught:
        chosen_layers(text, 6, "slots.voice.layers")
    assert "1-6" in str(caught.value)
