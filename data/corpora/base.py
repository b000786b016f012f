"""Corpora that a recipe can ask for by name: each turns itself into manifests before training starts."""

from abc import ABC, abstractmethod
from pathlib import Path


class Corpus(ABC):
    """Makes manifests. A subclass takes its knobs as keyword-only parameters."""

    @abstractmethod
    def prepare(self, folder: Path) -> dict[str, Path]:
        """Write audio and manifests into `folder`, once; return the manifest of each split by name.

        A second call with the same knobs finds everything in place and returns at once.
        """
