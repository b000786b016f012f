"""From a chat request to what the model reads: clips decoded within limits, turns with slots, the instruction."""

import base64
import binascii
import logging
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sottovoce.data.audio import load_audio
from sottovoce.data.audio_decoder import read_header
from sottovoce.errors import AudioError, ConfigError, SottovoceError
from sottovoce.llms.chat_template import ChatTurn, Piece, Segment
from sottovoce.serving.chat import speech
from sottovoce.serving.http.chat_request import AudioPart, ChatRequest, Message
from sottovoce.serving.http.errors import Refusal
from sottovoce.serving.model import Model
from sottovoce.serving.questions import opening, question

SYSTEM = ("system", "developer")
MAX_CLIPS = 64  # of a request; each costs an encoder its whole window
BEGINNINGS = {"wav": rb"RIFF....WAVE|RF64....WAVE", "mp3": rb"ID3|\xff[\xe0-\xff]", "flac": rb"fLaC|ID3"}
_log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """A request as the model reads it."""

    prompt: list[Segment]
    clips: dict[Path, Tensor]  # waveforms, (samples,) at the encoder's rate
    seconds: float  # of all clips


@dataclass
class Reader:
    """Makes prompts of requests, from any thread.

    Args:
        model: whose recipe says where instructions and slots stand.
        instruction: of requests that bring none.
        max_seconds: of audio in a request, all clips together.
    """

    model: Model
    instruction: str
    max_seconds: float
    _numbers: Iterator[int] = field(default_factory=count)
    _unlearned: set[str] = field(default_factory=set)  # tasks that were warned of
    _lock: threading.Lock = field(default_factory=threading.Lock)  # tokenizers change while they work

    def prepare(self, request: ChatRequest) -> Prepared:
        """Decode, check and tokenise; a `Refusal` (400, 413) that says what is wrong and where."""
        clips: dict[Path, Tensor] = {}
        names: dict[tuple[int, int], Path] = {}
        number, left = next(self._numbers), self.max_seconds
        for at, message in enumerate(request.messages):
            for part_at, part in enumerate(message.content):
                if not isinstance(part, AudioPart):
                    continue
                if len(clips) >= MAX_CLIPS:
                    raise Refusal(413, f"more than {MAX_CLIPS} clips", code="too_many_clips", param="messages")
                param = f"messages[{at}].content[{part_at}].input_audio"
                name = names[at, part_at] = Path(f"{number}-{len(clips)}")
                clips[name], seconds = self._clip(part, param, left)
                left -= seconds
        turns = self._turns(request, names)
        chat = self.model.module.llm.chat
        try:
            with self._lock:
                prompt = chat.prompt(turns)
        except SottovoceError as error:
            told = str(error).replace(str(chat.tokenizer.name_or_path), "this model")  # mostly a path of ours
            raise Refusal(400, told, code="invalid_dialogue", param="messages") from None
        return Prepared(prompt, clips, self.max_seconds - left)

    def _clip(self, part: AudioPart, param: str, left: float) -> tuple[Tensor, float]:
        """A waveform and its seconds."""
        given = part.input_audio
        try:
            raw = base64.b64decode(given.data, validate=True)
        except (binascii.Error, ValueError):
            told = f"{param}.data is not base64 (of the file alone, without `data:...;base64,`)"
            raise Refusal(400, told, code="invalid_base64", param=f"{param}.data") from None
        if not re.match(BEGINNINGS[given.format], raw, re.DOTALL):  # nor may FFmpeg guess what somebody sends
            told = f"{param}: the data is not {given.format}, or is damaged at its beginning"
            raise Refusal(400, told, code="invalid_audio", param=param)
        longest = min(left, self.model.recipe.data.max_seconds)
        with tempfile.NamedTemporaryFile(suffix=f".{given.format}") as file:
            file.write(raw)
            file.flush()
            path = Path(file.name)
            try:
                seconds = read_header(path).seconds
                if seconds > longest:
                    told = f"{param} is {seconds:.1f} s long; {self._allowed()}"
                    raise Refusal(413, told, code="audio_too_long", param=param)
                samples = load_audio(path, self.model.sample_rate, max_seconds=longest)
            except AudioError as error:
                why = str(error).removeprefix(f"{path}: ").replace(str(path), "the clip")
                raise Refusal(400, f"{param}: {why}", code="invalid_audio", param=param) from None
        return torch.from_numpy(samples), seconds

    def _allowed(self) -> str:
        each = self.model.recipe.data.max_seconds
        return f"a clip has at most {each:g} s, and a request {self.max_seconds:g} s in all"

    def _turns(self, request: ChatRequest, names: dict[tuple[int, int], Path]) -> list[ChatTurn]:
        """As `Conversation` writes them: the instruction, and turns with a slot for each adapter where speech is."""
        given = [message for message in request.messages[:1] if message.role in SYSTEM]
        if late := [at for at, message in enumerate(request.messages) if at and message.role in SYSTEM]:
            param = f"messages[{late[0]}].role"
            raise Refusal(400, f"{param}: a system message comes first, and once", code="invalid_value", param=param)
        asked = self._task(request.task) if request.task else None
        if asked and given:
            raise Refusal(400, "task: it has a wording of its own; leave the system message out", code="conflict",
                          param="task")  # fmt: skip
        turns = list(enumerate(request.messages))[len(given) :]
        # Words beside speech are the instruction, as `ask` is in Python, where none is given.
        users = [each for _, each in reversed(turns) if each.role == "user" and each.speaks() and each.words()]
        beside = users[0].words() if users and not (asked or given) else None
        instruction = given[0].words() if given else asked or beside or self.instruction
        chat, before = opening(self.model.recipe, instruction)
        for at, message in turns:
            pieces = self._pieces(at, message, names, beside)
            first = before if at == len(request.messages) - 1 else []
            chat.append(ChatTurn("assistant" if message.role == "assistant" else "user", (*first, *pieces)))
        return chat

    def _task(self, name: str) -> str:
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                asked = question(self.model.recipe, name, None).instruction
        except ConfigError as error:
            raise Refusal(400, str(error), code="unknown_task", param="task") from None
        if told and name not in self._unlearned:
            self._unlearned.add(name)
            _log.warning(str(told[0].message))
        return asked

    def _pieces(
        self, at: int, message: Message, names: dict[tuple[int, int], Path], beside: str | None
    ) -> Sequence[Piece]:
        """Words and speech in their order, a line each; words that are the instruction are left out."""
        if not message.speaks():
            return (message.words(),)
        pieces: list[Piece] = []
        for part_at, part in enumerate(message.content):
            told = speech(names[at, part_at], self.model.slots) if isinstance(part, AudioPart) else (part.text,)
            if isinstance(part, AudioPart) or message.words() != beside:
                pieces += ["\n", *told] if pieces else told
        return pieces
