"""Checkpoints in Hugging Face's format: a local folder comes first, then the cache on this machine, then the hub."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, snapshot_download

from sottovoce.errors import MissingError, nearest
from sottovoce.paths import resolve

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class Hub:
    """Where one part of a model comes from, and what to do when it does not come."""

    part: str  # as messages call it; in lower case, the recipe's key
    files: str  # what a local copy must hold
    published: Collection[str]  # hub ids that are well known, to suggest the nearest

    def folder(self, checkpoint: str) -> Path | None:
        """The local folder that `checkpoint` names; None where it is a hub id.

        Raises:
            MissingError: it is neither.
        """
        folder = resolve(checkpoint)
        if folder.is_dir():
            return folder
        if not _HUB_ID.fullmatch(checkpoint):
            raise self.missing(checkpoint, f"there is no folder {folder}")
        return None

    def snapshot(self, checkpoint: str, files: Sequence[str]) -> Path:
        """The folder of a checkpoint: a local one comes first, then the Hugging Face cache, then the hub.

        Args:
            checkpoint: a folder or hub id.
            files: patterns of what is needed of it; of the first and the last, one file must be there.

        Raises:
            MissingError: there is no such folder, or the hub has not got it.
        """
        if folder := self.folder(checkpoint):
            return folder
        why = ""
        for local in (True, False):
            try:
                found = Path(snapshot_download(checkpoint, allow_patterns=list(files), local_files_only=local))
            except Exception as error:  # their base class depends on the hub client's version (httpx, httpx2)
                why = first_line(error)
                continue
            if any(found.glob(files[0])) and any(found.glob(files[-1])):
                return found
            why = f"{found} holds no {files[-1]}"
        raise self.missing(checkpoint, why)

    def missing(self, checkpoint: str, why: str) -> MissingError:
        """The error for a checkpoint that cannot be had, with where it was looked for and what to do about it."""
        known = "" if checkpoint in self.published else nearest(checkpoint, self.published).split(" Known:")[0]
        return MissingError(
            f"the {self.part} {checkpoint} cannot be loaded: {why}.{known}\n"
            f"Looked in the folder {Path.cwd() / resolve(checkpoint)}, in the Hugging Face cache "
            f"{constants.HF_HUB_CACHE} and on {constants.ENDPOINT}.\nPoint at a local copy ({self.files}) with "
            f"{self.part.lower()}.checkpoint=/path/to/folder, or run conf/quickstart.yaml, which needs no download."
        )


def first_line(error: Exception) -> str:
    """What an error of another library says at its start; its name where it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__
