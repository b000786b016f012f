"""What tests/test_processes.py starts in several processes: runs of a recipe, one after another.

python tests/many_processes.py RECIPE JOBS, where jobs are JSON: of each, overrides, and the step that kills it, if any.
"""

import gc
import json
import os
import signal
import sys
from typing import Any

import torch

from undertone.lightning_modules import speech_llm
from undertone.lightning_modules.cli import main
from undertone.llms.loaded import LoadedLLM

step, count = speech_llm.SpeechLLM.training_step, 0


def kill_at(last: int) -> None:
    """SIGKILL in the training step of this number, counted over the stages."""

    def killed(self: Any, batch: Any, number: int) -> Any:
        global count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch, number)

    speech_llm.SpeechLLM.training_step = killed  # type: ignore[method-assign]


def setup(self: Any, stage: str) -> None:
    """Where the LLM that trains is sharded, no other has weights in this process: it would be there once a process."""
    if self.recipe.trainer["strategy"] == "deepspeed_stage_3":
        others = [one for one in gc.get_objects() if isinstance(one, LoadedLLM) and one is not self.llm]
        assert others and all(weight.is_meta for one in others for weight in one.model.parameters())


speech_llm.SpeechLLM.setup = setup  # type: ignore[method-assign]

if __name__ == "__main__":
    torch.set_num_threads(1)
    for job in json.loads(sys.argv[2]):
        if job.get("kill"):
            kill_at(job["kill"])
        if code := main(["fit", "--config", sys.argv[1], *job["overrides"]]):
            sys.exit(code)
