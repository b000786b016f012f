"""The encoder of Whisper, 50 frames a second."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sottovoce.encoders import ENCODERS
from sottovoce.encoders.base import Encoder, fingerprint
from sottovoce.encoders.layer_taps import side_by_side
from sottovoce.encoders.log_mel import check_waveforms
from sottovoce.encoders.whisper_hub import is_hub_checkpoint, read_hub_weights, read_sizes
from sottovoce.errors import ConfigError, MissingError, nearest
from sottovoce.frames import Frames
from sottovoce.paths import resolve
from sottovoce.tensor_files import read_metadata, read_tensors

HUB_PREFIX = "openai/whisper-"  # of the published checkpoints' hub ids
SAMPLE_RATE = 16_000  # Hz
SAMPLES_PER_FRAME = 320  # 20 ms: two log-mel frames of 10 ms
_KEY = "encoder.checkpoint"
_DTYPES = ("auto", "float32", "bfloat16")
_PREFIX = "encoder."  # of the encoder's tensors in a checkpoint, which holds the decoder's, too
_REMEDY = "Point at a local copy: encoder.checkpoint=/path/to/large-v3.pt. conf/quickstart.yaml runs without any"


class Dims(NamedTuple):
    """The sizes of an encoder, in the order in which `whisper.model.AudioEncoder` takes them."""

    n_mels: int
    n_audio_ctx: int  # frames in a window
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int


# Radford et al. (2022), table 1; large-v3 and turbo (whose decoder alone is smaller) take 128 mel bins.
_TINY, _BASE, _SMALL = Dims(80, 1500, 384, 6, 4), Dims(80, 1500, 512, 8, 6), Dims(80, 1500, 768, 12, 12)
_MEDIUM, _LARGE, _LARGE_V3 = Dims(80, 1500, 1024, 16, 24), Dims(80, 1500, 1280, 20, 32), Dims(128, 1500, 1280, 20, 32)
PUBLISHED = {
    "tiny.en": _TINY, "tiny": _TINY, "base.en": _BASE, "base": _BASE, "small.en": _SMALL, "small": _SMALL,
    "medium.en": _MEDIUM, "medium": _MEDIUM, "large-v1": _LARGE, "large-v2": _LARGE, "large-v3": _LARGE_V3,
    "large": _LARGE_V3, "large-v3-turbo": _LARGE_V3, "turbo": _LARGE_V3,
}  # fmt: skip


def read_dims(path: Path) -> Dims:
    """The encoder's sizes from a `.pt` or `.safetensors` file; `MissingError` if it is damaged or no Whisper."""
    with _damage_reported(path):
        safetensors = path.suffix == ".safetensors"
        saved = json.loads(read_metadata(path)["dims"]) if safetensors else _torch_file(path)["dims"]
        dims = Dims(*(int(saved[name]) for name in Dims._fields))
    if dims.n_mels not in (80, 128) or min(dims) < 1 or dims.n_audio_state % dims.n_audio_head:
        why = f"{dims} is no Whisper, which takes 80 or 128 mel bins, and whose heads divide its state"
        raise MissingError.at(path, "damaged", why)
    return dims


def read_weights(path: Path) -> dict[str, Tensor]:
    """The encoder's tensors by name, copies in float32; errors as in `read_dims`."""

    def rename(name: str) -> str | None:
        return name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else None

    with _damage_reported(path):
        if path.suffix == ".safetensors":
            return read_tensors(path, rename, torch.float32)
        state: dict[str, Tensor] = _torch_file(path)["model_state_dict"]
        return {new: value.to(torch.float32, copy=True) for name, value in state.items() if (new := rename(name))}


