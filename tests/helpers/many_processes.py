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

from sottovoce.cli.main import main
from sottovoce.lightning_modules import speech_llm

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
    """Under ZeRO's stage 3, no LLM of the run that is not sharded has weights in this process while it trains."""
    if self.recipe.trainer["strategy"] == "deepspeed_stage_3":
        modules = [one for one in gc.get_objects() if isinstance(one, speech_llm.SpeechLLM) and one is not self]
        weights = [w for one in modules if one.recipe.name == self.recipe.name for w in one.llm.parameters()]
        assert weights and all(weight.is_meta or hasattr(weight, "ds_id") for weight in weights)


speech_llm.SpeechLLM.setup = setup  # type: ignore[method-assign]

if __name__ == "__main__":
    torch.set_num_threads(1)
    for job in json.loads(sys.argv[2]):
        if job.get("kill"):
            kill_at(job["kill"])
        if code := main(["fit", "--config", sys.argv[1], *job["overrides"]]):
            sys.exit(code)
