"""An LLM judges whether replies take the speaker into account."""

import re
from collections.abc import Sequence
from pathlib import Path

from sottovoce.evaluation import AWARENESS_JUDGES
from sottovoce.evaluation.awareness import AwarenessJudge, Case
from sottovoce.evaluation.judges.llm import THOUGHTS, Answerer, Rubric, Verdict, ask, who_answers
from sottovoce.paths import resolve

_RUBRIC = Path(__file__).parents[1] / "rubrics" / "awareness.txt"


@AWARENESS_JUDGES.register("llm")
class AwarenessLLM(AwarenessJudge):
    """An LLM with a rubric. A judgement without a label is asked for again, with another seed.

    Args:
        engine: the LLM; see `sottovoce.evaluation.judges.llm.LLMJudge`.
        rubric: a file with {category}, {label}, {transcript}, {response} and {answers}; the project's own if absent.
        retries: how often a judgement without a label is asked for again.
        seed: of the first attempt, at temperature 0; further ones, at 0.7, count on from it.
        max_new_tokens: of a judgement.

    Raises:
        ConfigError: there is no engine, a knob makes no sense, or the rubric cannot be used.
    """

    FIELDS = ("category", "label", "transcript", "response", "answers")

    def __init__(
        self,
        engine: Answerer | None,
        *,
        rubric: str | None = None,
        retries: int = 2,
        seed: int = 0,
        max_new_tokens: int = 64,
    ) -> None:
        engine = who_answers("llm", engine, retries, max_new_tokens)
        self.engine, self.name = engine, f"llm:{engine.name}"
        self.rubric = Rubric(resolve(rubric) if rubric else _RUBRIC, self.FIELDS)
        self.retries, self.seed, self.max_new_tokens = retries, seed, max_new_tokens

    def judge(self, cases: Sequence[Case]) -> Verdict:
        """See `AwarenessJudge`."""
        limits = {"retries": self.retries, "seed": self.seed, "max_new_tokens": self.max_new_tokens}
        return ask(self.engine, [self.rubric.fill(case) for case in cases], parse_label, **limits)


_PLACES = [  # where a judgement puts its label, the plainest first
    re.compile(r'"label"\s*:\s*"?([+-]?\d+(?:\.\d+)?)', re.IGNORECASE),
    re.compile(r"label\W{0,6}?(?:is)?\s*\W{0,3}?(?<![+-])([+-]?\d+(?:\.\d+)?)", re.IGNORECASE),
    re.compile(r"\A\W*?(?<![+-])([+-]?\d+(?:\.\d+)?)\W*(?:\n|\Z)"),
    re.compile(r"(?<![\w.+-])([+-]?\d+(?:\.\d+)?)"),
]


def parse_label(judgement: str) -> int | None:
    """The label -1, 0 or 1 that a judgement gives; None for none, several, or another number."""
    text = THOUGHTS.sub("", judgement).replace("\u2212", "-").strip()
    found = next((numbers for place in _PLACES if (numbers := set(place.findall(text)))), set())
    only = found.pop() if len(found) == 1 else ""
    return {"-1": -1, "0": 0, "1": 1, "+1": 1}.get(only)