def _torch_file(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in a checkpoint into a `MissingError` about that file."""
    try:
        yield
    except Exception as error:  # pickle, zip, JSON and safetensors each have errors of their own
        why = f"damaged, or not a Whisper checkpoint ({type(error).__name__}). Expected openai-whisper's .pt "
        why += "({'dims', 'model_state_dict'}), or .safetensors with tensors `encoder.*` and metadata `dims` (JSON)"
        raise MissingError.at(path, "damaged", why) from error


def _multiplies_bfloat16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.11
    return device == "cpu" and bool(capabilities.get("amx_bf16"))


@ENCODERS.register("whisper")
class WhisperEncoder(Encoder):
    """Frozen: 50 frames per second, each (dim,).

    Radford et al. (2022). Audio longer than the checkpoint's window (30 s for the published ones) is encoded window
    by window, and the windows' frames are joined in time.

    Args:
        checkpoint: a name that openai-whisper knows (`large-v3`), or a file: `.pt` as openai-whisper ships it, or
            `.safetensors` with tensors `encoder.*` and `dims` in its metadata; or, in transformers' format, a folder
            or a hub id (`openai/whisper-large-v3`).
        window: how much silence follows a clip. `full` pads every window to the length that Whisper was trained on,
            and keeps the frames that hold audio: a clip of 3 s costs as much as one of 30 s. `longest` pads to the
            longest window of the batch only and masks the padding in attention, so that cost follows duration. No
            published Whisper was trained like that: frames of clips shorter than a window differ from those of `full`
            (the fingerprint, and with it the feature cache, tells them apart), and what that costs in quality has to
            be measured.
        dtype: of what is multiplied; weights, log-mels and what is added up stay in float32. `auto` is bfloat16 on a
            GPU or a CPU that multiplies matrices in it (AMX), and float32 elsewhere.

    Raises:
        ConfigError: `checkpoint`, `window` or `dtype` is unknown.
        MissingError: `checkpoint` is a file that is missing, damaged, or no Whisper.
    """

    reentrant = True

    def __init__(
        self, *, checkpoint: str, window: Literal["full", "longest"] = "full",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    ) -> None:  # fmt: skip
        super().__init__()
        for key, value, known in (("window", window, ("full", "longest")), ("dtype", dtype, _DTYPES)):
            if value not in known:
                why = f"no {key} is called {value!r}.{nearest(value, known)}"
                raise ConfigError.at(f"encoder.{key}", "unknown-name", why)
        self.checkpoint, self.window = checkpoint, window
        self.dtype = dtype
        self.dims = _dims(checkpoint)
        self.sample_rate, self.frame_rate = SAMPLE_RATE, SAMPLE_RATE / SAMPLES_PER_FRAME
        self.dim, self.depth = self.dims.n_audio_state, self.dims.n_audio_layer
        self.samples = self.dims.n_audio_ctx * SAMPLES_PER_FRAME  # of a window
        self.encoder: Any = None  # an AudioEncoder, once built

    def build(self) -> None:
        if self.encoder is None:
            from whisper.model import AudioEncoder  # late: it brings numba along

            self.encoder = AudioEncoder(*self.dims).eval().requires_grad_(False)

    def load(self) -> None:
        if self.loaded:
            return
        if self.checkpoint not in PUBLISHED and is_hub_checkpoint(self.checkpoint):
            path, weights = read_hub_weights(self.checkpoint)
        else:
            path = _download(self.checkpoint) if self.checkpoint in PUBLISHED else _local(self.checkpoint)
            weights = read_weights(path)
        with torch.device("meta"):  # random numbers for 635 million parameters would be drawn only to be thrown away
            self.build()
        try:
            self.encoder.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            why = f"the encoder's tensors do not fit its dims {self.dims}: {error}"
            raise MissingError.at(path, "mismatch", why) from None
        self.loaded = True

    def fingerprint(self) -> str:
        return fingerprint(self.loaded_network(), "whisper", *self.dims, self.window, *self._rounded)

    @property
    def _rounded(self) -> tuple[str, ...]:
        return ("torch.bfloat16",) if self.dtype == "bfloat16" else ()

    def unsaid_dtype(self, device: torch.device) -> torch.dtype | None:
        """See `Encoder.unsaid_dtype`: bfloat16 where `dtype` is `auto` and the device has it."""
        if self.dtype != "auto" or (self.encoder is not None and self.encoder.training):
            return None
        return torch.bfloat16 if _multiplies_bfloat16(device.type) else None

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """See `Encoder.in_float32`."""
        said = self.dtype
        self.dtype = "float32" if said == "auto" else said
        try:
            yield
        finally:
            self.dtype = said

    def forward(self, waveform: Tensor, lengths: Tensor) -> Frames:
        """See `Encoder.forward`: ceil(samples / 320) frames for a clip at 16 kHz.

        Whatever the trainer's precision: a log-mel in bfloat16 is no longer Whisper's, nor would the fingerprint tell.
        """
        return self._read_layers(waveform, lengths, (self.depth,))

    def _read_layers(self, waveform: Tensor, lengths: Tensor, layers: Sequence[int]) -> Frames:
        encoder = self.loaded_network()
        check_waveforms(waveform, lengths)
        clips = [row[:length].split(self.samples) for row, length in zip(waveform, lengths.tolist(), strict=True)]
        pieces = [piece for clip in clips for piece in clip]
        counts = [-(-len(piece) // SAMPLES_PER_FRAME) for piece in pieces]
        with torch.autocast(waveform.device.type, enabled=False):
            mels = [self._log_mel(piece) for piece in pieces]
        half = self.dtype == "bfloat16" or self.unsaid_dtype(waveform.device) is not None
        with torch.autocast(waveform.device.type, torch.bfloat16, enabled=half):
            if self.window == "full":
                x = encode_mels(encoder, torch.stack(mels), None, layers)
            else:
                x = _encode_masked(encoder, mels, counts, layers)
        frames = iter([row[:count].float() for row, count in zip(x, counts, strict=True)])
        return Frames.pad([torch.cat([next(frames) for _ in clip]) for clip in clips]).to(waveform.device)

    def output_length(self, samples: int) -> int:
        """See `Encoder.output_length`; windows are whole frames, so that it does not matter how many there are."""
        return -(-samples // SAMPLES_PER_FRAME)

    def _log_mel(self, piece: Tensor) -> Tensor:
        """(samples,) to (mels, 2 * window frames): alone, because the floor lies 8 below the loudest value given."""
        from whisper import log_mel_spectrogram

        return cast(Tensor, log_mel_spectrogram(F.pad(piece.float(), (0, self.samples - len(piece))), self.dims.n_mels))


def encode_mels(encoder: Any, mels: Tensor, real: Tensor | None, layers: Sequence[int]) -> Tensor:
    """Log-mels (windows, mels, 2 * frames) to layers side by side, (windows, frames, len(layers) * dim).

    What `whisper.model.AudioEncoder.forward` computes, unless `real` (windows, frames) masks frames in attention.
    """
    x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mels)))).transpose(1, 2)  # (windows, frames, dim)
    x = x + encoder.positional_embedding[: x.shape[1]]
    kept, blocks = {0: x}, list(encoder.blocks)
    for number, block in enumerate(blocks[: max(layers)], 1):
        if real is None:
            x = block(x)
        else:
            x = x + _attend(block.attn, block.attn_ln(x), real)
            x = x + block.mlp(block.mlp_ln(x))
        if number in layers:
            kept[number] = encoder.ln_post(x) if number == len(blocks) else x
    return side_by_side(kept, layers)


def _encode_masked(encoder: Any, mels: list[Tensor], counts: list[int], layers: Sequence[int]) -> Tensor:
    """As `encode_mels`, of log-mels (mels, 2 * window frames), each with so many real frames.

    Of each log-mel, the real frames and one frame of the silence behind them are kept (two mel frames, unless the
    window is full): that is as far as the convolutions of the last real frame see, so every real frame enters the
    Transformer as it does in a full window. What lies behind is padding that no real frame attends to.
    """
    cut = [mel[:, : 2 * count + 2] for mel, count in zip(mels, counts, strict=True)]
    longest = max(mel.shape[1] for mel in cut)
    x = torch.stack([F.pad(mel, (0, longest - mel.shape[1])) for mel in cut])
    real = torch.arange(-(-longest // 2), device=x.device) < torch.tensor(counts, device=x.device)[:, None]
    return encode_mels(encoder, x, real, layers)


def _attend(attention: Any, x: Tensor, real: Tensor) -> Tensor:
    """Whisper's self-attention over real frames only; its own module takes no other mask than a causal one."""
    parts = attention.query(x), attention.key(x), attention.value(x)
    query, key, value = (part.unflatten(-1, (attention.n_head, -1)).transpose(1, 2) for part in parts)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=real[:, None, None, :])
    return cast(Tensor, attention.out(mixed.transpose(1, 2).flatten(2)))


