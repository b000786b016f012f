"""Schema of a manifest's lines: each is checked key by key, and everything that is wrong with it is named."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sottovoce.data.audio_decoder import read_header
from sottovoce.data.clip_reference import Part, split_part
from sottovoce.data.tasks import PLAIN, TASKS
from sottovoce.data.utterance import Turn, Utterance
from sottovoce.errors import AudioError, Code, ManifestError, SottovoceError, brief, nearest
from sottovoce.scripts import nfc

if TYPE_CHECKING:  # it imports this module
    from sottovoce.data.manifest import Root

C = TypeVar("C", dict[str, Any], list[Any])
PART_KEYS = Part._fields  # of a line or turn, beside `audio`
EXTRA = "extra"  # an object of a user's own, which nobody reads
_KEYS = [*(f.name for f in fields(Utterance) if f.name not in ("only", "overrides", "place")), *PART_KEYS, EXTRA]
_OF_VOICE = ("seconds", "labels", "caption", "category", "answers", *PART_KEYS)  # keys that tell of a clip
_TURN_KEYS = [*(f.name for f in fields(Turn)), *PART_KEYS]
_TURNS = ("user", "assistant")
_TASK_NAMES: set[str] = set()  # that have been asked for
_NAMED = 20  # unknown names that are told of one line or file
_COUNTED = 10_000  # unknown keys that are told apart
_LIKE = 0.8  # share of letters, above which an unknown key is taken for a misspelt one
_SAID = 15.0  # characters of a text that are spoken in a second
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

    `choices` are the attributes that a line may label, and the labels of each.
    """

    def __init__(self, choices: Mapping[str, Sequence[str]], root: "Root") -> None:
        self.choices, self.root = choices, root
        self._first_line: dict[str, int] = {}
        self._unread: dict[str, list[int]] = {}  # key -> the first line that has it, and how many do

    def notes(self) -> list[str]:
        """Keys that nobody reads, with the first line and their number: those that may be misspelt, and the others."""
        first = list(self._unread)[: 10 * _NAMED]
        similar = {key: get_close_matches(key[:100], _KEYS, n=1, cutoff=_LIKE) for key in first}
        typos = [f"{self._told(key)}: did you mean {known[0]!r}?" for key, known in similar.items() if known]
        others = [self._told(key) for key, known in similar.items() if not known]
        more = len(self._unread) - len(typos[:_NAMED]) - len(others[:_NAMED])
        rest = [f"{more:,} more"] if more else []
        notes = [f"not read, and perhaps misspelt: {', '.join(typos[:_NAMED])}"] if typos else []
        return notes + ([f"keys of your own, not read: {', '.join(others[:_NAMED] + rest)}"] if others or rest else [])

    def _told(self, key: str) -> str:
        line, count = self._unread[key]
        return f"{brief(repr(key), 100)} ({count:,} times, first in line {line})"

    def _leave_unread(self, line: int, record: Iterable[str], known: Collection[str]) -> None:
        for key in record:
            if key not in known and (key in self._unread or len(self._unread) < _COUNTED):
                self._unread.setdefault(key, [line, 0])[1] += 1

    def read(self, line: int, record: Mapping[str, Any] | ManifestError) -> tuple[Utterance | None, Problems]:
        """The utterance of a line, or None and its problems; a `record` may be such a problem already."""
        problems = Problems()
        if isinstance(record, ManifestError):
            problems.append(record)
            return None, problems
        record = _without_nulls(record)
        self._leave_unread(line, record, _KEYS)
        name = _text(record, "id", problems, required=True)
        if name and self._first_line.setdefault(name, line) != line:
            problems.add(f"duplicate id: line {self._first_line[name]} has it first", "conflict")
        text = "" if record.get("text") == "" else _text(record, "text", problems)  # "": nothing is said
        speaker, caption, response, topic = (
            _text(record, key, problems) for key in ("speaker", "caption", "response", "topic")
        )
        written = is_written(record)
        audio: Path | None = None
        seconds: float | None = seconds_to_say(str(text))
        if not written:
            audio, measured = self._audio(record, problems, required=True)
            seconds = _seconds(record, measured, problems)
        labels = self._labels(record, problems)
        ready = _of_kind(dict, record, "responses", problems)
        if not _TASK_NAMES.issuperset(ready):  # asking the registry takes milliseconds, for each of a million lines
            _TASK_NAMES.update([*TASKS.names(), PLAIN])
        _check_texts("responses", "task", ready, _TASK_NAMES, problems)
        _of_kind(dict, record, EXTRA, problems)
        context = self._context(record, problems, line)
        category = self._category(record, labels, problems)
        answers = self._paired(record, category, labels, response, problems)
        if problems or not name or not (audio or written) or not seconds:
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
            if "audio" not in record and (spare := [key for key in PART_KEYS if key in record]):
                problems.add(f"{', '.join(spare)}: of a clip, and there is no `audio`", "conflict")
            return None, None
        place = "audio"
        try:
            audio = clip_of(record, self.root)
            place = f"audio: {given}"
            return audio, read_header(audio).seconds
        except AudioError as error:
            problems.add_under(place, [error])
        except ManifestError as error:
            problems.append(error)
        return None, None

    def _labels(self, record: Mapping[str, Any], problems: Problems) -> dict[str, str]:
        labels = _composed(_of_kind(dict, record, "labels", problems))
        problems.add_under("labels", _unknown("attribute", labels, self.choices))
        for attribute, label in labels.items():
            if attribute in self.choices and not isinstance(label, str):
                problems.add(f"labels: {attribute}: a string is needed, not {kind_of(label)}")
            elif attribute in self.choices:
                problems.add_under("labels", _unknown(attribute, [nfc(label)], self.choices[attribute]))
        return {name: nfc(label) if isinstance(label, str) else label for name, label in labels.items()}

    def _category(self, record: Mapping[str, Any], labels: Mapping[str, str], problems: Problems) -> str | None:
        """The attribute that the right answer hangs on; this line must label it."""
        category = _text(record, "category", problems)
        if category is None or isinstance(labels.get(category), str):
            return category
        problems.add(f"category: {category!r} has no label in this line.{nearest(category, labels)}", "conflict")
        return None

    def _paired(
        self, record: Mapping[str, Any], category: str | None, labels: Mapping[str, str], response: str | None,
        problems: Problems,
    ) -> dict[str, str]:  # fmt: skip
        """The right answer to each kind of speaker; this line's speaker is one of them."""
        answers = _composed(_of_kind(dict, record, "answers", problems))
        if not answers or category is None:
            if answers and not any(str(problem).startswith("category:") for problem in problems):
                problems.add("answers: they hang on a category; name the attribute in `category`", "missing-key")
            return {}
        own = labels[category]
        _check_texts("answers", category, answers, self.choices.get(category, ()), problems)
        if own not in answers:
            problems.add(f"answers: the answer to this speaker is missing: {category} is {own!r}", "missing-key")
        elif response is not None and response != answers[own]:
            problems.add(f"response: it is not the answer to this speaker: answers has another for {own!r}", "conflict")
        return answers

    def _context(self, record: Mapping[str, Any], problems: Problems, line: int) -> tuple[Turn, ...]:
        context = _of_kind(list, record, "context", problems)
        if len(context) > _MOST_TURNS:
            problems.add(f"context: {len(context)} turns are more than {_MOST_TURNS}")
            return ()
        turns = []
        opened = int(bool(context) and isinstance(context[0], dict) and context[0].get("role") == "assistant")
        for number, turn in enumerate(context):
            of_turn = Problems()
            turns.append(self._turn(turn, _TURNS[(number + opened) % 2], of_turn, line))
            problems.add_under(f"context: turn {number + 1}", of_turn)
        if (len(context) + opened) % 2:
            problems.add("context: the last turn must be the assistant's, since the spoken turn is the user's")
        return tuple(turn for turn in turns if turn)

    def _turn(self, turn: object, due: str, problems: Problems, line: int) -> Turn | None:
        if not isinstance(turn, dict):
            problems.add(f"an object is needed, not {kind_of(turn)}")
            return None
        turn = _without_nulls(turn)
        self._leave_unread(line, turn, _TURN_KEYS)
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


