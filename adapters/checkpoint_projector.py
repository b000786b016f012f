"""The projector that an audio LLM's checkpoint was trained with."""

from pathlib import Path

from torch import Tensor, nn

from sottovoce.adapters import ADAPTERS, Adapter
from sottovoce.audio_llm_layouts import KIMI, LAYOUTS, PUBLISHED, describe, read_config, read_shards, without_prefix
from sottovoce.errors import ConfigError
from sottovoce.frames import Frames
from sottovoce.hub import WEIGHTS, Hub

_HUB = Hub("adapter", "config.json and *.safetensors", PUBLISHED)


@ADAPTERS.register("checkpoint_projector")
class CheckpointProjector(Adapter):
    """One linear map, frame by frame, that starts with its checkpoint's weights.

    Qwen2-Audio keeps it as `multi_modal_projector`, Qwen2.5-Omni as the last layer of its audio tower; the encoders
    `qwen2_audio` and `qwen2_5_omni` end before it. Until `load`, or until it is given trained weights, it is random.

    Args:
        checkpoint: hub id or local folder of the whole model; the one of `encoder` and `llm`.

    Raises:
        ConfigError: `checkpoint` is no audio LLM that is known here.
        MissingError: `checkpoint` cannot be reached.
    """

    pretrained = True

    def __init__(self, d_audio: int, d_llm: int, *, checkpoint: str) -> None:
        super().__init__()
        if describe(checkpoint, _HUB).model_type == KIMI:
            raise ConfigError.at(_HUB.key, "mismatch", f"{checkpoint} needs adapter.type=kimi_audio_projector")
        self.checkpoint, self.loaded = checkpoint, False
        self.linear = nn.Linear(d_audio, d_llm)
        self.register_load_state_dict_post_hook(_set_loaded)  # type: ignore[no-untyped-call]

    def load(self) -> None:
        """Take the checkpoint's weights, unless some have been given; `MissingError` if they do not fit. Idempotent."""
        if self.loaded:
            return
        folder = _HUB.snapshot(self.checkpoint, ("*.json", *WEIGHTS))
        prefix = _prefix(folder)
        try:
            self.linear.load_state_dict(read_shards(folder, without_prefix(prefix), _HUB))
        except RuntimeError as error:
            why = f"{folder}: {prefix}* do not fit encoder and LLM: {' '.join(str(error).split())}"
            raise _HUB.missing(self.checkpoint, why) from None
        self.loaded = True

    def native_weights(self) -> dict[str, Tensor]:
        """The weights by the names that they have in the checkpoint's files."""
        prefix = _prefix(_HUB.snapshot(self.checkpoint, ("*.json",)))
        return {prefix + name: weight for name, weight in self.linear.state_dict().items()}

    def forward(self, frames: Frames) -> Frames:
        return Frames(self.linear(frames.x), frames.lengths)


def _prefix(folder: Path) -> str:
    """By the folder's own files: a published Omni is described by its thinker alone."""
    return LAYOUTS[read_config(folder, _HUB).model_type].projector


def _set_loaded(module: nn.Module, _: object) -> None:
    module.loaded = True  # type: ignore[assignment]
