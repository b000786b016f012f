"""How a spoken turn is written into a chat: a row of slots, each filled by speech, equivalent text, or nothing."""

import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from sottovoce.config.recipe import ENCODER
from sottovoce.config.sections import SlotConfig
from sottovoce.data.examples import Example, InstructionRole, slot_text
from sottovoce.data.utterance import Turn, Utterance
from sottovoce.errors import ConfigError, nearest
from sottovoce.llms.causal_lm import placeholder_spans
from sottovoce.llms.chat_template import ChatFormat, ChatTurn, Piece, Placeholder, Segment

BETWEEN = "\n"  # between two slots that hold something
_SPECIAL = re.compile(r"<\|[^<>|]*\|>")  # how many families write their special tokens


@dataclass(frozen=True)
class SpeechPlaceholder:
    """Which embeddings belong at a placeholder: a slot's, of a clip; `learns` if a gradient is to reach it."""

    slot: str
    clip: Path
    learns: bool


def dialogue_of(example: Example, slots: Mapping[str, str]) -> list[ChatTurn]:
    """The whole prompt: instruction, context, last turn; the example's sources say what fills each slot of spoken ones.

    Of `slots`, in the order of a spoken turn, each has the text that is equivalent to its speech (see `slot_text`).
    """
    system, before = instructed(example.instruction, example.place)
    turns = [ChatTurn("system", (said,)) for said in system]
    turns += [ChatTurn(t.role, spoken(t, example, slots) if t.audio else (t.text,)) for t in example.context]
    tag = [f"<{example.tag}> "] if example.tag else []
    u = example.utterance
    return [*turns, ChatTurn("user", (*before, *tag, *(spoken(u, example, slots) if u.audio else (u.text or "",))))]


def response_tokens(chat: ChatFormat, slots: Mapping[str, str], example: Example) -> int:
    """How many tokens the loss of an example is summed over."""
    return len(chat.response(dialogue_of(example, slots), example.target or ""))


def instructed(instruction: str, place: InstructionRole) -> tuple[list[str], list[str]]:
    """What an instruction is as a system turn, and what as pieces before the speech; nothing for an empty one."""
    if not instruction:
        return [], []
    return ([instruction], []) if place == "system" else ([], [f"{instruction} "])


def spoken(turn: Utterance | Turn, example: Example, slots: Mapping[str, str]) -> tuple[Piece, ...]:
    """The pieces of a spoken turn; a slot whose text is unknown stays empty."""
    pieces: list[Piece] = []
    for slot, text in slots.items():
        source, equivalent = example.sources[slot], slot_text(turn, text)
        if source == "speech" and turn.audio is not None:
            pieces.append(Placeholder(SpeechPlaceholder(slot, turn.audio, bool(example.trains & {slot, ENCODER}))))
        elif source == "text" and equivalent:
            pieces.append(equivalent)
    return between(pieces)


def between(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """What fills the slots, a line of its own for each; an empty turn is an empty text."""
    joined = [part for piece in pieces for part in (BETWEEN, piece)]
    return tuple(joined[1:]) or ("",)


def mark_speech(chat: ChatFormat, slots: Mapping[str, SlotConfig]) -> None:
    """Let a chat's own marks stand around speech; a ConfigError for one that looks like a special token and is none."""
    known = set(chat.tokenizer.get_added_vocab())
    for name, slot in slots.items():
        for token in _SPECIAL.findall(slot.before + slot.after):
            if token not in known:
                told = f"{token!r} is no special token of {chat.tokenizer.name_or_path}, which would read it"
                raise ConfigError(f"slots.{name}: {told} letter by letter.{nearest(token, known)}")
    chat.delimiters = partial(_around, {name: (slot.before, slot.after) for name, slot in slots.items()})


def _around(marks: Mapping[str, tuple[str, str]], key: Hashable, number: int) -> tuple[str, str]:
    before, after = marks[key.slot] if isinstance(key, SpeechPlaceholder) else ("", "")
    return before.replace("{number}", str(number)), after.replace("{number}", str(number))


def speech_positions(chat: list[Segment], fills: dict[Hashable, Tensor], example: Example) -> list[int]:
    """The positions in a prompt at which the example's own clip is heard, in whatever slots."""
    return [
        place
        for spot, stretch in placeholder_spans(chat, fills).items()
        if isinstance(spot, SpeechPlaceholder) and spot.clip == example.utterance.audio  # a written turn has none
        for place in stretch
    ]


def transcripts(
    examples: Iterable[Example], slot: str, embeddings: Mapping[Hashable, Tensor]
) -> dict[SpeechPlaceholder, str]:
    """What is said, where that is known, in each clip whose embeddings are those of a slot that learns."""
    turns: list[Utterance | Turn] = []
    for example in examples:
        turns += [example.utterance, *example.context]
    known = {SpeechPlaceholder(slot, turn.audio, True): turn.text for turn in turns if turn.audio and turn.text}
    return {key: text for key, text in known.items() if key in embeddings}


def constant(chat: list[Segment]) -> list[int]:
    """The text before the first speech: what no adapter can change. Its last token stays, to be answered from."""
    return chat[0][:-1] if isinstance(chat[0], list) else []
