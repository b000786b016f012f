"""An LLM's checkpoint: its folder, its configuration, and errors that name it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sottovoce.errors import ConfigError, MissingError, first_line
from sottovoce.hub import BOOKKEEPING, Hub
from sottovoce.llms.audio_llm import text_config
from sottovoce.llms.known_models import PUBLISHED

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

HUB = Hub("LLM", "config.json, *.safetensors and the tokenizer", PUBLISHED)
SETTINGS = ("config.json", "*.txt", "*.model", "*.jinja", "*.py", "*.json")  # patterns; the tokenizer's files included


def describe(checkpoint: str, trust_remote_code: bool) -> "PreTrainedConfig":
    """The architecture of `checkpoint`; of an audio LLM, that of the LLM in it.

    A published one needs no network, unless a local folder has its name.

    Raises:
        ConfigError: there is something, but no architecture that transformers knows.
        MissingError: there is nothing.
    """
    from transformers import AutoConfig

    config = HUB.published_config(checkpoint)
    if config is None:
        folder = HUB.snapshot(checkpoint, SETTINGS)
        with loading(checkpoint):
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    return text_config(config)


def settings(folder: Path) -> dict[str, Any]:
    """The fields of config.json itself: what transformers adds to them changes from release to release."""
    from transformers import PreTrainedConfig

    raw = PreTrainedConfig.get_config_dict(folder, local_files_only=True)[0]
    return {key: value for key, value in raw.items() if key not in BOOKKEEPING}


@contextmanager
def loading(checkpoint: str) -> Iterator[None]:
    """Turn errors of transformers about a checkpoint's files into ours.

    Raises:
        ConfigError: transformers cannot make sense of the files.
        MissingError: they are damaged, or not whole.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise HUB.missing(checkpoint, first_line(error)) from None
    except MissingError:
        raise
    except (ValueError, KeyError) as error:
        hint = " (if you trust its code: --trust-remote-code)" if "trust_remote_code" in str(error) else ""
        why = f"{checkpoint}: {first_line(error)}{hint}"
        raise ConfigError.at(HUB.key, "unsafe" if hint else "mismatch", why) from None
