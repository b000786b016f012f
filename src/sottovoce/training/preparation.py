"""Preparation of clips by all processes of a run: each claims parts, reads ahead and encodes, as long as there are any.

Clips are sorted by length and cut into parts, the same ones in every process; a part's clips go through the encoder in
the same batches whoever encodes them and however often a process was killed, so that the features are the same bits.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from rich.console import Console
from torch import Tensor

from sottovoce.byte_claims import Claims, NoClaimsError
from sottovoce.data.clip_reference import file_of
from sottovoce.encoders import Encoder
from sottovoce.encoders.feature_cache import audio_key
from sottovoce.encoders.feature_shards import writers_for
from sottovoce.errors import AudioError
from sottovoce.frames import Frames
from sottovoce.io import file_lock
from sottovoce.progress import Progress

if TYPE_CHECKING:
    from sottovoce.training.audio_reader import AudioReader

PART = 16  # clips that a process claims together, at most
PART_SECONDS = 96.0  # of sound, padded to the longest of the part, at most
CPU_SECONDS = 10.0  # that a CPU encodes at once: larger batches do not fit its caches, and took 20 % longer
READERS = 4  # threads that decode, at most
PAUSE = 0.1  # seconds between two looks at parts that others have claimed, when nothing else is left
SETTLED = 2.0  # seconds after which a file that changes has another time: until then it is read again
Start: TypeAlias = Callable[[int], AbstractContextManager[None]]  # a context, of how many clips have to be read
_log = logging.getLogger(__name__)


class Sound(NamedTuple):
    """A clip that has been read."""

    key: str
    samples: Tensor  # (samples,)
    note: list[Any] | None  # by which the file is known again; None: it cannot be


class Claimed(NamedTuple):
    """A part that this process works on; clips that are not known yet are being read."""

    clips: tuple[Path, ...]
    reading: dict[Path, "Future[Sound | AudioError]"]


def parts_of(clips: Sequence[Path], samples: Callable[[Path], int], rate: int) -> list[tuple[Path, ...]]:
    """Clips from long to short in parts of at most `PART` and `PART_SECONDS`; `samples` of each at `rate` Hz."""
    counts = {clip: samples(clip) for clip in clips}
    order = sorted(counts, key=lambda clip: (-counts[clip], str(clip)))
    return list(_runs(order, lambda clip: counts[clip], PART, int(PART_SECONDS * rate)))


def _runs(items: Sequence[Any], length: Callable[[Any], int], most: int, budget: int) -> Iterator[tuple[Any, ...]]:
    """Runs of at most `most` items whose number times the longest length is within a budget, or of one."""
    run, longest = list[Any](), 0
    for item in items:
        longest = max(longest, length(item))
        if run and (len(run) == most or (len(run) + 1) * longest > budget):
            yield tuple(run)
            run, longest = [], length(item)
        run.append(item)
    if run:
        yield tuple(run)


def team_size() -> int:
    """Processes of this run, as far as whoever started them says."""
    return max(1, int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1))


class Preparation:
    """Reads every clip, or knows it again, and sees to it that its features are in the reader's cache, if it has one.

    `faults` and the reader's `keys` and `samples` are its result, `encoded` counts what this process has encoded.
    """

    def __init__(self, reader: "AudioReader", encoder: Encoder, clips: Sequence[Path], team: int = 1) -> None:
        self.reader, self.encoder, self.team = reader, encoder, team
        self.faults: dict[Path, AudioError] = {}
        self.encoded = 0
        self._queue = deque(parts_of(clips, reader.count_samples, reader.sample_rate))
        self._taken: list[tuple[Path, ...]] = []  # parts that others had claimed when they were looked at
        self._claims: Claims | None = None
        self._known: set[Path] = set()
        if reader.cache is not None:
            reader.cache.shards.writers = writers_for(len(clips))

    def run(self, progress: Progress | None = None, helpers: Start = lambda missing: nullcontext()) -> None:
        """Prepare all clips; `StorageError` where features cannot be written, and what the encoder raises.

        `helpers` makes the context in which clips are encoded, of how many have to be read.
        """
        task = (progress or Progress(Console(quiet=True))).start("encoding clips", sum(map(len, self._queue)), "clip")
        readers = min(READERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
        with self._claiming(), helpers(self._missing()), ThreadPoolExecutor(readers, "reads clips") as pool:
            try:
                current = self._next(pool, task.advance, wait=True)
                while current:
                    ahead = len(self._queue) > 2 * self.team  # the last parts are left to whoever is free
                    following = self._next(pool, task.advance, wait=False) if ahead else None
                    self._work(current)
                    task.advance(len(current.clips))
                    current = following or self._next(pool, task.advance, wait=True)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        task.end()

    def _missing(self) -> int:
        return sum(not self._recall(clip) for part in self._queue for clip in part)

    @contextmanager
    def _claiming(self) -> Iterator[None]:
        """Claims on parts while the block runs; where there are none, one process works at a time."""
        cache = self.reader.cache
        if cache is None:
            yield
            return
        try:
            self._claims = Claims(cache.folder)
        except NoClaimsError as error:
            _log.warning(f"one process encodes at a time: {error}")
            with file_lock(cache.folder):
                cache.shards.recover()
                yield
            return
        try:
            cache.shards.recover()
            yield
        finally:
            self._claims.close()
            self._claims = None

    def _next(self, pool: ThreadPoolExecutor, done: Callable[[float], None], *, wait: bool) -> Claimed | None:
        """Claim a part that is not done, and begin to read it; None: there is none, or, without `wait`, not at once."""
        while True:
            while self._queue:
                part = self._queue.popleft()
                if not self._is_known(part):
                    if self._claims is not None and not self._claims.take(_name(part)):
                        self._taken.append(part)
                        continue
                    if self.reader.cache is not None:
                        self.reader.cache.shards.refresh()  # whoever had it until now may have done it
                    if not self._is_known(part):
                        unknown = [clip for clip in part if clip not in self._known]
                        return Claimed(part, {clip: pool.submit(self._read, clip) for clip in unknown})
                    self._give_back(part)
                done(len(part))
            if not self._taken or not wait:
                return None
            time.sleep(PAUSE)
            self._queue, self._taken = deque(self._taken), []
            assert self.reader.cache is not None
            self.reader.cache.shards.refresh()

    def _give_back(self, part: tuple[Path, ...]) -> None:
        if self._claims is not None:
            self._claims.give_back(_name(part))

    def _is_known(self, part: tuple[Path, ...]) -> bool:
        """Whether each clip of a part is known, or known to be faulty."""
        return all([clip in self._known or clip in self.faults or self._recall(clip) for clip in part])

    def _recall(self, clip: Path) -> bool:
        """Know a clip again by its file's size and times, if its features are there."""
        cache, reader = self.reader.cache, self.reader
        note = cache.shards.notes.get(os.path.abspath(clip)) if cache is not None else None
        if cache is None or note is None:
            return False
        key, samples = str(note[-2]), int(note[-1])
        if key not in cache or samples > reader.max_seconds * reader.sample_rate or note[:-2] != self._mark(clip):
            return False
        reader.keys[clip], reader.samples[clip] = key, samples
        self._known.add(clip)
        return True

    def _mark(self, clip: Path) -> list[Any] | None:
        """What another content of a clip's file would have otherwise; None: nothing tells yet, or it is gone."""
        try:
            stat = file_of(clip).stat()
        except OSError:
            return None
        if time.time() - max(stat.st_mtime, stat.st_ctime) < SETTLED:
            return None
        return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, clip in self.reader.silent]

    def _read(self, clip: Path) -> Sound | AudioError:
        mark = self._mark(clip)
        try:
            samples = self.reader._load(clip)
        except AudioError as error:
            return error
        key = audio_key(samples)
        return Sound(key, torch.from_numpy(samples), None if mark is None else [*mark, key, len(samples)])

    def _work(self, part: Claimed) -> None:
        """Read and encode a part, and write down what it holds."""
        found = {clip: future.result() for clip, future in part.reading.items()}
        cache = self.reader.cache
        if cache is not None:
            missing = {sound.key for sound in found.values() if isinstance(sound, Sound)}
            missing = {key for key in missing if key not in cache}
            if missing:  # batches are those of the whole part, whatever of it is there
                whole = {clip: found.get(clip) or self._read(clip) for clip in part.clips}
                self._encode({s.key: s.samples for s in whole.values() if isinstance(s, Sound)}, missing)
        notes = dict[str, Any]()
        for clip, sound in found.items():
            if isinstance(sound, AudioError):
                self.faults[clip] = sound
                continue
            self.reader.keys[clip], self.reader.samples[clip] = sound.key, len(sound.samples)
            self._known.add(clip)
            if sound.note is not None:
                notes[os.path.abspath(clip)] = sound.note
        if cache is not None:
            cache.shards.note(notes)
        self._give_back(part.clips)

    def _encode(self, sounds: dict[str, Tensor], missing: set[str]) -> None:
        """Encode the clips that are missing, in batches that do not depend on which these are."""
        assert self.reader.cache is not None
        device = next(self.encoder.parameters()).device
        seconds = CPU_SECONDS if device.type == "cpu" else PART_SECONDS
        runs = _runs(list(sounds), lambda key: len(sounds[key]), PART, int(seconds * self.reader.sample_rate))
        batches = [batch for batch in runs if not missing.isdisjoint(batch)]

        def encoded(batch: tuple[str, ...]) -> list[Tensor]:
            with torch.inference_mode():
                waves = Frames.pad([sounds[key] for key in batch]).to(device)
                return self.encoder.layer_frames(*waves, self.reader.layers).rows()

        threads = torch.get_num_threads() if self.encoder.reentrant and device.type == "cpu" else 1
        if threads > 1:  # a batch a thread: threads that share an operation wait for each other at its end
            with limited_threads(1), ThreadPoolExecutor(threads, "encodes", torch.set_num_threads, (1,)) as pool:
                done = list(pool.map(encoded, batches))
        else:
            done = list(map(encoded, batches))
        made = zip(chain.from_iterable(batches), chain.from_iterable(done), strict=True)
        self.reader.cache.put_many([(key, frames) for key, frames in made if key in missing])
        self.encoded += len(missing)


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Within the block an operation of PyTorch takes so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _name(part: tuple[Path, ...]) -> str:
    return "\n".join(map(os.path.abspath, part))
