"""Text to speech: eSpeak NG, OpenAI-compatible servers, voice effects."""

from sottovoce.data.tts import espeak_voices, openai
from sottovoce.data.tts.base import SYNTHESIZERS, Synthesizer

__all__ = ["SYNTHESIZERS", "Synthesizer", "espeak_voices", "openai"]
