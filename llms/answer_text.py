"""What of an LLM's answer is kept: its words without thoughts; and which answers are no targets."""

import re
from functools import cache
from typing import TypeVar

from sottovoce.paths import resolve
from sottovoce.templates import uncommented_lines


class Cut(str):
    """An answer that reached `max_new_tokens` before its turn ended."""

    __slots__ = ()


S = TypeVar("S", bound=str)

# How families mark thoughts: Qwen3, DeepSeek-R1, SmolLM3, Phi-4 (think), Granite and others, Seed-OSS, Magistral,
# Kimi, Gemma 4 and gpt-oss, whose thoughts and answer are two messages.
_OPEN = (
    r"<(?:seed:)?(?:think|thinking|thought)>|\[THINK\]|◁think▷|<\|channel>thought|"
    r"<\|channel\|>analysis<\|message\|>"
)
_CLOSE = (
    r"</(?:seed:)?(?:think|thinking|thought)>|\[/THINK\]|◁/think▷|<channel\|>|"
    r"<\|end\|><\|start\|>assistant(?:<\|channel\|>final<\|message\|>)?"
)
_BLOCK = re.compile(f"(?:{_OPEN})(?:(?!{_OPEN}).)*?(?:{_CLOSE})", re.DOTALL | re.IGNORECASE)
_UNOPENED = re.compile(f".*(?:{_CLOSE})", re.DOTALL | re.IGNORECASE)
_UNCLOSED = re.compile(f"(?:{_OPEN}).*", re.DOTALL | re.IGNORECASE)


def without_thoughts(text: S) -> S:
    """An answer without its thoughts: blocks, what stands before a closing mark alone, and behind an opening one.

    A text without thoughts comes back as it is, a `Cut` as a `Cut`. Empty where there are nothing but thoughts.
    """
    if not (re.search(f"{_OPEN}|{_CLOSE}", text, re.IGNORECASE)):
        return text
    kept = _UNCLOSED.sub("", _UNOPENED.sub("", _BLOCK.sub("", text)))
    return type(text)(kept.strip())


def opens_thought(prompt: str) -> str:
    """The mark with which a prompt leaves a thought open, so that the answer begins within it; empty where none."""
    marks = list(re.finditer(_OPEN, prompt, re.IGNORECASE))
    return marks[-1][0] if marks and not re.search(_CLOSE, prompt[marks[-1].end() :], re.IGNORECASE) else ""


CUT, REFUSED, SILENT = "cut at max_new_tokens", "refused, or spoken as a machine", "the answer is empty"


def no_target(answer: str) -> str | None:
    """Why an answer is nothing to learn from; None for one that is.

    It did not end by itself (a model that learns it stops in the middle), is empty, or matches a line of `refusals.txt`
    (as in BLSP-Emo; Wang et al., 2024).
    """
    if isinstance(answer, Cut):
        return CUT
    if not answer.strip():
        return SILENT
    return REFUSED if any(pattern.search(answer.replace("’", "'")) for pattern in _refusals()) else None  # noqa: RUF001


@cache
def _refusals() -> list[re.Pattern[str]]:
    file = resolve("sottovoce:data/prompts/speech_emotion_llama/refusals.txt")
    return [re.compile(text, re.IGNORECASE) for _, text in uncommented_lines(file) if text]
