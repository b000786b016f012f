"""Audio as callers have it: a file, an array or tensor with its sample rate, or a mapping as `datasets` gives."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sottovoce.data.audio import checked_samples, load_audio
from sottovoce.data.audio_decoder import read_header
from sottovoce.errors import AudioError

Audio: TypeAlias = str | Path | NDArray[Any] | Tensor | Mapping[str, Any]
Batch: TypeAlias = list[Audio] | tuple[Audio, ...]


def is_batch(audio: Audio | Sequence[Audio]) -> TypeGuard[Batch]:
    """Whether this is several clips: a list or tuple of them."""
    return isinstance(audio, (list, tuple))


def waveform(audio: Audio, sample_rate: int, given: int | None = None, *, max_seconds: float | None = None) -> Tensor:
    """A clip as (samples,) in float32 at `sample_rate` Hz.

    Args:
        audio: a file of any format, rate and number of channels; or (samples,), floats of full scale 1 or signed
            integers of their type's full scale; or a mapping with `array` and `sampling_rate`.
        sample_rate: what the encoder hears, Hz.
        given: the sample rate of an array, Hz.
        max_seconds: the longest clip.

    Raises:
        AudioError: the clip cannot be used, see `data.audio.load_audio`; an array without its rate, or of a shape or
            type that is no clip's.
    """
    if isinstance(audio, (str, Path)):
        return torch.from_numpy(load_audio(audio_file(audio, max_seconds), sample_rate))
    if isinstance(audio, Mapping):
        if "array" not in audio or "sampling_rate" not in audio:
            why = f"a mapping needs `array` and `sampling_rate`, found {', '.join(map(str, audio)) or 'nothing'}"
            raise AudioError.at("audio", "missing-key", why)
        clip: Mapping[str, Any] = audio
        audio, given = clip["array"], int(clip["sampling_rate"])
    if not hasattr(audio, "__array__") and not isinstance(audio, list):
        why = f"a clip is a file's name, an array or a mapping with `array` and `sampling_rate`, found {_kind(audio)}"
        raise AudioError.at("audio", "bad-value", why)
    if given is None:
        raise AudioError.at("sample_rate", "missing-key", "an array does not know its sample rate: sample_rate=16000")
    samples = checked_samples(_mono(audio), given, sample_rate)
    if max_seconds is not None and len(samples) > max_seconds * sample_rate:
        raise _too_long("audio", len(samples) / sample_rate, max_seconds)
    return torch.from_numpy(samples)


def audio_file(name: str | Path, max_seconds: float | None = None) -> Path:
    """A file's path, with `~` as the home folder; an AudioError for a folder, or a clip that is too long."""
    path = Path(name).expanduser()
    if path.is_dir():
        why = "it is a folder: name a file of it, or let `sottovoce predict` answer all of them"
        raise AudioError.at(path, "bad-value", why)
    if max_seconds is not None:
        try:
            seconds = read_header(path).seconds  # before the whole clip takes memory
        except AudioError as error:
            raise AudioError.at(path, error.code, error) from None
        if seconds > max_seconds:
            raise _too_long(path, seconds, max_seconds)
    return path


def _too_long(where: object, seconds: float, most: float) -> AudioError:
    return AudioError.at(where, "bad-value", f"{seconds:.1f} s is longer than data.max_seconds={most:g}")


def _kind(audio: object) -> str:
    return f"a {type(audio).__name__}" + (
        "; of (rate, samples), give sample_rate=rate" if isinstance(audio, tuple) else ""
    )


def _mono(audio: Any) -> NDArray[np.float32]:
    if isinstance(audio, Tensor):
        audio = audio.detach().cpu()
        audio = audio.float() if audio.is_floating_point() else audio  # NumPy has no bfloat16
    samples = np.asarray(audio)
    if samples.ndim == 2 and 1 in samples.shape:  # as torchaudio gives one channel
        samples = samples.reshape(-1)
    if samples.ndim != 1:
        why = f"its shape is {samples.shape}; a clip is (samples,), several are a list of clips"
        raise AudioError.at("audio", "bad-value", f"{why}, and of several channels take one or their mean")
    if np.issubdtype(samples.dtype, np.signedinteger):
        return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)
    if not np.issubdtype(samples.dtype, np.floating):
        raise AudioError.at("audio", "bad-value", f"samples are floats or signed integers, found {samples.dtype}")
    return samples.astype(np.float32)
