"""An LLM writes the texts of paired data: questions on a topic, and the right answer to each kind of speaker."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Formatter
from typing import TypeVar

from sottovoce.data.paired_texts import SkippedRows, Text
from sottovoce.errors import ConfigError, nearest
from sottovoce.generation.paired_config import WriterConfig
from sottovoce.generation.target_prompt import read_turns
from sottovoce.llms.engines import Chat, Cut, Engine, Failure
from sottovoce.paths import resolve

T = TypeVar("T")
_QUESTION_FIELDS = ("count", "topic", "category", "values", "number")
_ANSWER_FIELDS = ("text", "category", "value", "others")
_MARK = re.compile(r"^\s*(?:[-*•–]|\d+\s*[.):])\s*")  # noqa: RUF001
_QUOTES = "\"'“”‘’`* "  # noqa: RUF001


class Prompt:
    """A prompt file: `[system]` and `[user]`, whose text may name some fields in braces.

    Args:
        file: UTF-8 text.
        known: fields that may be named; all but those that only some prompts need must be.
        needed: the field without which the prompt asks nothing.

    Raises:
        ConfigError: the file cannot be read, names an unknown field, or lacks the needed one.
    """

    def __init__(self, file: Path, known: Sequence[str], needed: str) -> None:
        self.turns = read_turns(file)
        try:
            named = {
                name for text in self.turns.values() for _, name, _, _ in Formatter().parse(text) if name is not None
            }
        except ValueError as error:
            raise ConfigError(f"{file}: {error}; write {{{{ and }}}} for braces that are meant") from None
        for name in sorted(named - set(known)):
            raise ConfigError(f"{file}: unknown field {{{name}}}.{nearest(name, known)}")
        if needed not in named or "[user]" not in self.turns:
            raise ConfigError(f"{file}: the user's turn ([user]) must hold the {{{needed}}}")

    def chat(self, **fields: object) -> Chat:
        return [{"role": turn.strip("[]"), "content": text.format(**fields)} for turn, text in self.turns.items()]


@dataclass
class Writer:
    """Asks an engine for texts and answers; what cannot be used is asked for again, then counted and left out.

    Args:
        node: the recipe's.
        engine: the LLM; one that keeps its answers makes a killed run go on.
        values: category -> its labels.
        left_out: gets what could not be used.
        seed: of the engine's draws; every further attempt at an answer has another.
    """

    node: WriterConfig
    engine: Engine
    values: Mapping[str, Sequence[str]]
    left_out: SkippedRows
    seed: int = 0
    again: int = 0  # answers that could not be used and were asked for again

    def questions(self) -> list[Text]:
        """Texts without answers, as many as asked for in each category or fewer, and none twice."""
        prompt = Prompt(resolve(self.node.questions), _QUESTION_FIELDS, "topic")
        asked: list[tuple[str, str, int]] = []
        for category, topics in self.node.topics.items():
            lists = math.ceil(self.node.texts / len(topics) / self.node.at_once) if topics else 0
            asked += [(category, topic, number) for topic in topics for number in range(1, lists + 1)]
        chats = [
            prompt.chat(
                count=self.node.at_once, topic=topic, category=category, number=number,
                values=", ".join(self.values[category]),
            )
            for category, topic, number in asked
        ]  # fmt: skip
        places = [f"questions on {topic} ({category}), list {number}" for category, topic, number in asked]
        found: dict[tuple[str, str], Text] = {}
        for (category, topic, number), lines in zip(asked, self._ask(chats, self._lines, places), strict=True):
            for line in lines or []:
                text = Text(line, category, topic, {}, f"writer, {topic}, list {number}")
                if (category, text.key) in found:
                    self.left_out.add("the LLM wrote the same words before", f"{text.where}: {line}")
                found.setdefault((category, text.key), text)
        return list(found.values())

    def answers(self, texts: Sequence[Text], labels: Callable[[Text], Sequence[str]]) -> list[Text]:
        """The texts with an answer for each label that `labels` names; texts without all of them are left out."""
        prompt = Prompt(resolve(self.node.answers), _ANSWER_FIELDS, "text")
        asked = [(text, label) for text in texts for label in labels(text)]
        chats = [
            prompt.chat(
                text=text.text, category=text.category, value=label,
                others=", ".join(other for other in self.values[text.category] if other != label),
            )
            for text, label in asked
        ]  # fmt: skip
        said = self._ask(chats, self._answer, [f"answer to {label}: {text.text}" for text, label in asked])
        answers = {(text.category, text.key, label): answer for (text, label), answer in zip(asked, said, strict=True)}
        return [
            whole
            for text in texts
            if (whole := self._whole(text, {label: answers[text.category, text.key, label] for label in labels(text)}))
        ]

    def _whole(self, text: Text, answers: dict[str, str | None]) -> Text | None:
        good = {label: answer for label, answer in answers.items() if answer is not None}
        if len(good) < len(answers):
            self.left_out.add("an answer is missing", f"{text.where}: {text.text}")
            return None
        if len({answer.casefold() for answer in good.values()}) < len(good):
            self.left_out.add("the LLM gave two speakers the same answer", f"{text.where}: {text.text}")
            return None
        return replace(text, answers=good)

    def _ask(self, chats: list[Chat], read: Callable[[str], T | None], places: list[str]) -> list[T | None]:
        """What `read` makes of each answer; what it makes nothing of is asked for again, with another seed."""
        results: list[T | None] = [None] * len(chats)
        reasons: dict[int, str] = dict.fromkeys(range(len(chats)), "")
        for attempt in range(self.node.attempts):
            rows = list(reasons)
            if not rows:
                break
            self.again += len(rows) if attempt else 0
            said = self.engine.answer(
                [chats[row] for row in rows],
                max_new_tokens=self.node.max_new_tokens,
                temperature=self.node.temperature,
                seed=self.seed + attempt,
            )
            for row, answer in zip(rows, said, strict=True):
                usable = None if isinstance(answer, Failure) else read(answer)
                results[row] = usable
                reasons[row] = f"not answered: {answer.reason}" if isinstance(answer, Failure) else "not usable"
                if usable is not None:
                    del reasons[row]
        for row, reason in reasons.items():
            self.left_out.add(f"{reason}, {self.node.attempts} times asked", places[row])
        return results

    def _lines(self, answer: str) -> list[str] | None:
        """The questions of an answer, one a line; what is no question of some words is passed over."""
        lines = answer.splitlines()
        lines = lines[:-1] if isinstance(answer, Cut) else lines
        cleaned = [_MARK.sub("", line).strip(_QUOTES) for line in lines]
        good = [line for line in cleaned if 3 <= len(line.split()) <= self.node.longest_text and line[-1] != ":"]
        return good or None

    def _answer(self, answer: str) -> str | None:
        text = answer.strip().strip(_QUOTES)
        words = len(text.split())
        one_line = "\n" not in text and re.search(r"\w", text)
        return text if one_line and words <= self.node.longest_answer and not isinstance(answer, Cut) else None
