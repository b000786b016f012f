"""Runs in two processes on this machine, and what they trained beside what others did."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sottovoce.lightning_modules.curriculum import read_trained

WORKER = Path(__file__).with_name("many_processes.py")
Jobs = list[dict[str, Any]]


def launch(config: str, jobs: Jobs, *, torchrun: bool) -> subprocess.CompletedProcess[str]:
    """Two processes: started by torchrun, as on a cluster, or by Lightning, as on one machine."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if torchrun else []
    command = [sys.executable, *start, str(WORKER), config, json.dumps(jobs)]
    ours = [*filter(None, [os.environ.get("PYTHONPATH")]), str(WORKER.parents[1])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(ours)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)


def difference(one: Path, other: Path, stage: str) -> float:
    """The largest between two weights of the stage's best checkpoints, which have the same names."""
    ours, theirs = (read_trained(run / "stages" / stage / "best.ckpt") for run in (one, other))
    assert list(ours) == list(theirs)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def scores(run: Path, stage: str) -> dict[str, float]:
    """What a stage reports that does not depend on time."""
    told: dict[str, float] = json.loads((run / "stages" / stage / "done.json").read_text())
    return {key: told[key] for key in ("steps", "batch_size", "trainable", "val/loss", "train/loss")}
