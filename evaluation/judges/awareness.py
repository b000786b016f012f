"""LLM judge of awareness: whether replies take the speaker into account."""

from collections.abc import Sequence

from sottovoce.evaluation import AWARENESS_JUDGES
from sottovoce.evaluation.awareness import AwarenessJudge, Case
from sottovoce.evaluation.judges.base import Answerer, Verdict
from sottovoce.evaluation.judges.llm import LLMJudge

_SHOWN = ("category", "label", "transcript", "response", "answers")


@AWARENESS_JUDGES.register("llm")
class AwarenessLLM(AwarenessJudge):
    """Labels -1, 0 and 1 by an LLM; knobs as in `LLMJudge`.

    `rubric` is a file with {category}, {label}, {transcript}, {response} and {answers}; the project's own if absent.
    """

    def __init__(
        self,
        engine: Answerer | None,
        *,
        rubric: str | None = None,
        retries: int = 2,
        seed: int = 0,
        max_new_tokens: int = 64,
    ) -> None:
        self._llm = LLMJudge("llm", engine, {"awareness": rubric}, _SHOWN, retries, seed, max_new_tokens)
        self.name = self._llm.name

    def judge(self, cases: Sequence[Case]) -> Verdict:
        """See `AwarenessJudge`."""
        return self._llm.judge(cases)["awareness"]
