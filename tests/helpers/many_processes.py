"""One of several processes that train the same recipes together, one after another; see `processes.launch`.

python tests/helpers/many_processes.py RECIPE JOBS, where jobs are JSON. Of each: `overrides`; `command`, where it is
not `fit`; `config`, where it is not RECIPE; the training step that `kill`s it (SIGKILL, to all processes), or that
`stop`s it (SIGTERM, to the first of them), counted from the job's beginning; and the folder in which two processes
`meet` before either gives an answer, where each leaves a byte for every answer in a file of its own.
"""

import gc
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from sottovoce.cli.main import main
from sottovoce.lightning_modules.best_rq_pretraining import Pretraining
from sottovoce.lightning_modules.speech_llm import SpeechLLM

STEPS = {kind: kind.training_step for kind in (SpeechLLM, Pretraining)}


def signal_at(last: int | None, what: signal.Signals, ranks: tuple[int, ...]) -> None:
    """Send a signal to processes of these ranks in the training step of this number; None: never."""
    for kind, step in STEPS.items():
        count = itertools.count(1)

        def signalled(self: Any, batch: Any, number: int, step: Any = step, count: Any = count) -> Any:
            if next(count) == last and self.global_rank in ranks:
                os.kill(os.getpid(), what)
            return step(self, batch, number)

        kind.training_step = signalled  # type: ignore[method-assign]


def meet(folder: Path) -> None:
    """Whoever first answers waits for the other one, half a minute at most."""
    generate = SpeechLLM.generate

    def met(self: Any, batch: Any, dialogues: Any, most: int) -> list[str]:
        folder.mkdir(exist_ok=True)
        with (folder / os.environ["LOCAL_RANK"]).open("a") as stream:
            stream.write("." * len(dialogues))
        until = time.monotonic() + 30
        while len(list(folder.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        return generate(self, batch, dialogues, most)

    SpeechLLM.generate = met  # type: ignore[method-assign,assignment]


def setup(self: Any, stage: str) -> None:
    """Under ZeRO's stage 3, no LLM of the run that is not sharded has weights in this process while it trains."""
    if self.recipe.trainer["strategy"] == "deepspeed_stage_3":
        modules = [one for one in gc.get_objects() if issubclass(type(one), SpeechLLM) and one is not self]
        weights = [w for one in modules if one.recipe.name == self.recipe.name for w in one.llm.parameters()]
        assert weights and all(weight.is_meta or hasattr(weight, "ds_id") for weight in weights)


SpeechLLM.setup = setup  # type: ignore[method-assign]

if __name__ == "__main__":
    torch.set_num_threads(1)
    for job in json.loads(sys.argv[2]):
        kill, stop = job.get("kill"), job.get("stop")
        signal_at(kill or stop, signal.SIGKILL if kill else signal.SIGTERM, (0, 1) if kill else (0,))
        if job.get("meet"):
            meet(Path(job["meet"]))
        command = [job.get("command", "fit"), "--config", job.get("config", sys.argv[1])]
        if (code := main([*command, *job["overrides"]])) != (143 if stop else 0):
            sys.exit(code or 1)
