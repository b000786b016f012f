"""Text retention: accuracy and loss of an LLM on text prompts, before and after it is tuned.

PE-FT reports it by VoiceBench's overall score (`sottovoce.evaluation.voicebench`), which needs a model that reasons;
here it is the same prompts, in text alone, before and after.
"""

import hashlib
import json
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.errors import MissingError, SottovoceError
from sottovoce.evaluation.bootstrap import Array, ratio
from sottovoce.evaluation.metrics import Measure, Score
from sottovoce.io import atomic_write
from sottovoce.scripts import searched, standing, units

TASK, SLOTS = "retention", "text"  # of its records
KEYS = {"prompt", "messages", "response", "answer"}
ROLES = ("system", "user", "assistant")


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
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


def read_items(file: Path) -> list[Item]:
    """Prompts from a JSONL file: `{"prompt" or "messages", "response"}` a line, and `"answer"` where only that counts.

    Raises:
        MissingError: there is no such file.
        SottovoceError: with every line that cannot be used, and why; or the file has none.
    """
    if not file.is_file():
        why = "there are no text prompts; `evaluation.retention` names a JSONL file of them"
        raise MissingError.at(file, "not-found", why)
    items: list[Item] = []
    faults: list[SottovoceError] = []
    for number, line in enumerate(file.read_text("utf-8").split("\n"), 1):
        try:
            items += [_item(json.loads(line))] if line.strip() else []
        except (ValueError, TypeError) as error:
            faults.append(SottovoceError.at(f"{file}:{number}", "bad-value", str(error)))
    if faults:
        raise SottovoceError.of(faults[:20])
    if not items:
        raise SottovoceError.at(file, "empty", "there is no prompt in it")
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
    """Words, numbers and characters of scripts without spaces, in lower case and compatible forms (NFKC)."""
    return units(unicodedata.normalize("NFKC", text).lower())


def is_right(item: Item, said: str) -> bool:
    """Exact match of the words of an answer with the response; of an item with an `answer`, whether it has its words.

    The words of an answer stand together, in their order. Case and punctuation do not matter.
    """
    answer = words(said)
    if item.answer is None:
        return answer == words(item.response)
    right = searched(" ".join(words(item.answer)))
    return bool(right) and bool(standing([right]).search(searched(" ".join(answer))))


@dataclass(frozen=True)
class Kept:
    """Score of an LLM on one item: its answer, whether that is right, and the loss of the right response.

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
    """Scores of an LLM on all items, in their order: the share of right answers, and the loss of a response token."""

    rows: tuple[Kept, ...]

    @property
    def right(self) -> float:
        return float(np.mean([row.right for row in self.rows]))

    @property
    def nats(self) -> float:
        return sum(row.nats for row in self.rows) / sum(row.tokens for row in self.rows)


def retention_scores(before: RetentionScore, after: RetentionScore) -> dict[str, Score]:
    """Accuracy and loss before and after, and their changes, each with an interval.

    Intervals of changes are paired: they ask what other prompts of this kind would have said of the same two LLMs.
    Where nothing has changed a change is exactly 0, and so are its interval's ends. An error: items are not the same.
    """
    if [(row.item, row.tokens) for row in before.rows] != [(row.item, row.tokens) for row in after.rows]:
        message = "retention: before and after are not of the same prompts; score both by the same file"
        raise SottovoceError(message, code="mismatch", where="retention")
    return {name: measure.score() for name, measure in retention_measures(before, after).items()}


def retention_measures(before: RetentionScore, after: RetentionScore) -> dict[str, Measure]:
    """Measures behind `retention_scores`, with the contributions of each item."""
    then, now = _columns(before), _columns(after)
    found = {}
    for name, part in {"right": slice(0, 2), "nats": slice(2, 4)}.items():
        both = np.hstack([now[:, part], then[:, part]])
        kinds = {"_before": (then[:, part], ratio), "": (now[:, part], ratio), "_change": (both, change)}
        for kind, (rows, statistic) in kinds.items():
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
    """Write scores as JSON lines, one an item."""
    atomic_write(file, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in score.rows))


def read_scores(file: Path) -> RetentionScore:
    """Read scores back that `write_scores` wrote; errors where there are none, or they are damaged."""
    if not file.is_file():
        raise MissingError(f"{file} is not there: this run has not been scored on text prompts", where=file)
    try:
        rows = tuple(Kept(**json.loads(line)) for line in file.read_text("utf-8").split("\n") if line)
    except (ValueError, TypeError) as error:
        raise SottovoceError.at(file, "damaged", f"not the scores of text prompts: {error}") from None
    if not rows:
        raise SottovoceError.at(file, "empty", "it holds no scores")
    return RetentionScore(rows)
