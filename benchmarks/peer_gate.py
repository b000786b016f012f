"""What every side of peer_step.py does after a step: it tells what it has taken, and waits for its next turn."""

import json
import resource
import sys
import time
from typing import Any

try:
    from lightning import Callback
except ModuleNotFoundError:  # a peer's environment, which calls `wait` alone
    Callback = object  # type: ignore[assignment,misc]


def wait() -> None:
    """Print CPU seconds of this process so far and its peak memory in GB, and wait for a line."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print("STEP", json.dumps({"seconds": time.process_time(), "peak": peak}), flush=True)
    if not sys.stdin.readline():
        sys.exit(0)  # who measures has ended


class Gate(Callback):
    """`wait` after each step of Lightning's trainer."""

    def on_train_batch_end(self, *_: Any) -> None:
        wait()
