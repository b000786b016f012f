"""Whisper's frames are the reference's frames, and a clip's frames are its own."""

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast
from urllib.error import URLError

import pytest
import torch
import transformers
import whisper
from safetensors.torch import save_file
from tests.helpers import listening
from tests.helpers.errors import refused
from tests.helpers.listening import clips
from torch import Tensor
from whisper.model import AudioEncoder, ModelDimensions, TextDecoder, Whisper, disable_sdpa

from sottovoce.encoders import ENCODERS
from sottovoce.encoders.base import fingerprint
from sottovoce.encoders.feature_cache import layers_fingerprint
from sottovoce.encoders.whisper import PUBLISHED, WhisperEncoder
from sottovoce.encoders.whisper_hub import read_sizes
from sottovoce.errors import MissingError
from sottovoce.frames import Frames

RENAMED = {  # openai-whisper -> transformers
    "blocks.": "layers.", "attn.query": "self_attn.q_proj", "attn.key": "self_attn.k_proj",
    "attn.value": "self_attn.v_proj", "attn.out": "self_attn.out_proj", "attn_ln": "self_attn_layer_norm",
    "mlp.0": "fc1", "mlp.2": "fc2", "mlp_ln": "final_layer_norm", "ln_post": "layer_norm",
    "positional_embedding": "embed_positions.weight",
}  # fmt: skip
BOTH = pytest.mark.parametrize("window", ["full", "longest"])
Window = Literal["full", "longest"]


def random_whisper(n_mels: int = 80, context: int = 50) -> Whisper:
    """A small Whisper in which no tensor is at a value that would hide a mistake (norms of one, biases of zero)."""
    torch.manual_seed(0)
    model = Whisper(ModelDimensions(n_mels, context, 32, 4, 2, 100, 16, 32, 4, 2))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.2)
    model.encoder.positional_embedding += 0.1 * torch.randn_like(model.encoder.positional_embedding)
    return model


def save_pt(model: Whisper, path: Path) -> str:
    torch.save({"dims": asdict(model.dims), "model_state_dict": model.state_dict()}, path)
    return str(path)


def save_safetensors(model: Whisper, path: Path) -> str:
    save_file(model.state_dict(), path, metadata={"dims": json.dumps(asdict(model.dims))})
    return str(path)


Save = Callable[[Whisper, Path], str]
BOTH_FORMATS = pytest.mark.parametrize(("save", "name"), [(save_pt, "w.pt"), (save_safetensors, "w.safetensors")])


