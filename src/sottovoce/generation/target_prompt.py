"""The prompt with which an LLM is asked for a target: a text file with a system turn and a user turn."""

from pathlib import Path
from string import Formatter
from typing import Any

from sottovoce.errors import ConfigError, nearest
from sottovoce.llms.engines import Chat
from sottovoce.paths import read_text

FIELDS = ("emotion", "transcript")
_TURNS = ("[system]", "[user]")


class TargetPrompt:
    """A prompt file: `[user]` and under it the user's turn, before it `[system]` and the system's, if there is one.

    The user's turn may name {emotion} and {transcript}. Lines that begin with `#` are comments; braces that are meant
    are written twice.

    Args:
        file: UTF-8 text.
        with_context: the turns of the dialogue before the spoken one come before the user's turn.

    Raises:
        ConfigError: the file cannot be read, has another shape, or names an unknown field.
    """

    def __init__(self, file: Path, with_context: bool = True) -> None:
        turns = read_turns(file)
        self.system, self.user, self.with_context = turns.get("[system]"), turns.get("[user]", ""), with_context
        try:
            parts = [part for part in Formatter().parse(self.user) if part[1] is not None]
            self.fields = {str(name) for _, name, _, _ in parts}
            if any(shape or conversion for _, _, shape, conversion in parts):
                raise ValueError("a field stands alone in its braces, without a format")
        except ValueError as error:
            raise ConfigError(f"{file}: {error}; write {{{{ and }}}} for braces that are meant") from None
        for name in sorted(self.fields - set(FIELDS)):
            raise ConfigError(f"{file}: unknown field {{{name}}}.{nearest(name, FIELDS)}")
        if "transcript" not in self.fields:
            raise ConfigError(f"{file}: the user's turn ([user]) must hold the {{transcript}}")

    def lacking(self, record: dict[str, Any]) -> str | None:
        """What the line of a manifest lacks for this prompt, in words; None where it lacks nothing."""
        has = _values(record)
        if not has["transcript"].strip():
            return "transcript (`text`)"
        return "emotion label (`labels.emotion`)" if "emotion" in self.fields and not has["emotion"].strip() else None

    def chat(self, record: dict[str, Any]) -> Chat:
        """The chat for a line of a manifest that lacks nothing."""
        context = (record.get("context") or []) if self.with_context else []
        turns = [("system", self.system)] if self.system else []
        turns += [(turn["role"], turn["text"]) for turn in context]
        turns += [("user", self.user.format(**_values(record)))]
        return [{"role": role, "content": text} for role, text in turns]


def _values(record: dict[str, Any]) -> dict[str, str]:
    return {"transcript": record.get("text") or "", "emotion": (record.get("labels") or {}).get("emotion") or ""}


def read_turns(file: Path) -> dict[str, str]:
    """The turns of a prompt file by their heads, `[system]` and `[user]`.

    Raises:
        ConfigError: the file cannot be read, or text stands before the first head.
    """
    try:
        lines = read_text(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: the prompt cannot be read ({error}); give a UTF-8 text file") from None
    turns: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        if line.strip() in _TURNS:
            turns[line.strip()] = []
        elif turns and not line.startswith("#"):
            turns[list(turns)[-1]].append(line)
        elif line.strip() and not line.startswith("#"):
            raise ConfigError(f"{file}:{number}: text before [system] or [user]; say whose turn it is")
    return {turn: "\n".join(said).strip() for turn, said in turns.items()}
