"""Whisper checkpoints in transformers' format, as openai-whisper names their sizes and tensors."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from sottovoce.errors import ConfigError, first_line
from sottovoce.hub import WEIGHTS, Hub
from sottovoce.paths import resolve
from sottovoce.tensor_files import read_tensors

HUB = Hub("encoder", "config.json and *.safetensors", {})
_SIZES = ("num_mel_bins", "max_source_positions", "d_model", "encoder_attention_heads", "encoder_layers")
_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_FILES = (".pt", ".safetensors")
_NAMES = {  # of the encoder's tensors: transformers', openai-whisper's
    "layers.": "blocks.", "self_attn_layer_norm.": "attn_ln.", "self_attn.q_proj.": "attn.query.",
    "self_attn.k_proj.": "attn.key.", "self_attn.v_proj.": "attn.value.", "self_attn.out_proj.": "attn.out.",
    "final_layer_norm.": "mlp_ln.", "fc1.": "mlp.0.", "fc2.": "mlp.2.",
    "embed_positions.weight": "positional_embedding",
}  # fmt: skip


def is_hub_checkpoint(checkpoint: str) -> bool:
    """Whether it is a folder or a hub id, and no file."""
    path = resolve(checkpoint)
    hub_id = _ID.fullmatch(checkpoint) and path.suffix not in _FILES
    return path.is_dir() or (bool(hub_id) and not path.is_file())


def read_sizes(checkpoint: str) -> list[int]:
    """Mel bins, frames of a window, width, heads and layers of an encoder.

    Raises:
        ConfigError: it is another model.
        MissingError: it cannot be reached.
    """
    file = HUB.snapshot(checkpoint, ("config.json",)) / "config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text("utf-8"))
        if config["model_type"] != "whisper":
            raise ConfigError.at(
                HUB.key, "mismatch", f"{checkpoint} is a {config['model_type']!r}; try encoder.type=hf"
            )
        feedforward, width = config.get("encoder_ffn_dim"), config["d_model"]
        if feedforward not in (None, 4 * width):
            told = (
                f"{checkpoint} has a feedforward of {feedforward}, where Whisper has 4 x {width}; try encoder.type=hf"
            )
            raise ConfigError.at(HUB.key, "mismatch", told)
        return [int(config[name]) for name in _SIZES]
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise HUB.missing(checkpoint, f"{file}: {first_line(error)}") from None


def read_hub_weights(checkpoint: str) -> tuple[Path, dict[str, Tensor]]:
    """The folder, and the encoder's tensors by openai-whisper's names, in float32; `MissingError` if damaged."""
    folder = HUB.snapshot(checkpoint, ("config.json", *WEIGHTS))
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob(*WEIGHTS)):
        try:
            weights |= read_tensors(file, _renamed, torch.float32)
        except (SafetensorError, OSError) as error:
            raise HUB.missing(checkpoint, f"{file.name}: {first_line(error)}") from None
    if not weights:
        raise HUB.missing(checkpoint, f"{folder} holds no {WEIGHTS[0]} with an encoder; try encoder.type=hf")
    return folder, weights


def hub_name(name: str) -> str:
    """A tensor's name in transformers' encoder, of openai-whisper's."""
    for theirs, ours in reversed(_NAMES.items()):
        name = name.replace(ours, theirs)
    return re.sub(r"^ln_post\.", "layer_norm.", name)


def _renamed(name: str) -> str | None:
    ours = re.sub(r"^(model\.)?encoder\.", "", name)
    if ours == name:
        return None
    for theirs, new in _NAMES.items():
        ours = ours.replace(theirs, new)
    return re.sub(r"^layer_norm\.", "ln_post.", ours)
