"""Finds an LLM's checkpoint: a local folder, the Hugging Face cache, or the hub."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from sottovoce.errors import ConfigError, MissingError, first_line
from sottovoce.hub import BOOKKEEPING, Hub
from sottovoce.llms.audio_llm import text_config
from sottovoce.llms.known_models import PUBLISHED

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

T = TypeVar("T")

HUB = Hub("LLM", "config.json, *.safetensors and the tokenizer", PUBLISHED)


def describe(checkpoint: str, trust_remote_code: bool) -> "PreTrainedConfig":
    """The architecture of `checkpoint`; of an audio LLM, that of the LLM in it.

    A published one needs no network, unless a local folder has its name.

    Raises:
        ConfigError: there is something, but no architecture that transformers knows.
        MissingError: there is nothing.
    """
    from transformers import AutoConfig

    def read(path: str, local: bool) -> Any:
        return AutoConfig.from_pretrained(path, local_files_only=local, trust_remote_code=trust_remote_code)

    config = HUB.published_config(checkpoint)
    return text_config(reach(checkpoint, read) if config is None else config)


def settings(checkpoint: str) -> dict[str, Any]:
    """The fields of config.json itself: what transformers adds to them changes from release to release."""
    from transformers import PreTrainedConfig

    raw = reach(checkpoint, lambda path, local: PreTrainedConfig.get_config_dict(path, local_files_only=local)[0])
    return {key: value for key, value in raw.items() if key not in BOOKKEEPING}


def reach(checkpoint: str, read: Callable[[str, bool], T]) -> T:
    """Call `read(path or hub id, local files only)`: for local files first, then for the hub.

    Raises:
        ConfigError: transformers cannot make sense of the files.
        MissingError: they are nowhere, or damaged.
    """
    from safetensors import SafetensorError

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
        why = f"{HUB.key}: {checkpoint}: {first_line(error)}{hint}"
        raise ConfigError(why, code="unsafe" if hint else "mismatch", where=HUB.key) from None


def _ask_hub(checkpoint: str) -> None:
    """One question without a retry: on a machine without a network, transformers itself goes on for 20 seconds."""
    from huggingface_hub import HfApi, constants

    try:
        HfApi().model_info(checkpoint, timeout=10)
    except Exception as error:  # their base class depends on the hub client's version (httpx, httpx2)
        raise OSError(f"{constants.ENDPOINT}: {error}") from error
