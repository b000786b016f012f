"""Right answers by a table: recordings of labelled speakers become paired data, without an LLM.

PE-FT (2026) asks for an answer that is right for one speaker and wrong for another. Of people who read or act, what
they say hangs on nothing; the answer here hangs on who speaks, or how, alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sottovoce.data.manifest import check_copy, line_fault, read_lines, refuse
from sottovoce.data.skipped import Skipped
from sottovoce.errors import ConfigError, ManifestError, MissingError, nearest
from sottovoce.io import atomic_write
from sottovoce.paths import resolve

TABLE = "sottovoce:data/answers.json"


def read_answers(file: Path) -> dict[str, dict[str, str]]:
    """Category -> label -> the right answer, of a JSON file.

    Raises:
        MissingError: there is no such file.
        ConfigError: it holds something else, or a category with fewer than two different answers.
    """
    try:
        table = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise MissingError.at(file, "not-found", error.strerror) from None
    except ValueError as error:
        raise ConfigError.at(file, "damaged", f"no JSON: {error}") from None
    for category, answers in table.items() if isinstance(table, dict) else [("", None)]:
        texts = list(answers.values()) if isinstance(answers, dict) else []
        good = all(isinstance(text, str) and text.strip() for text in texts)
        if not good or len(set(texts)) < max(2, len(texts)):
            told = f"{category!r}: two or more labels are needed, each with an answer of its own"
            raise ConfigError.at(file, "bad-value", told)
    return dict(table)


def write_answers(source: Path, out: Path, category: str, table: Mapping[str, Mapping[str, str]]) -> str:
    """Copy the lines of a manifest whose speakers have an answer, with the answers to all speakers of the category.

    A ready `response` is replaced. Lines whose label has no answer, or that have none, are left out and counted.

    Returns:
        What was written.

    Raises:
        ConfigError: the table has no such category.
        ManifestError: the manifest cannot be read, the copy would lie in another folder or replace its source, or
            there is not one line to write.
    """
    if category not in table:
        told = f"there are no answers for {category!r}.{nearest(category, table)}"
        raise ConfigError.at("category", "unknown-name", told)
    check_copy(source, out, None)
    answers, records, skipped, faults = dict(table[category]), list[dict[str, Any]](), Skipped(), list[ManifestError]()
    for number, record in read_lines(source):
        if isinstance(record, ManifestError):
            faults.append(line_fault(source, number, None, record))
            continue
        labels = record.get("labels")
        label = labels.get(category) if isinstance(labels, dict) else None
        if label in answers:
            rest = {key: value for key, value in record.items() if key != "response"}
            records.append({**rest, "category": category, "answers": answers})
        else:
            reason = f"no answer for {label!r}" if label else f"no label {category}"
            skipped.add(reason, f"{source}:{number}: {record.get('id')}")
    if faults:
        refuse(f"{source}: {len(faults)} broken lines", faults)
    if not records:
        raise ManifestError(f"{source}: there is not one line to write\n{skipped}", code="empty", where=source)
    atomic_write(out, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return "\n".join([f"{out}: {len(records)} lines with answers", *filter(None, [str(skipped)])])


def answers(source: Path, out: Path, knobs: Mapping[str, Any]) -> None:
    """`sottovoce targets --kind answers`, whose knobs are `category` and, for a table of one's own, `answers`."""
    if strange := set(knobs) - {"category", "answers"}:
        told = f"{', '.join(sorted(strange))}: known are category and answers"
        raise ConfigError.at(sorted(strange)[0], "unknown-key", told)
    if not knobs.get("category"):
        raise ConfigError.at("category", "missing-key", "name the label that the answers hang on, such as category=age")
    print(write_answers(source, out, str(knobs["category"]), read_answers(resolve(str(knobs.get("answers", TABLE))))))
