"""Expresso (Nguyen et al., Interspeech 2023): four speakers, eight read and 26 improvised styles."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import soundfile
import soxr

from sottovoce.data.corpora import CORPORA, download
from sottovoce.data.corpora.files import Tree, find_file, read_text, write_clip
from sottovoce.data.corpora.published import CLIPS, Line, Published
from sottovoce.data.corpora.report import Report
from sottovoce.data.tasks import Emotion
from sottovoce.errors import AudioError

SITE = "https://dl.fbaipublicfiles.com/textless_nlp/expresso/data"
SPLITS = {"train": "train", "dev": "validation", "test": "test"}  # official -> ours
GENDERS = {"ex01": "male", "ex02": "female", "ex03": "male", "ex04": "female"}
NAMES = {"default": "neutral", "animaldir": "animal_directed", "childdir": "child_directed", "nonverbal": "non_verbal"}
SAMPLE_RATE = 16_000  # Hz, of the pieces
MAX_SECONDS, MIN_SECONDS = 15.0, 0.5  # of a piece of a long recording, as the authors cut them
_SEGMENT = re.compile(r"\(\s*([\d.]*)s?\s*,\s*([\d.]*)s?\s*\)")


@dataclass(frozen=True)
class _Piece:
    """A stretch of one channel of a recording, in seconds; `channel` from 0."""

    start: float
    end: float
    channel: int


@CORPORA.register("expresso")
class Expresso(Published):
    """Expresso: `audio_48khz/`, `read_transcriptions.txt`, `VAD_segments.txt`, `splits/{train,dev,test}.txt`.

    Short read sentences are used as they are. Long readings and dialogues, whose channels are a speaker each, are cut
    into the stretches of `VAD_segments.txt` that lie in their split, at most 15 s and at least 0.5 s long, as the
    authors do; these have no transcript.

    Args:
        source: the folder with `audio_48khz`, or one above it.
        conversations: whether the improvised dialogues are used.
        emotions: styles that become labels, where a recipe's task emotion has them as choices; `default` is called
            neutral. Every style is told by the caption.
    """

    name = "expresso"
    expected = dict.fromkeys(SPLITS.values())
    suffixes = (".wav",)

    def __init__(
        self,
        *,
        source: str,
        conversations: bool = True,
        emotions: list[str] = list(Emotion.choices),  # noqa: B006  (a knob's default, which is copied)
    ) -> None:
        super().__init__(source=source)
        self.conversations, self.emotions = conversations, list(emotions)

    def download(self, mirror: str | None = None) -> None:
        download.fetch_archive(f"{mirror or SITE}/expresso.tar", self.source)

    def lines(self, report: Report, tree: Tree) -> Iterator[Line]:
        home = find_file(self.source, "read_transcriptions.txt").parent
        said = _tabbed(home / "read_transcriptions.txt")
        heard = _voiced(home / "VAD_segments.txt")
        files = {file.stem: file for file in tree.files}
        for official, split in SPLITS.items():
            for number, row in enumerate(read_text(home / "splits" / f"{official}.txt").splitlines(), 1):
                name, _, part = row.strip().partition("\t")
                where = f"splits/{official}.txt:{number}"
                if not name or name.startswith("#"):
                    continue
                file, bounds = files.get(name), _bounds(part)
                if file is None:
                    report.add("missing", f"{name}.wav ({where})")
                elif bounds is None or not _speakers(file):
                    report.add("faulty row", f"{where}: {row!r}")
                elif name not in heard and not part:
                    yield self._line(split, file, file, 0, said.get(name))
                elif "conversational" not in file.parts or self.conversations:
                    yield from self._pieces(split, file, heard.get(name, []), bounds, report)
                else:
                    self._used.add(file)

    def _line(self, split: str, file: Path, clip: Path, channel: int, text: str | None) -> Line:
        speaker, style = _speakers(file)[channel]
        emotion = {"emotion": style} if style in self.emotions else {}
        manner = "neutral" if style == "neutral" else style.replace("_", "-")
        record = {
            "id": f"expresso-{clip.stem}",
            "text": text,
            "speaker": f"expresso-{speaker}",
            "labels": {"gender": GENDERS[speaker], **emotion},
            "caption": f"A {GENDERS[speaker]} voice in a style that is {manner}.",
        }
        return Line(split, clip, record)

    def _pieces(
        self, split: str, file: Path, voiced: list[_Piece], bounds: tuple[float, float], report: Report
    ) -> Iterator[Line]:
        """Cut the stretches of a long recording that lie in its part of the split."""
        self._used.add(file)
        pieces = [short for piece in voiced for short in _short(piece, bounds)]
        if not pieces:
            report.add("nothing voiced", f"{file.stem} ({split})")
            return
        names = [f"{file.stem}-{piece.channel + 1}-{round(1000 * piece.start):07d}.flac" for piece in pieces]
        clips = [report.out / CLIPS / split / name for name in names]
        with ThreadPoolExecutor(self._threads) as pool:
            problems = list(pool.map(partial(_cut, file), clips, pieces))
        for clip, piece, problem in zip(clips, pieces, problems, strict=True):
            if problem:
                report.add("damaged", f"{file.relative_to(self.source)}: {piece.start:.2f} s: {problem}")
            elif piece.channel < len(_speakers(file)):
                yield self._line(split, file, clip, piece.channel, None)


def _speakers(file: Path) -> list[tuple[str, str]]:
    """Speaker and style of each channel, from `{speakers}_{styles}_{number}`; empty where they cannot be told."""
    who, style = file.stem.split("_")[0].split("-"), file.parent.name
    if style in ("base", "longform"):
        style = file.parent.parent.name
    styles = style.split("-") if len(who) > 1 else [style]
    styles = [NAMES.get(one, one) for one in (styles * 2 if len(styles) < len(who) else styles)]
    return list(zip(who, styles, strict=False)) if set(who) <= GENDERS.keys() else []


def _bounds(part: str) -> tuple[float, float] | None:
    """`(start,end)` of a split file, either of which may be absent; None for something else."""
    if not part.strip():
        return 0.0, float("inf")
    found = _SEGMENT.fullmatch(part.strip())
    return (float(found[1] or 0), float(found[2] or "inf")) if found else None


def _tabbed(file: Path) -> dict[str, str]:
    rows = (row.partition("\t") for row in read_text(file).splitlines() if not row.startswith("#"))
    return {name.strip(): text.strip() for name, _, text in rows if text.strip()}


def _voiced(file: Path) -> dict[str, list[_Piece]]:
    """Recording -> where somebody speaks; `<name>/channel2` is the second of two."""
    found: dict[str, list[_Piece]] = {}
    for name, text in _tabbed(file).items():
        recording, _, channel = name.partition("/channel")
        at = int(channel) - 1 if channel.isdigit() else 0
        pieces = [_Piece(float(start or 0), float(end or "inf"), at) for start, end in _SEGMENT.findall(text)]
        found.setdefault(recording, []).extend(pieces)
    return found


def _short(piece: _Piece, bounds: tuple[float, float]) -> Iterator[_Piece]:
    start, end = max(piece.start, bounds[0]), min(piece.end, bounds[1])
    while end - start >= MIN_SECONDS:
        yield _Piece(start, min(end, start + MAX_SECONDS), piece.channel)
        start += MAX_SECONDS


def _cut(file: Path, clip: Path, piece: _Piece) -> str | None:
    """Write a piece; why that was not possible, or None."""
    if clip.is_file():  # of a call that was interrupted: a clip appears whole or not at all
        return None
    try:
        with soundfile.SoundFile(file) as stream:
            rate = stream.samplerate
            stream.seek(min(round(piece.start * rate), stream.frames))
            samples = stream.read(round((piece.end - piece.start) * rate), dtype="float32", always_2d=True)
            if piece.channel >= samples.shape[1] or len(samples) < MIN_SECONDS * rate:
                raise AudioError(f"{samples.shape[1]} channels, {len(samples) / rate:.2f} s from there on")
    except (soundfile.SoundFileError, OSError, AudioError) as error:
        return str(error)
    write_clip(clip, soxr.resample(samples[:, piece.channel], rate, SAMPLE_RATE, quality="HQ"), SAMPLE_RATE)
    return None
