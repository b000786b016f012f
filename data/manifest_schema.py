"""Schema of a manifest's lines: each is checked key by key, and everything that is wrong with it is named."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sottovoce.data.audio_decoder import read_header
from sottovoce.data.tasks import TASKS
from sottovoce.data.utterance import Turn, Utterance
from sottovoce.errors import AudioError, Code, ManifestError, SottovoceError, brief, nearest

if TYPE_CHECKING:  # it imports this module
    from sottovoce.data.manifest import Root

_KEYS = [f.name for f in fields(Utterance) if f.name != "only"]
_TURN_KEYS = [f.name for f in fields(Turn)]
_TURNS = ("user", "assistant")
_TASK_NAMES: set[str] = set()  # that have been asked for
_NAMED = 20  # unknown names that are told of one line
_MOST_TURNS = 10_000  # in a context


class Problems(list[ManifestError]):
    """What is wrong with a line, without its place in the file."""

    def add(self, text: str, code: Code = "bad-value") -> None:
        self.append(ManifestError(text, code=code))

    def add_under(self, place: str, problems: Iterable[SottovoceError]) -> None:
        """Add problems of a part of the line."""
        self.extend(ManifestError(f"{place}: {problem}", code=problem.code) for problem in problems)


class LineReader:
    """Validator of one manifest's lines, which become utterances; it remembers ids, which may not come twice.

    Args:
        choices: the attributes that a line may label, and the labels of each.
        root: where audio paths start, and what they may not lead out of.
    """

    def __init__(self, choices: Mapping[str, Sequence[str]], root: "Root") -> None:
        self.choices, self.root = choices, root
        self._first_line: dict[str, int] = {}

    def read(self, line: int, record: Mapping[str, Any] | ManifestError) -> tuple[Utterance | None, Problems]:
        """The utterance of a line, or None and its problems; a `record` may be such a problem already."""
        problems = Problems()
        if isinstance(record, ManifestError):
            problems.append(record)
            return None, problems
        problems += _unknown("key", record, _KEYS)
        record = _without_nulls(record)
        name = _text(record, "id", problems, required=True)
        if name and self._first_line.setdefault(name, line) != line:
            problems.add(f"duplicate id: line {self._first_line[name]} has it first", "conflict")
        text, speaker, caption, response, topic = (
            _text(record, key, problems) for key in ("text", "speaker", "caption", "response", "topic")
        )
        audio, measured = self._audio(record, problems, required=True)
        seconds = _seconds(record, measured, problems)
        labels = self._labels(record.get("labels", {}), problems)
        ready = _answers(record.get("responses", {}), problems)
        context = self._context(record.get("context", []), problems)
        category = self._category(record, labels, problems)
        answers = self._paired(record.get("answers", {}), category, labels, response, problems)
        if problems or not name or not audio or not seconds:
            return None, problems
        response = response or (answers.get(labels[category]) if category else None)
        return Utterance(
            name, audio, text, speaker, seconds, labels, caption, context, response, ready, category, answers, topic
        ), problems

    def _audio(
        self, record: Mapping[str, Any], problems: Problems, *, required: bool = False
    ) -> tuple[Path | None, float | None]:
        """Where a clip is, and how many seconds its header claims."""
        given = _text(record, "audio", problems, required=required)
        if not given:
            return None, None
        try:
            audio = self.root.file(given)
        except AudioError as error:
            problems.add_under("audio", [error])
            return None, None
        try:
            return audio, read_header(audio).seconds
        except AudioError as error:
            problems.add_under(f"audio: {given}", [error])
            return None, None

    def _labels(self, labels: object, problems: Problems) -> dict[str, str]:
        if not isinstance(labels, dict):
            problems.add(f"labels: an object is needed, not {kind_of(labels)}")
            return {}
        problems.add_under("labels", _unknown("attribute", labels, self.choices))
        for attribute, label in labels.items():
            if attribute not in self.choices:
                continue
            if not isinstance(label, str):
                problems.add(f"labels: {attribute}: a string is needed, not {kind_of(label)}")
            elif label not in self.choices[attribute]:
                problems.add_under("labels", _unknown(attribute, [label], self.choices[attribute]))
        return labels

    def _category(self, record: Mapping[str, Any], labels: object, problems: Problems) -> str | None:
        """The attribute that the right answer hangs on; this line must label it."""
        category = _text(record, "category", problems)
        known = labels if isinstance(labels, dict) else {}
        if category is None or isinstance(known.get(category), str):
            return category
        problems.add(f"category: {category!r} has no label in this line.{nearest(category, known)}", "conflict")
        return None

    def _paired(
        self, answers: object, category: str | None, labels: dict[str, str], response: str | None, problems: Problems
    ) -> dict[str, str]:
        """The right answer to each kind of speaker; this line's speaker is one of them."""
        if not isinstance(answers, dict):
            problems.add(f"answers: an object is needed, not {kind_of(answers)}")
            return {}
        if not answers or category is None:
            if answers and not any(str(problem).startswith("category:") for problem in problems):
                problems.add("answers: they hang on a category; name the attribute in `category`", "missing-key")
            return {}
        known, own = self.choices.get(category, ()), labels[category]
        problems.add_under("answers", _unknown(category, answers, known))
        for label, answer in answers.items():
            if label in known and (not isinstance(answer, str) or not answer.strip()):
                problems.add(f"answers: {label}: a text is needed, not {brief(repr(answer), 100)}")
        if own not in answers:
            problems.add(f"answers: the answer to this speaker is missing: {category} is {own!r}", "missing-key")
        elif response is not None and response != answers[own]:
            problems.add(f"response: it is not the answer to this speaker: answers has another for {own!r}", "conflict")
        return answers

    def _context(self, context: object, problems: Problems) -> tuple[Turn, ...]:
        if not isinstance(context, list):
            problems.add(f"context: a list is needed, not {kind_of(context)}")
            return ()
        if len(context) > _MOST_TURNS:
            problems.add(f"context: {len(context)} turns are more than {_MOST_TURNS}")
            return ()
        turns = []
        opened = int(bool(context) and isinstance(context[0], dict) and context[0].get("role") == "assistant")
        for number, turn in enumerate(context):
            of_turn = Problems()
            turns.append(self._turn(turn, _TURNS[(number + opened) % 2], of_turn))
            problems.add_under(f"context: turn {number + 1}", of_turn)
        if (len(context) + opened) % 2:
            problems.add("context: the last turn must be the assistant's, since the spoken turn is the user's")
        return tuple(turn for turn in turns if turn)

    def _turn(self, turn: object, due: str, problems: Problems) -> Turn | None:
        if not isinstance(turn, dict):
            problems.add(f"an object is needed, not {kind_of(turn)}")
            return None
        problems += _unknown("key", turn, _TURN_KEYS)
        turn = _without_nulls(turn)
        role = _text(turn, "role", problems, required=True)
        if role and role not in _TURNS:
            problems += _unknown("role", [role], _TURNS)
        elif role and role != due:
            problems.add(f"role {role!r} where {due!r} is due: turns alternate")
        text, caption = _text(turn, "text", problems, required=True), _text(turn, "caption", problems)
        audio, _ = self._audio(turn, problems)
        if role == "assistant" and ("audio" in turn or "caption" in turn):
            problems.add("audio and caption belong to the user's turns only")
        return None if problems or not text else Turn("user" if role == "user" else "assistant", text, audio, caption)


