"""Kimi-Audio's configuration: transformers has no class for it, and the checkpoint's own code is not run.

Kimi team (2025), sections 2 and 5; the names are those of the checkpoint's config.json. Importing this module makes
the model type known to transformers.
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, Qwen2Config, WhisperConfig

WHISPER = "whisper-large-v3"  # folder of the audio encoder, in the checkpoint's
CONTROL = (  # special tokens right after the `num_base_tokens` of text; most of the others are reserved
    "[BOS]", "[EOS]", "<|im_msg_end|>", "<|im_user_msg_start|>", "<|im_assistant_msg_start|>",
    *(f"<|reserved_token_{i}|>" for i in range(4)), "[EOT]", *(f"<|reserved_token_{i}|>" for i in range(4, 12)),
    "<|im_media_begin|>", "<|reserved_token_12|>", "<|im_media_end|>", "<|reserved_token_13|>",
    "<|reserved_token_14|>", "<|im_kimia_text_blank|>", "<|im_kimia_text_eos|>", "<|reserved_token_15|>",
    "<|reserved_token_16|>", "<|im_kimia_user_msg_start|>", "<|im_kimia_assistant_msg_start|>",
    "<|reserved_token_17|>", "<|reserved_token_18|>", "<|reserved_token_19|>", "<|im_kimia_speech_ct_id|>",
    "<|im_kimia_speech_ctd_id|>",
)  # fmt: skip
_SPECIALS = 293 + 128
SPECIALS = (*CONTROL, *(f"<|reserved_token_{i}|>" for i in range(20, 20 + _SPECIALS - len(CONTROL))))


class KimiAudioConfig(Qwen2Config):
    """config.json of Kimi-Audio: a Qwen2 whose vocabulary goes on with speech tokens at `kimia_token_offset`.

    The model reads two tokens at each position, one of an audio stream and one of a text stream, and adds their
    embeddings; where a stream has nothing to say it has the blank.

    Attributes:
        audio_config: of the Whisper whose encoder it hears with.
    """

    model_type = "moonshot_kimia"
    kimia_token_offset: int = 152064
    num_base_tokens: int = 151643
    kimia_adaptor_input_dim: int = 5120  # four frames of Whisper's
    audio_config: WhisperConfig | dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.audio_config, dict):
            self.audio_config = WhisperConfig(**self.audio_config)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    @property
    def blank_id(self) -> int:
        """The token that stands where a stream is silent."""
        return self.num_base_tokens + CONTROL.index("<|im_kimia_text_blank|>")

    @property
    def speech_tokens(self) -> int:
        """How many tokens the vocabulary has for speech."""
        return self.vocab_size - self.kimia_token_offset

    @classmethod
    def read(cls, folder: Path, fields: dict[str, Any]) -> "KimiAudioConfig":
        """The configuration with these fields of a folder's config.json; `OSError` where Whisper's is not there."""
        known = {key: value for key, value in fields.items() if key not in ("model_type", "auto_map")}
        known["audio_config"] = WhisperConfig.from_pretrained(folder / WHISPER, local_files_only=True)
        return cls(**known)


AutoConfig.register(KimiAudioConfig.model_type, KimiAudioConfig)
