"""Acoustic labels: pitch, energy and tempo, measured and cut at the levels that TextrolSpeech publishes.

The rules are those of `dataprocess.py` in github.com/jishengpeng/TextrolSpeech, with two stand-ins:

- F0 by librosa's pYIN, where the original takes DIO and StoneMask from pyworld, which has no wheels for Linux and
  does not import with current setuptools. The search range is DIO's (71-800 Hz).
- Seconds per word from the clip without leading and trailing silence, where the original adds up the words of a forced
  alignment: pauses between words count here and not there.
"""

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sottovoce.data.audio import load_audio
from sottovoce.data.clip_reference import file_of
from sottovoce.data.manifest import Root, check_copy, line_fault, read_lines
from sottovoce.data.manifest_schema import clip_of, is_written
from sottovoce.data.skipped import listed, summary
from sottovoce.errors import AudioError, ConfigError, ManifestError, SottovoceError
from sottovoce.io import atomic_open

PITCH_HZ = (136.57698522, 196.09780757)  # below the first is low, above the second is high
ENERGY_RMS = (0.03331899, 0.05054203)
TEMPO_SECONDS = (0.252, 0.38645446)  # for each word, so that below the first is fast
MEASURED = ("pitch", "tempo", "energy")

_SAMPLE_RATE = 22050  # Hz; librosa.load's own, at which the original measures
_F0_RANGE = (71.0, 800.0)  # Hz
_SILENCE_DB = 40  # below the loudest frame

Job = tuple[Root, dict[str, Any]]  # where audio paths start, and a line


class Measured(NamedTuple):
    """What was measured of one clip."""

    f0_hz: float | None  # mean over voiced frames; None where nothing is voiced
    rms: float  # mean over frames, 1 is full scale
    seconds_per_word: float | None  # None without a transcript


@dataclass
class Labelled:
    """What `label_manifest` did."""

    out: Path
    added: int = 0  # labels
    kept: int = 0  # labels that were there before
    faults: list[ManifestError] = field(default_factory=list)  # clips that could not be measured, or not fully

    def __str__(self) -> str:
        head = f"{self.out}: {self.added} labels added, {self.kept} kept, {len(self.faults)} clips not fully measured"
        return "\n".join([head, *([listed(summary(self.faults))] if self.faults else [])])


def measure(samples: NDArray[np.float32], sample_rate: int, text: str | None) -> Measured:
    """Measure a clip: (samples,) with full scale 1, at `sample_rate` Hz, and the words that it says."""
    import librosa

    window = 2 ** math.ceil(math.log2(0.06 * sample_rate))  # 60-120 ms: over four periods of the lowest pitch
    f0, _, _ = librosa.pyin(samples, fmin=_F0_RANGE[0], fmax=_F0_RANGE[1], sr=sample_rate, frame_length=window)
    voiced = f0[np.isfinite(f0)]
    rms = float(librosa.feature.rms(y=samples).mean())
    words = sum(any(letter.isalnum() for letter in word) for word in (text or "").split())
    spoken = len(librosa.effects.trim(samples, top_db=_SILENCE_DB)[0]) / sample_rate
    return Measured(float(voiced.mean()) if len(voiced) else None, rms, spoken / words if words else None)


def levels(measured: Measured) -> dict[str, str]:
    """The labels `pitch`, `tempo` and `energy`, each only where it was measured; a value at a threshold is normal."""
    rules = (
        ("pitch", measured.f0_hz, PITCH_HZ, ("low", "normal", "high")),
        ("tempo", measured.seconds_per_word, TEMPO_SECONDS, ("fast", "normal", "slow")),
        ("energy", measured.rms, ENERGY_RMS, ("low", "normal", "high")),
    )
    return {n: names[1 - (value < low) + (value > high)] for n, value, (low, high), names in rules if value is not None}


