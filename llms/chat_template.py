"""Dialogues by a model's own chat template, tokenised, with placeholders where speech embeddings go."""

import re
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast, get_args

from sottovoce.errors import Code, SottovoceError, brief, first_line, nearest
from sottovoce.llms.answer_text import opens_thought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Role = Literal["system", "user", "assistant"]

# Templates see text only. A placeholder goes through them as its number between two characters of private use, which
# no template trims and no writing system holds.
_OPEN, _CLOSE = "\U000f5e00", "\U000f5e01"
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
TODAY = datetime(2024, 7, 26)  # of templates that write the date; by default that of Llama 3.2's


_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Placeholder:
    """Position of embeddings in a prompt; `key` is the caller's own name for them, such as ("linguistic", 3)."""

    key: Hashable


Piece: TypeAlias = str | Placeholder
Segment: TypeAlias = list[int] | Placeholder  # of a tokenised prompt
Delimiters: TypeAlias = Callable[[Hashable, int], tuple[str, str]]  # placeholder's key, its number in the chat from 1


@dataclass(frozen=True)
class ChatTurn:
    """One turn of a dialogue: its pieces are joined as they are, with nothing between them."""

    role: Role
    pieces: tuple[Piece, ...]


class ChatFormat:
    """Tokenises dialogues as one model family expects them.

    BOS comes from the chat template, never from the tokenizer. Text that holds a control token, such as `<|im_start|>`,
    is refused: it would begin or end a turn. Where there is no template, or nothing that ends a turn,
    that is a `SottovoceError`.

    Args:
        tokenizer: with the chat template.
        stop_ids: tokens that end a generation.
        arguments: keyword arguments of the template. Where it knows `enable_thinking`, that is false unless set here.

    Attributes:
        stop_ids: those, and the one with which the template ends an assistant's turn.
        arguments: all that the template is given beside the dialogue, as JSON; for templates that write it, the date.
        thought: the mark of a thought that the prompt leaves open; the answer begins within it.
        delimiters: the texts before and after a placeholder, such as the LLM's own tokens that enclose audio.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int],
        arguments: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if not tokenizer.chat_template:
            why = "no chat template, so turns cannot be told apart: name an instruction-tuned checkpoint, or write one "
            raise _unfit(tokenizer, "unavailable", why + "in Jinja and name it in `llm.chat_template`")
        self.tokenizer = tokenizer
        known = {"enable_thinking": False, "strftime_now": TODAY.date().isoformat()}
        written = str(tokenizer.chat_template)
        self.arguments = {**{name: value for name, value in known.items() if name in written}, **(arguments or {})}
        self.delimiters: Delimiters = _no_delimiters
        self._rendered: dict[Hashable, str] = {}  # texts and tokens known so far: an epoch asks for the same ones again
        self._tokens: dict[str, tuple[int, ...]] = {}
        self.stop_ids = frozenset(stop_ids) | self._end_of_turn()
        if not self.stop_ids:
            raise _unfit(tokenizer, "unavailable", "no token that ends a turn")
        self._control = self._control_tokens()
        self._border = re.compile("|".join(map(re.escape, sorted(self._control, key=len, reverse=True))) or "(?!)")
        self._has_system_role = self._may_begin_with("system")  # Gemma's template raises, others drop the turn
        self._assistant_may_begin = self._may_begin_with("assistant")  # the templates of Gemma and Mistral raise
        self.thought = opens_thought(self._render([_message("user", "x")], answer=None))
        self._marks_starts = str(tokenizer.convert_ids_to_tokens(self.token_ids(":"))[0]).startswith("▁")

    def prompt(self, turns: Sequence[ChatTurn]) -> list[Segment]:
        """The dialogue up to where the assistant starts to answer, as tokens and placeholders in their order.

        Raises:
            SottovoceError: the dialogue does not end with the user, the template refuses it, drops or repeats a turn
                that has placeholders, or its text is none that may be said, see `check_text`.
        """
        marked, keys = self._marked(turns)
        parts = _MARK.split(self._render(marked, answer=None))  # text, number, text, number, ..., text
        if [int(number) for number in parts[1::2]] != list(range(len(keys))):
            why = f"a chat template that drops, repeats or reorders turns: {len(keys)} placeholders went in, and "
            raise _unfit(self.tokenizer, "mismatch", f"{why}{parts[1::2]} came out")
        segments: list[Segment] = []
        for i, text in enumerate(parts[::2]):
            segments += [self._ids_within(text) if i else self.token_ids(text)] if text else []
            segments += keys[i : i + 1]
        return segments

    @property
    def control_ids(self) -> list[int]:
        """Tokens that the template reads as borders of turns."""
        return list(self._control.values())

    def largest_id(self) -> int:
        """The largest token that the template itself writes."""
        turns = [ChatTurn("system", ("x",)), ChatTurn("user", ("x",))]
        asked = [token for part in self.prompt(turns) if isinstance(part, list) for token in part]
        return max((*asked, *self.response(turns, "x")))

    def response(self, turns: Sequence[ChatTurn], text: str) -> list[int]:
        """Tokens of the answer `text` as the template writes it after `prompt(turns)`, its end-of-turn token last.

        Errors as in `prompt`; and `SottovoceError` where `text` is none that may be said, see `check_text`.
        """
        self.check_text(text)
        # Some templates write a finished turn otherwise than an open one (Mistral's moves the system prompt): then the
        # answer is taken from the plainest dialogue.
        marked, _ = self._marked(turns)
        for messages in (marked, [_message("user", "x")]):
            before, after = self._render(messages, answer=None), self._render(messages, answer=text)
            if after.startswith(before):
                return self._until_stop(self._after(before, after))
        return self._until_stop(self.token_ids(text))

    def check_text(self, text: str) -> None:
        """`SottovoceError` where a text holds control tokens, or characters that mark placeholders."""
        _refuse_reserved(text)
        if found := self.control_tokens_in(text):
            why = f"the text {brief(text, 100)!r} holds {', '.join(found)}, which the LLM would read as a border of "
            raise SottovoceError(f"{why}turns, and not as words: take it out of the text", code="bad-value")

    def control_tokens_in(self, text: str) -> list[str]:
        """The control tokens that this text would become, each once."""
        found = list(dict.fromkeys(self._border.findall(text)))
        ids = set(self.token_ids(text)) if found else set()
        return [token for token in found if self._control[token] in ids]

    def _control_tokens(self) -> dict[str, int]:
        """Special tokens, and the tokens of its own that the template writes around turns, by their text."""
        mark = f"{_OPEN}0{_CLOSE}"
        talk = [_message("user", "x"), _message("assistant", "x"), _message("user", mark)]
        around = set(self.token_ids(self._render(talk, answer=None).rpartition(mark)[0]))
        added = self.tokenizer.added_tokens_decoder
        ids = {*self.tokenizer.all_special_ids, *(i for i, token in added.items() if token.special or i in around)}
        texts = {str(self.tokenizer.convert_ids_to_tokens(i)): i for i in ids}
        return {text: i for text, i in texts.items() if text.strip()}

    def _after(self, before: str, after: str) -> list[int]:
        """Tokens that `after` adds to `before`, in context: some tokenizers write the start of a text otherwise."""
        since = max((mark.end() for mark in _MARK.finditer(before)), default=0)
        known, whole = self.token_ids(before[since:]), self.token_ids(after[since:])
        return whole[len(known) :] if whole[: len(known)] == known else self.token_ids(after[len(before) :])

    def ids_after_words(self, text: str) -> list[int]:
        """Token ids of a text as it is in the middle of a sentence, so that its first word has that word's usual token.

        Most tokenizers have other, rarer tokens for a word that no space comes before.
        """
        ids = self._ids_within(f" {text.lstrip()}")
        alone = len(ids) > 1 and not str(self.tokenizer.decode(ids[:1])).strip()  # scripts without spaces
        return ids[1:] if alone else ids

    def _ids_within(self, text: str) -> list[int]:
        """Tokens of a text that speech comes before: SentencePiece marks the start of a text, which this is not."""
        if not self._marks_starts:
            return self.token_ids(text)
        known, whole = self.token_ids(_CLOSE), self.token_ids(_CLOSE + text)
        return whole[len(known) :] if whole[: len(known)] == known else self.token_ids(text)

    def _until_stop(self, ids: list[int]) -> list[int]:
        if (at := next((at for at, token in enumerate(ids) if token in self.stop_ids), None)) is not None:
            return ids[: at + 1]
        eos = self.tokenizer.eos_token_id
        return [*ids, min(self.stop_ids) if eos is None else int(eos)]

    def _marked(self, turns: Sequence[ChatTurn]) -> tuple[list[dict[str, str]], list[Placeholder]]:
        """The turns as a template reads them, and the placeholders in the order of their numbers."""
        _check(turns)
        if not self._assistant_may_begin:
            turns = _user_first(turns)
        if turns[0].role == "system" and not self._has_system_role:
            turns = _without_system(turns)
        keys: list[Placeholder] = []
        messages = []
        for turn in turns:
            content = ""
            for piece in turn.pieces:
                if isinstance(piece, Placeholder):
                    before, after = self.delimiters(piece.key, len(keys) + 1)
                    content += _refuse_reserved(before) + f"{_OPEN}{len(keys)}{_CLOSE}" + _refuse_reserved(after)
                    keys.append(piece)
                else:
                    self.check_text(piece)
                    content += piece
            messages.append(_message(turn.role, content))
        return messages, keys

    def _render(self, messages: list[dict[str, str]], answer: str | None) -> str:
        key = (answer, *((message["role"], message["content"]) for message in messages))
        known = self._rendered.get(key)
        return _remember(self._rendered, key, self._by_template(messages, answer)) if known is None else known

    def _by_template(self, messages: list[dict[str, str]], answer: str | None) -> str:
        if answer is not None:
            messages = [*messages, _message("assistant", answer)]
        try:
            arguments = dict(self.arguments)
            if day := arguments.pop("strftime_now", None):
                arguments["chat_template"] = _dated(self.tokenizer.get_chat_template(), str(day))
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answer is None, **arguments
            )
        except Exception as error:  # a template can fail as any program can
            roles = ", ".join(message["role"] for message in messages)
            why = f"a chat template that refuses a dialogue of turns ({roles}): {first_line(error)}"
            raise _unfit(self.tokenizer, "mismatch", why) from None
        return cast(str, text)

    def token_ids(self, text: str) -> list[int]:
        known = self._tokens.get(text)
        if known is None:
            known = _remember(self._tokens, text, tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]))
        return list(known)

    def _end_of_turn(self) -> frozenset[int]:
        """The special token that the template writes right after an assistant's words; empty where it writes none."""
        mark = f"{_OPEN}0{_CLOSE}"
        tail = self._render([_message("user", "x")], answer=mark).rpartition(mark)[2]
        added = self.tokenizer.added_tokens_decoder.items()
        special = {*self.tokenizer.all_special_ids, *(i for i, token in added if token.special)}
        return frozenset([token for token in self.token_ids(tail) if token in special][:1])

    def _may_begin_with(self, role: Role) -> bool:
        mark = f"{_OPEN}0{_CLOSE}"
        try:
            return mark in self._render([_message(role, mark), _message("user", "x")], answer=None)
        except SottovoceError:
            return False


