"""LLM judges: an engine is asked for whole numbers by a rubric, a text file with fields.

`llm` is quality and emotion of Kang et al. (2024), section IV-C, who report means with 95 % intervals (there by Llama 3
Instruct 70B); `conversation` is CS and EGS of Wang et al. (ICME 2025), section IV-B.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from sottovoce.errors import ConfigError, nearest
from sottovoce.evaluation import JUDGES
from sottovoce.evaluation.judges.base import Answerer, Aspect, Judge, Reply, Verdict
from sottovoce.paths import resolve
from sottovoce.templates import Template, uncommented_lines

_RUBRICS = Path(__file__).parents[1] / "rubrics"
_RETRY_TEMPERATURE = 0.7  # at 0 another seed would say the same again


class Scale(NamedTuple):
    """What one rubric asks for: by each key, a whole number from `lowest` to `highest`."""

    keys: tuple[str, ...]
    lowest: int
    highest: int


SCALES = {
    "quality": Scale(("score",), 1, 10),
    "emotion": Scale(("score",), 1, 10),
    "cs": Scale(("content", "style"), 1, 5),
    "egs": Scale(("c1", "c2", "c3", "c4"), 1, 10),
    "awareness": Scale(("label",), -1, 1),
}


class LLMJudge(Judge):
    """Scores items by rubrics, one judgement an item and rubric.

    A judgement that lacks a number is asked for again as a whole. An engine that keeps its answers
    (`sottovoce.llms.answer_cache.CachedEngine`) makes a second judging of the same items by the same rubric free.

    Args:
        kind: of the judge, as recipes name it.
        engine: the LLM.
        rubrics: name in `SCALES` -> file of the rubric; the project's own where it is None.
        shown: attributes of an item, which are the fields of the rubrics; {response} is always needed.
        retries: how often a judgement is asked for again.
        seed: of the first attempt, at temperature 0; further ones, at 0.7, count on from it.
        max_new_tokens: of a judgement.

    Raises:
        ConfigError: there is no engine, a knob makes no sense, or a rubric cannot be used.
    """

    def __init__(
        self,
        kind: str,
        engine: Answerer | None,
        rubrics: Mapping[str, str | None],
        shown: Sequence[str],
        retries: int,
        seed: int,
        max_new_tokens: int,
    ) -> None:
        if engine is None:
            message = f"judge {kind}: it needs an engine to ask; set `engine`, or take a judge of `type: rule`"
            raise ConfigError(message, code="missing-key", where="engine")
        for knob, value, least in (("retries", retries, 0), ("max_new_tokens", max_new_tokens, 1)):
            if value < least:
                message = f"judge {kind}: {knob} must be at least {least}, got {value}"
                raise ConfigError(message, code="bad-value", where=knob)
        self.engine, self.name = engine, f"{kind}:{engine.name}"
        self.templates = {name: read_rubric(name, file, shown) for name, file in rubrics.items()}
        self.retries, self.seed, self.max_new_tokens = retries, seed, max_new_tokens

    def judge(self, items: Sequence[Any]) -> dict[Aspect, Verdict]:
        """A verdict for each rubric, or for each of its keys (`cs_content`) where it has several."""
        verdicts: dict[Aspect, Verdict] = {}
        for name, template in self.templates.items():
            scale = SCALES[name]
            prompts = [template.fill({field: getattr(item, field) for field in template.names}) for item in items]
            judgements, failed, unclear, malformed = self._ask(prompts, scale)
            for key in scale.keys:
                scores = [None if numbers is None else float(numbers[key]) for numbers in judgements]
                aspect = name if len(scale.keys) == 1 else f"{name}_{key}"
                verdicts[aspect] = Verdict(scores, failed, unclear, malformed)
        return verdicts

    def _ask(self, prompts: Sequence[str], scale: Scale) -> tuple[list[dict[str, int] | None], Counter[str], int, int]:
        """The numbers for each prompt, and what a `Verdict` counts: failed, unclear, malformed."""
        judgements: list[dict[str, int] | None] = [None] * len(prompts)
        failed: Counter[str] = Counter()
        malformed, waiting = 0, list(range(len(prompts)))
        for attempt in range(1 + self.retries):
            if not waiting:
                break
            answers = self.engine.answer(
                [[{"role": "user", "content": prompts[row]}] for row in waiting],
                max_new_tokens=self.max_new_tokens,
                temperature=_RETRY_TEMPERATURE if attempt else 0.0,
                seed=self.seed + attempt,
            )
            unclear = []
            for row, answer in zip(waiting, answers, strict=True):
                if not isinstance(answer, str):
                    failed[answer.reason] += 1
                    continue
                judgements[row] = parse(answer, scale)
                if judgements[row] is None:
                    unclear.append(row)
            malformed, waiting = malformed + len(unclear), unclear
        return judgements, failed, len(waiting), malformed


_SHOWN = tuple(field.name for field in fields(Reply))


@JUDGES.register("llm")
class QualityJudge(LLMJudge):
    """Quality of a reply, and how well it takes the speaker's emotion into account, 1 to 10 each; see `LLMJudge`.

    `quality` and `emotion` are files of rubrics; the project's own if absent.
    """

    def __init__(
        self,
        engine: Answerer | None,
        *,
        quality: str | None = None,
        emotion: str | None = None,
        retries: int = 2,
        seed: int = 0,
        max_new_tokens: int = 64,
    ) -> None:
        rubrics = {"quality": quality, "emotion": emotion}
        super().__init__("llm", engine, rubrics, _SHOWN, retries, seed, max_new_tokens)


@JUDGES.register("conversation")
class ConversationJudge(LLMJudge):
    """CS (content and style, 1 to 5) and EGS (C1 to C4, 1 to 10); each reply is judged alone; see `LLMJudge`.

    `scales` says which of the two; `cs` and `egs` are files of rubrics, the project's own if absent.

    Raises:
        ConfigError: a scale is unknown.
    """

    def __init__(
        self,
        engine: Answerer | None,
        *,
        scales: list[str] = ["cs", "egs"],  # noqa: B006  (a knob's default, which nobody changes)
        cs: str | None = None,
        egs: str | None = None,
        retries: int = 2,
        seed: int = 0,
        max_new_tokens: int = 64,
    ) -> None:
        files = {"cs": cs, "egs": egs}
        for name in scales:
            if name not in files:
                message = f"judge conversation: unknown scale {name!r}.{nearest(name, files)}"
                raise ConfigError(message, code="unknown-name", where="scales")
        rubrics = {name: files[name] for name in scales}
        super().__init__("conversation", engine, rubrics, _SHOWN, retries, seed, max_new_tokens)


def read_rubric(name: str, file: str | None, shown: Sequence[str], mark: str = "#") -> Template:
    """A rubric from a file, or the project's own of this name; it may show these fields, and must show {response}.

    Lines that begin with `mark` are comments.
    """
    path = resolve(file) if file else _RUBRICS / f"{name}.txt"
    text = "\n".join(line for _, line in uncommented_lines(path, mark)).strip()
    return Template(text, shown, required=("response",), where=path)


_THOUGHTS = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
_NUMBER = r"([+-]?\d+(?:[.,]\d+)?)"
_RANGE = r"(-?\d+(?:[.,\u2013-]\d+)*)"
_TITLE = r"(?:[^\w\n:=]{0,4}(?:score|rating))?[^\w\n:=]{0,4}(?:[(\[][^)\]\n]{0,20}[)\]][^\w\n:=]{0,4})?"
_SCALE = r"(?:\s*[(\[][^)\]\n]{0,9}(?:-|\u2013|to|of)[^)\]\n]{0,9}[)\]])?"  # "(1-10)"
_OF_ITS_OBJECT = ("score", "rating", "value", "label")
_ONLY = [  # where a judgement puts its only number, the plainest first
    rf'"(?:score|label)"\s*:\s*"?{_NUMBER}',
    rf"(?:score|rating|label){_SCALE}\W{{0,6}}?(?:is|of)?\W{{0,3}}?{_NUMBER}(?![\d.,]*\d|\s*(?:[-\u2013\u2014]|to|or)\s*\d)",
    rf"\A\W*?{_NUMBER}\W*(?:\n|\Z)",
    _NUMBER,
]


def without_thoughts(judgement: str) -> str:
    """What a judge says after thinking aloud."""
    return _THOUGHTS.sub("", judgement).strip()


def parse(judgement: str, scale: Scale) -> dict[str, int] | None:
    """The whole number that a judgement gives to each key; None where one lacks, has several, or is out of range.

    Of several keys, each is found in JSON (`{"content": {"score": 4}}`, too) or before a colon (`Content: 4`, `Content
    score (1-5): 4`). Of one alone, the number that JSON calls so counts first, then one after the word, one that fills
    the first line, and one that is alone in the text. "of 10" is no number of its own; 7.0 is 7, and 7.5 and 7-8 are no
    scores.
    """
    text = unicodedata.normalize("NFKC", without_thoughts(judgement))  # digits and colons of full width
    text = text.replace("\u2212", "-").strip()  # the minus sign of typographers
    if scale.lowest > 0:
        text = re.sub(rf"(?<=\d)\s*(?:/|out of)\s*{scale.highest}\b", "", text, flags=re.IGNORECASE)
    valid = {str(number): number for number in range(scale.lowest, scale.highest + 1)}
    written = list(_numbers(text))
    found: dict[str, int] = {}
    for key in scale.keys:
        named = {number for name, number in written if name == key}
        if len(scale.keys) > 1:
            named |= set(re.findall(rf"\b{key}\b{_TITLE}[:=]\W{{0,4}}?{_RANGE}", text, re.IGNORECASE))
        else:
            found_by = (set(re.findall(pattern, text, re.IGNORECASE)) for pattern in _ONLY)
            named = next(filter(None, (named, *found_by)), set())
        numbers = {re.sub(r"[.,]0+\Z", "", number).removeprefix("+") for number in named}
        only = numbers.pop() if len(numbers) == 1 else ""
        if only not in valid:
            return None
        found[key] = valid[only]
    return found


def _numbers(text: str) -> Iterator[tuple[str, str]]:
    """Every number in the JSON objects of a text, with its key; one called `score` or so has that of its object."""
    place = text.find("{")
    while place >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            yield from _named(value, "")
        place = text.find("{", end)


def _named(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _named(part, name if name and key.lower() in _OF_ITS_OBJECT else key.lower())
    elif isinstance(value, str | int | float) and re.fullmatch(_NUMBER, str(value).strip()):
        yield name, str(value).strip()
