"""Texts of paired data: what is asked, what the right answer hangs on, and to which split a text belongs for ever."""

import hashlib
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from sottovoce.data.manifest import line_fault, read_lines, refuse
from sottovoce.data.skipped import Skipped
from sottovoce.errors import ManifestError, nearest

HELD_OUT = "held_out"
_KEYS = ("text", "category", "topic", "answers")


@dataclass(frozen=True)
class Text:
    """Words that anybody may say, and the right answer to each kind of speaker."""

    text: str
    category: str  # the attribute that the right answer hangs on
    topic: str | None
    answers: dict[str, str]  # its label -> the right answer
    where: str  # it comes from

    @property
    def key(self) -> str:
        """The words without case and punctuation: texts with the same key are the same text."""
        return " ".join(re.findall(r"[^\W_]+", self.text.casefold()))


def read_texts(file: Path, values: Mapping[str, Sequence[str]]) -> list[Text]:
    """The texts of a JSONL file, each `{"text", "category", "topic", "answers"}`; the topic may be absent.

    `values` has the labels of each category; a text has an answer for each of them, and no two the same.

    Raises:
        ManifestError: with every fault, by file and line.
    """
    texts: list[Text] = []
    faults: list[ManifestError] = []
    for number, record in read_lines(file):
        if isinstance(record, ManifestError):
            faults.append(line_fault(file, number, None, record))
        elif problems := _problems(record, values):
            faults += [line_fault(file, number, None, ManifestError(each, code="bad-value")) for each in problems]
        else:
            texts.append(Text(**{"topic": None, **record}, where=f"{file.name}:{number}"))
    if faults:
        refuse(f"{file}: {len(faults)} faults", faults)
    if not texts:
        raise ManifestError(f"{file}: there is no text in it; write one JSON object a line", code="empty", where=file)
    return texts


def _problems(record: dict[str, Any], values: Mapping[str, Sequence[str]]) -> list[str]:
    found = [f"unknown key {key!r}.{nearest(key, _KEYS)}" for key in record if key not in _KEYS]
    found += [f"{key}: a text is needed" for key in ("text", "category") if not _is_text(record.get(key))]
    if record.get("topic") is not None and not _is_text(record["topic"]):
        found.append("topic: a text is needed, or leave the key out")
    category, answers = record.get("category"), record.get("answers")
    if _is_text(category) and category not in values:
        return [*found, f"unknown category {category!r}.{nearest(str(category), values)}"]
    if not isinstance(answers, dict) or not all(map(_is_text, answers.values())):
        return [*found, "answers: an object of texts is needed, one for each label of the category"]
    wanted = values.get(str(category), ())
    strange = [label for label in answers if label not in wanted]
    found += [f"answers: unknown {category} {label!r}.{nearest(label, wanted)}" for label in strange]
    found += [f"answers: none for {label!r}" for label in wanted if label not in answers]
    if len(set(answers.values())) < len(answers):
        found.append("answers: two speakers get the same answer, so that nothing hangs on the voice")
    return found


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(re.search(r"\w", value))


def number_of(*parts: object) -> float:
    """A number in [0, 1) that hangs on nothing but the parts: evenly spread, and the same for ever."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def split_of(key: str, shares: Mapping[str, float]) -> str:
    """The split of a text, by its words and the shares of the splits alone: other texts do not move it."""
    ends = list(accumulate(shares.values()))
    return list(shares)[min(bisect_right(ends, number_of(key) * sum(shares.values())), len(shares) - 1)]


def is_held_out(topic: str | None, held_out: Iterable[str]) -> bool:
    """Whether a topic, or the group that it belongs to (`group/topic`), is among those held out."""
    return topic is not None and bool({topic, topic.partition("/")[0]} & set(held_out))


def select(
    texts: Iterable[Text], shares: Mapping[str, float], most: Mapping[str, int], held_out: Sequence[str], seed: int,
    skipped: Skipped,
) -> dict[str, list[Text]]:  # fmt: skip
    """The texts of every split, and those of the held-out topics; no two splits share a text.

    `shares` are those of the splits, in order. Of a category a split takes at most `most` texts, drawn by the seed, or
    all where it is absent. Topics, or groups of topics, in `held_out` go there whole: what they say is nowhere else.
    `skipped` gets what is not used.
    """
    by_key: dict[tuple[str, str], Text] = {}
    for text in texts:
        if by_key.setdefault((text.category, text.key), text) is not text:
            skipped.add("the same words came before", f"{text.where}: {text.text}")
    unique = list(by_key.values())
    kept_apart = {text.key for text in unique if is_held_out(text.topic, held_out)}
    splits: dict[str, list[Text]] = {**{split: [] for split in shares}, HELD_OUT: []}
    taken: Counter[tuple[str, str]] = Counter()
    for text in sorted(unique, key=lambda text: number_of(seed, text.category, text.key)):
        split = HELD_OUT if is_held_out(text.topic, held_out) else split_of(text.key, shares)
        name = f"{text.where}: {text.text}"
        if split != HELD_OUT and text.key in kept_apart:
            skipped.add("the same words belong to a held-out topic", name)
        elif split in most and taken[split, text.category] >= most[split]:
            skipped.add(f"{split} has all the texts on {text.category} that were asked for", name)
        else:
            splits[split].append(text)
            taken[split, text.category] += 1
    return splits
