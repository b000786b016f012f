"""What the tests of runs share: a run that says nothing, and a command that is killed on its way."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sottovoce.config import recipe as recipes
from sottovoce.lightning_modules.run import Run, prepare_run

Write = Callable[..., str]  # writes a recipe, changed as said, and returns its path
Fit = Callable[..., Path]  # trains by a recipe, changed as said, and returns the folder of the run
KILLED = """
import os, signal, sys, torch
torch.set_num_threads(int(sys.argv[2]))  # sums depend on it in their last bits
from sottovoce.cli.main import main
from sottovoce.lightning_modules.best_rq_pretraining import Pretraining
from sottovoce.lightning_modules.speech_llm import SpeechLLM
count = 0
def killed(step):
    def until(self, batch, number):
        global count
        count += 1
        if count == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch, number)
    return until
for kind in (Pretraining, SpeechLLM):
    kind.training_step = killed(kind.training_step)
main(sys.argv[3:])
"""


def quiet_run(recipe: recipes.Recipe | dict[str, Any]) -> Run:
    """A run of a recipe, or of the tree of one."""
    return prepare_run(recipes.parse(recipe) if isinstance(recipe, dict) else recipe, Console(quiet=True))


def run_killed(step: int, *command: str) -> None:
    """A command in a process of its own, which is killed in its training step of this number."""
    words = [sys.executable, "-c", KILLED, str(step), str(torch.get_num_threads()), *command]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
