"""Prompt files: one wording a line, so that a question can be asked in many ways without touching code."""

from collections.abc import Mapping
from pathlib import Path
from string import Formatter

from sottovoce.errors import ConfigError, nearest
from sottovoce.paths import read_text


def read_wordings(file: Path, fields: Mapping[str, str]) -> list[str]:
    """The wordings of a prompt file, in its order, with their fields filled in.

    Blank lines, and lines that begin with `#`, are left out.

    Args:
        file: UTF-8 text.
        fields: what the wordings may name in braces, and what stands there instead.

    Raises:
        ConfigError: the file cannot be read, holds no wording, or names an unknown field.
    """
    try:
        lines = read_text(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: the wordings cannot be read ({error}); give a UTF-8 text file") from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    wordings = [fill(line, fields, f"{file}:{number}") for number, line in numbered if line and line[0] != "#"]
    if not wordings:
        raise ConfigError(f"{file}: there is no wording in it; write at least one, one a line")
    return wordings


def fill(line: str, fields: Mapping[str, str], where: str) -> str:
    """A wording with its fields filled in.

    Raises:
        ConfigError: it names an unknown field, gives one a format, or has braces that do not match; `where` is named.
    """
    try:
        for _, field, shape, conversion in Formatter().parse(line):
            if field is not None and field not in fields:
                raise ConfigError(f"{where}: unknown field {{{field}}}.{nearest(field, fields)}")
            if shape or conversion:  # {label:>9999999999} would fill the memory
                raise ConfigError(f"{where}: {{{field}}} stands alone in its braces, without a format")
        return line.format(**fields)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; write {{{{ and }}}} for braces that are meant") from None
