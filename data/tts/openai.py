"""Speech of any server that speaks OpenAI's API for it (POST {base_url}/audio/speech)."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from sottovoce.data.tts import SYNTHESIZERS
from sottovoce.data.tts.base import Labels, NotSpoken, Synthesizer, digest
from sottovoce.errors import nearest
from sottovoce.openai_client import CircuitBreaker, Failure, Retryable, Server


@SYNTHESIZERS.register("openai_speech")
class OpenAISpeech(Synthesizer):
    """A server with OpenAI's speech API; its voices go by name, its manner of speaking by instructions in words.

    What one text fails on costs that clip alone, once no attempt is left; after 8 in a row the rest is not asked. A
    refused key or an unknown model is told at once. The seed is not sent: the API has none.

    Args:
        base_url: of the API, such as http://localhost:8000/v1.
        model: as the server calls it.
        instructions: attribute -> label -> how the voice is to speak; nothing is sent for a label without.
        api_key_env: the environment variable that holds the key; None for a server without one. The key itself is
            never kept in a file, written or shown.
        known_as: what the names of clips call this synthesizer; model and `base_url` where absent. With it the clips
            outlive a change of host or port.
        format: asked for; `pcm` is 16 bits, little-endian, one channel, at `sample_rate`.
        sample_rate: of the clips in Hz; what comes at another one is resampled.
        timeout: seconds that one attempt may take.
        retries: attempts after the first.
        backoff: seconds before the second attempt at most; doubled for each further one.

    Raises:
        ConfigError: a knob makes no sense.
        MissingError: the environment variable is not set.
    """

    in_threads = True

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        instructions: dict[str, dict[str, str]] | None = None,
        api_key_env: str | None = None,
        known_as: str | None = None,
        format: Literal["wav", "flac", "pcm"] = "wav",
        sample_rate: int = 24000,
        timeout: float = 120.0,
        retries: int = 4,
        backoff: float = 1.0,
    ) -> None:
        self._server = Server(
            "synthesizer openai_speech",
            "audio/speech",
            base_url=base_url,
            model=model,
            api_key_env=api_key_env,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
        )
        self.instructions, self.format, self.sample_rate = instructions or {}, format, sample_rate
        self.name = f"{known_as or f'{model}@{self._server.base_url}'}:{digest(self.instructions, sample_rate)}"
        self._patience = CircuitBreaker()

    def speak(self, text: str, *, attribute: str, label: str, voice: str, seed: int) -> NDArray[np.float32]:
        """See `Synthesizer`."""
        body: dict[str, Any] = {"input": text, "voice": voice, "response_format": self.format}
        if manner := self.instructions.get(attribute, {}).get(label):
            body["instructions"] = manner
        said = self._server.ask(body, self._decoded, self._patience)
        if isinstance(said, Failure):
            raise NotSpoken(said.reason)
        return said

    def faults(self, labels: Labels, voices: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
        """Instructions for what will not be asked for: mostly a slip of the pen."""
        return [
            f"instructions.{attribute}: unknown label {label!r}.{nearest(label, labels.get(attribute, ()))}"
            for attribute, by in self.instructions.items()
            for label in by
            if label not in labels.get(attribute, ())
        ]

    def _decoded(self, body: bytes) -> NDArray[np.float32] | Failure | Retryable:
        try:
            if self.format == "pcm":
                return np.frombuffer(body, "<i2").astype(np.float32) / np.float32(32768)
            audio, rate_hz = soundfile.read(io.BytesIO(body), dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, ValueError):
            return Retryable("what came back is no audio")
        return np.asarray(soxr.resample(audio.mean(1), rate_hz, self.sample_rate), np.float32)
