"""Errors that are the user's to mend: the commands print them as one message, without a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal, TypeAlias

from typing_extensions import Self

Code: TypeAlias = Literal[
    "unknown-key",  # a key that nothing reads
    "missing-key",  # a key that is needed and not there
    "unknown-name",  # a name that matches nothing: a task, slot, component, stage, GPU ...
    "bad-value",  # a value of the wrong type or outside its range
    "conflict",  # keys, options or files that contradict each other
    "not-found",  # a file, folder, weight or manifest that is not where it was looked for
    "damaged",  # a file that cannot be read as what it should be
    "mismatch",  # parts that do not belong together: weights, data, checkpoints, runs
    "empty",  # nothing is left to work on
    "unsafe",  # a path that leaves its folder, code that would run, a file that would fill the memory
    "unavailable",  # a package, device or server that is not there
    "storage",  # a disk that takes no more
    "nonfinite",  # numbers that are not finite
    "died",  # another process that this one needs
]


class SottovoceError(ValueError):
    """An error that is the user's to mend: what is wrong, where, and what to do about it.

    Args:
        message: what the user reads.
        code: the kind of fault, for programs and tests.
        where: its place: a recipe's key (`stages.joint.lr`), a file, or a line of one (`train.jsonl:7`).
        faults: where one error tells of several, each of them.
    """

    code: Code | None = None

    def __init__(
        self, message: str = "", *, code: Code | None = None, where: object = "", faults: Iterable[SottovoceError] = ()
    ) -> None:
        super().__init__(message)
        self.code, self.where, self.faults = code or self.code, str(where), tuple(faults)

    @classmethod
    def at(cls, where: object, code: Code | None, why: object) -> Self:
        """An error whose message begins with its place."""
        return cls(f"{where}: {why}", code=code, where=where)

    @classmethod
    def of(cls, faults: Iterable[SottovoceError]) -> Self:
        """One error that tells of several, a line each."""
        faults = tuple(faults)
        return cls("\n".join(map(str, faults)), code=faults[0].code, where=faults[0].where, faults=faults)


class ConfigError(SottovoceError):
    """A recipe that cannot be built; the message names the key and what would be accepted."""


class ManifestError(SottovoceError):
    """A manifest that cannot be trained on; the message names file and line of every fault."""


class AudioError(SottovoceError):
    """A clip that cannot be used; the message names the file and what is wrong with it."""


class MissingError(SottovoceError):
    """Weights or data that are not where they were looked for."""

    code = "not-found"


class BundleError(SottovoceError):
    """A bundle that is damaged, or that belongs to other frozen parts."""


class StorageError(SottovoceError):
    """A file that cannot be written; what it held before is still there."""

    code = "storage"


class CheckpointError(SottovoceError):
    """A checkpoint that is damaged; the message names the file and how a run goes on without it."""

    code = "damaged"


class TrainingError(SottovoceError):
    """Training that cannot go on as it is: numbers that are not finite, or a process that has died."""


def brief(value: object, most: int = 1000) -> str:
    """Text from somebody's file, safe to print: one line, no control characters, at most so many characters."""
    text = str(value)
    return _escaped(text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)")


def printable(message: object) -> str:
    """A message that may quote somebody's file, without what a terminal would obey; its line breaks stay."""
    return "\n".join(_escaped(line) for line in str(message).split("\n"))


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the nearest spelling, and everything that is known."""
    known = sorted(known)
    similar = get_close_matches(name, known, n=1) if len(name) <= 100 else []  # comparing a longer one takes long
    hint = "".join(f" Did you mean {match!r}?" for match in similar)
    return f"{hint} Known: {', '.join(known) or 'none'}"


def first_line(error: BaseException) -> str:
    """The first line of another library's message; the error's class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
