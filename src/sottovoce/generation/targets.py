"""Ready targets: an LLM answers the text of every utterance of a manifest, and the answers become a manifest.

Behavioural alignment (Kang et al., 2024): the model learns to answer speech as the LLM answers the equivalent text with
the speaker's emotion written before it. What instructs the LLM here is no part of what a model in training sees.
"""

import argparse
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from rich.progress import Progress

from sottovoce.config_tree import read_overrides
from sottovoce.data.manifest import check_copy, line_fault, read_lines, refuse
from sottovoce.errors import ConfigError, ManifestError, nearest
from sottovoce.generation.target_prompt import TargetPrompt
from sottovoce.llms import ENGINES
from sottovoce.llms.answer_cache import CachedEngine
from sottovoce.llms.engines import Cut, Engine, Failure
from sottovoce.paths import read_text, resolve

Kind: TypeAlias = Literal["response", "plain", "caption"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_PROMPTS = resolve("sottovoce:data/prompts/speech_emotion_llama")
_NAMED = 20  # utterances that a report names for each reason


@dataclass
class Report:
    """What was written, and every utterance that was not, by `file:line: id`."""

    out: Path
    written: int = 0
    asked: int = 0  # prompts that went to the engine; the others had been answered before
    replaced: int = 0  # targets that the manifest had already
    left_out: dict[str, list[str]] = field(default_factory=dict)  # why -> where

    def leave_out(self, why: str, where: str) -> None:
        self.left_out.setdefault(why, []).append(where)

    def __str__(self) -> str:
        replaced = f", {self.replaced} of them in place of others" * bool(self.replaced)
        lines = [f"{self.out}: {self.written} targets{replaced}; {self.asked} prompts asked"]
        for why, places in self.left_out.items():
            more = [f"    ... and {len(places) - _NAMED} more"] if len(places) > _NAMED else []
            lines += [f"  {len(places)} left out: {why}", *(f"    {place}" for place in places[:_NAMED]), *more]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Line:
    where: str
    record: dict[str, Any]


def write_responses(
    source: Path,
    out: Path,
    kind: Kind,
    engine: Engine,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    prompt: Path | None = None,
    refusals: Path | None = None,
    answers: Path | None = None,
    root: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Copy the lines of a manifest for which the engine has a target, each with its target.

    `response` (emotion-conditioned, section III-A) and `plain` (the same without emotion, baseline 2) fill the key
    `response`; `caption` (section III-B) fills `responses: {"caption": ...}`. Lines without transcript, or without the
    label `emotion` where the prompt names it, are left out; so are refusals, answers that were cut at
    `max_new_tokens`, and what the engine could not answer. All are counted and named in the report. The copy appears
    under its name only when it is whole; a killed run goes on from `answers`.

    Args:
        source: a manifest, as `docs/manifest.md` has it. The clips are not opened.
        out: the copy, in the same folder unless `root` is given, since audio paths are relative to it.
        kind: what is asked for.
        engine: the LLM; the one that stays frozen in training, as in the paper.
        max_new_tokens: of a target.
        temperature: 0 takes the likeliest token again and again.
        seed: of the draws, where the temperature is above 0.
        prompt: a file in place of the project's own; `TargetPrompt` says what it holds.
        refusals: a file in place of the project's own: a regular expression a line, of answers that are no targets.
        answers: file of the answers, which only grows; beside `out` if absent.
        root: the folder that audio paths are relative to; the manifest's own if absent.
        progress: shows how far the asking is.

    Raises:
        ManifestError: the manifest cannot be read or has a broken line, the copy would lie in another folder or
            replace its source, or there is not one target to write.
        ConfigError: the kind is unknown, or a file of prompts or refusals cannot be used.
        SottovoceError: the engine can answer nothing at all.
    """
    _check(source, out, kind, root)
    template = TargetPrompt(prompt or _PROMPTS / f"targets_{kind}.txt", with_context=kind != "caption")
    unwanted = read_patterns(refusals or _PROMPTS / "refusals.txt")
    report = Report(out)
    lines = [line for line in _read(source) if _usable(line, template, report)]
    kept = CachedEngine(engine, answers or out.with_name(f"{out.name}.answers"), progress)
    chats = [template.chat(line.record) for line in lines]
    said = kept.answer(chats, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    report.asked = kept.asked
    _write(source, _answered(lines, said, kind, unwanted, report), report)
    return report


def targets(arguments: argparse.Namespace) -> None:
    """The command: build the engine that `--engine` and its knobs (key=value) describe, and write the manifest."""
    knobs = read_overrides(arguments.overrides)
    engine = ENGINES.build({"type": arguments.engine, **knobs})
    with Progress() as progress:
        report = write_responses(
            Path(arguments.manifest),
            Path(arguments.out),
            arguments.kind,
            engine,
            max_new_tokens=arguments.max_new_tokens,
            progress=progress,
        )
    print(report)


def read_patterns(file: Path) -> list[re.Pattern[str]]:
    """The regular expressions of a file, one a line; blank lines, and lines that begin with `#`, are left out.

    Raises:
        ConfigError: the file cannot be read, or a line is no regular expression.
    """
    try:
        lines = read_text(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: the refusals cannot be read ({error}); give a UTF-8 text file") from None
    patterns = []
    for number, line in enumerate(lines, 1):
        try:
            patterns += [re.compile(line, re.IGNORECASE)] if line.strip() and line[0] != "#" else []
        except re.error as error:
            raise ConfigError(f"{file}:{number}: not a regular expression: {error}") from None
    return patterns


def _check(source: Path, out: Path, kind: Kind, root: Path | None) -> None:
    if kind not in KINDS:
        raise ConfigError(f"no kind of targets is called {kind!r}.{nearest(kind, KINDS)}")
    check_copy(source, out, root)


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
    told = isinstance(turns, list) and all(
        isinstance(t, dict) and t.get("role") in ("user", "assistant") and isinstance(t.get("text"), str) for t in turns
    )
    return None if told else "context: a list of turns with role and text is needed"


def _usable(line: _Line, template: TargetPrompt, report: Report) -> bool:
    lacking = template.lacking(line.record)
    if lacking:
        report.leave_out(f"no {lacking}", line.where)
    return not lacking


def _answered(
    lines: list[_Line], said: list[str | Failure], kind: Kind, unwanted: list[re.Pattern[str]], report: Report
) -> list[dict[str, Any]]:
    """The lines that got a target, each with it; the others are named in the report."""
    return [
        _with_target(line, kind, answer, report)
        for line, answer in zip(lines, said, strict=True)
        if _good(line, answer, unwanted, report)
    ]


def _good(line: _Line, answer: str | Failure, unwanted: list[re.Pattern[str]], report: Report) -> bool:
    if isinstance(answer, Failure):
        why = f"not answered: {answer.reason}"
    elif any(pattern.search(answer.replace("’", "'")) for pattern in unwanted):  # noqa: RUF001
        why = "refused, or spoken as a machine"
    elif isinstance(answer, Cut):
        why = "cut at max_new_tokens"
    else:
        return True
    report.leave_out(why, line.where)
    return False


def _with_target(line: _Line, kind: Kind, answer: str | Failure, report: Report) -> dict[str, Any]:
    if kind == "caption":
        others = line.record.get("responses") or {}
        report.replaced += "caption" in others
        return {**line.record, "responses": {**others, "caption": answer}}
    report.replaced += line.record.get("response") is not None
    return {**line.record, "response": answer}


def _write(source: Path, records: list[dict[str, Any]], report: Report) -> None:
    if not records:
        raise ManifestError(f"{source}: there is not one target to write\n{report}")
    part = report.out.with_name(f"{report.out.name}.part")
    part.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    os.replace(part, report.out)
    report.written = len(records)
