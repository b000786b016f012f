"""An LLM's checkpoint: its folder, its configuration, and errors that name it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sottovoce.audio_llm_layouts import (
    KIMI,
    LAYOUTS,
    as_causal_lm,
    audio_and_text,
    load_config,
    model_type,
    read_config,
    read_shards,
)
from sottovoce.errors import ConfigError, MissingError, first_line
from sottovoce.hub import BOOKKEEPING, WEIGHTS, Hub
from sottovoce.llms.known_models import PUBLISHED
from sottovoce.paths import resolve

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

HUB = Hub("LLM", "config.json, *.safetensors and the tokenizer", PUBLISHED)
SETTINGS = ("config.json", "*.txt", "*.model", "*.jinja", "*.py", "*.json")  # patterns; the tokenizer's files included


def describe(checkpoint: str, trust_remote_code: bool) -> "PreTrainedConfig":
    """The architecture of `checkpoint`; of an audio LLM, that of the LLM in it.

    A published one needs no network, unless a local folder has its name.

    Raises:
        ConfigError: there is something, but no architecture that transformers knows.
        MissingError: there is nothing.
    """
    config = HUB.published_config(checkpoint)
    if config is None:
        _check_format(checkpoint, resolve(checkpoint))
        folder = HUB.snapshot(checkpoint, SETTINGS)
        check_no_lora(checkpoint, folder)
        with loading(checkpoint):
            config = load_config(folder, trust_remote_code)
    return text_config(config)


def _check_format(checkpoint: str, folder: Path) -> None:
    """`ConfigError` for a GGUF, which has another tokenizer and other names of weights."""
    files = [folder] if checkpoint.lower().endswith("gguf") else [*folder.glob("*.gguf")] if folder.is_dir() else []
    if files and not (folder / "config.json").is_file():
        why = f"{files[0]} is a GGUF; take the checkpoint that it was made from, or write one: "
        why += "AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=NAME).save_pretrained(NEW), and the same with "
        raise ConfigError.at(HUB.key, "mismatch", f"{why}AutoTokenizer")


def check_no_lora(checkpoint: str, folder: Path) -> None:
    """`ConfigError` for a LoRA in a checkpoint's folder: transformers would attach it, and nothing would tell it."""
    if not (file := folder / "adapter_config.json").is_file():
        return
    try:
        base = json.loads(file.read_text("utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    alone = not any(folder.glob(WEIGHTS[0])) or not (folder / "config.json").is_file()
    why = f"{checkpoint} is a LoRA{f' of {base}' if base else ''} and no LLM" if alone else f"{checkpoint} holds a LoRA"
    why += '. Merge it first: python -c "from peft import AutoPeftModelForCausalLM as M; '
    why += f"M.from_pretrained('{folder}').merge_and_unload().save_pretrained('NEW')\", and copy the tokenizer's files"
    raise ConfigError.at(HUB.key, "conflict", why)


def settings(folder: Path) -> dict[str, Any]:
    """The fields of config.json itself: what transformers adds to them changes from release to release."""
    from transformers import PreTrainedConfig

    raw = PreTrainedConfig.get_config_dict(folder, local_files_only=True)[0]
    return {key: value for key, value in raw.items() if key not in BOOKKEEPING}


@contextmanager
def loading(checkpoint: str) -> Iterator[None]:
    """Errors of transformers about a checkpoint's files become ours: `MissingError` for damage, else `ConfigError`."""
    from safetensors import SafetensorError

    try:
        yield
    except (MissingError, ConfigError):
        raise
    except (OSError, SafetensorError) as error:
        raise HUB.missing(checkpoint, first_line(error)) from None
    except ImportError as error:  # a quantised checkpoint, or a tokenizer in the format of another library
        why = f"{checkpoint} needs a package that is not installed: {first_line(error)}. Install that, or take a "
        raise ConfigError.at(HUB.key, "unavailable", f"{why}checkpoint that is not quantised") from None
    except (ValueError, KeyError) as error:
        hint = " (if you trust its code: --trust-remote-code)" if "trust_remote_code" in str(error) else ""
        why = f"{checkpoint}: {first_line(error)}{hint}"
        raise ConfigError.at(HUB.key, "unsafe" if hint else "mismatch", why) from None


_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "use_sliding_window", "sliding_window", "max_window_layers", "layer_types", "attention_dropout",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


def is_composite(folder: Path) -> bool:
    """Whether a folder holds an audio LLM."""
    return model_type(settings(folder)) in LAYOUTS


def text_config(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """The configuration of an audio LLM's text model; that of any other checkpoint as it is.

    Omni gives every position three indices (time, height, width), which differ in pictures and films only: with text
    and audio its text model is Qwen2, whose rotary embedding takes one index.
    """
    if config.model_type == KIMI:
        import sottovoce.llms.kimi_audio  # noqa: F401  # makes its class known to transformers
    if config.model_type == KIMI or config.model_type not in LAYOUTS:
        return config
    from transformers import Qwen2Config

    whole = audio_and_text(config)
    text = whole.text_config
    rope = {key: value for key, value in text.rope_parameters.items() if key != "mrope_section"}
    tied = config.model_type != "qwen2_audio" and bool(whole.tie_word_embeddings)  # Qwen2-Audio never ties
    fields = {name: getattr(text, name) for name in _FIELDS}
    return Qwen2Config(**fields, rope_parameters=rope, tie_word_embeddings=tied)


def read_text(folder: Path, dtype: "torch.dtype", hub: Hub) -> "tuple[PreTrainedModel, list[str]]":
    """The text model with its weights, the only ones that are read, and the names of those that the files lack."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig

    config = read_config(folder, hub)
    weights = read_shards(folder, as_causal_lm(LAYOUTS[config.model_type]), hub)
    text = text_config(config)
    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(text)]
    loaded = family.from_pretrained(None, config=text, state_dict=weights, dtype=dtype, output_loading_info=True)
    model, report = loaded
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, sorted(report["missing_keys"])


def read_model(
    folder: Path, dtype: "torch.dtype", trust_remote_code: bool, more: dict[str, Any]
) -> "tuple[PreTrainedModel, list[str]]":
    """A causal LM with its weights, and the names of those that the files lack; `more` is for `from_pretrained`."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=trust_remote_code,
        output_loading_info=True, **more,
    )  # fmt: skip
    model, report = loaded
    return model, sorted(report["missing_keys"])


def processor_template(folder: Path) -> str | None:
    """The chat template of a checkpoint that keeps it with its processor, and not with its tokenizer."""
    file = folder / "chat_template.json"
    return cast(str, json.loads(file.read_text("utf-8"))["chat_template"]) if file.is_file() else None


def stop_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Tokens that end an answer, by any file of the checkpoint: they do not always agree, and each is right."""
    listed = model.generation_config.eos_token_id if model.generation_config else None
    listed = listed if isinstance(listed, list) else [listed]
    return {int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None}
