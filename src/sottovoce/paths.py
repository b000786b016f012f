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
    """A path, with `~` as the home folder; a MissingError where no file can have this name."""
    with suppress(RuntimeError, UnicodeEncodeError):
        long = len(os.fsencode(text)) > 4000 or any(len(os.fsencode(part)) > 255 for part in text.split("/"))
        if not long and "\0" not in text:
            return Path(text).expanduser()
    raise MissingError(f"{brief(text, 100)!r}: no file can have this name")


def is_local(text: str) -> bool:
    """Whether a text of a recipe is a path of this machine, which means nothing on another: absolute, or there."""
    if "\n" in text or len(text) > 4000 or text.startswith(_PACKAGED):
        return False
    path = os.path.expanduser(text)
    absolute = os.path.isabs(path) and len(Path(path).parts) > 2  # `/no_think` is a word to an LLM
    return absolute or (len(path) > 1 and ("/" in path or "." in path) and os.path.exists(path))


def beside(text: str, folder: Path) -> str:
    """A path that leads nowhere from the working directory, but from `folder`, from there; any other as it is."""
    there = folder / text
    return str(there) if text and not os.path.exists(os.path.expanduser(text)) and os.path.exists(there) else text


def read_text(file: Path, most: int = 1 << 24) -> str:
    """The text of a UTF-8 file that a recipe names; an OSError for devices and pipes, which never end, and big ones."""
    if file.exists() and not file.is_file():
        raise OSError("it is no file")
    if file.is_file() and file.stat().st_size > most:
        raise OSError(f"it has {file.stat().st_size} bytes; at most {most} are read")
    return file.read_text("utf-8")
