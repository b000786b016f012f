"""What a stage costs: seconds a step and the most memory."""

import resource
import sys
import time
from statistics import median
from typing import Any

import lightning as L
import torch

_MAXRSS = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of `ru_maxrss`


class ThroughputMeter(L.Callback):
    """Measures training steps on this rank, for `report`.

    A step lasts from the end of the one before to its own end, so that waiting for data counts; validation does not.
    The first step is left out, since kernels are chosen and caches filled in it. Only steps of this process are known:
    of a stage that was killed and goes on, those after it went on.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._mark: float | None = None
        self._device: torch.device | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._device = pl_module.device
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def on_train_batch_end(self, *_: Any) -> None:
        if self._device is not None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # or only the launching of kernels would be timed
        now = time.perf_counter()
        if self._mark is not None:
            self.seconds.append(now - self._mark)
        self._mark = now

    def on_validation_end(self, *_: Any) -> None:
        if self._mark is not None:
            self._mark = time.perf_counter()

    def report(self) -> dict[str, float]:
        """`seconds_per_step`, the median, if there were two steps; and `peak_memory_mb`, in 10^6 bytes.

        Memory on a GPU is what tensors took of it during the stage; on a CPU, what the whole process has taken so far.
        """
        pace = {"seconds_per_step": median(self.seconds)} if self.seconds else {}
        return {**pace, "peak_memory_mb": self._peak() / 1e6}

    def _peak(self) -> int:
        if self._device is not None and self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return taken()


def taken() -> int:
    """The most memory that this process has taken so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS
