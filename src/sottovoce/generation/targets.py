"""Targets by an LLM: it answers the text of every utterance of a manifest, and the answers become a manifest.

Behavioural alignment (Kang et al., 2024): the model learns to answer speech as the LLM answers the equivalent text with
the speaker's emotion written before it. What instructs the LLM here is no part of what a model in training sees.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from sottovoce.config_tree import read_overrides
from sottovoce.data.manifest import check_copy, line_fault, read_lines, refuse
from sottovoce.data.skipped import Skipped
from sottovoce.errors import ConfigError, ManifestError, nearest
from sottovoce.generation.answers import answers
from sottovoce.generation.chat_prompt import ChatPrompt
from sottovoce.io import atomic_write
from sottovoce.llms import ENGINES
from sottovoce.llms.answer_cache import CachedEngine
from sottovoce.llms.answer_text import no_target
from sottovoce.llms.engines import Chat, Engine, Failure
from sottovoce.paths import resolve
from sottovoce.progress import Progress

Kind: TypeAlias = Literal["response", "plain", "caption"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FIELDS = ("emotion", "transcript")  # of the prompts

_PROMPTS = resolve("sottovoce:data/prompts/speech_emotion_llama")


@dataclass
class Report:
    """What was written, and every utterance that was not, by `file:line: id`."""

    out: Path
    written: int = 0
    asked: int = 0  # prompts that went to the engine; the others had been answered before
    replaced: int = 0  # targets that the manifest had already
    skipped: Skipped = field(default_factory=Skipped)

    def __str__(self) -> str:
        replaced = f", {self.replaced} of them in place of others" if self.replaced else ""
        line = f"{self.out}: {self.written} targets{replaced}; {self.asked} prompts asked"
        return "\n".join([line, *filter(None, [str(self.skipped)])])


@dataclass(frozen=True)
class _Line:
    where: str
    record: dict[str, Any]

    @property
    def values(self) -> dict[str, str]:
        """The fields of a prompt."""
        labels = self.record.get("labels") or {}
        return {"transcript": self.record.get("text") or "", "emotion": labels.get("emotion") or ""}

    def lacks(self, prompt: ChatPrompt) -> str | None:
        """What the prompt needs and the line does not have, in words."""
        if not self.values["transcript"].strip():
            return "transcript (`text`)"
        lacks_emotion = "emotion" in prompt.names and not self.values["emotion"].strip()
        return "emotion label (`labels.emotion`)" if lacks_emotion else None

    def context(self) -> Chat:
        return [{"role": turn["role"], "content": turn["text"]} for turn in self.record.get("context") or []]


def write_targets(
    source: Path,
    out: Path,
    kind: Kind,
    engine: Engine,
    *,
    prompt: Path | None = None,
    max_new_tokens: int = 256,
    progress: Progress | None = None,
) -> Report:
    """Copy the lines of a manifest for which the engine has a target, each with its target.

    `response` (emotion-conditioned, section III-A) fills the key `response`; `plain` (the same without emotion,
    baseline 2) and `caption` (section III-B) fill keys of their own, `responses: {"plain": ..., "caption": ...}`.
    Lines without transcript, or without the label `emotion` where the prompt names it, are left out; so are refusals,
    answers that were cut at
    `max_new_tokens`, and what the engine could not answer. Thoughts before an answer are dropped. All are counted and
    named in the report. The copy appears under its name only when it is complete, in the same folder, since audio paths
    are relative to it; a killed run goes on from the answers beside it. In the paper the engine is the LLM that stays
    frozen in training. `prompt` is a file in place of the paper's, with {transcript} and perhaps {emotion}.

    Raises:
        ManifestError: the manifest cannot be read or has a broken line, the copy would lie in another folder or
            replace its source, or there is not one target to write.
        SottovoceError: the kind is unknown, or the engine can answer nothing at all.
    """
    if kind not in KINDS:
        message = f"no kind of targets is called {kind!r}.{nearest(kind, KINDS)}"
        raise ConfigError(message, code="unknown-name", where="kind")
    check_copy(source, out, None)
    asks = ChatPrompt(prompt or _PROMPTS / f"targets_{kind}.txt", FIELDS, "transcript")
    report, lines = Report(out), []
    for line in _read(source):
        if lacking := line.lacks(asks):
            report.skipped.add(f"no {lacking}", line.where)
        else:
            lines.append(line)
    cached = CachedEngine(engine, out.with_name(f"{out.name}.answers"), progress, "generating targets")
    chats = [asks.chat(line.values, line.context() if kind != "caption" else ()) for line in lines]
    answers = cached.answer(chats, max_new_tokens=max_new_tokens)
    report.asked = cached.asked
    records = []
    for line, answer in zip(lines, answers, strict=True):
        if fault := f"not answered: {answer.reason}" if isinstance(answer, Failure) else no_target(answer):
            report.skipped.add(fault, line.where)
        else:
            records.append(_with_target(line.record, kind, str(answer), report))
    if not records:
        raise ManifestError(f"{source}: there is not one target to write\n{report}", code="empty", where=source)
    atomic_write(out, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    report.written = len(records)
    return report


def targets(arguments: argparse.Namespace) -> None:
    """The command: build the engine that `--engine` and its knobs (key=value) describe, and write the manifest."""
    if arguments.kind == "answers":
        if arguments.prompt:
            raise ConfigError("--prompt: right answers come from a table", code="conflict", where="--prompt")
        answers(Path(arguments.manifest), Path(arguments.out), read_overrides(arguments.overrides))
        return
    engine = ENGINES.build({"type": arguments.engine, **read_overrides(arguments.overrides)})
    source, out, limit = Path(arguments.manifest), Path(arguments.out), arguments.max_new_tokens
    prompt = resolve(arguments.prompt) if arguments.prompt else None
    with Progress() as progress:
        report = write_targets(
            source, out, arguments.kind, engine, prompt=prompt, max_new_tokens=limit, progress=progress
        )
    print(report)


def _read(source: Path) -> list[_Line]:
    lines, faults = [], []
    for number, record in read_lines(source):
        if isinstance(record, ManifestError):
            faults.append(line_fault(source, number, None, record))
        elif problem := _problem(record):
            faults.append(line_fault(source, number, record, ManifestError(problem, code="bad-value")))
        else:
            lines.append(_Line(f"{source}:{number}: {record.get('id')}", record))
    if faults:
        refuse(f"{source}: {len(faults)} broken lines", faults)
    return lines


def _problem(record: dict[str, Any]) -> str | None:
    """What is wrong with the keys that are read here; `read_manifest` is what checks the rest."""
    if not isinstance(record.get("text") or "", str):
        return "text: a string is needed"
    labels = record.get("labels") or {}
    if not isinstance(labels, dict) or not isinstance(labels.get("emotion") or "", str):
        return "labels: an object of strings is needed"
    if not isinstance(record.get("responses") or {}, dict):
        return "responses: an object is needed"
    turns = record.get("context") or []
    good = isinstance(turns, list) and all(
        isinstance(t, dict) and t.get("role") in ("user", "assistant") and isinstance(t.get("text"), str) for t in turns
    )
    return None if good else "context: a list of turns with role and text is needed"


def _with_target(record: dict[str, Any], kind: Kind, answer: str, report: Report) -> dict[str, Any]:
    if kind != "response":
        others = record.get("responses") or {}
        report.replaced += kind in others
        return {**record, "responses": {**others, kind: answer}}
    report.replaced += record.get("response") is not None
    return {**record, "response": answer}
