"""Whisper listens, fifty frames a second; the half of it that writes is left out."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
import whisper
from safetensors import safe_open
from torch import Tensor
from whisper.model import AudioEncoder

from sottovoce.encoders import ENCODERS
from sottovoce.encoders.base import Encoder, fingerprint
from sottovoce.encoders.log_mel import check_clips
from sottovoce.errors import ConfigError, MissingError, nearest
from sottovoce.frames import Frames
from sottovoce.paths import resolve

SAMPLE_RATE = 16_000  # Hz
SAMPLES_PER_FRAME = 320  # 20 ms: two log-mel frames of 10 ms
_ENCODER = "encoder."  # how the names of the encoder's half begin in a checkpoint
_REMEDY = "Point at a local copy: encoder.checkpoint=/path/to/large-v3.pt. conf/quickstart.yaml runs without any"


class Dims(NamedTuple):
    """The numbers of an encoder, in the order in which `whisper.model.AudioEncoder` takes them."""

    n_mels: int
    n_audio_ctx: int  # frames in a window
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int


# Radford et al. (2022), table 1; large-v3 and turbo (whose decoder alone is smaller) hear 128 mel bins.
_TINY, _BASE, _SMALL = Dims(80, 1500, 384, 6, 4), Dims(80, 1500, 512, 8, 6), Dims(80, 1500, 768, 12, 12)
_MEDIUM, _LARGE, _LARGE_V3 = Dims(80, 1500, 1024, 16, 24), Dims(80, 1500, 1280, 20, 32), Dims(128, 1500, 1280, 20, 32)
PUBLISHED = {
    "tiny.en": _TINY, "tiny": _TINY, "base.en": _BASE, "base": _BASE, "small.en": _SMALL, "small": _SMALL,
    "medium.en": _MEDIUM, "medium": _MEDIUM, "large-v1": _LARGE, "large-v2": _LARGE, "large-v3": _LARGE_V3,
    "large": _LARGE_V3, "large-v3-turbo": _LARGE_V3, "turbo": _LARGE_V3,
}  # fmt: skip


def read_dims(path: Path) -> Dims:
    """The encoder's numbers from a `.pt` or `.safetensors` file; `MissingError` where it is damaged or no Whisper."""
    with _reading(path):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                told: dict[str, Any] = json.loads(file.metadata()["dims"])
        else:
            told = _torch_file(path)["dims"]
        dims = Dims(*(int(told[name]) for name in Dims._fields))
    if dims.n_mels not in (80, 128) or min(dims) < 1 or dims.n_audio_state % dims.n_audio_head:
        raise MissingError(f"{path}: {dims} is no Whisper: it hears 80 or 128 mel bins, and its heads divide its state")
    return dims


def read_weights(path: Path) -> dict[str, Tensor]:
    """The encoder's tensors by name, float32; the decoder's are never read. `MissingError` as in `read_dims`."""
    with _reading(path):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                weights = {name: file.get_tensor(name) for name in file.keys() if name.startswith(_ENCODER)}
        else:
            state: dict[str, Tensor] = _torch_file(path)["model_state_dict"]
            weights = {name: value for name, value in state.items() if name.startswith(_ENCODER)}
        # a copy, since the tensors of a mapped file change when somebody writes over the file
        return {name.removeprefix(_ENCODER): value.to(torch.float32, copy=True) for name, value in weights.items()}


