"""Lengths of rows in the LLM: how many tokens each takes at most, and whether it reads them, before the first step."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

from sottovoce.data.examples import Example, InstructionRole, instructions, slot_text
from sottovoce.data.few_shot import few_shot_turns
from sottovoce.data.skipped import LineFault
from sottovoce.data.tasks import AttributeTask, Task, task_of
from sottovoce.data.utterance import Turn, Utterance
from sottovoce.errors import ConfigError, SottovoceError
from sottovoce.llms.chat_template import ChatFormat, ChatTurn, Placeholder
from sottovoce.training.llm_targets import teacher_dialogue
from sottovoce.training.readings import Reading
from sottovoce.training.spoken_prompt import SpeechPlaceholder, dialogue_of

BATCH = 10_000  # texts that are tokenised together
_SLACK = 1.05  # tokens of texts alone are nearly those of a prompt; what comes nearer to the limit is counted exactly
_MARGIN = 16


def check_prompts(chat: ChatFormat, tasks: Mapping[str, Task]) -> None:
    """`ConfigError` where a wording, a teacher's prompt or a sentence with a label is no text that may be said."""
    faults = []
    for name, task in tasks.items():
        answers = [task.answer(choice) for choice in task.choices] if isinstance(task, AttributeTask) else []
        shots = [text for shot in (task.shots or {}).items() for text in shot]
        for text in (*task.instructions(), task.teacher or "", *shots, *answers):
            try:
                chat.check_text(text)
            except SottovoceError as error:
                faults.append(ConfigError.at(f"tasks.{name}", error.code, error))
    if faults:
        raise ConfigError.of(faults)


