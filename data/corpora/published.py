"""Base of published corpora: checked clips, manifests that appear whole, and a report of all that is in none."""

import hashlib
import json
import os
import random
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from sottovoce.data.audio_decoder import read_header
from sottovoce.data.corpora import Corpus
from sottovoce.data.corpora.files import AUDIO, Tree
from sottovoce.data.corpora.report import Report, read_report
from sottovoce.errors import AudioError, ConfigError, MissingError
from sottovoce.io import atomic_write

LINK = "source"  # in the folder of the manifests, to the corpus: audio paths stay inside that folder
CLIPS = "clips"  # clips that had to be made

K = TypeVar("K", bound=Hashable)


@dataclass
class Line:
    """A line of a manifest to be."""

    split: str
    clip: Path  # its audio
    record: dict[str, Any]  # all else but `audio` and `seconds`
    spoken: dict[int, Path] = field(default_factory=dict)  # audio of turns of its context, by their number


class Published(Corpus):
    """A corpus in its official layout. A subclass sets `name` and `expected`, and takes its knobs by keyword.

    Args:
        source: the folder it was unpacked in.
    """

    name: ClassVar[str]
    expected: ClassVar[Mapping[str, int | None]]  # split -> lines of the whole corpus; None where it does not say
    suffixes: ClassVar[tuple[str, ...]] = AUDIO  # of what the corpus ships
    site: ClassVar[str] = ""  # where it is from

    def __init__(self, *, source: str) -> None:
        self.source = Path(source).expanduser()
        self._threads = min(16, 2 * (os.cpu_count() or 1))  # threads that look at clips
        self._hold_out: dict[str, Any] = {}
        self._used: set[Path] = set()  # audio that is no clip of a line, and yet no extra: clips were made of it

    @abstractmethod
    def lines(self, report: Report, tree: Tree) -> Iterator[Line]:
        """Every line that the annotations promise, and in `report` every row that cannot become one.

        What it yields is still to be checked: a clip may be missing, or damaged.

        Raises:
            MissingError: an annotation file, or a program that is needed, is missing.
        """

    def download(self, mirror: str | None = None) -> None:
        """Download what is not there yet into the source, as `lines` reads it; a corpus that can be had overrides it.

        Args:
            mirror: address in place of the corpus's own server.

        Raises:
            ConfigError: it cannot be downloaded by a program.
            MissingError: what was to be had is not there, damaged, or cannot be reached.
        """
        told = f"{self.name} cannot be downloaded by a program; get it from {self.site or 'its authors'}, and give the "
        raise ConfigError.at("download", "conflict", f"{told}folder by --source (docs/corpora.md has its layout)")

    def knobs(self) -> dict[str, Any]:
        """What decides the manifests."""
        own = sorted(vars(self).items())
        told = {key: str(value) if isinstance(value, Path) else value for key, value in own if not key.startswith("_")}
        return {**told, **({"hold_out": self._hold_out} if self._hold_out else {})}

    def hold_out(self, speakers: Mapping[str, Any]) -> None:
        """Split by speaker: split -> its speakers, or a share of all; see `speakers.hold_out_speakers`."""
        self._hold_out = dict(speakers)

    def prepare(self, folder: Path) -> dict[str, Path]:
        """See `Corpus.prepare`: into a folder of this corpus with these knobs. `write` does it again in any case."""
        digest = hashlib.sha256(json.dumps(self.knobs(), sort_keys=True).encode()).hexdigest()[:8]
        home = folder / f"{self.name}-{digest}"
        made = {split: home / f"{split}.jsonl" for split in read_report(home, self.knobs())}
        return made if made and all(file.is_file() for file in made.values()) else self.write(home).manifests

    def write(self, folder: Path) -> Report:
        """Write the manifests of all splits into `folder`, whatever is there, and a report beside them.

        Raises:
            MissingError: nothing of the corpus is in the source, or something without which none of it can be used.
        """
        if not self.source.is_dir():
            problem = f"{self.source} is no folder: give the one that {self.name} was unpacked in (--source)"
            raise MissingError(problem, where=self.source)
        folder.mkdir(parents=True, exist_ok=True)
        report = Report(self.name, self.source, folder, self.knobs(), dict(self.expected))
        link(folder / LINK, self.source)
        tree = Tree(self.source, self.suffixes)
        lines = list(self.lines(report, tree))
        if self._hold_out:
            from sottovoce.data.corpora.speakers import hold_out_speakers  # which is built on this module

            self._used |= {file for line in lines for file in (line.clip, *line.spoken.values())}
            lines = hold_out_speakers(lines, self._hold_out, report)
        clips = {file for line in lines for file in (line.clip, *line.spoken.values())}
        lengths = self._measured(sorted(clips), report)
        for file in tree.files:
            if file not in clips and file not in self._used:
                report.add("extra", self._told(file))
        self._write_splits(lines, lengths, report)
        if not any(split.lines for split in report.splits.values()):
            problem = f"no line of {self.name} can be made of what is in {self.source}:\n{report}"
            raise MissingError(problem, code="empty", where=self.source)
        report.write()
        return report

    def _measured(self, clips: Sequence[Path], report: Report) -> dict[Path, float]:
        """Seconds of every clip that is whole; the others go into the report."""
        lengths: dict[Path, float] = {}
        with ThreadPoolExecutor(self._threads) as pool:
            for file, found in zip(clips, pool.map(clip_seconds, clips), strict=True):
                if isinstance(found, float):
                    lengths[file] = found
                elif file.exists():
                    report.add("damaged", f"{self._told(file)}: {found}")
                else:
                    report.add("missing", self._told(file))
        return lengths

    def _told(self, file: Path) -> str:
        return str(file.relative_to(self.source)) if file.is_relative_to(self.source) else str(file)

    def _write_splits(self, lines: Sequence[Line], lengths: Mapping[Path, float], report: Report) -> None:
        texts: dict[str, list[str]] = {split: [] for split in report.expected}
        speakers: defaultdict[str, set[str]] = defaultdict(set)
        for line in lines:
            if line.clip not in lengths:
                pass  # named already
            elif not lengths.keys() >= set(line.spoken.values()):
                report.add("its context lacks a clip", line.record["id"])
            else:
                record = self._finished(line, lengths[line.clip], report.out)
                texts.setdefault(line.split, []).append(json.dumps(record, ensure_ascii=False) + "\n")
                speakers[line.split] |= {record["speaker"]} if "speaker" in record else set()
                report.split(line.split).hours += lengths[line.clip] / 3600
        for split, text in texts.items():
            if text:
                written = report.split(split)
                written.lines, written.speakers = len(text), len(speakers[split])
                atomic_write(report.out / f"{split}.jsonl", "".join(text))
            else:
                (report.out / f"{split}.jsonl").unlink(missing_ok=True)  # of an earlier call
                report.add("empty split", split)

    def _finished(self, line: Line, seconds: float, out: Path) -> dict[str, Any]:
        known = {key: value for key, value in line.record.items() if value not in (None, "", {}, [])}
        context = known.pop("context", [])
        for number, file in line.spoken.items():
            context[number] = {**context[number], "audio": self._placed(file, out)}
        first = {"id": known.pop("id"), "audio": self._placed(line.clip, out), "seconds": round(seconds, 4)}
        return {**first, **known, **({"context": context} if context else {})}

    def _placed(self, file: Path, out: Path) -> str:
        """A path as the manifest has it: in its own folder, or through the link."""
        inside = file.is_relative_to(self.source)
        return (Path(LINK) / file.relative_to(self.source) if inside else file.relative_to(out)).as_posix()


