"""Audio LLMs with native checkpoints: where audio encoder, projector and text model lie in their files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sottovoce.errors import ConfigError, first_line, nearest
from sottovoce.hub import WEIGHTS, Hub

if TYPE_CHECKING:
    from torch import Tensor


class Layout(NamedTuple):
    """Prefixes of a checkpoint's tensor names; `text` stands before `model.` and `lm_head.` of a causal LM.

    The projector is the one linear map from the encoder's frames into the LLM's space. In Qwen2-Audio it stands apart;
    Qwen2.5-Omni counts it as the encoder's last layer.
    """

    tower: str
    projector: str
    text: str


CAUSAL_LM = ("model.", "lm_head.")  # what the names of a causal LM's tensors begin with

LAYOUTS = {  # by model type; beside the thinker, the whole Omni has a talker and a vocoder
    "qwen2_audio": Layout("audio_tower.", "multi_modal_projector.linear.", "language_model."),
    "qwen2_5_omni_thinker": Layout("audio_tower.", "audio_tower.proj.", ""),
    "qwen2_5_omni": Layout("thinker.audio_tower.", "thinker.audio_tower.proj.", "thinker."),
}

# Hub id -> config.json, for dry runs: Chu et al. (2024), Xu et al. (2025), and the checkpoints' own files. Fields left
# out have transformers' default, which is what was published.
PUBLISHED: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("audio_llms.json").read_text("utf-8"))


def describe(checkpoint: str, hub: Hub) -> Any:
    """As `read_config`, of a checkpoint. A published one needs no network, unless a local folder has its name."""
    config = hub.published_config(checkpoint)
    return read_config(hub.snapshot(checkpoint, ("*.json",)), hub) if config is None else config


def read_config(folder: Path, hub: Hub) -> Any:
    """The configuration of a whole audio LLM in a folder's config.json.

    Raises:
        ConfigError: it is another model, or damaged.
        MissingError: there is none.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except OSError as error:
        raise hub.missing(str(folder), first_line(error)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError.at(hub.key, "damaged", f"{folder}: {first_line(error)}") from None
    if config.model_type not in LAYOUTS:
        why = f"it is no audio LLM that is known here, but a {config.model_type!r}"
        raise ConfigError.at(hub.key, "mismatch", f"{folder}: {why}.{nearest(config.model_type, LAYOUTS)}")
    return config


def audio_and_text(config: Any) -> Any:
    """The part of a configuration that has `audio_config` and `text_config`: in Omni, the thinker's."""
    return getattr(config, "thinker_config", config)


def read_shards(folder: Path, rename: Callable[[str], str | None], hub: Hub) -> "dict[str, Tensor]":
    """Tensors of a checkpoint by the names that `rename` gives them; those with None are never read."""
    from safetensors import SafetensorError

    from sottovoce.tensor_files import read_tensors

    tensors: dict[str, Tensor] = {}
    for file in shards(folder):
        try:
            tensors |= read_tensors(file, rename)
        except (SafetensorError, OSError) as error:
            raise hub.missing(str(folder), f"{file.name}: {first_line(error)}") from None
    return tensors


def shards(folder: Path) -> list[Path]:
    """The weight files of a checkpoint, in their order."""
    return sorted(folder.glob(*WEIGHTS))


def without_prefix(prefix: str, but: str = "\0") -> Callable[[str], str | None]:
    """For `read_shards`: names that begin with `prefix`, without it; those that begin with `but` are left out."""
    return lambda name: name.removeprefix(prefix) if name.startswith(prefix) and not name.startswith(but) else None


def as_causal_lm(layout: Layout) -> Callable[[str], str | None]:
    """For `read_shards`: the text model's tensors, named as in a causal LM."""
    ours = tuple(layout.text + part for part in CAUSAL_LM)
    return lambda name: name.removeprefix(layout.text) if name.startswith(ours) else None
