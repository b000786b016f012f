"""Synthesis of the clips of paired data, by threads that wait for a server or by processes that compute."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import soundfile

from sottovoce.config_model import Node
from sottovoce.data.audio_decoder import read_header
from sottovoce.data.paired_texts import Text
from sottovoce.data.tts import SYNTHESIZERS
from sottovoce.data.tts.base import NotSpoken, Synthesizer, checked
from sottovoce.errors import AudioError
from sottovoce.io import atomic_open
from sottovoce.progress import Progress

_own: Synthesizer | None = None  # of a worker process


@dataclass(frozen=True, eq=False)
class Clip:
    """A text as one kind of speaker is to say it; the file's name stands for everything that its sound depends on."""

    split: str
    text: Text
    label: str
    voice: str
    seed: int
    file: str  # below the folder of the data

    @property
    def request(self) -> dict[str, Any]:
        """Arguments of `Synthesizer.speak`."""
        said = {"text": self.text.text, "attribute": self.text.category}
        return {**said, "label": self.label, "voice": self.voice, "seed": self.seed}


def speak(
    node: Node, synthesizer: Synthesizer, clips: Sequence[Clip], out: Path, workers: int, progress: Progress | None
) -> tuple[dict[Clip, str], int]:
    """Synthesize every clip that is not there yet; a file appears under its name only when it is complete.

    Processes build the synthesizer that `node` describes; threads, or a single worker, use `synthesizer` itself.

    Returns:
        Why a clip could not be spoken, for those that could not; and how many were there already.
    """
    missing = [clip for clip in clips if not _exists(out / clip.file)]
    results: Iterable[tuple[Clip, str | None]] = _all(node, synthesizer, missing, out, workers)
    if progress:
        results = progress.track(results, total=len(missing), description="synthesizing speech", unit="clip")
    return {clip: reason for clip, reason in results if reason}, len(clips) - len(missing)


def _exists(file: Path) -> bool:
    try:
        return read_header(file).frames > 0
    except AudioError:
        return False


def _all(
    node: Node, synthesizer: Synthesizer, clips: Sequence[Clip], out: Path, workers: int
) -> Iterator[tuple[Clip, str | None]]:
    if workers == 1 or len(clips) < 2:
        for clip in clips:
            yield clip, _speak(synthesizer, clip.request, out / clip.file)
        return
    with _pool(node, synthesizer, workers) as pool:
        given = None if isinstance(pool, ProcessPoolExecutor) else synthesizer
        futures = {pool.submit(_speak, given, clip.request, out / clip.file): clip for clip in clips}
        for done in as_completed(futures):
            yield futures[done], done.result()


@contextmanager
def _pool(node: Node, synthesizer: Synthesizer, workers: int) -> Iterator[Executor]:
    """Workers; what they have not begun when something goes wrong is dropped."""
    pool: Executor = ThreadPoolExecutor(workers)
    if not synthesizer.in_threads:
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _build, (node,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _build(node: Node) -> None:
    global _own
    _own = SYNTHESIZERS.build(node)


def _speak(synthesizer: Synthesizer | None, request: dict[str, Any], file: Path) -> str | None:
    """Write one clip; returns why it could not be spoken, where it could not."""
    synthesizer = synthesizer or _own
    assert synthesizer is not None
    try:
        audio = checked(synthesizer.speak(**request), synthesizer.sample_rate)
    except NotSpoken as error:
        return str(error)
    with atomic_open(file, lasting=False) as stream:  # a damaged clip is made again
        soundfile.write(stream, audio, synthesizer.sample_rate, subtype="PCM_16", format="WAV")
    return None
