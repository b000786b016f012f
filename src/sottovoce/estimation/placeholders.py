"""Placeholders for what is not there yet: the LLM's tokenizer, and manifests."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from sottovoce.adapters import Adapter
from sottovoce.config.recipe import Recipe
from sottovoce.data.tasks import AttributeTask, caption_from
from sottovoce.data.utterance import Utterance
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.chat_template import ChatTurn, Placeholder, Segment
from sottovoce.training.row_lengths import RowLengths
from sottovoce.training.splits import DataSplits, LazySplit, Split, build_tasks

LETTERS = 4  # of a token, in English


class PlaceholderChat:
    """Chat format of an LLM whose tokenizer cannot be reached: a token for four letters, and four for a turn."""

    stop_ids = frozenset([0])

    def prompt(self, turns: Sequence[ChatTurn]) -> list[Segment]:
        segments: list[Segment] = [[0] * 4]
        for turn in turns:
            segments.append([0] * 4)
            segments += [one if isinstance(one, Placeholder) else self._tokens(one) for one in turn.pieces]
        return _merged([*segments, [0] * 4])

    def response(self, turns: Sequence[ChatTurn], text: str) -> list[int]:
        return [*self._tokens(text), 0]

    def tokenizer(self, texts: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        """The tokens of texts, as a tokenizer of transformers gives them."""
        return {"input_ids": [self._tokens(text) for text in texts]}

    def check_text(self, text: str) -> None:
        """Nothing: which tokens control the chat is not known."""

    def delimiters(self, placeholder: Placeholder, tokens: int) -> tuple[str, str]:
        """What stands around speech: nothing that is known."""
        return "", ""

    def _tokens(self, text: str) -> list[int]:
        return [0] * math.ceil(len(text) / LETTERS)


def _merged(segments: list[Segment]) -> list[Segment]:
    """Text segments that follow one another as one."""
    out: list[Segment] = []
    for part in segments:
        if out and isinstance(part, list) and isinstance(out[-1], list):
            out[-1] = [*out[-1], *part]
        else:
            out.append(part)
    return out


def row_lengths(recipe: Recipe, module: SpeechLLM, data: DataSplits) -> RowLengths:
    """How long rows are for the LLM of a module without weights; a clip of an earlier turn is like the first."""
    known = {u.audio: u.seconds for split in data.splits.values() if not isinstance(split, LazySplit)
             for u in split.utterances if u.audio}  # fmt: skip
    usual = next(iter(known.values()), 0.0)

    def speech(slot: str, clip: Path) -> int:
        samples = int(known.get(clip, usual) * module.encoder.sample_rate)
        return cast(Adapter, module.adapters[slot]).output_length(module.encoder.output_length(samples))

    most, made = recipe.evaluation.max_new_tokens, recipe.target_max_new_tokens
    return RowLengths(module.llm.chat, None, module.llm.checkpoint, speech, most, made, recipe.instructions)


def placeholder_splits(recipe: Recipe, count: int, seconds: float) -> DataSplits:
    """`count` training utterances of equal length, which any task can use, in place of manifests."""
    tasks = build_tasks(recipe)
    labels = {name: task.choices[0] for name, task in tasks.items() if isinstance(task, AttributeTask)}
    category, values = next(iter(recipe.auxiliary_head.categories.items())) if recipe.auxiliary_head else (None, [])
    if category:
        labels[category] = values[0]
    caption = caption_from(labels)  # "A voice." where nothing is labelled
    words = " ".join(["spoken"] * max(1, round(2.5 * seconds)))
    utterances = [
        Utterance(str(i), Path(f"{i}.wav"), words, None, seconds, labels, caption, category=category)
        for i in range(count)
    ]
    return DataSplits({"train": Split(utterances, [1.0] * count), "validation": Split(), "test": Split()}, [])
