"""Errors that are the user's to mend: the commands print them as one message, without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST_NAME = 100  # nobody means a spelling of ours by a longer one, and comparing it takes long


class SottovoceError(ValueError):
    """What is wrong, where, and what to do about it."""


class ConfigError(SottovoceError):
    """A recipe that cannot be built; the message names the key and what would be accepted."""


class ManifestError(SottovoceError):
    """A manifest that cannot be trained on; the message names file and line of every fault."""


class AudioError(SottovoceError):
    """A clip that cannot be used; the message names the file and what is wrong with it."""


class MissingError(SottovoceError):
    """Weights or data that are not where they were looked for."""


class BundleError(SottovoceError):
    """A bundle that is damaged, or that belongs to other frozen parts."""


class StorageError(SottovoceError):
    """A file that cannot be written; what it held before is still there."""


class CheckpointError(SottovoceError):
    """A checkpoint that is damaged; the message names the file and how a run goes on without it."""


class TrainingError(SottovoceError):
    """Training that cannot go on as it is: numbers that are not finite, or a process that has died."""


def brief(value: object, most: int = 1000) -> str:
    """Text from somebody's file, safe to print: one line, no control characters, at most so many characters."""
    text = str(value)
    text = text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
    return _escaped(text)


def printable(message: object) -> str:
    """A message that may quote somebody's file, without what a terminal would obey; its line breaks stay."""
    return "\n".join(_escaped(line) for line in str(message).split("\n"))


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the nearest spelling, and everything that is known."""
    known = sorted(known)
    similar = get_close_matches(name, known, n=1) if len(name) <= _LONGEST_NAME else []
    hint = "".join(f" Did you mean {match!r}?" for match in similar)
    return f"{hint} Known: {', '.join(known) or 'none'}"
