"""Checkpoints and bundles by name: from a local folder, else from the local cache or the hub of Hugging Face."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download

from sottovoce.errors import MissingError, brief, first_line, nearest
from sottovoce.paths import resolve

WEIGHTS = ("*.safetensors",)  # in one file or in shards
# Fields of a config.json that say nothing about the model, and change from release to release
BOOKKEEPING = ("transformers_version", "_name_or_path", "_commit_hash", "dtype", "torch_dtype")
BUNDLE_FILES = ("trained.safetensors", "recipe.yaml", "fingerprints.json", "README.md")  # and files of own parts
OWN = "code"  # the bundle's folder of those
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_BUNDLE = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)


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


def on_hub(bundle: str | Path) -> re.Match[str] | None:
    """The parts of `org/name[@revision]`, `id` and `revision`; None for any other name, and where a folder has it."""
    return None if os.path.lexists(bundle) else _BUNDLE.fullmatch(str(bundle))


def bundle_folder(bundle: str | Path, *, cached: bool = False) -> Path:
    """The folder of a bundle: the local one of this name, else a copy of `org/name[@revision]` of the hub.

    Of a repository nothing but a bundle's files is fetched. Without network it is what the local cache has of it.
    Whether it is a bundle, and a whole one, is for who reads it to say. `cached`: without a look at the hub.

    Raises:
        MissingError: neither folder nor cache nor hub has it.
    """
    if not (asked := on_hub(bundle)):
        return Path(bundle)
    options: Any = {"allow_patterns": [*BUNDLE_FILES, f"{OWN}/*.py"], "local_files_only": cached}
    try:
        return Path(snapshot_download(asked["id"], revision=asked["revision"], **options))
    except Exception as error:  # as in `Hub.snapshot`
        why = f"there is no folder {brief(Path.cwd() / bundle, 300)}, and no bundle of this name in the cache "
        why += f"{constants.HF_HUB_CACHE} or on {constants.ENDPOINT}: {brief(first_line(error), 300)}"
        raise MissingError.at(bundle, "not-found", why) from None


def bundle_of(name: str | Path) -> Path:
    """The folder of a bundle, or of the one that a run has left, by the name of either; errors as `bundle_folder`."""
    folder = bundle_folder(Path(name).expanduser() if not on_hub(name) else name)
    inner = folder / "bundle"
    return inner if not (folder / BUNDLE_FILES[2]).is_file() and (inner / BUNDLE_FILES[2]).is_file() else folder


def bundle_home(bundle: str | Path) -> Path:
    """Where that is written which is made of a bundle: beside it; of one on the hub, at `runs/org--name[@revision]`."""
    return Path("runs") / str(bundle).replace("/", "--") if on_hub(bundle) else Path(bundle).parent