def loaded(
    checkpoint: str, window: Window = "full", dtype: Literal["auto", "float32", "bfloat16"] = "float32"
) -> WhisperEncoder:
    encoder = WhisperEncoder(checkpoint=checkpoint, window=window, dtype=dtype)
    encoder.load()
    return encoder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One second of context, 80 mel bins."""
    return save_pt(random_whisper(), tmp_path_factory.mktemp("whisper") / "tiny.pt")


def encode(encoder: WhisperEncoder, *waveforms: Tensor) -> Frames:
    return cast(Frames, encoder(*Frames.pad(list(waveforms))))


def reference(model: Whisper, waveform: Tensor) -> Tensor:
    """The frames of one window by transformers: its own mel filters, its own feature extractor, its own encoder."""
    dims = model.dims
    config = transformers.WhisperConfig(
        num_mel_bins=dims.n_mels, max_source_positions=dims.n_audio_ctx, d_model=dims.n_audio_state,
        encoder_layers=dims.n_audio_layer, encoder_attention_heads=dims.n_audio_head, encoder_ffn_dim=128,
        decoder_layers=1, decoder_attention_heads=4, vocab_size=100, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    encoder: Any = transformers.WhisperModel(config).encoder
    state = {}
    for name, value in model.encoder.state_dict().items():
        for ours, theirs in RENAMED.items():
            name = name.replace(ours, theirs)
        state[name] = value
    encoder.eval().load_state_dict(state)
    extract: Any = transformers.WhisperFeatureExtractor(  # type: ignore[no-untyped-call]
        feature_size=dims.n_mels, chunk_length=dims.n_audio_ctx // 50, sampling_rate=16_000
    )
    mel = extract(waveform.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        return cast(Tensor, encoder(mel).last_hidden_state[0])


@pytest.mark.parametrize(("n_mels", "context", "samples"), [(80, 50, 9_001), (128, 100, 32_000), (128, 1500, 70_000)])
def test_frames_are_those_of_transformers(n_mels: int, context: int, samples: int, tmp_path: Path) -> None:
    model = random_whisper(n_mels, context)
    (clip,) = clips(samples)
    frames = encode(loaded(save_pt(model, tmp_path / "w.pt")), clip)
    expected = reference(model, clip)[: -(-samples // 320)]
    assert frames.x.shape == (1, *expected.shape) and frames.x.dtype == torch.float32
    # the only licence taken is for the order of float32 sums
    torch.testing.assert_close(frames.x[0], expected, atol=1e-4, rtol=1e-4)


@BOTH
def test_a_clip_does_not_depend_on_its_batch(checkpoint: str, window: Window) -> None:
    waveforms = clips(3_000, 16_000, 5, 40_001, 320, 9_999)
    listening.check_clips_do_not_depend_on_their_batch(loaded(checkpoint, window), waveforms)


@BOTH
def test_long_audio_is_joined_from_its_windows(checkpoint: str, window: Window) -> None:
    encoder = loaded(checkpoint, window)
    (clip,) = clips(40_000)  # 2.5 windows of one second
    apart = [encode(encoder, piece).x[0] for piece in torch.split(clip, 16_000)]
    assert [len(piece) for piece in apart] == [50, 50, 25]
    torch.testing.assert_close(encode(encoder, clip).x[0], torch.cat(apart), atol=1e-5, rtol=1e-5)


@BOTH
@pytest.mark.parametrize(
    ("samples", "frames"), [(1, 1), (160, 1), (320, 1), (321, 2), (15_999, 50), (16_000, 50), (16_001, 51)]
)
def test_frames_that_hold_audio_are_kept(checkpoint: str, window: Window, samples: int, frames: int) -> None:
    out = encode(loaded(checkpoint, window), *clips(samples))
    assert out.x.shape == (1, frames, 32) and out.lengths.tolist() == [frames]


def test_longest_is_a_full_window_whose_silence_is_hidden_from_attention(checkpoint: str) -> None:
    """The reference is whisper's own attention, which takes any mask when it multiplies matrices itself."""
    encoder, (clip,) = loaded(checkpoint, "longest"), clips(5_000)
    net, hidden = random_whisper().encoder, torch.zeros(50, 50)
    hidden[:, 16:] = -torch.inf
    mel = whisper.log_mel_spectrogram(torch.nn.functional.pad(clip, (0, 11_000)))
    with torch.no_grad(), disable_sdpa():
        x = net.conv2(torch.nn.functional.gelu(net.conv1(mel[None])))
        x = torch.nn.functional.gelu(x).mT + net.positional_embedding
        for block in net.blocks:
            x = block(x, mask=hidden)
        expected = net.ln_post(x)[0, :16]
    (frames,) = encode(encoder, clip, *clips(12_000)).rows()[:1]
    torch.testing.assert_close(frames, expected, atol=1e-5, rtol=1e-5)


def test_the_windows_differ_in_silence_alone(checkpoint: str) -> None:
    full, longest, (whole, short) = loaded(checkpoint), loaded(checkpoint, "longest"), clips(16_000, 5_000)
    torch.testing.assert_close(encode(longest, whole).x, encode(full, whole).x, atol=1e-5, rtol=1e-5)
    assert (encode(longest, short).x - encode(full, short).x).abs().max() > 1e-3


@BOTH_FORMATS
def test_both_formats_give_the_same_encoder(save: Save, name: str, checkpoint: str, tmp_path: Path) -> None:
    encoder, other = loaded(save(random_whisper().half(), tmp_path / name)), random_whisper().half().float()
    assert {value.dtype for value in encoder.state_dict().values()} == {torch.float32}
    assert (encoder.sample_rate, encoder.frame_rate, encoder.dim) == (16_000, 50.0, 32)
    for tensor, value in other.encoder.state_dict().items():
        assert torch.equal(encoder.state_dict()[f"encoder.{tensor}"], value), tensor
    assert encoder.fingerprint() == loaded(save_pt(random_whisper().half(), tmp_path / "again.pt")).fingerprint()
    assert encoder.fingerprint() != loaded(checkpoint).fingerprint()


