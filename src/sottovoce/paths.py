"""Where files are: paths of the user, and files that come with the package."""

import os
from contextlib import suppress
from pathlib import Path

from sottovoce.errors import ConfigError, MissingError, brief, nearest

_ROOMS = ("conf", "data", "demo")  # that hold files
_PACKAGED = "sottovoce:"  # sottovoce:demo/backbones/llm is a folder of the installed package
_FORMER = "undertone:"  # in recipes of runs and bundles from before the package was renamed


def resolve(path: str | Path) -> Path:
    """A local path; `sottovoce:` at its start stands for the installed package's own files.

    Raises:
        ConfigError: it begins with the package's former name.
        MissingError: the package has no such room, or no file can have this name.
    """
    text = str(path)
    if text.startswith(_FORMER):
        told = f"the package's name has changed: write {brief(_PACKAGED + text.removeprefix(_FORMER), 100)}"
        raise ConfigError(f"{brief(text, 100)}: {told}", code="bad-value", where=text)
    if not text.startswith(_PACKAGED):
        return usable(text)
    room, _, rest = text.removeprefix(_PACKAGED).partition("/")
    if room not in _ROOMS:
        raise MissingError(f"{text}: the package has no room {room!r}.{nearest(room, _ROOMS)}", where=text)
    module = __import__(f"sottovoce.{room}", fromlist=["__file__"])
    return Path(str(module.__file__)).parent / rest


def usable(text: str) -> Path:
    """A path that may be asked for; `~` is the home folder.

    Raises:
        MissingError: no file can have this name: it is too long, holds a NUL, or a home that nobody has.
    """
    with suppress(RuntimeError, UnicodeEncodeError):
        if (
            "\0" not in text
            and len(os.fsencode(text)) <= 4000
            and max(len(os.fsencode(p)) for p in text.split("/")) < 256
        ):
            return Path(text).expanduser()
    raise MissingError(f"{brief(text, 100)!r}: no file can have this name")


def read_text(file: Path, most: int = 1 << 24) -> str:
    """The text of a small UTF-8 file that a recipe names: no device and no pipe, which never end.

    Raises:
        OSError: it is no file, or larger than `most` bytes, or cannot be read.
        UnicodeDecodeError: it is no UTF-8.
    """
    if file.exists() and not file.is_file():
        raise OSError("it is no file")
    if file.is_file() and file.stat().st_size > most:
        raise OSError(f"it has {file.stat().st_size} bytes; at most {most} are read")
    return file.read_text("utf-8")
