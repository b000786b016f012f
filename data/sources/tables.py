"""Tables with a row a clip: CSV, TSV, JSON, JSONL, and NeMo's manifests."""

import codecs
import csv
import gzip
import io
import json
import re
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from sottovoce.data.audio_decoder import read_header
from sottovoce.data.corpora.files import read_text
from sottovoce.data.corpora.report import Report
from sottovoce.data.sources.kinds import delimiter
from sottovoce.data.sources.rows import Choice, Row, placed
from sottovoce.errors import AudioError, ManifestError

MALFORMED = "malformed row"
_QUOTED = re.compile(
    r'""|\A"|(?m:(?:^|\t)"[^"\t\n]*\t[^"\n]*"(?:\t|\r?$))'
)  # Common Voice's TSV has quotes that quote nothing


def read_csv(source: Path, choice: Choice, report: Report) -> Iterator[Row]:
    """Rows of a table whose first line names the columns; commas, tabs, semicolons or bars are between the cells.

    Raises:
        ManifestError: the table cannot be read, or has no header.
    """
    raw = source.read_bytes()
    utf16 = raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    text = raw.decode("utf-16", "replace") if utf16 else read_text(source)
    sign = "\t" if source.suffix.lower() == ".tsv" else delimiter(text.split("\n", 1)[0])
    csv.field_size_limit(sys.maxsize)
    quoting: Any = csv.QUOTE_NONE if sign == "\t" and not _QUOTED.search(text) else csv.QUOTE_MINIMAL
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=sign, quoting=quoting)
    if not any((name or "").strip() for name in rows.fieldnames or []):
        raise ManifestError.at(source, "empty", "the first line of a table names its columns, and there is none")
    try:
        for row in rows:
            place = f"{source.name}:{rows.line_num}"
            extra = row.pop(None, None)  # type: ignore[call-overload]
            if extra is not None:
                report.add(MALFORMED, f"{place}: more cells than columns")
            elif None in row.values():
                report.add(MALFORMED, f"{place}: fewer cells than columns")
            else:
                yield Row(place, {str(name).strip(): value.strip() or None for name, value in row.items()})
    except csv.Error as error:
        raise ManifestError.at(f"{source}:{rows.line_num}", "damaged", error) from None


def read_objects(source: Path, report: Report) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and JSON object of each line, or of each entry of one list; gzip is unpacked.

    Raises:
        ManifestError: it cannot be unpacked, or is not in UTF-8; or is one list that is no JSON.
    """
    with source.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(source, "rt", encoding="utf-8-sig") if packed else source.open(encoding="utf-8-sig") as lines:
            begin, first = next(((n, line) for n, line in enumerate(lines, 1) if line.strip()), (1, ""))
            numbered: Iterator[tuple[str, Any]]
            if first.lstrip().startswith("["):
                entries = json.loads(first + lines.read())
                numbered = ((f"{source.name}[{i}]", entry) for i, entry in enumerate(entries))
            else:
                rest = enumerate(chain([first], lines), begin)
                numbered = ((f"{source.name}:{n}", _parsed(line)) for n, line in rest if line.strip())
            for place, found in numbered:
                if isinstance(found, dict):
                    yield place, found
                else:
                    report.add(MALFORMED, f"{place}: {found if isinstance(found, str) else 'no JSON object'}")
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise ManifestError.at(source, "damaged", f"not readable: {error}") from None


def _parsed(line: str) -> Any:
    """What a line holds, or as text what is wrong with it."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"
    return "no JSON object" if isinstance(found, str) else found


def read_json(source: Path, choice: Choice, report: Report) -> Iterator[Row]:
    """Rows of JSONL, or of one JSON list of objects; manifests of our own are such tables, too."""
    for place, values in read_objects(source, report):
        yield Row(place, values)


def read_nemo(source: Path, choice: Choice, report: Report) -> Iterator[Row]:
    """Rows of a NeMo manifest: `audio_filepath`, `duration`, `text`, and `offset` where a row is a part of a file.

    Without an offset, a file that is longer than `duration` is heard so far, as NeMo does.
    """
    for place, found in read_objects(source, report):
        values = dict(found)
        offset, seconds = values.pop("offset", None) or 0, values.get("duration")
        if not isinstance(offset, int | float) or not isinstance(seconds, int | float | None):
            report.add(MALFORMED, f"{place}: offset and duration are numbers of seconds")
            continue
        given = values.get("audio_filepath")
        if isinstance(given, str) and (offset or _goes_on(placed(given, source.parent, choice.root), seconds)):
            values |= {"start": offset, "end": None if seconds is None else offset + seconds}
        values.pop("duration", None)
        yield Row(place, values)


def _goes_on(file: Path, seconds: float | None) -> bool:
    """Whether a file is longer than its row says; what cannot be read is told later."""
    try:
        return seconds is not None and read_header(file).seconds > seconds + max(0.1, 0.01 * seconds)
    except AudioError:
        return False
