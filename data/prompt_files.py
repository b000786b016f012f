"""Prompt files: one wording a line, so that a question can be asked in many ways without touching code."""

from collections.abc import Mapping
from pathlib import Path

from sottovoce.errors import ConfigError
from sottovoce.templates import Template, uncommented_lines


def read_wordings(file: Path, fields: Mapping[str, str]) -> list[str]:
    """The wordings of a prompt file, in its order, with their fields filled in.

    Blank lines, and lines that begin with `#`, are left out.

    Args:
        file: UTF-8 text.
        fields: what the wordings may name in braces, and what stands there instead.

    Raises:
        ConfigError: the file cannot be read, holds no wording, or a wording is no `Template` with these fields.
    """
    lines = [(number, line.strip()) for number, line in uncommented_lines(file)]
    wordings = [Template(line, fields, where=f"{file}:{number}").fill(fields) for number, line in lines if line]
    if not wordings:
        message = f"{file}: there is no wording in it; write at least one, one a line"
        raise ConfigError(message, code="empty", where=file)
    return wordings
