"""The projector of Kimi-Audio, with the table of its discrete speech tokens."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from sottovoce.adapters import ADAPTERS, Adapter
from sottovoce.audio_llm_layouts import KIMI, LAYOUTS, PUBLISHED, describe, read_shards, without_prefix
from sottovoce.errors import ConfigError
from sottovoce.frames import Frames
from sottovoce.hub import WEIGHTS, Hub
from sottovoce.speech_token_ids import DIGITS, joined_ids

_HUB = Hub("adapter", "config.json and *.safetensors", PUBLISHED)
_TABLE = "model.embed_tokens.weight"


@ADAPTERS.register("kimi_audio_projector")
class KimiAudioProjector(Adapter):
    """Whisper's frames through two linear maps, joined with the embeddings of their discrete tokens.

    Kimi team (2025), section 2, and the checkpoint's own code: (token + projected) * sqrt(2) in the audio stream, and
    the blank in the text stream. Where frames come without ids, the blank stands for each token, too. Until `load`, or
    until it is given trained weights, it is random; the embeddings are the LLM's, are never trained, and are no part of
    its state dict.

    Args:
        checkpoint: hub id or local folder of the whole model; the one of `encoder` and `llm`.

    Raises:
        ConfigError: `checkpoint` is another model, or encoder or LLM do not fit it.
        MissingError: `checkpoint` cannot be reached.
    """

    tokens: Tensor

    def __init__(self, d_audio: int, d_llm: int, *, checkpoint: str) -> None:
        super().__init__()
        config = describe(checkpoint, _HUB)
        if config.model_type != KIMI:
            raise ConfigError.at(_HUB.key, "mismatch", f"{checkpoint} is no Kimi-Audio, but a {config.model_type!r}")
        width = config.kimia_adaptor_input_dim
        if d_audio not in (width, width + DIGITS) or d_llm != config.hidden_size:
            why = f"{checkpoint} maps {width} numbers a frame to {config.hidden_size}; encoder and LLM have {d_audio} "
            raise ConfigError.at(_HUB.key, "mismatch", why + f"and {d_llm}: name the same checkpoint for all three")
        self.checkpoint, self.loaded, self.width = checkpoint, False, width
        self.first, self.blank, count = config.kimia_token_offset, config.blank_id, config.speech_tokens
        self.layers = nn.Sequential(
            nn.Linear(width, d_llm), nn.SiLU(), nn.Identity(), nn.Linear(d_llm, d_llm),
            nn.LayerNorm(d_llm, eps=config.rms_norm_eps),
        )  # fmt: skip  # numbered as in the checkpoint, which has a dropout of 0 there
        self.register_buffer("tokens", torch.zeros(count + 1, d_llm), persistent=False)  # the last row is the blank's
        after_loading: Any = self.register_load_state_dict_post_hook
        after_loading(_set_loaded)
        self._has_tokens = False

    def load(self) -> None:
        """Take the checkpoint's weights, unless some have been given; `MissingError` if they do not fit. Idempotent."""
        if self.loaded and self._has_tokens:
            return
        folder = _HUB.snapshot(self.checkpoint, ("*.json", *WEIGHTS))
        prefix = LAYOUTS[KIMI].projector
        try:
            if not self.loaded:
                self.layers.load_state_dict(read_shards(folder, without_prefix(prefix), _HUB))
            table = read_shards(folder, lambda name: name if name == _TABLE else None, _HUB)[_TABLE]
            rows = torch.cat([table[self.first :], table[self.blank : self.blank + 1]])
            self.tokens = rows.to(self.tokens.device, copy=True)  # in the checkpoint's own dtype
        except KeyError:
            raise _HUB.missing(self.checkpoint, f"{folder} lacks {_TABLE}") from None
        except RuntimeError as error:
            why = f"{folder}: {prefix}* do not fit encoder and LLM: {' '.join(str(error).split())}"
            raise _HUB.missing(self.checkpoint, why) from None
        self.loaded = self._has_tokens = True

    def forward(self, frames: Frames) -> Frames:
        blank = self.tokens[-1].float()
        digits = frames.x[..., self.width :]
        known = digits.shape[-1] == DIGITS
        spoken = self.tokens[joined_ids(digits)].float() if known else blank.expand(*frames.x.shape[:-1], -1)
        projected = self.layers(frames.x[..., : self.width])
        return Frames((spoken + projected) * math.sqrt(2) + blank, frames.lengths)

    def native_weights(self) -> dict[str, Tensor]:
        """The weights by the names that they have in the checkpoint's files."""
        return {LAYOUTS[KIMI].projector + name: weight for name, weight in self.layers.state_dict().items()}


def _set_loaded(module: Any, _: object) -> None:
    module.loaded = True
