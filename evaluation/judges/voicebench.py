"""LLM judge of VoiceBench: ratings of open-ended answers, and whether answers of SD-QA are right."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from sottovoce.evaluation.judges.base import Answerer
from sottovoce.evaluation.judges.llm import Scale, parse, read_rubric, without_thoughts
from sottovoce.evaluation.voicebench import JUDGED, KINDS
from sottovoce.evaluation.voicebench.scores import HIGHEST, Answer

SYSTEM = "You are a helpful assistant."
JUDGEMENTS, TEMPERATURE = 3, 0.5  # of each answer, as published; top-p 0.95, which engines do not have, is left out
_FIELDS = ("prompt", "response", "reference")
_RATING = re.compile(r"\[\[(\d+)\]\]")


@dataclass(frozen=True)
class Judged:
    """Answers with their judgements; why some could not be asked for, and how many answers have none at all."""

    answers: list[Answer]
    failed: Counter[str] = field(default_factory=Counter)
    missing: int = 0

    def notes(self) -> str:
        """What is missing, in words; empty where nothing is."""
        told = [f"{self.missing} answers were not judged"] if self.missing else []
        return "; ".join([*told, *(f"{count} could not be asked: {why}" for why, count in self.failed.most_common())])


class VoiceBenchJudge:
    """Judges each answer three times, at temperature 0.5; a judgement that cannot be read is asked for again.

    Args:
        engine: the LLM; the leaderboard's is gpt-4o-mini.
        open_rubric: a file with {prompt} and {response}; the project's own if absent.
        qa_rubric: a file with {prompt}, {reference} and {response}.
        retries: how often a judgement is asked for again.
        max_new_tokens: of a judgement.

    Raises:
        ConfigError: a rubric cannot be used.
    """

    def __init__(
        self,
        engine: Answerer,
        *,
        open_rubric: str | None = None,
        qa_rubric: str | None = None,
        retries: int = 2,
        max_new_tokens: int = 64,
    ) -> None:
        self.engine, self.retries, self.max_new_tokens = engine, retries, max_new_tokens
        files = {"open": open_rubric, "qa": qa_rubric}
        self.templates = {  # "### [Instruction]" of the published prompt is no comment
            kind: read_rubric(f"voicebench_{kind}", file, _FIELDS, mark="# ") for kind, file in files.items()
        }

    def judge(self, answers: Sequence[Answer]) -> Judged:
        """The answers with judgements where their subset is judged; earlier ones of these are replaced."""
        failed: Counter[str] = Counter()
        done, missing = list(answers), 0
        for kind, read in zip(JUDGED, (rating, vote), strict=True):
            rows = [row for row, answer in enumerate(answers) if KINDS[answer.subset] == kind]
            chats = [self._chat(kind, answers[row]) for row in rows]
            given = self._ask(chats, read, failed)
            for row, numbers in zip(rows, given, strict=True):
                done[row] = replace(answers[row], judged=tuple(numbers) or None)
                missing += not numbers
        return Judged(done, failed, missing)

    def _chat(self, kind: str, answer: Answer) -> list[dict[str, str]]:
        template = self.templates[kind]
        asked = template.fill({name: getattr(answer, name) or "" for name in template.names})
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]

    def _ask(
        self, chats: list[list[dict[str, str]]], read: Callable[[str], float | None], failed: Counter[str]
    ) -> list[list[float]]:
        """Up to three numbers for each chat."""
        given: list[list[float]] = [[] for _ in chats]
        for number in range(JUDGEMENTS):
            waiting = list(range(len(chats)))
            for attempt in range(1 + self.retries):
                if not waiting:
                    break
                answers = self.engine.answer(
                    [chats[row] for row in waiting],
                    max_new_tokens=self.max_new_tokens,
                    temperature=TEMPERATURE,
                    seed=number + JUDGEMENTS * attempt,
                )
                unclear = []
                for row, answer in zip(waiting, answers, strict=True):
                    if not isinstance(answer, str):
                        failed[answer.reason] += 1
                    elif (value := read(answer)) is None:
                        unclear.append(row)
                    else:
                        given[row].append(value)
                waiting = unclear
        return given


def rating(judgement: str) -> float | None:
    """A number from 1 to 5 that stands alone, such as 4 or 4.5, or in double brackets; else as `llm.parse` has it."""
    text = without_thoughts(judgement)
    try:
        value = float(text)
    except ValueError:
        marked, found = _RATING.search(text), parse(text, Scale(("score",), 1, HIGHEST))
        value = float(marked[1] if marked else found["score"] if found else 0)
    return value if 1 <= value <= HIGHEST else None


def vote(judgement: str) -> float | None:
    """1 for yes, 0 for no, by the first word; None where that is neither."""
    words = re.findall(r"\w+", without_thoughts(judgement).lower())
    return {"yes": 1.0, "no": 0.0}.get(words[0]) if words else None
