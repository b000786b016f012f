"""Chat prompts: text files with a system turn and a user turn, for LLMs that make data."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from sottovoce.errors import ConfigError
from sottovoce.llms.engines import Chat
from sottovoce.templates import Template, uncommented_lines

_HEADS = {"[system]": "system", "[user]": "user"}


class ChatPrompt:
    """A prompt file: `[user]` and under it the user's turn, before it `[system]` and the system's, if there is one.

    Both turns are templates (`sottovoce.templates.Template`) with `fields`; the user's must hold the field `required`.
    Lines that begin with `#` are comments.

    Raises:
        ConfigError: the file cannot be read, has another shape, or a turn is no template with these fields.
    """

    def __init__(self, file: Path, fields: Collection[str], required: str) -> None:
        turns: dict[str, list[str]] = {}
        for number, line in uncommented_lines(file):
            if line.strip() in _HEADS:
                lines = turns[_HEADS[line.strip()]] = []
            elif turns:
                lines.append(line)
            elif line.strip():
                message = f"{file}:{number}: text before [system] or [user]; say whose turn it is"
                raise ConfigError(message, code="bad-value", where=f"{file}:{number}")
        texts = {role: "\n".join(lines).strip() for role, lines in turns.items()}
        self._system = Template(texts.get("system", ""), fields, where=file)
        self._user = Template(texts.get("user", ""), fields, required=[required], where=file)
        self.names = self._system.names | self._user.names

    def chat(self, values: Mapping[str, object], context: Sequence[dict[str, str]] = ()) -> Chat:
        """The chat with the fields filled in; the turns of `context` come before the user's."""
        system, user = self._system.fill(values), self._user.fill(values)
        turns = [{"role": "system", "content": system}] if system else []
        return [*turns, *context, {"role": "user", "content": user}]
