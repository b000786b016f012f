"""How a spoken turn is written into a chat: a row of slots, each filled by speech, equivalent text, or nothing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from undertone.data.examples import Example, Place, words
from undertone.data.utterance import Turn, Utterance
from undertone.lightning_modules.recipe import ENCODER
from undertone.llms.chat import ChatTurn, Piece, Placeholder

BETWEEN = "\n"  # between two slots that hold something


@dataclass(frozen=True)
class Spot:
    """Which embeddings belong at a placeholder: a slot's, of a clip; `learns` if a gradient is to reach it."""

    slot: str
    clip: Path
    learns: bool


def chat_of(example: Example, slots: Mapping[str, str]) -> list[ChatTurn]:
    """The whole prompt: instruction, context, spoken turn.

    Args:
        example: whose sources say what fills each slot.
        slots: slot -> the text equivalent to its speech (see `words`), in the order of a spoken turn.
    """
    system, before = instructed(example.instruction, example.place)
    turns = [ChatTurn("system", (said,)) for said in system]
    for turn in example.context:
        turns.append(ChatTurn(turn.role, spoken(turn, example, slots) if turn.audio else (turn.text,)))
    tag = [f"<{example.tag}> "] if example.tag else []
    return [*turns, ChatTurn("user", (*before, *tag, *spoken(example.utterance, example, slots)))]


def instructed(instruction: str, place: Place) -> tuple[list[str], list[str]]:
    """What an instruction is as a system turn, and what as pieces before the speech; nothing for an empty one."""
    if not instruction:
        return [], []
    return ([instruction], []) if place == "system" else ([], [f"{instruction} "])


def spoken(turn: Utterance | Turn, example: Example, slots: Mapping[str, str]) -> tuple[Piece, ...]:
    """The pieces of a spoken turn; a slot whose text is unknown stays empty."""
    pieces: list[Piece] = []
    for slot, text in slots.items():
        source, equivalent = example.sources[slot], words(turn, text)
        if source == "speech" and turn.audio is not None:
            pieces.append(Placeholder(Spot(slot, turn.audio, bool(example.trains & {slot, ENCODER}))))
        elif source == "text" and equivalent:
            pieces.append(equivalent)
    return between(pieces)


def between(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """What fills the slots, a line of its own for each; an empty turn is an empty text."""
    joined = [part for piece in pieces for part in (BETWEEN, piece)]
    return tuple(joined[1:]) or ("",)
