"""Text retention: what an LLM could do with text before it was tuned, and what of it is left.

PE-FT reports it by VoiceBench's overall score; here it is the same prompts, in text alone, before and after.
"""

import hashlib
import json
import re
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.errors import MissingError, SottovoceError
from sottovoce.evaluation.bootstrap import Array, ratio
from sottovoce.evaluation.metrics import Measure, Score

TASK, SLOTS = "retention", "text"  # of its records
KEYS = {"prompt", "messages", "response", "answer"}
ROLES = ("system", "user", "assistant")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Item:
    """A prompt in text: `messages` as (role, content), the last of them a user's, and a right response to them.

    `answer` is what of the response counts, where that is not the whole of it.
    """

    messages: tuple[tuple[str, str], ...]
    response: str
    answer: str | None = None

    @property
    def digest(self) -> str:
        """Tells this item from any other."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


def read_items(file: Path) -> list[Item]:
    """Prompts from a JSONL file: `{"prompt" or "messages", "response"}` a line, and `"answer"` where only that counts.

    Raises:
        MissingError: there is no such file.
        SottovoceError: with every line that cannot be used, and why; or the file has none.
    """
    if not file.is_file():
        raise MissingError(f"{file}: there are no text prompts; `evaluation.retention` names a JSONL file of them")
    items, faults = [], []
    for number, line in enumerate(file.read_text("utf-8").split("\n"), 1):
        try:
            items += [_item(json.loads(line))] if line.strip() else []
        except (ValueError, TypeError) as error:
            faults.append(f"{file}: line {number}: {error}")
    if faults or not items:
        raise SottovoceError("\n".join(faults[:20]) or f"{file}: there is no prompt in it")
    return items


def _item(row: Any) -> Item:
    if not isinstance(row, dict) or set(row) - KEYS or ("prompt" in row) == ("messages" in row):
        raise ValueError(f"a prompt has the keys {', '.join(sorted(KEYS))}, one of prompt and messages; found {row!r}")
    turns = row["messages"] if "messages" in row else [{"role": "user", "content": row["prompt"]}]
    if not isinstance(turns, list) or not all(isinstance(t, dict) and set(t) == {"role", "content"} for t in turns):
        raise ValueError('messages are a list of {"role": ..., "content": ...}')
    messages = tuple((str(turn["role"]), str(turn["content"])) for turn in turns)
    if not messages or messages[-1][0] != "user" or any(role not in ROLES for role, _ in messages):
        raise ValueError(f"messages have the roles {', '.join(ROLES)}, and the last is the user's; found {messages}")
    response, answer = row.get("response"), row.get("answer")
    if not isinstance(response, str) or not words(response):
        raise ValueError(f"response must be a text with a word in it, found {response!r}")
    if answer is not None and (not isinstance(answer, str) or not is_right(Item(messages, response, answer), response)):
        raise ValueError(f"answer must be words of the response, found {answer!r} and {response!r}")
    return Item(messages, response, answer)


def words(text: str) -> list[str]:
    """Words and numbers, in lower case and Unicode's compatible forms, without punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def is_right(item: Item, said: str) -> bool:
    """Whether what was said is the response, word for word; of an item with an `answer`, whether it has these words.

    The words of an answer stand together, in their order. Case and punctuation do not matter.
    """
    heard = words(said)
    if item.answer is None:
        return heard == words(item.response)
    due = words(item.answer)
    return bool(due) and any(heard[at : at + len(due)] == due for at in range(len(heard) - len(due) + 1))


@dataclass(frozen=True)
class Kept:
    """How an LLM did on one item: what it said, whether that is right, and how surprising the right response is.

    `nats` is the negative log-likelihood of the response, summed over its `tokens`, its end of turn included. `item`
    tells items apart.
    """

    item: str
    said: str
    right: bool
    nats: float
    tokens: int


@dataclass(frozen=True)
class RetentionScore:
    """How an LLM did on all items, in their order."""

    rows: tuple[Kept, ...]

    @property
    def right(self) -> float:
        """Share of right answers."""
        return float(np.mean([row.right for row in self.rows]))

    @property
    def nats(self) -> float:
        """A response token, over all responses together."""
        return sum(row.nats for row in self.rows) / sum(row.tokens for row in self.rows)


def retention_scores(before: RetentionScore, after: RetentionScore) -> dict[str, Score]:
    """Accuracy and loss before and after, and their changes, each with an interval.

    Intervals of changes are paired: they ask what other prompts of this kind would have said of the same two LLMs.
    Where nothing has changed a change is exactly 0, and so are its interval's ends.

    Raises:
        SottovoceError: the two are not of the same items.
    """
    if [(row.item, row.tokens) for row in before.rows] != [(row.item, row.tokens) for row in after.rows]:
        raise SottovoceError("retention: before and after are not of the same prompts; score both by the same file")
    return {name: measure.score() for name, measure in retention_measures(before, after).items()}


def retention_measures(before: RetentionScore, after: RetentionScore) -> dict[str, Measure]:
    """What each item contributes to `retention_scores`, by which two systems are held together."""
    then, now = _columns(before), _columns(after)
    found = {}
    for name, part in {"right": slice(0, 2), "nats": slice(2, 4)}.items():
        both = np.hstack([now[:, part], then[:, part]])
        for kind, rows, statistic in (
            ("_before", then[:, part], ratio),
            ("", now[:, part], ratio),
            ("_change", both, change),
        ):
            value = float(statistic(rows.sum(axis=0, keepdims=True))[0])
            found[f"{name}{kind}"] = Measure(value, rows, statistic, None, "")
    return found


def change(sums: Array) -> Array:
    """The ratio of the first two columns less that of the last two: (resamples, 4) to (resamples,)."""
    difference: Array = ratio(sums[:, :2]) - ratio(sums[:, 2:])
    return difference


def _columns(score: RetentionScore) -> Array:
    """(items, 4): right, 1, nats, tokens."""
    return np.array([[row.right, 1.0, row.nats, row.tokens] for row in score.rows], dtype=np.float64)


def write_scores(file: Path, score: RetentionScore) -> None:
    """One line an item; the file appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.draft")
    lines = (json.dumps(asdict(row), ensure_ascii=False) for row in score.rows)
    draft.write_text("".join(f"{line}\n" for line in lines), "utf-8", newline="\n")
    draft.replace(file)


def read_scores(file: Path) -> RetentionScore:
    """What `write_scores` wrote.

    Raises:
        MissingError: there is no such file.
        SottovoceError: it is not of that kind.
    """
    if not file.is_file():
        raise MissingError(f"{file} is not there: this run has not been scored on text prompts")
    lines = [line for line in file.read_text("utf-8").split("\n") if line]
    try:
        rows = tuple(Kept(**json.loads(line)) for line in lines)
    except (ValueError, TypeError) as error:
        raise SottovoceError(f"{file}: not the scores of text prompts: {error}") from None
    if not rows:
        raise SottovoceError(f"{file}: it holds no scores")
    return RetentionScore(rows)