def _torch_file(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong in a file that is not ours becomes one message about that file."""
    try:
        yield
    except Exception as error:  # pickle, zip, JSON and safetensors each have errors of their own
        raise MissingError(
            f"{path}: damaged, or not a Whisper checkpoint ({type(error).__name__}). Expected openai-whisper's .pt "
            "({'dims', 'model_state_dict'}), or .safetensors with tensors `encoder.*` and metadata `dims` (JSON)"
        ) from error


@ENCODERS.register("whisper")
class WhisperEncoder(Encoder):
    """The encoder of Whisper, frozen, in float32: 50 frames per second, each (dim,).

    Radford et al. (2022). Audio longer than the checkpoint's window (30 s for the published ones) is encoded window
    by window, and the windows' frames are joined in time.

    Args:
        checkpoint: a name that openai-whisper knows (`large-v3`), or a file: `.pt` as openai-whisper ships it, or
            `.safetensors` with tensors `encoder.*` and `dims` in its metadata.
        window: `full` pads every window with silence to the length that Whisper was trained on, and keeps the frames
            that hold audio. `longest` pads only to the longest window of the batch and hides the padding from
            attention: cheaper for short clips, but not what Whisper was trained on, so its frames differ from those
            of `full` and its cost in quality has to be measured.

    Raises:
        ConfigError: `checkpoint` or `window` is unknown.
        MissingError: `checkpoint` is a file that is missing, damaged, or no Whisper.
    """

    def __init__(self, *, checkpoint: str, window: Literal["full", "longest"] = "full") -> None:
        super().__init__()
        if window not in ("full", "longest"):
            raise ConfigError(f"encoder.window is {window!r}.{nearest(window, ('full', 'longest'))}")
        self.checkpoint, self.window = checkpoint, window
        self.dims = PUBLISHED[checkpoint] if checkpoint in PUBLISHED else read_dims(_local(checkpoint))
        self.sample_rate, self.frame_rate = SAMPLE_RATE, SAMPLE_RATE / SAMPLES_PER_FRAME
        self.dim = self.dims.n_audio_state
        self.samples = self.dims.n_audio_ctx * SAMPLES_PER_FRAME  # of a window
        self.encoder: Any = None  # an AudioEncoder, once built

    def build(self) -> None:
        """Build the network without its weights, on the current device (`meta` costs nothing). Idempotent."""
        if self.encoder is None:
            self.encoder = AudioEncoder(*self.dims).eval().requires_grad_(False)

    def load(self) -> None:
        """Build the network and give it its weights. Idempotent.

        Raises:
            MissingError: the weights cannot be reached or do not fit.
        """
        if self.loaded:
            return
        path = _published(self.checkpoint) if self.checkpoint in PUBLISHED else _local(self.checkpoint)
        weights = read_weights(path)
        with torch.device("meta"):  # random numbers for 635 million parameters would be drawn only to be thrown away
            self.build()
        try:
            self.encoder.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise MissingError(f"{path}: the encoder's tensors do not fit its dims {self.dims}: {error}") from None
        self.loaded = True

    def fingerprint(self) -> str:
        """SHA-256 of dims, window and every tensor; reads all weights each time, so that a change shows.

        Raises:
            RuntimeError: the weights are not loaded.
        """
        return fingerprint(self._ready(), "whisper", *self.dims, self.window)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Frames:
        """Map (batch, samples) at 16 kHz in [-1, 1] to (batch, frames, dim), ceil(samples / 320) frames a clip.

        Always in float32, autocast or not: a log-mel in bfloat16 is no longer Whisper's, and the fingerprint would
        not tell.

        Raises:
            RuntimeError: the weights are not loaded.
            ValueError: a clip is empty, or shapes do not fit; the message names the row.
        """
        encoder = self._ready()
        check_clips(waveform, lengths)
        clips = [row[:length].split(self.samples) for row, length in zip(waveform, lengths.tolist(), strict=True)]
        pieces = [piece for clip in clips for piece in clip]
        counts = [-(-len(piece) // SAMPLES_PER_FRAME) for piece in pieces]
        with torch.autocast(waveform.device.type, enabled=False):
            mels = [self._log_mel(piece) for piece in pieces]
            x = encoder(torch.stack(mels)) if self.window == "full" else _encode_masked(encoder, mels, counts)
        kept = iter([row[:count].float() for row, count in zip(x, counts, strict=True)])
        return Frames.pad([torch.cat([next(kept) for _ in clip]) for clip in clips]).to(waveform.device)

    def _log_mel(self, piece: Tensor) -> Tensor:
        """(samples,) to (mels, 2 * window frames): alone, because the floor lies 8 below the loudest value given."""
        padded = F.pad(piece.float(), (0, self.samples - len(piece)))
        return cast(Tensor, whisper.log_mel_spectrogram(padded, self.dims.n_mels))

    def _ready(self) -> Any:
        if self.loaded:
            return self.encoder
        raise RuntimeError(f"Whisper {self.checkpoint} has no weights yet: call load() first")


def _encode_masked(encoder: Any, mels: list[Tensor], counts: list[int]) -> Tensor:
    """Log-mels of whole windows and how many frames of each are real, to (windows, frames, dim).

    Of each log-mel, the real frames and one frame of the silence behind them are kept (two mel frames, unless the
    window is full): that is as far as the convolutions of the last real frame see, so every real frame enters the
    Transformer as it does in a full window. What lies behind is padding that no real frame can reach.
    """
    near = [mel[:, : 2 * count + 2] for mel, count in zip(mels, counts, strict=True)]
    longest = max(mel.shape[1] for mel in near)
    x = torch.stack([F.pad(mel, (0, longest - mel.shape[1])) for mel in near])
    x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(x)))).transpose(1, 2)  # (windows, frames, dim)
    x = x + encoder.positional_embedding[: x.shape[1]]
    real = torch.arange(x.shape[1], device=x.device) < torch.tensor(counts, device=x.device)[:, None]
    for block in encoder.blocks:
        x = x + _attend(block.attn, block.attn_ln(x), real)
        x = x + block.mlp(block.mlp_ln(x))
    return cast(Tensor, encoder.ln_post(x))


def _attend(attention: Any, x: Tensor, real: Tensor) -> Tensor:
    """Whisper's self-attention over real frames only; its own module takes no other mask than a causal one."""
    parts = attention.query(x), attention.key(x), attention.value(x)
    query, key, value = (part.unflatten(-1, (attention.n_head, -1)).transpose(1, 2) for part in parts)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=real[:, None, None, :])
    return cast(Tensor, attention.out(mixed.transpose(1, 2).flatten(2)))


def _local(checkpoint: str) -> Path:
    path = resolve(checkpoint)
    if path.is_file():
        return path
    if path.suffix in (".pt", ".safetensors"):
        raise MissingError(f"encoder.checkpoint: there is no file {path.absolute()}. {_REMEDY}")
    raise ConfigError(
        f"encoder.checkpoint: {checkpoint!r} is neither a file nor a name of Whisper's.{nearest(checkpoint, PUBLISHED)}"
    )


def _published(name: str) -> Path:
    """Where openai-whisper keeps the checkpoint, after its own verified download."""
    url = whisper._MODELS[name]
    root = Path(os.getenv("XDG_CACHE_HOME", Path.home() / ".cache")) / "whisper"
    try:
        whisper._download(url, str(root), in_memory=False)
    except (OSError, HTTPException, RuntimeError, TypeError) as error:  # TypeError: an answer without a length
        raise MissingError(
            f"encoder.checkpoint: the weights of Whisper {name} are missing. Looked for {root / Path(url).name}, "
            f"and tried to download {url} ({type(error).__name__}: {error}). {_REMEDY}"
        ) from error
    return root / Path(url).name
