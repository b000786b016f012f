"""CS and EGS: an LLM judges what a reply says, how it suits being heard, and how emotionally intelligent it is.

Wang et al. (ICME 2025), section IV-B. Each of two rubrics asks for several whole numbers at once.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sottovoce.errors import ConfigError, nearest
from sottovoce.evaluation import JUDGES
from sottovoce.evaluation.judges.llm import (
    THOUGHTS,
    Answerer,
    Aspect,
    Judge,
    Reply,
    Rubric,
    Verdict,
    ask_all,
    who_answers,
)
from sottovoce.paths import resolve


class Scale(NamedTuple):
    """What one rubric asks for: numbers from 1 to `highest`, by these keys."""

    keys: tuple[str, ...]
    highest: int


SCALES = {"cs": Scale(("content", "style"), 5), "egs": Scale(("c1", "c2", "c3", "c4"), 10)}
ASPECTS = tuple(f"{name}_{key}" for name, scale in SCALES.items() for key in scale.keys)

_RUBRICS = Path(__file__).parents[1] / "rubrics"
_FIELDS = ("context", "transcript", "caption", "emotion", "response")


@JUDGES.register("conversation")
class ConversationJudge(Judge):
    """CS (content and style, 1 to 5) and EGS (C1 to C4, 1 to 10) by an LLM; each reply is judged alone.

    A judgement that lacks a number is asked for again as a whole, with another seed.

    Args:
        engine: the LLM; see `sottovoce.evaluation.judges.llm.LLMJudge`.
        scales: which of cs and egs.
        cs: file of the rubric with {context}, {transcript}, {caption} and {response}; the project's own if absent.
        egs: the same for EGS.
        retries: how often a judgement without all its numbers is asked for again.
        seed: of the first attempt, at temperature 0; further ones, at 0.7, count on from it.
        max_new_tokens: of a judgement.

    Raises:
        ConfigError: there is no engine, a knob makes no sense, or a rubric cannot be used.
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
        engine = who_answers("conversation", engine, retries, max_new_tokens)
        for name in scales:
            if name not in SCALES:
                raise ConfigError(f"judge conversation: unknown scale {name!r}.{nearest(name, SCALES)}")
        self.engine, self.name = engine, f"conversation:{engine.name}"
        files = {"cs": cs, "egs": egs}
        self.rubrics = {
            name: Rubric(resolve(str(files[name])) if files[name] else _RUBRICS / f"{name}.txt", _FIELDS)
            for name in scales
        }
        self.retries, self.seed, self.max_new_tokens = retries, seed, max_new_tokens

    def judge(self, replies: Sequence[Reply]) -> dict[Aspect, Verdict]:
        """See `Judge`: a verdict for each of `ASPECTS` whose scale was chosen."""
        verdicts: dict[Aspect, Verdict] = {}
        for name, rubric in self.rubrics.items():
            scale = SCALES[name]
            asked = ask_all(
                self.engine,
                [rubric.fill(reply) for reply in replies],
                lambda judgement, scale=scale: parse_scores(judgement, scale),  # type: ignore[misc]
                retries=self.retries,
                seed=self.seed,
                max_new_tokens=self.max_new_tokens,
            )
            for key in scale.keys:
                scores = [None if found is None else float(found[key]) for found in asked.found]
                verdicts[f"{name}_{key}"] = Verdict(scores, *asked.trouble)
        return verdicts


def parse_scores(judgement: str, scale: Scale) -> Mapping[str, int] | None:
    """The number that a judgement gives to each key; None where one lacks, has several, or is out of range.

    Keys are found in JSON and in "Content: 4". "of 5" and "/5" are no numbers of their own; 3.5 and 3-4 are no scores.
    """
    text = THOUGHTS.sub("", judgement)
    text = re.sub(rf"(?<=\d)\s*(?:/|out of)\s*{scale.highest}\b", "", text, flags=re.IGNORECASE)
    found: dict[str, int] = {}
    for key in scale.keys:
        numbers = set(
            re.findall(rf"\b{key}\b[^\w\n:=]{{0,4}}[:=]\W{{0,4}}?(-?\d+(?:[.,\u2013-]\d+)*)", text, re.IGNORECASE)
        )
        only = numbers.pop() if len(numbers) == 1 else ""
        if only not in map(str, range(1, scale.highest + 1)):
            return None
        found[key] = int(only)
    return found
