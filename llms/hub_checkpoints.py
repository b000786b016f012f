"""Where a checkpoint comes from: a local folder, the Hugging Face cache or the hub."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from huggingface_hub import HfApi, constants
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig

from sottovoce.errors import ConfigError, MissingError
from sottovoce.hub import Hub, first_line
from sottovoce.llms.audio_llm import text_config
from sottovoce.llms.known_models import PUBLISHED
from sottovoce.paths import resolve

T = TypeVar("T")

HUB = Hub("LLM", "config.json, *.safetensors and the tokenizer", PUBLISHED)
_NOT_THE_MODEL = ("transformers_version", "_name_or_path", "_commit_hash", "dtype", "torch_dtype")


def describe(checkpoint: str, trust_remote_code: bool) -> PreTrainedConfig:
    """The architecture of `checkpoint`; of a finished audio LLM, that of the LLM in it.

    A published one needs no network, unless a local folder says otherwise.

    Raises:
        ConfigError: there is something, but no architecture that transformers knows.
        MissingError: there is nothing.
    """
    if checkpoint in PUBLISHED and not resolve(checkpoint).is_dir():
        fields = dict(PUBLISHED[checkpoint])
        return text_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    config = reach(
        checkpoint,
        lambda path, local: cast(
            PreTrainedConfig,
            AutoConfig.from_pretrained(path, local_files_only=local, trust_remote_code=trust_remote_code),
        ),
    )
    return text_config(config)


def settings(checkpoint: str) -> dict[str, Any]:
    """What config.json says of the model. Not what transformers adds to it, which changes from release to release."""
    raw = reach(checkpoint, lambda path, local: PreTrainedConfig.get_config_dict(path, local_files_only=local)[0])
    return {key: value for key, value in raw.items() if key not in _NOT_THE_MODEL}


def reach(checkpoint: str, read: Callable[[str, bool], T]) -> T:
    """What `read(path or hub id, local files only)` returns: what is on this machine comes first, then the hub.

    Raises:
        ConfigError: transformers cannot make sense of the files.
        MissingError: they are nowhere, or damaged.
    """
    try:
        if folder := HUB.folder(checkpoint):
            return read(str(folder), True)
        try:
            return read(checkpoint, True)
        except OSError:
            _ask_hub(checkpoint)
            return read(checkpoint, False)
    except (OSError, SafetensorError) as error:
        raise HUB.missing(checkpoint, first_line(error)) from None
    except MissingError:
        raise
    except (ValueError, KeyError) as error:
        hint = " (if you trust its code: --trust-remote-code)" if "trust_remote_code" in str(error) else ""
        raise ConfigError(f"llm.checkpoint: {checkpoint}: {str(error).splitlines()[0]}{hint}") from None


def _ask_hub(checkpoint: str) -> None:
    """One question without a retry: on a machine without a network, transformers itself goes on for 20 seconds."""
    try:
        HfApi().model_info(checkpoint, timeout=10)
    except Exception as error:  # their base class depends on the hub client's version (httpx, httpx2)
        raise OSError(f"{constants.ENDPOINT}: {error}") from error
