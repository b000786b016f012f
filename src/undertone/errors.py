"""Errors that are the user's to mend: the commands print them as one message, without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class UndertoneError(ValueError):
    """What is wrong, where, and what to do about it."""


class ConfigError(UndertoneError):
    """A recipe that cannot be built; the message names the key and what would be accepted."""


class ManifestError(UndertoneError):
    """A manifest that cannot be trained on; the message names file and line of every fault."""


class AudioError(UndertoneError):
    """A clip that cannot be used; the message names the file and what is wrong with it."""


class MissingError(UndertoneError):
    """Weights or data that are not where they were looked for."""


class BundleError(UndertoneError):
    """A bundle that is damaged, or that belongs to other frozen parts."""


class StorageError(UndertoneError):
    """A file that cannot be written; what it held before is still there."""


class CheckpointError(UndertoneError):
    """A checkpoint that is damaged; the message names the file and how a run goes on without it."""


class TrainingError(UndertoneError):
    """Training that cannot go on as it is: numbers that are not finite, or a process that has died."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the nearest spelling, and everything that is known."""
    known = sorted(known)
    hint = "".join(f" Did you mean {match!r}?" for match in get_close_matches(name, known, n=1))
    return f"{hint} Known: {', '.join(known) or 'none'}"
