"""Speech encoders: waveforms to frames."""

from typing import TYPE_CHECKING

from sottovoce.registry import Registry, lazy_attributes

if TYPE_CHECKING:
    from sottovoce.encoders.base import Encoder

ENCODERS: "Registry[Encoder]" = Registry(
    "encoder",
    {
        "conformer": "sottovoce.encoders.conformer",
        "hf": "sottovoce.encoders.hf",
        "hf_conformer": "sottovoce.encoders.hf",
        "kimi_audio": "sottovoce.encoders.kimi_audio",
        "qwen2_audio": "sottovoce.encoders.qwen_audio",
        "qwen2_5_omni": "sottovoce.encoders.qwen_audio",
        "whisper": "sottovoce.encoders.whisper",
    },
)
__all__ = ["ENCODERS", "Encoder"]
__getattr__ = lazy_attributes(__name__, {"Encoder": "base"})
