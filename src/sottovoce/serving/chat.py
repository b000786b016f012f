"""`sottovoce chat`: a dialogue with a bundle, spoken and written."""

import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from sottovoce.data.audio import inspect_audio
from sottovoce.data.examples import NOTHING, Batch
from sottovoce.data.utterance import Turn
from sottovoce.device import on_device
from sottovoce.errors import AudioError, ConfigError, SottovoceError
from sottovoce.frames import Frames
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.chat_template import ChatTurn, Piece, Placeholder
from sottovoce.serving.audio_input import Audio, audio_file, waveform
from sottovoce.serving.questions import UntrainedTaskWarning, opening, question
from sottovoce.training.spoken_prompt import SpeechPlaceholder, between


class Conversation:
    """A dialogue with a model: spoken and written turns, each answered in the light of all before.

    `instruction` is the system prompt, or stands before the turn to answer, as the model's recipe has it.
    """

    def __init__(self, model: SpeechLLM, instruction: str, max_new_tokens: int = 200) -> None:
        self.model, self.instruction, self.max_new_tokens = model, instruction, max_new_tokens
        self.turns: list[Turn] = []
        self.forgotten = 0  # turns and answers that the LLM's context had no room for
        self.waveforms: dict[Path, torch.Tensor] = {}  # (samples,) at the encoder's sample rate

    def answer_audio(self, audio: Audio, sample_rate: int | None = None) -> str:
        """Answer a spoken turn: a file, or samples with their rate in Hz, see `audio_input.waveform`; or AudioError."""
        samples = waveform(audio, self.model.encoder.sample_rate, sample_rate)
        name = audio if isinstance(audio, (str, Path)) else "audio"
        turn = Path(f"{name}#{len(self.waveforms)}")  # a file that is recorded anew is another turn
        self.waveforms[turn] = samples
        return self._answer(Turn("user", "", audio=turn))

    def answer_text(self, text: str) -> str:
        return self._answer(Turn("user", text))

    def _answer(self, new: Turn) -> str:
        """Answer a turn; where that is more than the LLM reads, the oldest turns are forgotten, as many as must be."""
        for first in range(0, len(self.turns) + 1, 2):  # a turn goes with its answer
            turns = [*self.turns[first:], new]
            try:
                answer = self.model.generate(self._batch(turns), [self._prompt(turns)], self.max_new_tokens)[0]
            except SottovoceError as error:
                if error.code != "bad-value" or turns == [new]:
                    raise
                continue
            self.turns, self.forgotten = [*turns, Turn("assistant", answer)], self.forgotten + first
            return answer
        raise AssertionError("the new turn alone was answered, or raised")

    @property
    def history(self) -> list[tuple[str, str]]:
        """Who said what so far: `user` or `assistant`, and the words; of a spoken turn the name of its file."""
        return [(turn.role, str(turn.audio).rpartition("#")[0] if turn.audio else turn.text) for turn in self.turns]

    def _prompt(self, turns: Sequence[Turn]) -> list[ChatTurn]:
        chat, before = opening(self.model.recipe, self.instruction)
        for turn in turns:
            pieces = speech(turn.audio, self.model.slots) if turn.audio else (turn.text,)
            chat.append(ChatTurn(turn.role, (*before, *pieces) if turn is turns[-1] else pieces))
        return chat

    def _batch(self, turns: Sequence[Turn]) -> Batch:
        heard = [turn.audio for turn in turns if turn.audio]
        clips = {path: row for row, path in enumerate(heard)}
        batch = Batch([], clips, Frames.pad([self.waveforms[path] for path in heard]) if clips else NOTHING)
        return batch.to(self.model.device)


def speech(clip: Path, slots: Iterable[str]) -> tuple[Piece, ...]:
    """What fills a spoken turn: the clip's embeddings in each of these slots."""
    return between(Placeholder(SpeechPlaceholder(slot, clip, False)) for slot in slots)


def spoken_turn(model: SpeechLLM, clip: Path, instruction: str, slots: Iterable[str]) -> list[ChatTurn]:
    """The prompt that asks about one clip, in these slots."""
    turns, before = opening(model.recipe, instruction)
    return [*turns, ChatTurn("user", (*before, *speech(clip, slots)))]


def chat(
    bundle: str, audio: Sequence[str], task: str | None, instruction: str | None, once: bool, overrides: Sequence[str]
) -> None:
    """The command: answer the given clips in turn, then whatever is typed, until an empty line or the end of input.

    With `once` and no clip it answers the line on standard input.
    """
    clips = [audio_file(name) for name in audio]
    for clip in clips:  # all of them before the model is loaded
        report = inspect_audio(clip)
        if report.problem:
            raise AudioError.at(clip, "damaged", str(report.problem))
        if report.warning:
            print(f"sottovoce: {clip}: {report.warning}", file=sys.stderr)
    line = "" if clips or not once else _piped_line()
    model = read_bundle(bundle, overrides)
    conversation = Conversation(model, wording(model, task) if instruction is None else instruction)
    with on_device(model):
        if line:
            Console(highlight=False).print(f"answer   {_answer_line(conversation, line)}", markup=False)
        else:
            _converse(conversation, clips, once)


def _piped_line() -> str:
    """What was piped in for `--once`; ConfigError where nothing was."""
    line = "" if sys.stdin.isatty() else sys.stdin.readline().strip()
    if not line:
        raise ConfigError.at("--once", "missing-key", "nothing to answer: --audio FILE, or words on standard input")
    return line


def _converse(conversation: Conversation, clips: Sequence[Path], once: bool) -> None:
    console = Console(highlight=False)
    for clip in clips:
        console.print(f"you      ({clip})", markup=False)
        console.print(f"answer   {conversation.answer_audio(clip)}", markup=False)
    if once or (clips and not sys.stdin.isatty()):
        return
    console.print("Type on, or `audio FILE` for another spoken turn; an empty line ends.", style="dim")
    while line := _read_line():
        forgotten = conversation.forgotten
        try:
            answer = _answer_line(conversation, line)
        except SottovoceError as error:  # a slip of the hand does not end a dialogue
            spoken = spoken_file(line)
            place = f"{spoken}: " if isinstance(error, AudioError) and str(spoken) not in str(error) else ""
            console.print(f"sottovoce: {place}{error}", markup=False)
            continue
        if more := (conversation.forgotten - forgotten) // 2:
            console.print(f"sottovoce: the context is full; the oldest turns are forgotten ({more})", markup=False)
        console.print(f"answer   {answer}", markup=False)


def _answer_line(conversation: Conversation, line: str) -> str:
    spoken = spoken_file(line)
    return conversation.answer_audio(spoken) if spoken else conversation.answer_text(line)


def spoken_file(line: str) -> Path | None:
    """The file of a line `audio FILE`; None for a sentence that begins with that word."""
    if not line.startswith("audio "):
        return None
    file = Path(line[6:].strip().strip("'\""))
    return file if file.exists() or (file.suffix and " " not in file.suffix) else None


def wording(model: SpeechLLM, task: str | None) -> str:
    """A task's first wording, with the choices of the model's own recipe; see `questions.default_task` for None.

    What a bundle was not trained on is said on standard error.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UntrainedTaskWarning)
        instruction = question(model.recipe, task, None, "--task").instruction
    for warning in caught:
        print(f"sottovoce: {warning.message}", file=sys.stderr)
    return instruction


def _read_line() -> str:
    try:
        return input("you      ").strip()
    except EOFError:
        return ""
