"""Text templates: prompt files and rubrics with named fields in braces, such as {transcript}."""

from collections.abc import Collection, Mapping
from pathlib import Path
from string import Formatter

from sottovoce.errors import Code, ConfigError, nearest
from sottovoce.paths import read_text


class Template:
    """A text with named fields in braces; braces that are meant are written twice.

    Prompt files come from anywhere, and {text:>9999999999} would fill the memory: it is a ConfigError for a field to be
    more than a name, such as a format or an index, or to be unknown, or required and absent; or if braces do not match.

    Args:
        text: with fields.
        fields: names that the text may hold.
        required: names that it must hold.
        where: its file, or a line of one, for errors.

    Attributes:
        names: of the fields that the text holds.
        literal: the text without its fields.
    """

    def __init__(
        self, text: str, fields: Collection[str], *, required: Collection[str] = (), where: object = "template"
    ) -> None:
        try:
            parts = list(Formatter().parse(text))
        except ValueError as error:
            told = f"{error}; write {{{{ and }}}} for braces that are meant"
            raise ConfigError.at(where, "bad-value", told) from None
        for _, name, spec, conversion in parts:
            if spec or conversion:
                raise ConfigError.at(where, "unsafe", f"{{{name}}} stands alone in its braces, without a format")
            if name is not None and name not in fields:
                raise ConfigError.at(where, "unknown-name", f"unknown field {{{name}}}.{nearest(name, fields)}")
        self.names = frozenset(name for _, name, _, _ in parts if name is not None)
        self.literal = "".join(literal for literal, *_ in parts)
        self._parts = [(literal, name) for literal, name, _, _ in parts]
        for name in sorted(set(required) - self.names):
            raise ConfigError.at(where, "missing-key", f"the text must hold the field {{{name}}}")

    def fill(self, values: Mapping[str, object]) -> str:
        """The text with the value of each field in its place, or a KeyError; values may hold braces."""
        return "".join(literal + ("" if name is None else str(values[name])) for literal, name in self._parts)


def uncommented_lines(file: Path, mark: str = "#") -> list[tuple[int, str]]:
    """Lines of a small UTF-8 text file, or a ConfigError, with their numbers from 1; those with `mark` are left out."""
    try:
        lines = read_text(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        code: Code = "damaged" if file.exists() else "not-found"
        raise ConfigError(f"{file} cannot be read ({error}); give a UTF-8 text file", code=code, where=file) from None
    return [(number, line) for number, line in enumerate(lines, 1) if not line.startswith(mark)]


def read_wordings(file: Path, fields: Mapping[str, str]) -> list[str]:
    """The wordings of a prompt file, without blank lines and those that begin with `#`, with their fields filled in.

    Raises:
        ConfigError: the file cannot be read, holds no wording, or a wording is no `Template` with these fields.
    """
    lines = [(number, line.strip()) for number, line in uncommented_lines(file)]
    wordings = [Template(line, fields, where=f"{file}:{number}").fill(fields) for number, line in lines if line]
    if not wordings:
        raise ConfigError.at(file, "empty", "there is no wording in it; write at least one, one a line")
    return wordings