def test_fingerprint_knows_weights_and_window(checkpoint: str) -> None:
    encoder = loaded(checkpoint)
    before = encoder.fingerprint()
    assert before == loaded(checkpoint).fingerprint() != loaded(checkpoint, "longest").fingerprint()
    encoder.encoder.conv1.bias[0] += 1e-3
    assert encoder.fingerprint() != before


def test_fingerprints_stay_those_that_bundles_and_caches_hold() -> None:
    network = torch.nn.Linear(2, 1)
    network.load_state_dict({"weight": torch.full((1, 2), 0.5), "bias": torch.zeros(1)})
    known = "9bcda5ab9a49d77e28d13b1cfccff117a48a0d032da7abb784be86f2ca3e0647"
    assert fingerprint(network, "whisper", 80, "full") == known


def test_only_the_encoder_is_in_memory_and_it_is_frozen(checkpoint: str) -> None:
    encoder, model = loaded(checkpoint), random_whisper()
    assert not [name for name in encoder.state_dict() if "decoder" in name]
    assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in model.encoder.parameters())
    assert not any(p.requires_grad for p in encoder.parameters()) and not encoder.encoder.training
    (clip,) = clips(3_000)
    assert not encode(encoder, clip).x.requires_grad
    encoder.requires_grad_(True)
    encode(encoder, clip).x.square().sum().backward()  # a stage may let it learn
    assert all(weight.grad is not None for weight in encoder.parameters())


def test_nothing_is_built_before_load_and_loading_twice_is_loading_once(checkpoint: str) -> None:
    encoder = WhisperEncoder(checkpoint=checkpoint)
    assert not list(encoder.parameters())
    listening.check_needs_weights(encoder.fingerprint, lambda: encode(encoder, *clips(320)))
    encoder.load()
    network = encoder.encoder
    encoder.encoder.conv1.bias[0] = 7.0
    encoder.load()
    assert encoder.encoder is network and encoder.encoder.conv1.bias[0] == 7.0


def test_weights_may_follow_a_build_on_meta(checkpoint: str) -> None:
    encoder = WhisperEncoder(checkpoint=checkpoint)
    with torch.device("meta"):
        encoder.build()
    listening.check_needs_weights(encoder.fingerprint)
    encoder.load()
    assert encoder.fingerprint() == loaded(checkpoint).fingerprint()


def test_a_file_that_changes_after_loading_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    encoder = loaded(save_pt(random_whisper(), path))
    before = encoder.fingerprint()
    with path.open("r+b") as file:
        file.write(b"\1" * path.stat().st_size)
    assert encoder.fingerprint() == before


def test_autocast_does_not_reach_the_encoder(checkpoint: str) -> None:
    encoder, (clip,) = loaded(checkpoint), clips(5_000)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = encode(encoder, clip).x
    assert mixed.dtype == torch.float32 and torch.equal(mixed, encode(encoder, clip).x)


@pytest.mark.parametrize("window", ["full", "longest"])
def test_half_precision_rounds_what_is_multiplied(checkpoint: str, window: Window) -> None:
    """Log-mels do not lose digits by it, and caches tell the frames apart."""
    encoder, rounded = loaded(checkpoint, window), loaded(checkpoint, window, "bfloat16")
    exact, near = (encode(each, *clips(5_000, 12_000)).x for each in (encoder, rounded))
    assert near.dtype == torch.float32 and not torch.equal(exact, near)
    assert (exact - near).norm() < 0.02 * exact.norm()
    assert encoder.fingerprint() != rounded.fingerprint()


@pytest.mark.parametrize("capable", [True, False])
def test_auto_rounds_where_the_cpu_multiplies_bfloat16(
    capable: bool, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the cache of such frames is another one, though weights and settings are the same."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": capable}, raising=False)
    clip, cpu = clips(16_000), torch.device("cpu")
    auto, named = loaded(checkpoint, dtype="auto"), loaded(checkpoint, dtype="bfloat16" if capable else "float32")
    assert torch.equal(encode(auto, *clip).x, encode(named, *clip).x)
    exact = loaded(checkpoint)
    assert auto.fingerprint() == exact.fingerprint()
    with auto.in_float32():
        assert torch.equal(encode(auto, *clip).x, encode(exact, *clip).x)
    told = [layers_fingerprint(encoder, (encoder.depth,), cpu) for encoder in (auto, exact)]
    assert (told[0] != told[1]) is capable


