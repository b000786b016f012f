"""Path policy of manifests: they may name files under their root, and under folders that the user allows besides."""

import os
from collections.abc import Sequence
from pathlib import Path

from sottovoce.data.audio_decoder import tar_member
from sottovoce.errors import AudioError


class Root:
    """Where a manifest's relative paths start, and what no path of it may lead out of, by `..`, by `/` or by a link.

    A manifest is data that somebody may have been handed, with links beside it; which of this machine's files it may
    name is for the user to say.

    Args:
        folder: where relative paths start.
        allow: further folders that a path may lead to.
    """

    def __init__(self, folder: Path, allow: Sequence[Path] = ()) -> None:
        self.folder = folder
        self._start = os.path.abspath(folder)
        self._within = [os.path.realpath(allowed) for allowed in (folder, *allow)]

    def file(self, given: str) -> Path:
        """The absolute path of a file that a manifest calls `given`; it need not exist.

        Raises:
            AudioError: it is, or its link leads, outside of all that is allowed. The message begins with `given`.
        """
        named = os.path.abspath(os.path.join(self._start, given))
        member = tar_member(Path(named))
        try:
            real = os.path.realpath(member.archive if member else named)
        except ValueError:  # a NUL in it
            raise AudioError(f"{given!r}: no file can have this name", code="bad-value") from None
        if not any(os.path.commonpath([folder, real]) == folder for folder in self._within):
            where = "is" if real == str(member.archive if member else named) else f"leads to {real}, which is"
            raise AudioError(
                f"{given} {where} outside of {self.folder}; move the clip there, give a `root` that holds it, or name "
                "its folder under `allow`",
                code="unsafe",
            )
        return Path(named)
