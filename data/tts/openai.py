"""Speech of any server that speaks OpenAI's API for it (POST {base_url}/audio/speech)."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from sottovoce.data.tts import SYNTHESIZERS
from sottovoce.data.tts.base import Labels, NotSpoken, Synthesizer, digest
from sottovoce.errors import nearest
from sottovoce.openai_client import CircuitBreaker, Failure, OpenAIClient


@SYNTHESIZERS.register("openai_speech")
class OpenAISpeech(Synthesizer):
    """A server with OpenAI's speech API; its voices go by name, its manner of speaking by instructions in words.

    A text that fails costs that clip alone; after 8 in a row that ran out of attempts the rest is not sent. The seed is
    not sent either: the API has none.

    Args:
        base_url: of the API, such as http://localhost:8000/v1.
        model: as the server calls it.
        api_key_env: see `OpenAIClient`, as `timeout` and `retries`.
        instructions: attribute -> label -> how the voice is to speak; nothing is sent for a label without.
        known_as: what the names of clips call this synthesizer; model and `base_url` where absent. With it the clips
            outlive a change of host or port.
        sample_rate: of the clips in Hz; what comes at another one is resampled.

    Raises:
        ConfigError: a knob makes no sense.
        MissingError: the environment variable is not set.
    """

    in_threads = True

    def __init__(
        self, *, base_url: str, model: str, instructions: dict[str, dict[str, str]] | None = None,
        api_key_env: str | None = None, known_as: str | None = None, sample_rate: int = 24000, timeout: float = 120.0,
        retries: int = 4,
    ) -> None:  # fmt: skip
        self._client = OpenAIClient(
            "synthesizer openai_speech",
            base_url=base_url, model=model, api_key_env=api_key_env, timeout=timeout, retries=retries,
        )  # fmt: skip
        self.instructions, self.sample_rate = instructions or {}, sample_rate
        self.name = f"{known_as or f'{model}@{self._client.base_url}'}:{digest(self.instructions, sample_rate)}"
        self._breaker = CircuitBreaker()

    def speak(self, text: str, *, attribute: str, label: str, voice: str, seed: int) -> NDArray[np.float32]:
        body: dict[str, Any] = {"input": text, "voice": voice, "response_format": "wav"}
        if instructions := self.instructions.get(attribute, {}).get(label):
            body["instructions"] = instructions
        audio = self._client.request("audio/speech", body, self._decode, self._breaker)
        if isinstance(audio, Failure):
            raise NotSpoken(audio.reason, code="unavailable")
        return audio

    def faults(self, labels: Labels, voices: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
        """Instructions for what will not be asked for: mostly a slip of the pen."""
        return [
            f"instructions.{attribute}: unknown label {label!r}.{nearest(label, labels.get(attribute, ()))}"
            for attribute, by in self.instructions.items()
            for label in by
            if label not in labels.get(attribute, ())
        ]

    def _decode(self, body: bytes) -> NDArray[np.float32]:
        """A response as (samples,) at `sample_rate`."""
        try:
            audio, rate_hz = soundfile.read(io.BytesIO(body), dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, ValueError):
            raise ValueError("what came back is no audio") from None
        return np.asarray(soxr.resample(audio.mean(1), rate_hz, self.sample_rate), np.float32)
