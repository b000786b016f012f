"""An LLM writes the texts of paired data: questions on a topic, and the right answer to each kind of speaker."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from sottovoce.data.paired_texts import Text
from sottovoce.data.skipped import Skipped
from sottovoce.generation.chat_prompt import ChatPrompt
from sottovoce.generation.paired_config import WriterConfig
from sottovoce.llms.engines import Chat, Cut, Engine, Failure
from sottovoce.paths import resolve
from sottovoce.scripts import mixed

T = TypeVar("T")
_QUESTION_FIELDS = ("count", "topic", "category", "values", "number")
_ANSWER_FIELDS = ("text", "category", "value", "others")
_MARK = re.compile(r"^\s*(?:[-*•–]|\d+\s*[.):])\s*")  # noqa: RUF001
_QUOTES = "\"'“”‘’`* "  # noqa: RUF001


@dataclass
class Writer:
    """Has an engine write texts and answers; what cannot be used is asked for again, then counted and left out."""

    node: WriterConfig
    engine: Engine  # with a `CachedEngine` a killed run goes on
    values: Mapping[str, Sequence[str]]  # category -> its labels
    skipped: Skipped  # gets what could not be used
    seed: int = 0  # of the engine's draws; every further attempt at an answer has another
    again: int = 0  # answers that could not be used and were asked for again

    def questions(self) -> list[Text]:
        """Texts without answers, as many as asked for in each category or fewer, and none twice."""
        prompt = ChatPrompt(resolve(self.node.questions), _QUESTION_FIELDS, "topic")
        lists: list[dict[str, object]] = [
            {"count": self.node.at_once, "topic": topic, "category": category, "number": number,
             "values": ", ".join(self.values[category])}
            for category, topics in self.node.topics.items()
            for topic in topics
            for number in range(1, 1 + math.ceil(self.node.texts / len(topics) / self.node.at_once))
        ]  # fmt: skip
        names = ["questions on {topic} ({category}), list {number}".format(**each) for each in lists]
        texts: dict[tuple[str, str], Text] = {}
        answers = self._ask([prompt.chat(each) for each in lists], self._parse_questions, names)
        for each, questions in zip(lists, answers, strict=True):
            category, topic = str(each["category"]), str(each["topic"])
            for question in questions or []:
                text = Text(question, category, topic, {}, f"writer, {topic}, list {each['number']}")
                if (category, text.key) in texts:
                    self.skipped.add("the LLM wrote the same words before", f"{text.where}: {question}")
                texts.setdefault((category, text.key), text)
        return list(texts.values())

    def answers(self, texts: Sequence[Text], labels: Callable[[Text], Sequence[str]]) -> list[Text]:
        """The texts with an answer for each label that `labels` names; texts without all of them are left out."""
        prompt = ChatPrompt(resolve(self.node.answers), _ANSWER_FIELDS, "text")
        pairs = [(text, label) for text in texts for label in labels(text)]
        chats = []
        for text, label in pairs:
            others = ", ".join(other for other in self.values[text.category] if other != label)
            chats.append(prompt.chat({"text": text.text, "category": text.category, "value": label, "others": others}))
        written = self._ask(chats, self._parse_answer, [f"answer to {label}: {text.text}" for text, label in pairs])
        by_label: dict[tuple[str, str], dict[str, str | None]] = {}
        for (text, label), answer in zip(pairs, written, strict=True):
            by_label.setdefault((text.category, text.key), {})[label] = answer
        complete = (self._complete(text, by_label.get((text.category, text.key), {})) for text in texts)
        return [text for text in complete if text]

    def _complete(self, text: Text, answers: dict[str, str | None]) -> Text | None:
        good = {label: answer for label, answer in answers.items() if answer is not None}
        if len(good) < len(answers):
            self.skipped.add("an answer is missing", f"{text.where}: {text.text}")
        elif len({answer.casefold() for answer in good.values()}) < len(good):
            self.skipped.add("the LLM gave two speakers the same answer", f"{text.where}: {text.text}")
        else:
            return replace(text, answers=good)
        return None

    def _ask(self, chats: list[Chat], parse: Callable[[str], T | None], names: list[str]) -> list[T | None]:
        """What `parse` makes of each answer; what it makes nothing of is asked for again, with another seed."""
        results: list[T | None] = [None] * len(chats)
        reasons: dict[int, str] = dict.fromkeys(range(len(chats)), "")
        for attempt in range(self.node.attempts):
            if not (rows := list(reasons)):
                break
            self.again += len(rows) if attempt else 0
            answers = self.engine.answer(
                [chats[row] for row in rows],
                max_new_tokens=self.node.max_new_tokens,
                temperature=self.node.temperature,
                seed=self.seed + attempt,
            )
            for row, answer in zip(rows, answers, strict=True):
                results[row] = None if isinstance(answer, Failure) else parse(answer)
                reasons[row] = f"not answered: {answer.reason}" if isinstance(answer, Failure) else "not usable"
                if results[row] is not None:
                    del reasons[row]
        for row, reason in reasons.items():
            self.skipped.add(f"{reason}, {self.node.attempts} times asked", names[row])
        return results

    def _parse_questions(self, answer: str) -> list[str] | None:
        """The questions of an answer, one a line; what is no question of some words is passed over."""
        whole = answer.splitlines()[: -1 if isinstance(answer, Cut) else None]
        cleaned = [_MARK.sub("", line).strip(_QUOTES) for line in whole]
        good = [line for line in cleaned if 3 <= len(mixed(line)) <= self.node.longest_text and line[-1] != ":"]
        return good or None

    def _parse_answer(self, answer: str) -> str | None:
        text = answer.strip().strip(_QUOTES)
        words = len(mixed(text))
        one_line = "\n" not in text and re.search(r"\w", text)
        return text if one_line and words <= self.node.longest_answer and not isinstance(answer, Cut) else None