@dataclass
class RowLengths:
    """Counts the tokens of rows, and names those that the LLM cannot read: too long, or with a control token.

    Texts are tokenised once, in batches. Their sum decides where it is far from the limit; else the whole prompt is
    tokenised as it will be.
    """

    chat: ChatFormat
    context: int | None  # tokens that the LLM reads; None: not known, and nothing is too long
    checkpoint: str  # of the LLM, for messages
    speech: Callable[[str, Path], int]  # (slot, clip) -> embeddings, at most
    max_new_tokens: int  # in scoring
    target_max_new_tokens: int
    place: InstructionRole = "system"

    def __post_init__(self) -> None:
        self._tokens: dict[str, int] = {"": 0}
        self._refused: dict[str, SottovoceError] = {}  # texts that may not be said
        self._marks: dict[str, int] = {}
        self._by_task: dict[tuple[Reading, Task], Reading] = {}

    def faults(self, utterances: Iterable[Utterance], readings: Sequence[Reading]) -> list[LineFault]:
        """What is wrong with which rows, the first fault of each."""
        rows, around = self._counted(utterances, readings)
        found = (self._fault(utterance, read, texts, around) for utterance, read, texts in rows)
        return [fault for fault in found if fault is not None]

    def most_tokens(self, utterances: Iterable[Utterance], readings: Sequence[Reading]) -> list[int]:
        """Tokens of prompt and answer of each row in its longest reading, nearly; 0 for a row that none serves."""
        rows, around = self._counted(utterances, readings)
        sized = ((utterance, _Row(self, utterance), read) for utterance, read, _ in rows)
        return [max((self._bound(u, row, each, around)[1] for each in read), default=0) for u, row, read in sized]

    def _counted(
        self, utterances: Iterable[Utterance], readings: Sequence[Reading]
    ) -> tuple[list[tuple[Utterance, list[Reading], list[str]]], dict[int, int]]:
        """Rows, the readings that serve them, and all their texts, counted; and the tokens around each reading."""
        served = ((u, [own for reading in readings if (own := self._own(reading, u)).serves(u)]) for u in utterances)
        rows = [(utterance, read, list(self._texts(utterance, read))) for utterance, read in served]
        used = {id(reading): reading for _, read, _ in rows for reading in read}
        self._count(text for reading in used.values() for text in self._fixed_texts(reading))
        self._count(text for _, _, texts in rows for text in texts)
        return rows, {key: self._around(reading) for key, reading in used.items()}

    def _bound(
        self, utterance: Utterance, row: "_Row", reading: Reading, around: Mapping[int, int]
    ) -> tuple[dict[str, str], int]:
        """What fills each slot where a row is longest, and its tokens then, nearly."""
        sources, size = row.longest(reading)
        return sources, size + (around[id(reading)] if utterance.audio else self._overhead[0])

    def check(self, utterance: Utterance, readings: Sequence[Reading]) -> None:
        """`LineFault` where the LLM cannot read a row."""
        for fault in self.faults([utterance], readings):
            raise fault

    def check_example(self, example: Example, slots: Mapping[str, str], *, teacher: bool = False) -> int:
        """Tokens of its prompt; `LineFault` where the LLM cannot read it and generate `max_new_tokens` after it."""
        try:
            speech, text = self._prompt(teacher_dialogue(example, slots) if teacher else dialogue_of(example, slots))
        except SottovoceError as error:
            raise _fault(example.utterance, str(error), error) from None
        answer = self.target_max_new_tokens if teacher else self.max_new_tokens
        if self.context is not None and speech + text + answer > self.context:
            raise self._too_long(example.utterance, example.task, "evaluation", speech, text, answer)
        return speech + text

    def _surely_read(self, row: "_Row", readings: Sequence[Reading], texts: Sequence[str], most_around: int) -> bool:
        """Whether all texts of a row together, and the speech of all slots, fit: true of nearly every row."""
        slots = {slot for reading in readings for slot in reading.slots}
        words = sum(self._tokens[text] + 1 for text in texts) * max(1, len(slots)) + row.written
        speech = sum(row.size(slot, "", "speech") for slot in slots)
        answer = max(self.room(reading) for reading in readings) + row.turn
        return (words + speech + answer + most_around) * _SLACK + _MARGIN <= cast(int, self.context)

    def _fault(
        self, utterance: Utterance, readings: Sequence[Reading], texts: Sequence[str], around: Mapping[int, int]
    ) -> LineFault | None:
        for text in texts if self._refused else ():
            if text in self._refused:
                return _fault(utterance, str(self._refused[text]), self._refused[text])
        if self.context is None or not readings:
            return None
        row = _Row(self, utterance)
        if self._surely_read(row, readings, texts, max(around.values())):
            return None
        for reading in readings:
            sources, bound = self._bound(utterance, row, reading, around)
            if bound * _SLACK + _MARGIN <= self.context:
                continue
            wording = max(instructions(reading.task, utterance), key=lambda text: self._tokens[text])
            target = None if reading.generates else reading.task.target(utterance)
            context = (*few_shot_turns(reading.task, wording, self.place), *utterance.context)
            example = Example(
                utterance, reading.name, wording, context, sources, frozenset(), target, self.place,
                reading.task.teacher, reading.tag,
            )  # fmt: skip
            turns = dialogue_of(example, reading.slots)
            turns = teacher_dialogue(example, reading.slots) if reading.teacher else turns
            speech, words = self._prompt(turns)
            answer = self.room(reading) if target is None else len(self.chat.response(turns, target))
            if speech + words + answer > self.context:
                return self._too_long(utterance, reading.name, reading.where, speech, words, answer)
        return None

    def _too_long(self, utterance: Utterance, task: str, where: str, speech: int, text: int, answer: int) -> LineFault:
        told = f"too long for the LLM: {task} ({where}) may take {speech + text + answer} tokens, {speech} of speech, "
        told += f"{text} of text and {answer} for the answer, and {self.checkpoint} reads {self.context}"
        return LineFault.of_line(utterance.place, utterance.id, told, "bad-value")

    def room(self, reading: Reading) -> int:
        """How many tokens an answer that is not known may have."""
        return self.max_new_tokens if reading.generates and not reading.teacher else self.target_max_new_tokens

    def _prompt(self, turns: Sequence[ChatTurn]) -> tuple[int, int]:
        """Embeddings of speech, and tokens of text, of a prompt as it will be."""
        parts = self.chat.prompt(turns)
        speech = sum(self._speech(part) for part in parts if isinstance(part, Placeholder))
        return speech, sum(len(part) for part in parts if isinstance(part, list))

    def _speech(self, placeholder: Placeholder) -> int:
        assert isinstance(placeholder.key, SpeechPlaceholder)
        return self.speech(placeholder.key.slot, placeholder.key.clip)

    def _own(self, reading: Reading, utterance: Utterance) -> Reading:
        """The reading with the task as it is for an utterance, see `task_of`."""
        task = task_of({reading.name: reading.task}, reading.name, utterance)
        if task is reading.task:
            return reading
        if (reading, task) not in self._by_task:
            self._by_task[reading, task] = replace(reading, task=task)
        return self._by_task[reading, task]

    def _around(self, reading: Reading) -> int:
        """Tokens of a prompt in which nothing is said: template, longest wording, few-shot examples, teacher, tag."""
        first, system, further = self._overhead
        fixed = self._tokens[reading.task.teacher or ""] + self._tokens[reading.tag or ""]
        wordings = [
            [wording, *(turn.text for turn in few_shot_turns(reading.task, wording, self.place))]
            for wording in reading.task.instructions()
        ]
        most = max(sum(self._tokens[text] for text in texts) for texts in wordings)
        return first + system + fixed + most + further * (len(wordings[0]) - 1)

    def _fixed_texts(self, reading: Reading) -> Iterator[str]:
        """The texts of a prompt in which nothing is said."""
        yield from (reading.task.teacher or "", reading.tag or "")
        for wording in reading.task.instructions():
            yield wording
            yield from (turn.text for turn in few_shot_turns(reading.task, wording, self.place))

    def _texts(self, utterance: Utterance, readings: Sequence[Reading]) -> Iterator[str]:
        """Every text of a row that these readings may write."""
        yield from (r.task.target(utterance) or "" for r in readings if not r.generates)
        turns: tuple[Utterance | Turn, ...] = (*utterance.context, utterance) if readings else ()
        yield from (turn.text or "" for turn in turns if not turn.audio)
        kinds = {r.slots[slot] for r in readings for slot in r.slots if "text" in r.sources[slot]}
        yield from (slot_text(turn, kind) or "" for turn in turns if turn.audio for kind in sorted(kinds))

    def _count(self, texts: Iterable[str]) -> None:
        new = list(dict.fromkeys(text for text in texts if text not in self._tokens))
        for start in range(0, len(new), BATCH):
            part = new[start : start + BATCH]
            ids = self.chat.tokenizer(part, add_special_tokens=False)["input_ids"]
            self._tokens.update(zip(part, map(len, ids), strict=True))
        for text in new:
            try:
                self.chat.check_text(text)
            except SottovoceError as error:
                self._refused[text] = error

    @cached_property
    def _overhead(self) -> tuple[int, int, int]:
        """Tokens that the template writes: around one user's turn, around a system turn, around each further turn."""
        user, system, reply = ChatTurn("user", ("x",)), ChatTurn("system", ("x",)), ChatTurn("assistant", ("x",))
        one, two, three = (self._prompt(turns)[1] for turns in ([user], [system, user], [user, reply, user]))
        return one, max(0, two - one), max(1, -(-(three - one) // 2))

    def marks(self, slot: str) -> int:
        """Tokens that stand around the speech of a slot."""
        if slot not in self._marks:
            around = self.chat.delimiters(SpeechPlaceholder(slot, Path(), False), 10)
            ids = [self.chat.tokenizer(text, add_special_tokens=False)["input_ids"] for text in around if text]
            self._marks[slot] = 1 + sum(map(len, ids))
        return self._marks[slot]


class _Row:
    """Sizes of an utterance's turns in tokens, each summed up once for all readings."""

    def __init__(self, lengths: RowLengths, utterance: Utterance) -> None:
        self.lengths, self.utterance = lengths, utterance
        turns: tuple[Utterance | Turn, ...] = (*utterance.context, utterance)
        self.turn = lengths._overhead[2]
        self.spoken = [turn for turn in turns if turn.audio]
        self.written = self.turn * len(turns) + sum(
            lengths._tokens[turn.text or ""] for turn in turns if not turn.audio
        )
        self._known: dict[tuple[str, str, str], int] = {}

    def longest(self, reading: Reading) -> tuple[dict[str, str], int]:
        """What fills each slot where the prompt is longest; and the tokens of its turns and its answer, nearly."""
        sources, total = {}, self.written
        for slot, kind in reading.slots.items():
            sizes = {source: self.size(slot, kind, source) for source in reading.sources[slot]}
            sources[slot] = max(sizes, key=lambda source: sizes[source])
            total += sizes[sources[slot]]
        target = None if reading.generates else reading.task.target(self.utterance)
        answer = self.lengths.room(reading) if target is None else self.lengths._tokens[target] + self.turn
        return sources, total + answer

    def size(self, slot: str, kind: str, source: str) -> int:
        """Tokens of all spoken turns in a slot."""
        key = slot, kind, source
        if key not in self._known:
            self._known[key] = sum(self._of(turn, *key) for turn in self.spoken)
        return self._known[key]

    def _of(self, turn: Utterance | Turn, slot: str, kind: str, source: str) -> int:
        if source == "speech" and turn.audio:
            return self.lengths.speech(slot, turn.audio) + self.lengths.marks(slot)
        return self.lengths._tokens[slot_text(turn, kind) or ""] + 1 if source == "text" else 0


def _fault(utterance: Utterance, told: str, error: SottovoceError) -> LineFault:
    return LineFault.of_line(utterance.place, utterance.id, told, error.code)
