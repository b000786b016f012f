"""Text to speech: eSpeak NG, neural voices, OpenAI-compatible servers, voice effects."""

from typing import TYPE_CHECKING

from sottovoce.registry import Registry, lazy_attributes

if TYPE_CHECKING:
    from sottovoce.data.tts.base import Synthesizer

SYNTHESIZERS: "Registry[Synthesizer]" = Registry(
    "synthesizer",
    {
        "espeak": "sottovoce.data.tts.espeak_voices",
        "openai_speech": "sottovoce.data.tts.openai",
        **dict.fromkeys(("hibari", "kokoro", "piper"), "sottovoce.data.tts.neural"),
    },
)
__all__ = ["SYNTHESIZERS", "Synthesizer"]
__getattr__ = lazy_attributes(__name__, {"Synthesizer": "base"})
