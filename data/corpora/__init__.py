"""Corpora that a recipe or `prepare` names: each writes manifests with its official splits."""

from abc import ABC, abstractmethod
from pathlib import Path

from sottovoce.registry import Registry


class Corpus(ABC):
    """Makes manifests. A subclass takes its knobs as keyword-only parameters."""

    @abstractmethod
    def prepare(self, folder: Path) -> dict[str, Path]:
        """Write audio and manifests into `folder`, once; return the manifest of each split by name.

        A second call with the same knobs finds everything in place and returns at once.
        """


_OURS = (
    "crema_d", "dailytalk", "emodb", "expresso", "librispeech", "meld", "speechocean762", "styletalk", "textrolspeech",
    "voicebench",
)  # fmt: skip
CORPORA: Registry[Corpus] = Registry("corpus", {name: f"{__name__}.{name}" for name in _OURS})