def _remember(known: dict[_Key, _Value], key: _Key, value: _Value, most: int = 8_192) -> _Value:
    if len(known) >= most:
        known.clear()
    known[key] = value
    return value


def _unfit(tokenizer: "PreTrainedTokenizerBase", code: Code, why: str) -> SottovoceError:
    return SottovoceError.at("llm.checkpoint", code, f"the tokenizer of {tokenizer.name_or_path} has {why}")


def _dated(template: str, day: str) -> str:
    """A template whose `strftime_now` knows one day; a macro, since functions cannot be handed to a template."""
    date = datetime.fromisoformat(day)
    forms = [f"%{sign}{letter}" for sign in ("-", "") for letter in "aAbBdeHIjmMpSUwWyYxXc"]
    steps = "".join(f" | replace('{form}', '{date.strftime(form)}')" for form in forms)
    return f"{{% macro strftime_now(format) %}}{{{{ format{steps} }}}}{{% endmacro %}}{template}"


def _no_delimiters(key: Hashable, number: int) -> tuple[str, str]:
    return "", ""


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _check(turns: Sequence[ChatTurn]) -> None:
    for turn in turns:
        if turn.role not in get_args(Role):
            why = f"no role is called {turn.role!r}.{nearest(turn.role, get_args(Role))}"
            raise SottovoceError(why, code="unknown-name")
    if not turns or turns[-1].role != "user":
        raise SottovoceError("a prompt must end with a user's turn, which the assistant then answers", code="bad-value")
    if any(turn.role == "system" for turn in turns[1:]):
        why = "a system turn must be the first of a dialogue: most chat templates drop a later one"
        raise SottovoceError(why, code="bad-value")


def _user_first(turns: Sequence[ChatTurn]) -> Sequence[ChatTurn]:
    """Put an empty turn of the user before an assistant that speaks first."""
    at = int(turns[0].role == "system")
    return [*turns[:at], ChatTurn("user", ("",)), *turns[at:]] if turns[at].role == "assistant" else turns


def _without_system(turns: Sequence[ChatTurn]) -> list[ChatTurn]:
    """Move the system's pieces to the front of the first user turn, as families without a system role advise."""
    system, rest = turns[0], list(turns[1:])
    first = next(i for i, turn in enumerate(rest) if turn.role == "user")
    rest[first] = ChatTurn("user", (*system.pieces, "\n\n", *rest[first].pieces))
    return rest


def _refuse_reserved(text: str) -> str:
    if _OPEN in text or _CLOSE in text:
        why = f"the text {text!r} holds U+F5E00 or U+F5E01, which are reserved to mark where speech goes: take it out"
        raise SottovoceError(why, code="bad-value")
    return text
