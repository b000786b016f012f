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

    The projector maps the encoder's frames into the LLM's space. In Qwen2-Audio it stands apart; Qwen2.5-Omni counts it
    as the encoder's last layer, and Kimi-Audio as a part of the LLM. `beside` has whatever else is named as if it were
    the LLM's; `tower_folder` is where the tower's files are, if not with the others.
    """

    tower: str
    projector: str
    text: str
    beside: tuple[str, ...] = ()
    tower_folder: str = ""


CAUSAL_LM = ("model.", "lm_head.")  # what the names of a causal LM's tensors begin with

KIMI = "moonshot_kimia"
LAYOUTS = {  # by model type; beside the thinker, the whole Omni has a talker and a vocoder
    "qwen2_audio": Layout("audio_tower.", "multi_modal_projector.linear.", "language_model."),
    "qwen2_5_omni_thinker": Layout("audio_tower.", "audio_tower.proj.", ""),
    "qwen2_5_omni": Layout("thinker.audio_tower.", "thinker.audio_tower.proj.", "thinker."),
    KIMI: Layout(
        "model.encoder.", "model.vq_adaptor.layers.", "", ("model.mimo_", "model.vq_adaptor."), "whisper-large-v3"
    ),
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
    try:
        config = load_config(folder)
    except OSError as error:
        raise hub.missing(str(folder), first_line(error)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError.at(hub.key, "damaged", f"{folder}: {first_line(error)}") from None
    if config.model_type not in LAYOUTS:
        why = f"it is no audio LLM that is known here, but a {config.model_type!r}"
        raise ConfigError.at(hub.key, "mismatch", f"{folder}: {why}.{nearest(config.model_type, LAYOUTS)}")
    return config


def load_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """The configuration in a folder's config.json, of whatever model; errors are transformers' own."""
    from transformers import AutoConfig, PreTrainedConfig

    fields = PreTrainedConfig.get_config_dict(folder, local_files_only=True)[0]
    if model_type(fields) != KIMI:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    from sottovoce.kimi_audio_config import KimiAudioConfig

    return KimiAudioConfig.read(folder, fields)


def model_type(fields: dict[str, Any]) -> str | None:
    """The model type of config.json's fields; Kimi-Audio's file names its class only."""
    ours = "MoonshotKimiaForCausalLM" in (fields.get("architectures") or ())
    return KIMI if ours else fields.get("model_type")


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
    constants = ".rotary_emb.inv_freq"  # which old versions of transformers wrote, too

    def rename(name: str) -> str | None:
        theirs = name.startswith(layout.beside) or name.endswith(constants)
        return name.removeprefix(layout.text) if name.startswith(ours) and not theirs else None

    return rename
