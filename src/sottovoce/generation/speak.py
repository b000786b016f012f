"""Speaking the clips of paired data, by threads that wait for a server or by processes that compute."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import soundfile
from rich.progress import Progress

from sottovoce.data.audio_decoder import read_header
from sottovoce.data.paired_texts import Text
from sottovoce.data.tts import SYNTHESIZERS
from sottovoce.data.tts.base import NotSpoken, Synthesizer, checked
from sottovoce.errors import AudioError

_own: Synthesizer | None = None  # of a worker process


@dataclass(frozen=True, eq=False)
class Clip:
    """A text as one kind of speaker is to say it; the file's name stands for everything that its sound hangs on."""

    split: str
    text: Text
    label: str
    voice: str
    seed: int
    file: str  # below the folder of the data

    @property
    def asked(self) -> dict[str, Any]:
        """What the synthesizer is given."""
        text = self.text
        said = {"text": text.text, "attribute": text.category, "label": self.label}
        return {**said, "voice": self.voice, "seed": self.seed}


class Counts(Protocol):
    """Where clips are counted."""

    spoken: int
    kept: int


def speak(
    node: Mapping[str, Any],
    synthesizer: Synthesizer,
    clips: Sequence[Clip],
    out: Path,
    workers: int,
    counts: Counts,
    progress: Progress | None = None,
) -> dict[Clip, str]:
    """Speak every clip that is not there yet; a file appears under its name only when it is whole.

    Args:
        node: describes the synthesizer, which every process builds for itself.
        synthesizer: is asked itself where one worker is enough, or threads are.
        clips: may be there already, from a run that was killed.
        out: the folder of the data.
        workers: threads or processes.
        counts: of clips that were spoken, and that were there.
        progress: shows how far the speaking is.

    Returns:
        Why a clip could not be spoken, for those that could not.

    Raises:
        SottovoceError: nothing can be spoken at all.
    """
    missing = [clip for clip in clips if not _is_there(out / clip.file)]
    counts.kept = len(clips) - len(missing)
    (out / "audio").mkdir(parents=True, exist_ok=True)
    failed: dict[Clip, str] = {}
    bar = progress.add_task("speaking", total=len(missing)) if progress else None
    for clip, reason in _all(node, synthesizer, missing, out, workers):
        if reason:
            failed[clip] = reason
        counts.spoken += not reason
        if progress and bar is not None:
            progress.advance(bar)
    return failed


def _is_there(file: Path) -> bool:
    try:
        return read_header(file).frames > 0
    except AudioError:
        return False


def _all(
    node: Mapping[str, Any], synthesizer: Synthesizer, clips: Sequence[Clip], out: Path, workers: int
) -> Iterator[tuple[Clip, str | None]]:
    if workers == 1 or len(clips) < 2:
        for clip in clips:
            yield clip, _speak(synthesizer, clip.asked, out / clip.file)
        return
    with _pool(node, synthesizer, workers) as pool:
        given = None if isinstance(pool, ProcessPoolExecutor) else synthesizer
        due = {pool.submit(_speak, given, clip.asked, out / clip.file): clip for clip in clips}
        for done in as_completed(due):
            yield due[done], done.result()


@contextmanager
def _pool(node: Mapping[str, Any], synthesizer: Synthesizer, workers: int) -> Iterator[Executor]:
    """Workers; what they have not begun when something goes wrong is dropped."""
    pool: Executor = (
        ThreadPoolExecutor(workers)
        if synthesizer.in_threads
        else ProcessPoolExecutor(workers, get_context("spawn"), _build, (dict(node),))
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _build(node: dict[str, Any]) -> None:
    global _own
    _own = SYNTHESIZERS.build(node)


def _speak(synthesizer: Synthesizer | None, asked: dict[str, Any], file: Path) -> str | None:
    """Write one clip; why it could not be spoken, where it could not."""
    synthesizer = synthesizer or _own
    assert synthesizer is not None
    try:
        audio = checked(synthesizer.speak(**asked), synthesizer.sample_rate)
    except NotSpoken as error:
        return str(error)
    part = file.with_name(f"{file.name}.part")
    soundfile.write(part, audio, synthesizer.sample_rate, subtype="PCM_16", format="WAV")
    part.replace(file)
    return None