def label_manifest(
    source: Path, out: Path, *, root: Path | None = None, allow: Sequence[Path] = (), workers: int = 1
) -> Labelled:
    """Copy a manifest, adding the labels `pitch`, `tempo` and `energy` to the lines that lack them.

    Labels that are there stay. A clip that cannot be measured keeps its line as it was, and is named in the result.
    Where clips are not there at all, nothing is measured.
    The copy appears only when it is whole; it lies in the same folder unless `root` is given, since audio paths are
    relative to it. `root` and `allow` are those of `read_manifest`, `workers` the processes that measure.

    Raises:
        ManifestError: the manifest cannot be read, has a broken line, or is the copy itself; the copy would lie in
            another folder; or clips are missing: how many, and the first.
        ConfigError: `workers` is not positive.
    """
    if workers < 1:
        raise ConfigError.at("workers", "bad-value", f"one process or more must measure, found {workers}")
    source, out = Path(source), Path(out)
    check_copy(source, out, root)
    lines = [_checked(source, number, record) for number, record in read_lines(source)]
    within = Root(source.parent if root is None else Path(root), allow)
    _require_clips(source, lines, within)
    result = Labelled(out)
    with atomic_open(out) as stream:
        jobs = [(within, record) for _, record in lines]
        for (number, record), (found, problem) in zip(lines, _measured(jobs, workers), strict=True):
            old = record.get("labels") or {}
            result.added += len(found)
            result.kept += sum(name in old for name in MEASURED)
            result.faults += [line_fault(source, number, record, problem)] if problem else []
            line = {**record, "labels": {**old, **found}} if found else record
            stream.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
    return result


def _checked(source: Path, number: int, record: dict[str, Any] | ManifestError) -> tuple[int, dict[str, Any]]:
    """A line whose keys are good enough to measure it; `read_manifest` is what checks the rest."""
    if isinstance(record, ManifestError):
        raise line_fault(source, number, None, record)
    texts = (isinstance(record.get("audio"), str) or is_written(record)) and isinstance(record.get("text") or "", str)
    if not texts or not isinstance(record.get("labels") or {}, dict):
        problem = ManifestError("audio and text must be strings, and labels an object", code="bad-value")
        raise line_fault(source, number, None, problem)
    return number, record


def _require_clips(source: Path, lines: Sequence[tuple[int, dict[str, Any]]], within: Root) -> None:
    """Raise one ManifestError where clips that are to be measured are not there, or lie where they may not."""
    faults = []
    for number, record in lines:
        if not is_written(record) and not (record.get("labels") or {}).keys() >= set(MEASURED):
            try:
                if not file_of(clip := clip_of(record, within)).exists():
                    raise AudioError(f"{clip}: there is no such file", code="not-found")
            except AudioError as problem:
                faults.append(line_fault(source, number, record, problem))
            except ManifestError:
                pass  # a part that is none: told with what could not be measured
    if faults:
        told = f"{len(faults):,} of {len(lines):,} clips cannot be found, such as {faults[0]}"
        hint = f"; paths start in {within.folder}: --root names another folder"
        raise ManifestError(f"{source}: {told}{hint}", code=faults[0].code, where=faults[0].where, faults=faults)


def _measured(jobs: list[Job], workers: int) -> Iterator[tuple[dict[str, str], SottovoceError | None]]:
    if workers == 1:
        yield from map(_new_labels, jobs)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:  # a fork of running threads may hang
        yield from pool.map(_new_labels, jobs, chunksize=8)


def _new_labels(job: Job) -> tuple[dict[str, str], SottovoceError | None]:
    """The labels that a line lacks, and why one of them could not be measured."""
    root, record = job
    missing = [name for name in MEASURED if name not in (record.get("labels") or {})]
    if not missing or is_written(record):
        return {}, None
    try:
        samples = load_audio(clip_of(record, root), _SAMPLE_RATE)
    except (AudioError, ManifestError) as error:
        return {}, AudioError(f"not measured: {error}", code=error.code)
    found = levels(measure(samples, _SAMPLE_RATE, record.get("text")))
    why = {"pitch": "pitch: no frame is voiced", "tempo": "tempo: no word in a transcript"}
    absent = "; ".join(why[name] for name in missing if name not in found)
    problem = AudioError(absent, code="empty") if absent else None
    return {name: found[name] for name in missing if name in found}, problem
