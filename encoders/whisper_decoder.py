"""Whisper's own decoder, of the checkpoint that an encoder was read from: what its frames are worth to it."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sottovoce.encoders.base import Encoder
from sottovoce.encoders.whisper import PUBLISHED, WhisperEncoder, _download, _local
from sottovoce.encoders.whisper_hub import is_hub_checkpoint
from sottovoce.errors import MissingError

SMALLEST = 51_864  # tokens of the vocabulary that openai-whisper's tokenizer has, in English alone
Transcribe = Callable[[Sequence[Tensor]], list[str]]  # waveforms (samples,) at 16 kHz -> texts


def whisper_decoder(encoder: Encoder) -> Transcribe:
    """What transcribes clips by the decoder of an encoder's checkpoint, greedily and without timestamps.

    A clip longer than Whisper's window is read window by window, and the texts are joined. The language is detected
    for each window, where the checkpoint knows others than English. Radford et al. (2022).

    Raises:
        MissingError: the encoder is no Whisper, or there is no decoder in its checkpoint, or no vocabulary that
            openai-whisper's tokenizer has.
    """
    if not isinstance(encoder, WhisperEncoder):
        raise MissingError("the encoder is no Whisper, and has no decoder", code="unavailable", where="encoder.type")
    named = encoder.checkpoint in PUBLISHED
    if not named and is_hub_checkpoint(encoder.checkpoint):
        raise MissingError(
            "of transformers' format, only the encoder is read", code="unavailable", where="encoder.checkpoint"
        )
    path = str(_download(encoder.checkpoint) if named else _local(encoder.checkpoint))
    if os.path.splitext(path)[1] != ".pt":
        raise MissingError("its checkpoint holds the encoder alone", code="unavailable", where="encoder.checkpoint")
    dims = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["dims"]
    if int(dims.get("n_vocab", 0)) < SMALLEST:
        why = f"its checkpoint has {dims.get('n_vocab', 0)} tokens, openai-whisper's tokenizer at least {SMALLEST}"
        raise MissingError(why, code="unavailable", where="encoder.checkpoint")
    import whisper

    model: Any = whisper.load_model(path, device="cpu")

    @torch.no_grad()
    def transcribe(clips: Sequence[Tensor]) -> list[str]:
        windows = [list(torch.split(clip, encoder.samples)) for clip in clips]
        padded = [F.pad(part, (0, encoder.samples - len(part))) for parts in windows for part in parts]
        device = next(encoder.parameters()).device
        mels = torch.stack([whisper.log_mel_spectrogram(part, encoder.dims.n_mels) for part in padded])
        language = None if model.is_multilingual else "en"  # without it, openai-whisper asks what it cannot tell
        options = whisper.DecodingOptions(language=language, without_timestamps=True, fp16=False)
        texts = iter([result.text.strip() for result in whisper.decode(model.to(device), mels.to(device), options)])
        return [" ".join(next(texts) for _ in parts) for parts in windows]

    return transcribe
