"""The text model inside a finished audio LLM, opened as the causal LM that it is."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from transformers.utils.hub import cached_file

from sottovoce.audio_llm_layouts import LAYOUTS, SETTINGS, WEIGHTS, listening, of_text, read_config, tensors
from sottovoce.hub import Hub

_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "use_sliding_window", "sliding_window", "max_window_layers", "layer_types", "attention_dropout",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


def is_composite(path: str, local: bool) -> bool:
    """Whether a folder or hub id holds a finished audio LLM."""
    raw = PreTrainedConfig.get_config_dict(path, local_files_only=local)[0]
    return raw.get("model_type") in LAYOUTS


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The architecture of the LLM inside; that of any other checkpoint as it is.

    Omni gives every position three numbers (time, height, width), which differ in pictures and films only: with text
    and audio its text model is Qwen2, whose rotary embedding knows one number.
    """
    if config.model_type not in LAYOUTS:
        return config
    whole = listening(config)
    text = whole.text_config
    rope = {key: value for key, value in text.rope_parameters.items() if key != "mrope_section"}
    tied = config.model_type != "qwen2_audio" and bool(whole.tie_word_embeddings)  # Qwen2-Audio never ties
    return Qwen2Config(
        **{name: getattr(text, name) for name in _FIELDS}, rope_parameters=rope, tie_word_embeddings=tied
    )


def read_text(path: str, local: bool, dtype: torch.dtype, hub: Hub) -> tuple[PreTrainedModel, list[str]]:
    """The text model with its weights, and the names of weights that the files lack.

    Of the files, the text model's tensors alone are read.
    """
    files = [*SETTINGS, *WEIGHTS]
    found = path if Path(path).is_dir() else snapshot_download(path, allow_patterns=files, local_files_only=local)
    folder = Path(found)
    config = read_config(folder, hub)
    weights = tensors(folder, of_text(LAYOUTS[config.model_type]), hub)
    loaded: Any = Qwen2ForCausalLM.from_pretrained(
        None, config=text_config(config), state_dict=weights, dtype=dtype, output_loading_info=True
    )
    model, report = loaded
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return cast(PreTrainedModel, model), sorted(report["missing_keys"])


def processor_template(path: str, local: bool) -> str | None:
    """The chat template of a checkpoint that keeps it with its processor, and not with its tokenizer."""
    file = cached_file(path, "chat_template.json", local_files_only=local, _raise_exceptions_for_missing_entries=False)
    return cast(str, json.loads(Path(file).read_text("utf-8"))["chat_template"]) if file else None