def test_large_v3_is_described_without_weights() -> None:
    encoder = WhisperEncoder(checkpoint="large-v3")
    assert (encoder.dim, encoder.dims.n_mels, encoder.samples) == (1280, 128, 480_000)
    with torch.device("meta"):
        encoder.build()
    assert sum(p.numel() for p in encoder.parameters()) == 635_048_960
    assert sum(value.numel() for value in encoder.state_dict().values()) == 636_968_960  # transformers counts positions


def test_every_published_name_is_known() -> None:
    assert set(PUBLISHED) == set(whisper.available_models())
    for name, dims in PUBLISHED.items():
        assert dims.n_mels == (128 if name in ("large", "large-v3", "large-v3-turbo", "turbo") else 80)
    # the paper's table 1: width 64 a head, and these sizes in millions, which its text decoder shares
    for name, millions in {"tiny": 39, "base": 74, "small": 244, "medium": 769, "large-v2": 1550}.items():
        _, _, state, heads, layers = PUBLISHED[name]
        with torch.device("meta"):
            halves = AudioEncoder(*PUBLISHED[name]), TextDecoder(51_865, 448, state, heads, layers)
        assert state == 64 * heads
        total = sum(p.numel() for half in halves for p in half.parameters())
        assert total / 1e6 == pytest.approx(millions, rel=0.06), name


@BOTH
def test_bad_batches_name_the_row(checkpoint: str, window: Window) -> None:
    listening.check_refuses_bad_batches(loaded(checkpoint, window))


def _dims(**changed: Any) -> dict[str, Any]:
    return {**asdict(random_whisper().dims), **changed}


@pytest.mark.parametrize(
    ("name", "code", "write"),
    [
        ("junk.pt", "damaged", lambda path: path.write_bytes(b"junk" * 100)),
        ("empty.pt", "damaged", lambda path: path.touch()),
        ("foreign.pt", "damaged", lambda path: torch.save({"state": torch.zeros(2)}, path)),
        ("pickle.pt", "damaged", lambda path: torch.save({"dims": Path("a"), "model_state_dict": {}}, path)),
        ("mels.pt", "damaged", lambda path: torch.save({"dims": _dims(n_mels=40), "model_state_dict": {}}, path)),
        ("heads.pt", "damaged", lambda path: torch.save({"dims": _dims(n_audio_head=5), "model_state_dict": {}}, path)),
        ("stateless.pt", "damaged", lambda path: torch.save({"dims": _dims()}, path)),
        ("hollow.pt", "mismatch", lambda path: torch.save({"dims": _dims(), "model_state_dict": {}}, path)),
        ("junk.safetensors", "damaged", lambda path: path.write_bytes(b"junk" * 100)),
        ("foreign.safetensors", "damaged", lambda path: save_file({"conv1.weight": torch.zeros(2)}, path)),
        ("other.safetensors", "damaged", lambda path: save_file({}, path, metadata={"dims": "not json"})),
        ("hollow.safetensors", "mismatch", lambda path: save_file({}, path, metadata={"dims": json.dumps(_dims())})),
        ("cut.pt", "damaged", lambda path: _cut(save_pt(random_whisper(), path))),
        ("cut.safetensors", "damaged", lambda path: _cut(save_safetensors(random_whisper(), path))),
    ],
)
def test_a_bad_file_is_named(name: str, code: Any, write: Callable[[Path], Any], tmp_path: Path) -> None:
    write(tmp_path / name)
    with refused(code, name, MissingError):
        loaded(str(tmp_path / name))


def _cut(path: str) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:-20_000])