def _answers(ready: object, problems: Problems) -> dict[str, str]:
    if not isinstance(ready, dict):
        problems.add(f"responses: an object is needed, not {kind_of(ready)}")
        return {}
    if not _TASK_NAMES.issuperset(ready):  # asking the registry takes milliseconds, and there may be a million lines
        _TASK_NAMES.update(TASKS.names())
    known = _TASK_NAMES
    problems.add_under("responses", _unknown("task", ready, known))
    for task, answer in ready.items():
        if task in known and (not isinstance(answer, str) or not answer.strip()):
            problems.add(f"responses: {task}: a text is needed, not {brief(repr(answer), 100)}")
    return ready


def _unknown(kind: str, names: Iterable[str], known: Collection[str]) -> list[ManifestError]:
    """What is wrong with names that are not known. Of very many the first: to find near spellings takes time."""
    code: Code = "unknown-key" if kind == "key" else "unknown-name"
    strange = [name for name in names if name not in known]
    told = [f"unknown {kind} {name!r}.{nearest(name, known)}" for name in strange[:_NAMED]]
    told += [f"unknown {kind}: {len(strange) - _NAMED} more"] if len(strange) > _NAMED else []
    return [ManifestError(text, code=code) for text in told]


def _without_nulls(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if value is not None}


def _text(record: Mapping[str, Any], key: str, problems: Problems, *, required: bool = False) -> str | None:
    """The text under `key`; an absent key is a problem if it is required, an empty text always is."""
    if key not in record:
        if required:
            problems.add(f"missing key {key!r}", "missing-key")
        return None
    value = record[key]
    if not isinstance(value, str):
        problems.add(f"{key}: a string is needed, not {kind_of(value)}")
        return None
    if not value.strip():
        problems.add(f"{key}: the text is empty{'' if required else '; leave the key out where nothing is known'}")
        return None
    return value


def _seconds(record: Mapping[str, Any], measured: float | None, problems: Problems) -> float | None:
    """The given seconds where they are near those of the clip; those of the clip where none are given."""
    if "seconds" not in record:
        return measured
    value = record["seconds"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        problems.add(f"seconds: a number is needed, not {kind_of(value)}")
    elif not 0 < value < float("inf"):
        problems.add(f"seconds: must be positive, got {value}")
    elif measured is not None and not _near(value, measured):
        problems.add(f"seconds: {value} is not the length of the clip, which lasts {measured:.3f} s", "mismatch")
    elif measured is not None:
        return float(value)
    return None


def _near(seconds: float, measured: float) -> bool:
    margin = max(0.1, 0.01 * measured)  # what rounding and lossy codecs explain
    return measured - margin <= seconds <= measured + margin  # without arithmetic on it: an integer may be too long


def kind_of(value: object) -> str:
    """The JSON name of a value's type."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
