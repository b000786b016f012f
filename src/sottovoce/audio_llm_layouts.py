"""Finished audio LLMs, taken apart: where in their own checkpoints tower, projector and text model lie."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from sottovoce.errors import ConfigError, nearest
from sottovoce.hub import Hub, first_line
from sottovoce.paths import resolve

# What a folder must hold to be opened; weights are safetensors, in one file or in shards.
SETTINGS, WEIGHTS = ("*.json", "*.txt", "*.jinja"), ("*.safetensors",)


class Layout(NamedTuple):
    """How the names of a checkpoint's tensors begin.

    The projector is the one linear map from the tower's frames into the LLM's space. In Qwen2-Audio it stands apart;
    Qwen2.5-Omni counts it as the tower's last layer.
    """

    tower: str
    projector: str
    text: dict[str, str]  # in the files -> in a causal LM of its own


_AUDIO = Layout(
    "audio_tower.",
    "multi_modal_projector.linear.",
    {"language_model.model.": "model.", "language_model.lm_head.": "lm_head."},
)
_THINKER = Layout("audio_tower.", "audio_tower.proj.", {"model.": "model.", "lm_head.": "lm_head."})
_WHOLE_OMNI = Layout(  # beside the thinker there are a talker and what turns its codes into sound
    "thinker.audio_tower.",
    "thinker.audio_tower.proj.",
    {"thinker.model.": "model.", "thinker.lm_head.": "lm_head."},
)
LAYOUTS = {"qwen2_audio": _AUDIO, "qwen2_5_omni_thinker": _THINKER, "qwen2_5_omni": _WHOLE_OMNI}

# For dry runs; weights always come with their own configuration. Fields that are left out have transformers' default,
# which for both towers (and for the text model of Omni) is what was published with them: Chu et al. (2024), Xu et al.
# (2025), and the config.json of the checkpoints.
_QWEN2_AUDIO = {
    "model_type": "qwen2_audio",
    "text_config": {
        "model_type": "qwen2",
        "vocab_size": 156032,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
}
_OMNI_7B = {
    "model_type": "qwen2_5_omni_thinker",
    "text_config": {
        "model_type": "qwen2_5_omni_text",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "tie_word_embeddings": False,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2-Audio-7B": _QWEN2_AUDIO,
    "Qwen/Qwen2-Audio-7B-Instruct": _QWEN2_AUDIO,
    "Qwen/Qwen2.5-Omni-7B": _OMNI_7B,
}


def describe(checkpoint: str, hub: Hub) -> Any:
    """The whole configuration of a finished audio LLM. A published one needs no network, unless a folder is there.

    Raises:
        ConfigError: it is something else.
        MissingError: there is nothing, or its config.json is damaged.
    """
    if checkpoint in PUBLISHED and not resolve(checkpoint).is_dir():
        fields = dict(PUBLISHED[checkpoint])
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    return read_config(hub.snapshot(checkpoint, SETTINGS), hub)


def read_config(folder: Path, hub: Hub) -> Any:
    """What a folder's own config.json says; see `describe`."""
    where = f"{hub.part.lower()}.checkpoint: {folder}"
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except OSError as error:
        raise hub.missing(str(folder), first_line(error)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where}: {first_line(error)}") from None
    if config.model_type not in LAYOUTS:
        raise ConfigError(
            f"{where}: it is no finished audio LLM that is known here, but a {config.model_type!r}."
            f"{nearest(config.model_type, LAYOUTS)}"
        )
    return config


def listening(config: PreTrainedConfig) -> Any:
    """The part of a configuration that has `audio_config` and `text_config`."""
    return getattr(config, "thinker_config", config)


def tensors(folder: Path, wanted: Callable[[str], str | None], hub: Hub) -> dict[str, Tensor]:
    """The tensors that `wanted` gives a new name to, by that name; the files' others are never read.

    Raises:
        MissingError: a file is missing or damaged.
    """
    found: dict[str, Tensor] = {}
    for file in shards(folder):
        try:
            with safe_open(file, "pt") as shard:
                found |= {new: shard.get_tensor(name) for name in shard.keys() if (new := wanted(name))}
        except (SafetensorError, OSError) as error:
            raise hub.missing(str(folder), f"{file.name}: {first_line(error)}") from None
    return found


def shards(folder: Path) -> Iterator[Path]:
    """The files of a checkpoint's weights, in their order."""
    return iter(sorted(folder.glob("*.safetensors")))


def under(prefix: str, without: str = "\0") -> Callable[[str], str | None]:
    """For `tensors`: what begins with `prefix`, without it; what begins with `without` is left out."""
    return lambda name: name.removeprefix(prefix) if name.startswith(prefix) and not name.startswith(without) else None


def of_text(layout: Layout) -> Callable[[str], str | None]:
    """For `tensors`: the text model's, named as in a causal LM."""

    def renamed(name: str) -> str | None:
        for old, new in layout.text.items():
            if name.startswith(old):
                return new + name.removeprefix(old)
        return None

    return renamed