def clip_seconds(file: Path) -> float | str:
    """Seconds of a clip that is whole; else what is wrong with it."""
    try:
        return read_header(file, tail=True).seconds
    except AudioError as error:
        return str(error)


def link(place: Path, target: Path) -> None:
    """Let `place` be a link to the folder `target`; raises ConfigError where something else is there."""
    if place.is_symlink():
        place.unlink()
    if place.exists():
        problem = f"{place} is in the way of the link to the corpus: move it, or write to another folder"
        raise ConfigError(problem, code="conflict", where=place)
    place.symlink_to(target.resolve(), target_is_directory=True)


def held_out(keys: Sequence[K], share: float, seed: int) -> set[K]:
    """A share of the different keys, drawn by the seed: at least one if there are three, and none if the share is 0."""
    ordered = sorted(set(keys), key=str)
    least = int(share > 0 and len(ordered) > 2)
    count = max(least, round(share * len(ordered)))
    return set(random.Random(f"{seed}/held out").sample(ordered, count))


def check_share(name: str, **shares: float) -> None:
    """Raises ConfigError where shares leave nothing to train on."""
    if any(share < 0 for share in shares.values()) or sum(shares.values()) >= 1:
        given = ", ".join(f"{key}={value}" for key, value in shares.items())
        problem = f"corpus {name}: shares are at least 0 and together below 1, got {given}"
        raise ConfigError(problem, code="bad-value", where=next(iter(shares)))