def _dims(checkpoint: str) -> Dims:
    if (known := PUBLISHED.get(checkpoint) or PUBLISHED.get(checkpoint.removeprefix(HUB_PREFIX))) is not None:
        return known
    return Dims(*read_sizes(checkpoint)) if is_hub_checkpoint(checkpoint) else read_dims(_local(checkpoint))


def _local(checkpoint: str) -> Path:
    path = resolve(checkpoint)
    if path.is_file():
        return path
    if path.suffix in (".pt", ".safetensors"):
        raise MissingError(f"{_KEY}: there is no file {path.absolute()}. {_REMEDY}", where=_KEY)
    why = (
        f"{checkpoint!r} is neither a file, a folder, a hub id nor a name of Whisper's.{nearest(checkpoint, PUBLISHED)}"
    )
    raise ConfigError.at(_KEY, "unknown-name", why)


def _download(name: str) -> Path:
    """Where openai-whisper keeps the checkpoint, after its own verified download."""
    import whisper

    url = whisper._MODELS[name]
    root = Path(os.getenv("XDG_CACHE_HOME", Path.home() / ".cache")) / "whisper"
    try:
        whisper._download(url, str(root), in_memory=False)
    except (OSError, HTTPException, RuntimeError, TypeError) as error:  # TypeError: an answer without a length
        raise MissingError(
            f"{_KEY}: the weights of Whisper {name} are missing. Looked for {root / Path(url).name}, "
            f"and tried to download {url} ({type(error).__name__}: {error}). {_REMEDY}",
            where=_KEY,
        ) from error
    return root / Path(url).name
