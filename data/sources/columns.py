"""Columns of a source and the keys of a manifest that they become; what no key is stays under `extra`."""

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sottovoce.data.manifest_schema import EXTRA
from sottovoce.data.sources.kinds import AUDIO_COLUMNS
from sottovoce.data.sources.rows import Row
from sottovoce.data.tasks import OWN_ATTRIBUTE, TASKS, AttributeTask, Task
from sottovoce.errors import ConfigError, nearest
from sottovoce.own_parts import told
from sottovoce.scripts import nfc

USUAL: dict[str, tuple[str, ...]] = {  # key -> columns that are taken where none is named, the first that is there
    "id": ("id", "utt_id", "utterance_id"),
    "audio": AUDIO_COLUMNS,
    "text": ("text", "transcription", "transcript", "sentence", "raw_transcription", "normalized_text"),
    "speaker": ("speaker", "speaker_id", "client_id", "spk", "spk_id"),
    "caption": ("caption",),
    "response": ("response",),
    "topic": ("topic",),
    "start": ("start",),
    "end": ("end",),
    "channel": ("channel",),
}
_OBJECTS = {"context": list, "responses": dict, "answers": dict, EXTRA: dict}  # as manifests have them
_NUMBERS = ("start", "end", "channel")
_SPELLED = {"gender": {"f": "female", "m": "male", "female_feminine": "female", "male_masculine": "male"}}
_log = logging.getLogger(__name__)


@dataclass
class Columns:
    """Which columns become which keys and labels.

    Args:
        keys: key of a manifest, such as `text`, to the column that has it.
        labels: attribute to the column that labels it. Columns called as a known attribute are taken without.
        values: attribute to what its column says to the label that this is; a range of numbers such as `0-12` stands
            for all of them, and "" for no label.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    _seen: set[str] = field(default_factory=set)
    _kept: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for key in self.keys:
            if key not in USUAL:
                raise ConfigError.at(f"columns.{key}", "unknown-name", f"no key of a manifest.{nearest(key, USUAL)}")

    def record(self, row: Row) -> dict[str, Any]:
        """The keys of a manifest's line; audio is as the row has it."""
        values = {name: value for name, value in row.values.items() if not _absent(value)}
        self._seen |= row.values.keys()
        record, used = dict[str, Any](), set[str]()
        asked = {*self.keys.values(), *self.labels.values()}
        for key, names in USUAL.items():
            column = self.keys.get(key) or next((name for name in names if name in values and name not in asked), None)
            if column not in values:
                continue
            found = values[column] if key == "audio" or key in _NUMBERS else str(values[column])
            if key in _NUMBERS and (found := _number(found, whole=key == "channel")) is None:
                continue  # a column of another meaning
            record[key] = nfc(found) if key == "speaker" else found
            used.add(column)
            if column != key:
                self.notes[f"{key} is column {column!r}"] += 1
        for key, kind in _OBJECTS.items():
            if isinstance(values.get(key), kind) and key not in asked:
                record[key] = values[key]
                used.add(key)
        labels = self._labels(values, used)
        if labels:
            record["labels"] = labels
        if "category" in values and values["category"] in labels and "category" not in used:
            record["category"] = values["category"]
            used.add("category")
        rest = {name: _plain(value) for name, value in values.items() if name not in used}
        self._kept.update(list(rest))
        if rest:
            record[EXTRA] = {**record.get(EXTRA, {}), **rest}
        return record

    def finish(self) -> None:
        """Note what was kept aside. Raises ConfigError where no row has had a column that was named."""
        for where, chosen in (("columns", self.keys), ("labels", self.labels)):
            for key, column in chosen.items():
                if column not in self._seen:
                    told = f"no row has a column {column!r}.{nearest(column, self._seen)}"
                    raise ConfigError.at(f"{where}.{key}", "unknown-name", told)
        for attribute in self.labels.keys() - known_labels().keys():
            told = nearest(attribute, known_labels())
            self.notes[f"{attribute} is an attribute of your own: a recipe says what it is under `tasks`.{told}"] += 1
        if self._kept:
            names = sorted(self._kept)
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            self.notes[f"kept under `{EXTRA}`: {', '.join(names[:20])}{more}"] += max(self._kept.values())

    def _labels(self, values: Mapping[str, Any], used: set[str]) -> dict[str, str]:
        given = values.get("labels")
        labels = {str(k): nfc(str(v)) for k, v in given.items() if v is not None} if isinstance(given, dict) else {}
        if isinstance(given, dict) and "labels" not in self.labels.values():
            used.add("labels")
        labels = {name: found for name, value in labels.items() if (found := self._label(name, value)) is not None}
        for attribute, column in self.labels.items():
            if column in values:
                used.add(column)
                if (found := self._label(attribute, values[column])) is not None:
                    labels[attribute] = found
        for attribute in known_labels().keys() - self.labels.keys() - labels.keys():
            if attribute in values and attribute not in used and not isinstance(values[attribute], dict | list):
                found = self._label(attribute, values[attribute], sure=False)
                if found is not None:
                    labels[attribute] = found
                    used.add(attribute)
        return labels

    def _label(self, attribute: str, value: object, *, sure: bool = True) -> str | None:
        """The label that a value is; None for none. Unless `sure`, only a label that the attribute is known to have."""
        text = nfc(str(value).strip())
        if (mapped := _mapped(text, self.values.get(attribute, {}))) is not None:
            return mapped or None
        choices = known_labels().get(attribute)
        spelled = _SPELLED.get(attribute, {}).get(text.casefold(), text.casefold())
        if choices is None or text in choices:
            return text or None
        if spelled in choices:
            return spelled
        self.notes[
            f"{text!r} is no label of {attribute} ({', '.join(choices)}) by itself: map it, or set `choices`"
        ] += 1
        return text if sure and text else None


@cache
def known_labels() -> dict[str, tuple[str, ...]]:
    """The labels of each attribute that has a task; a plug-in that cannot be had is named in a warning."""
    tasks, plugins = dict[str, Task](), TASKS.plugins()
    for name in TASKS.names():
        if name == OWN_ATTRIBUTE:
            continue
        try:
            tasks[name] = TASKS.build({"type": name})
        except Exception as error:  # a stranger's code may raise anything
            if name not in plugins:
                raise
            _log.warning(f"the labels of the task {name}, which is a plug-in, are not known: {told(error)}")
    return {name: tuple(task.choices) for name, task in tasks.items() if isinstance(task, AttributeTask)}


def _absent(value: Any) -> bool:
    """Whether a cell is empty, which some tables write as NaN."""
    return value is None or (isinstance(value, float) and value != value)


def _mapped(text: str, values: Mapping[str, str]) -> str | None:
    if text in values:
        return values[text]
    for said, label in values.items():
        if (span := re.fullmatch(r"(\d+)-(\d+)", said)) and re.fullmatch(r"\d+(\.\d+)?", text):
            if int(span[1]) <= float(text) < int(span[2]) + 1:
                return label
    return None


def _number(value: Any, *, whole: bool) -> float | int | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if number < 0 or number != number else int(number) if whole else number


def _plain(value: Any) -> Any:
    """A value that JSON can write; others are told by their kind."""
    try:
        json.dumps(value, allow_nan=False)
        return value
    except (TypeError, ValueError):
        return str(value)[:1000] if not isinstance(value, bytes) else f"{len(value)} bytes"