def clip_of(record: Mapping[str, Any], root: "Root") -> Path:
    """The clip of a line or turn: its `audio`, of which `channel`, `start` and `end` choose a part.

    Raises:
        ManifestError: one of these three is wrong by itself; whether the recording has it shows when it is opened.
        AudioError: the file may not be read, see `Root.file`.
    """
    channel, start, end = (record.get(key) for key in PART_KEYS)
    if channel is not None and not (type(channel) is int and 0 <= channel < 1000):
        told = f"channel: a whole number is needed, 0 is the first, found {brief(channel, 50)}"
        raise ManifestError(told, code="bad-value")
    for key, value in (("start", start), ("end", end)):
        if value is not None and not (type(value) in (int, float) and 0 <= value < 1e6):
            raise ManifestError(f"{key}: seconds are needed, found {brief(value, 50)}", code="bad-value")
    if end is not None and end <= (start or 0):
        raise ManifestError(f"end: {end:g} s is not behind the start, {start or 0:g} s", code="bad-value")
    clip = root.file(str(record["audio"]))
    part = Part(channel, float(start or 0), None if end is None else float(end))
    if part != Part() and split_part(clip)[1] != Part():
        raise ManifestError("audio: it names a part by itself, and so do channel, start or end", code="conflict")
    return Path(f"{clip}{part}")


