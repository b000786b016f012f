"""`sottovoce chat`: a dialogue with a bundle, spoken and written."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from sottovoce.data.audio import inspect_audio, load_audio
from sottovoce.data.examples import NOTHING, Batch
from sottovoce.data.own_attribute import build_task
from sottovoce.data.tasks import TASKS
from sottovoce.data.utterance import Turn
from sottovoce.device import on_device
from sottovoce.errors import AudioError, ConfigError, SottovoceError, nearest
from sottovoce.frames import Frames
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.chat_template import ChatTurn, Piece, Placeholder
from sottovoce.training.spoken_prompt import SpeechPlaceholder, between, instructed


class Conversation:
    """A dialogue with a model: spoken and written turns, each answered in the light of all before.

    `instruction` is the system prompt, or stands before the turn to answer, as the model's recipe has it.
    """

    def __init__(self, model: SpeechLLM, instruction: str, max_new_tokens: int = 200) -> None:
        self.model, self.instruction, self.max_new_tokens = model, instruction, max_new_tokens
        self.turns: list[Turn] = []
        self.forgotten = 0  # turns and answers that the LLM's context had no room for
        self.waveforms: dict[Path, torch.Tensor] = {}  # (samples,) at the encoder's sample rate

    def answer_audio(self, audio: Path) -> str:
        """Answer a spoken turn: any format, sample rate and number of channels that libsndfile reads, or AudioError."""
        samples = torch.from_numpy(load_audio(audio, self.model.encoder.sample_rate))
        turn = Path(f"{audio}#{len(self.waveforms)}")  # a file that is recorded anew is another turn
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

    def _prompt(self, turns: Sequence[Turn]) -> list[ChatTurn]:
        system, before = instructed(self.instruction, self.model.recipe.instructions)
        chat = [ChatTurn("system", (text,)) for text in system]
        for turn in turns:
            pieces = self._speech(turn.audio) if turn.audio else (turn.text,)
            chat.append(ChatTurn(turn.role, (*before, *pieces) if turn is turns[-1] else pieces))
        return chat

    def _speech(self, audio: Path) -> tuple[Piece, ...]:
        return between(Placeholder(SpeechPlaceholder(slot, audio, False)) for slot in self.model.slots)

    def _batch(self, turns: Sequence[Turn]) -> Batch:
        heard = [turn.audio for turn in turns if turn.audio]
        clips = {path: row for row, path in enumerate(heard)}
        batch = Batch([], clips, Frames.pad([self.waveforms[path] for path in heard]) if clips else NOTHING)
        return batch.to(self.model.device)


def chat(
    bundle: str, audio: Sequence[str], task: str | None, instruction: str | None, once: bool, overrides: Sequence[str]
) -> None:
    """The command: answer the given clips in turn, then whatever is typed, until an empty line or the end of input."""
    clips = [Path(name) for name in audio]
    for clip in clips:  # all of them before the model is loaded
        report = inspect_audio(clip)
        if report.problem:
            raise AudioError.at(clip, "damaged", str(report.problem))
        if report.warning:
            print(f"sottovoce: {clip}: {report.warning}", file=sys.stderr)
    model = read_bundle(Path(bundle), overrides)
    conversation = Conversation(model, wording(model, task) if instruction is None else instruction)
    with on_device(model):
        _converse(conversation, clips, once)


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
            spoken = spoken_file(line)
            answer = conversation.answer_audio(spoken) if spoken else conversation.answer_text(line)
        except SottovoceError as error:  # a slip of the hand does not end a dialogue
            place = f"{spoken}: " if isinstance(error, AudioError) else ""
            console.print(f"sottovoce: {place}{error}", markup=False)
            continue
        if more := (conversation.forgotten - forgotten) // 2:
            console.print(f"sottovoce: the context is full; the oldest turns are forgotten ({more})", markup=False)
        console.print(f"answer   {answer}", markup=False)


def spoken_file(line: str) -> Path | None:
    """The file of a line `audio FILE`; None for a sentence that begins with that word."""
    if not line.startswith("audio "):
        return None
    file = Path(line[6:].strip().strip("'\""))
    return file if file.exists() or (file.suffix and " " not in file.suffix) else None


def wording(model: SpeechLLM, task: str | None) -> str:
    """A task's first wording, with the choices of the model's own recipe; of the task that replies if None."""
    task = task or ("response" if "response" in model.recipe.tasks else "dialogue")
    known = list(dict.fromkeys([*model.recipe.tasks, *TASKS.names()]))
    if task not in known:
        raise ConfigError(f"--task {task}:{nearest(task, known)}", code="unknown-name", where="--task")
    return build_task(task, model.recipe.tasks.get(task, {})).instructions()[0]


def _read_line() -> str:
    try:
        return input("you      ").strip()
    except EOFError:
        return ""
