"""Checkpoints in Hugging Face's format: from a local folder, else from the local cache, else from the hub."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download

from sottovoce.errors import MissingError, first_line, nearest
from sottovoce.paths import resolve

WEIGHTS = ("*.safetensors",)  # in one file or in shards
# Fields of a config.json that say nothing about the model, and change from release to release
BOOKKEEPING = ("transformers_version", "_name_or_path", "_commit_hash", "dtype", "torch_dtype")
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class Hub:
    """Finds the checkpoints of one part of a model."""

    part: str  # encoder, adapter or LLM, as messages call it; in lower case, the recipe's key
    files: str  # what a local copy must hold, for messages
    published: Mapping[str, Mapping[str, Any]]  # hub id -> fields of its config.json, of well-known checkpoints
    knob: str = "checkpoint"  # of the part, which names the checkpoint

    @property
    def key(self) -> str:
        """The recipe's key for a checkpoint of this part."""
        return f"{self.part.lower()}.{self.knob}"

    def published_config(self, checkpoint: str) -> Any:
        """The published configuration, for which no network is needed; None if unknown or if a local folder has it."""
        if checkpoint not in self.published or resolve(checkpoint).is_dir():
            return None
        from transformers import AutoConfig

        import sottovoce.kimi_audio_config  # noqa: F401  # makes its model type known

        fields = dict(self.published[checkpoint])
        return AutoConfig.for_model(fields.pop("model_type"), **fields)

    def snapshot(self, checkpoint: str, files: Sequence[str]) -> Path:
        """The folder of a checkpoint: the local one, else that in the Hugging Face cache, else the hub's.

        Of `files`, the patterns of what is needed, the first and the last must match, and of the files in an index of
        weights none may be missing. It is a MissingError if nobody has it.
        """
        folder, why = resolve(checkpoint), ""
        if folder.is_dir():
            return folder
        if not _HUB_ID.fullmatch(checkpoint):
            raise self.missing(checkpoint, f"there is no folder {folder}")
        for local in (True, False):
            try:
                folder = Path(snapshot_download(checkpoint, allow_patterns=list(files), local_files_only=local))
            except Exception as error:  # their base class depends on the hub client's version (httpx, httpx2)
                why = first_line(error)
                continue
            there = all(any(folder.glob(pattern)) for pattern in (files[0], files[-1]))
            if there and (files[-1] not in WEIGHTS or _whole(folder)):
                return folder
            why = f"{folder} holds no {files[-1]}, or not all of them"
        raise self.missing(checkpoint, why)

    def missing(self, checkpoint: str, why: str) -> MissingError:
        """The error for a checkpoint that cannot be loaded: where it was looked for, and what to do."""
        known = "" if checkpoint in self.published else nearest(checkpoint, self.published).split(" Known:")[0]
        return MissingError(
            f"the {self.part} {checkpoint} cannot be loaded: {why}.{known}\n"
            f"Looked in the folder {Path.cwd() / resolve(checkpoint)}, in the Hugging Face cache "
            f"{constants.HF_HUB_CACHE} and on {constants.ENDPOINT}.\nPoint at a local copy ({self.files}) with "
            f"{self.key}=/path/to/folder, or run conf/quickstart.yaml, which needs no download.",
            where=self.key,
        )


def _whole(folder: Path) -> bool:
    """Whether every shard of the weights is there: a download may have been interrupted."""
    maps = [json.loads(index.read_text())["weight_map"] for index in folder.glob("*.safetensors.index.json")]
    return all((folder / shard).is_file() for shards in maps for shard in shards.values())