def _of_kind(kind: type[C], record: Mapping[str, Any], key: str, problems: Problems) -> C:
    """The object or list under `key`; an empty one where the key is absent, or holds something else."""
    value = record.get(key, kind())
    if isinstance(value, kind):
        return value
    problems.add(f"{key}: {kind_of(kind())} is needed, not {kind_of(value)}")
    return kind()


def _check_texts(key: str, kind: str, texts: Mapping[str, Any], known: Collection[str], problems: Problems) -> None:
    """Name what is wrong with an object of texts: names that are not known, and what is no text."""
    problems.add_under(key, _unknown(kind, texts, known))
    for name, text in texts.items():
        if name in known and (not isinstance(text, str) or not text.strip()):
            problems.add(f"{key}: {name}: a text is needed, not {brief(repr(text), 100)}")


def _unknown(kind: str, names: Iterable[str], known: Collection[str]) -> list[ManifestError]:
    """What is wrong with names that are not known. Of very many the first: to find near spellings takes time."""
    strange = [name for name in names if name not in known]
    told = [f"unknown {kind} {name!r}.{nearest(name, known)}" for name in strange[:_NAMED]]
    told += [f"unknown {kind}: {len(strange) - _NAMED} more"] if len(strange) > _NAMED else []
    return [ManifestError(text, code="unknown-name") for text in told]


def is_written(record: Mapping[str, Any]) -> bool:
    """Whether a line is of text alone: a written turn with its response, and nothing that would describe a clip."""
    if any(record.get(key) is not None for key in ("audio", *_OF_VOICE)):
        return False
    text = record.get("text")
    return isinstance(text, str) and bool(text.strip()) and bool(record.get("response") or record.get("responses"))


def seconds_to_say(text: str) -> float:
    """How long a text would take to say, so that written turns have a length among spoken ones."""
    return max(0.1, len(text) / _SAID)


def _composed(record: Mapping[str, Any]) -> dict[str, Any]:
    """With names in NFC, as labels of tasks are."""
    return {nfc(name): value for name, value in record.items()}


def _without_nulls(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if value is not None}


_IF_MISSING = {
    "audio": " (a line of text alone has `text` and `response`, and nothing about a voice)",
    "id": " (of data in another format `sottovoce manifest FILE --out DIR` makes a manifest)",
}


def _text(record: Mapping[str, Any], key: str, problems: Problems, *, required: bool = False) -> str | None:
    """The text under `key`; an absent key is a problem if it is required, an empty text always is."""
    if key not in record:
        if required:
            problems.add(f"missing key {key!r}{_IF_MISSING.get(key, '')}", "missing-key")
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
