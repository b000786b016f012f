"""What ends a run from outside, in one line: a process that has died, a clip that is gone."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
from torch.distributed import DistError

from sottovoce.errors import SottovoceError, TrainingError

_READER = re.compile(r"DataLoader worker \(pid\(?s?\)? ?(?P<pid>[\d, ]+)\) (?P<fate>.*)")
_CAUGHT = re.compile(r"^Caught \w+ in DataLoader worker process")
_PARTED = re.compile(r"closed by peer|reset by peer|broken pipe|gloo|nccl|connection refused", re.IGNORECASE)


@contextmanager
def readable_errors(trainer: L.Trainer) -> Iterator[None]:
    """Around `fit`: errors that are no fault of the program leave it as one line.

    Raises:
        KeyboardInterrupt: somebody pressed Ctrl-C.
        TrainingError: a process that reads audio has died, or another process of the run.
        SottovoceError: one that happened while audio was read, without the traceback that PyTorch wraps it in.
    """
    try:
        yield
    except SystemExit:  # how Lightning ends when it is interrupted
        raise KeyboardInterrupt from None
    except SottovoceError as error:
        if not _CAUGHT.match(str(error)):
            raise
        last = str(error).strip().splitlines()[-1]
        raise type(error)(last.partition(": ")[2] or last) from None
    except RuntimeError as error:
        if reader := _READER.search(str(error)):
            raise TrainingError(
                f"a process that reads audio (pid {reader['pid'].strip()}) has died: {reader['fate'].strip()} Often "
                "memory has run out: lower data.num_workers. The same command goes on from the last checkpoint",
                code="died",
                where="data.num_workers",
            ) from None
        if trainer.world_size > 1 and (isinstance(error, DistError) or _PARTED.search(str(error))):
            raise TrainingError(
                f"process {trainer.global_rank} of {trainer.world_size}: another process of this run has ended, so "
                f"this one cannot go on ({str(error).splitlines()[0][:200]}). What ended it stands above; if nothing "
                "does, it was killed, often because memory ran out. The same command goes on from the last checkpoint",
                code="died",
                where="trainer.devices",
            ) from None
        raise
