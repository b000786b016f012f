"""Helpers of a preparation: processes of this machine that encode clips beside the run's own, while there are any.

`python -m sottovoce.training.preparation_helpers JOB` is one. It ends with the process that started it.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sottovoce.device import best_device, use_device
from sottovoce.encoders import ENCODERS
from sottovoce.encoders.cache_formats import CacheDtype
from sottovoce.errors import SottovoceError
from sottovoce.training.audio_reader import AudioReader
from sottovoce.training.preparation import Preparation, Start, limited_threads, team_size

CLIPS = 256  # that each process should have to encode, or it costs more to start it than it saves
MOST = 8  # processes of one thread on a CPU, which encode more than one process of as many threads
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What a helper encodes, and with what."""

    encoder: dict[str, Any]  # node of the recipe
    layers: list[int]
    cache: str
    dtype: CacheDtype
    folder: str  # that the features must go to: another encoder has another
    max_seconds: float
    silent: list[str]
    clips: list[str]
    device: str
    threads: int
    team: int


def helpers_for(asked: int | None, clips: int, devices: int, *, threads: bool) -> int:
    """How many helpers a process has: `asked`, or as many as pay.

    `devices` are the GPUs that the run asks for; `threads`: the encoder's own threads make use of all cores.
    """
    if asked is not None:
        return asked if clips else 0
    if team_size() > 1:
        return 0  # the run has a process for each device
    if best_device().type == "cuda":
        processes = min(torch.cuda.device_count(), devices)
    else:
        processes = 1 if threads else min(torch.get_num_threads(), MOST)
    return max(0, min(processes, clips // CLIPS) - 1)


def starter(
    reader: AudioReader, cache: Path, encoder: dict[str, Any], clips: Sequence[Path], asked: int | None, devices: int,
    *, threads: bool,
) -> Start:  # fmt: skip
    """Starts helpers while a block runs, when it is known how many clips are to be read."""

    @contextmanager
    def start(missing: int) -> Iterator[None]:
        count, cores = helpers_for(asked, missing, devices, threads=threads), torch.get_num_threads()
        if not count or reader.cache is None:
            yield
            return
        device, each = best_device(), max(1, cores // (count + 1))
        job = Job(
            encoder, list(reader.layers), str(cache.absolute()), reader.cache.dtype, reader.cache.folder.name,
            reader.max_seconds, [str(clip) for clip in reader.silent], [str(clip) for clip in clips],
            str(device), each, count + 1,
        )  # fmt: skip
        _log.info(f"{count} helper{'s' * (count > 1)} encode clips beside this process, {each} threads each")
        with tempfile.TemporaryDirectory(prefix="sottovoce-") as folder, limited_threads(each):
            running = [_launch(Path(folder), number, job) for number in range(1, count + 1)]
            try:
                yield
            finally:
                for process in running:
                    _end(process)
            for number, process in enumerate(running, 1):
                if process.returncode == 1:
                    told = (Path(folder) / f"{number}.err").read_text("utf-8", "replace").strip().splitlines()
                    _log.warning(f"a helper that was to encode clips ended: {(told or ['it gave no reason'])[-1]}")

    return start


def _launch(folder: Path, number: int, job: Job) -> "subprocess.Popen[bytes]":
    device = torch.device(job.device)
    if device.type == "cuda":
        device = torch.device("cuda", ((device.index or 0) + number) % torch.cuda.device_count())
    file = folder / f"{number}.json"
    file.write_text(json.dumps({**asdict(job), "device": str(device)}), "utf-8")
    command = [sys.executable, "-m", "sottovoce.training.preparation_helpers", str(file)]
    with (folder / f"{number}.err").open("wb") as errors:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """All clips are encoded, or this process ends."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(file: str) -> int:
    """Do a job; 1 where it cannot be done, which is told in the last line."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = Job(**json.loads(Path(file).read_text("utf-8")))
    torch.set_num_threads(job.threads)
    try:
        with use_device(job.device):
            encoder = ENCODERS.build(job.encoder)
            encoder.load()
            reader = AudioReader(encoder, Path(job.cache), job.max_seconds, tuple(job.layers), job.dtype)
            if reader.cache is None or reader.cache.folder.name != job.folder:
                raise SottovoceError.at("encoder", "mismatch", "it is another one in a process of its own")
            reader.silent = frozenset(map(Path, job.silent))
            Preparation(reader, encoder.to(best_device()), [Path(clip) for clip in job.clips], job.team).run()
    except Exception as error:  # whatever it is, who started this one meets it, too, and tells
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # ends when the other end of the pipe is closed, by whatever
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
