"""Data of BEST-RQ: unlabelled clips, and what of each is cut out and masked in which epoch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from sottovoce.config.best_rq import DataConfig, SourceConfig
from sottovoce.data.audio import inspect_audio, load_audio
from sottovoce.data.audio_decoder import read_header
from sottovoce.data.batch_sampler import Rows
from sottovoce.data.manifest import Root, line_fault, read_lines, refuse
from sottovoce.data.manifest_schema import PART_KEYS, LineReader
from sottovoce.encoders.best_rq import Masking, seeded_generator, span_mask
from sottovoce.encoders.log_mel import HOP, SAMPLE_RATE
from sottovoce.errors import AudioError, ManifestError, MissingError, SottovoceError
from sottovoce.frames import Frames

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".au", ".caf", ".w64")
_PLACE = ("audio", *PART_KEYS)
_READ = ("id", "seconds", *_PLACE)  # of a line of a manifest; labels and words are not needed here

Track = Callable[[Iterable[Any], int], Iterable[Any]]  # shows how far a loop is, of so many turns


class Clip(NamedTuple):
    """A recording; all that is drawn about it depends on its id."""

    id: str
    audio: Path
    seconds: float


@dataclass
class Speech:
    """The clips of both sides, and what was wrong with the lines and files that were left out."""

    train: list[Clip]
    validation: list[Clip]
    faults: list[SottovoceError]


@dataclass
class Batch:
    """Waveforms (clips, samples) at 16 kHz, and which mel frames (clips, mel frames) of them are hidden."""

    audio: Frames
    mask: Tensor
    ids: list[str]

    def to(self, device: torch.device, **_: object) -> "Batch":
        """Lightning moves batches by this method."""
        return Batch(self.audio.to(device), self.mask.to(device), self.ids)


class Crops(Dataset[Batch]):
    """Indexed by what `BatchSampler` yields: each clip, cut to a length, and a mask.

    Cut and mask are functions of `key` (seed and side), epoch and the clip's id, whatever the batch, the process or the
    worker. Clips shorter than `crop_seconds` stay as they are. The whole file is decoded for a cut, so recordings of
    hours should be segmented first.
    """

    def __init__(self, clips: Sequence[Clip], crop_seconds: float, masking: Masking, *key: object) -> None:
        self.clips, self.samples, self.masking, self.key = clips, round(crop_seconds * SAMPLE_RATE), masking, key

    def draw(self, clip: Clip, epoch: int) -> tuple[Tensor, Tensor]:
        """(samples,) of a clip, and (mel frames,) True where it is hidden."""
        generator = seeded_generator(*self.key, epoch, clip.id)
        samples = torch.from_numpy(load_audio(clip.audio, SAMPLE_RATE))
        if (room := len(samples) - self.samples) > 0:
            begin = int(torch.randint(room + 1, (), generator=generator))
            samples = samples[begin : begin + self.samples]
        return samples, span_mask(-(-len(samples) // HOP), self.masking, generator)

    def __getitem__(self, rows: Rows) -> Batch:
        audio, masks = zip(*(self.draw(self.clips[number], rows.epoch) for number in rows.numbers), strict=True)
        ids = [self.clips[number].id for number in rows.numbers]
        return Batch(Frames.pad(list(audio)), pad_sequence(list(masks), batch_first=True) & rows.counts, ids)


def read_splits(data: DataConfig, track: Track) -> Speech:
    """Find and check all clips of a recipe.

    Raises:
        MissingError: manifests or folders are not there; says which.
        ManifestError: something is faulty and the policy is `error`; or too little is left; or a clip is on both sides.
    """
    _require_there([*data.train, *data.validation])
    faults: list[SottovoceError] = []
    sides = (data.train, data.validation)
    train, validation = ([clip for node in nodes for clip in _clips(node, faults)] for nodes in sides)
    if data.decode:
        train, validation = (_decoded(clips, faults, track) for clips in (train, validation))
    if faults and data.policy == "error":
        refuse(f"{len(faults)} clips cannot be used (data.policy=skip leaves them out):", faults)
    for name, clips in (("train", train), ("validation", validation)):
        if not clips:
            left = f"; {len(faults)} clips were faulty, such as {faults[0]}" if faults else ""
            raise ManifestError.at(f"data.{name}", "empty", f"at least one clip is needed, found none{left}")
    if both := {clip.audio for clip in train} & {clip.audio for clip in validation}:
        problem = f"{len(both)} clips are in both train and validation, such as {min(both)}"
        raise ManifestError(problem, code="conflict", where="data.validation")
    return Speech(train, validation, faults)


def _require_there(nodes: Sequence[SourceConfig]) -> None:
    absent = [Path(node.manifest) for node in nodes if node.manifest and not Path(node.manifest).is_file()]
    absent += [Path(node.folder) for node in nodes if node.folder and not Path(node.folder).is_dir()]
    if absent:
        told = (
            "Point at your own with data.train='[{folder: DIR}]' or data.train='[{manifest: FILE}]', and the same for "
            "data.validation; of a manifest's lines only `audio` is needed."
        )
        places = [f"  {path} (looked for {path.absolute()})" for path in absent]
        raise MissingError("\n".join(["recorded speech is missing:", *places, told]), where=absent[0])


def _clips(node: SourceConfig, faults: list[SottovoceError]) -> Iterator[Clip]:
    return _of_folder(node, faults) if node.manifest is None else _of_manifest(node, faults)


def _of_manifest(node: SourceConfig, faults: list[SottovoceError]) -> Iterator[Clip]:
    path = Path(str(node.manifest))
    reader = LineReader({}, Root(path.parent if node.root is None else Path(node.root), [Path(p) for p in node.allow]))
    for line, record in read_lines(path):
        if isinstance(record, dict):
            record = {"id": _place_of(record), **{key: record[key] for key in _READ if record.get(key) is not None}}
        utterance, problems = reader.read(line, record)
        faults += [line_fault(path, line, record, problem) for problem in problems]
        if utterance:
            yield Clip(utterance.id, utterance.clip, utterance.seconds)


def _place_of(record: dict[str, Any]) -> str | None:
    """What stands for an id: where the clip lies, and which part of it this is."""
    return " ".join(str(record[key]) for key in _PLACE if record.get(key) is not None) or None


def _of_folder(node: SourceConfig, faults: list[SottovoceError]) -> Iterator[Clip]:
    folder = Path(str(node.folder)).absolute()
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise ManifestError.at(folder, "empty", f"there is no audio in it or below; known are {', '.join(SUFFIXES)}")
    for file in files:
        try:
            yield Clip(file.relative_to(folder).as_posix(), file, read_header(file).seconds)
        except AudioError as error:
            faults.append(AudioError.at(file, error.code, error))


def _decoded(clips: Sequence[Clip], faults: list[SottovoceError], track: Track) -> list[Clip]:
    """The clips without those that cannot be decoded to their end, or are silent."""
    good = []
    with ThreadPoolExecutor() as pool:
        reports = pool.map(inspect_audio, [clip.audio for clip in clips])
        for clip, report in track(zip(clips, reports, strict=True), len(clips)):
            if problem := report.problem:
                faults.append(AudioError.at(clip.audio, problem.code, problem))
            else:
                good.append(clip)
    return good