class Trojan:
    """Runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    model, mark = random_whisper(), tmp_path / "executed"
    content = {"dims": asdict(model.dims), "model_state_dict": model.state_dict(), "extra": Trojan(mark)}
    torch.save(content, tmp_path / "trojan.pt")
    with refused("damaged", "trojan.pt"):
        loaded(str(tmp_path / "trojan.pt"))
    assert not mark.exists()


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = random_whisper()
    state = model.state_dict()
    state["encoder.conv1.weigth"] = state.pop("encoder.conv1.weight")
    torch.save({"dims": asdict(model.dims), "model_state_dict": state}, tmp_path / "odd.pt")
    with refused("mismatch", "odd.pt") as caught:
        loaded(str(tmp_path / "odd.pt"))
    assert "weigth" in str(caught.value)


@pytest.mark.parametrize(
    ("knobs", "code", "where", "message"),
    [
        ({"checkpoint": "larg-v3"}, "unknown-name", "encoder.checkpoint", "Did you mean 'large-v3'"),
        ({"checkpoint": "absent.pt"}, "not-found", "encoder.checkpoint", "quickstart"),
        ({"checkpoint": "tiny", "window": "longst"}, "unknown-name", "encoder.window", "Did you mean 'longest'"),
        ({"checkpoint": "tiny", "dtype": "bfloat"}, "unknown-name", "encoder.dtype", "Did you mean 'bfloat16'"),
    ],
)
def test_unknown_names_get_the_nearest(knobs: dict[str, Any], code: Any, where: str, message: str) -> None:
    with refused(code, where) as caught:
        WhisperEncoder(**knobs)
    assert message in str(caught.value)
    with refused("bad-value", "encoder.window"):  # of a recipe
        ENCODERS.build({"type": "whisper", "checkpoint": "tiny", "window": "longst"})


def test_the_packaged_checkpoint_is_found_by_its_address(checkpoint: str, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "backbones").mkdir()
    save_safetensors(random_whisper(), tmp_path / "backbones" / "encoder.safetensors")
    monkeypatch.setattr("sottovoce.demo.__file__", str(tmp_path / "__init__.py"))
    packaged = loaded("sottovoce:demo/backbones/encoder.safetensors")
    assert packaged.fingerprint() == loaded(checkpoint).fingerprint()


def test_a_name_without_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    encoder = WhisperEncoder(checkpoint="large-v3")
    with refused("not-found", "encoder.checkpoint") as caught:
        encoder.load()
    for part in ("large-v3", str(tmp_path / "whisper" / "large-v3.pt"), "https://", "no route to host",
                 "encoder.checkpoint=/path/to/large-v3.pt", "conf/quickstart.yaml"):  # fmt: skip
        assert part in str(caught.value)


def test_a_name_is_found_where_openai_whisper_keeps_it(checkpoint: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Downloaded once, never again: the digest in the address is the file's."""
    content = Path(checkpoint).read_bytes()
    (tmp_path / "whisper").mkdir()
    (tmp_path / "whisper" / "tiny.pt").write_bytes(content)
    address = f"https://nowhere.invalid/{hashlib.sha256(content).hexdigest()}/tiny.pt"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(whisper._MODELS, "tiny", address)
    monkeypatch.setitem(PUBLISHED, "tiny", loaded(checkpoint).dims)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loaded("tiny").fingerprint() == loaded(checkpoint).fingerprint()


def test_silence_and_full_scale_are_heard_as_numbers(checkpoint: str) -> None:
    out = encode(loaded(checkpoint), torch.zeros(8_000), torch.ones(8_000))
    assert out.x.isfinite().all()


@pytest.mark.parametrize("changes", [{"encoder_ffn_dim": 96}, {"model_type": "hubert"}])
def test_a_model_of_another_shape_is_told(changes: dict[str, Any], tmp_path: Path) -> None:
    """Its weights would not fit, after they were downloaded."""
    names = ("num_mel_bins", "max_source_positions", "d_model", "encoder_attention_heads", "encoder_layers")
    sizes = dict(zip(names, (80, 50, 32, 2, 3), strict=True))
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "whisper", "encoder_ffn_dim": 128, **sizes}))
    assert read_sizes(str(tmp_path)) == list(sizes.values())
    file.write_text(json.dumps({"model_type": "whisper", "encoder_ffn_dim": 128, **sizes, **changes}))
    with refused("mismatch"):
        read_sizes(str(tmp_path))
