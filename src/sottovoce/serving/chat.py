"""Ask a bundle something by voice, then go on in writing or by voice."""

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console

from sottovoce.data.audio import inspect_audio, load_audio
from sottovoce.data.batches import NOTHING, Batch
from sottovoce.data.tasks import TASKS
from sottovoce.data.utterance import Turn
from sottovoce.errors import AudioError, ConfigError
from sottovoce.frames import Frames
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.chat_template import ChatTurn, Piece, Placeholder
from sottovoce.training.spoken_prompt import SpeechPlaceholder, between, instructed


class Conversation:
    """A dialogue with a model: spoken and written turns, each answered in the light of all before.

    Args:
        model: from a bundle.
        instruction: the system prompt, or what stands before the turn to answer, as the model's recipe has it.
        max_new_tokens: of an answer.
    """

    def __init__(self, model: SpeechLLM, instruction: str, max_new_tokens: int = 200) -> None:
        self.model, self.instruction, self.max_new_tokens = model, instruction, max_new_tokens
        self.turns: list[Turn] = []
        self.heard: dict[Path, torch.Tensor] = {}

    def hear(self, audio: Path) -> str:
        """Answer a spoken turn: any format, sample rate and number of channels that libsndfile reads.

        Raises:
            AudioError: the clip cannot be used; the message says why.
        """
        self.heard[audio] = torch.from_numpy(load_audio(audio, self.model.encoder.sample_rate))
        return self._answer(Turn("user", "", audio=audio))

    def read(self, text: str) -> str:
        """Answer a written turn."""
        return self._answer(Turn("user", text))

    def _answer(self, turn: Turn) -> str:
        system, before = instructed(self.instruction, self.model.recipe.instructions)
        chat = [ChatTurn("system", (text,)) for text in system]
        for said in (*self.turns, turn):
            pieces = self._spoken(said.audio) if said.audio else (said.text,)
            chat.append(ChatTurn(said.role, (*before, *pieces) if said is turn else pieces))
        answer = self.model.generate(self._batch(), [chat], self.max_new_tokens)[0]
        self.turns += [turn, Turn("assistant", answer)]
        return answer

    def _spoken(self, audio: Path) -> tuple[Piece, ...]:
        return between(Placeholder(SpeechPlaceholder(slot, audio, False)) for slot in self.model.slots)

    def _batch(self) -> Batch:
        clips = {path: row for row, path in enumerate(self.heard)}
        return Batch([], clips, Frames.pad(list(self.heard.values())) if clips else NOTHING)


def chat(arguments: argparse.Namespace) -> None:
    """The command: answer the given clips in turn, then whatever is typed, until an empty line or the end of input.

    Raises:
        AudioError: a clip cannot be used; ConfigError: there is no such task.
    """
    clips = [Path(name) for name in arguments.audio]
    for clip in clips:  # all of them before the model is loaded
        report = inspect_audio(clip)
        if report.problem:
            raise AudioError(f"{clip}: {report.problem}")
        if report.warning:
            print(f"sottovoce: {clip}: {report.warning}", file=sys.stderr)
    model = read_bundle(Path(arguments.bundle), arguments.overrides)
    instruction = wording(model, arguments.task) if arguments.instruction is None else arguments.instruction
    conversation = Conversation(model, instruction)
    console = Console(highlight=False)
    for clip in clips:
        console.print(f"you      ({clip})", markup=False)
        console.print(f"answer   {conversation.hear(clip)}", markup=False)
    if arguments.once or (clips and not sys.stdin.isatty()):
        return
    console.print("Type on, or `audio FILE` for another spoken turn; an empty line ends.", style="dim")
    while line := _line():
        answer = conversation.hear(Path(line[6:].strip())) if line.startswith("audio ") else conversation.read(line)
        console.print(f"answer   {answer}", markup=False)


def wording(model: SpeechLLM, task: str | None) -> str:
    """A task's first wording, with the choices of the model's own recipe; of the task that replies if None."""
    task = task or ("response" if "response" in model.recipe.tasks else "dialogue")
    if task not in TASKS.names():
        raise ConfigError(f"--task {task}: known tasks are {', '.join(TASKS.names())}")
    return TASKS.build(model.recipe.tasks.get(task, {"type": task})).instructions()[0]


def _line() -> str:
    try:
        return input("you      ").strip()
    except EOFError:
        return ""
