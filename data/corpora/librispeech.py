"""LibriSpeech (Panayotov et al., 2015): read English, 960 hours, and its small sibling Mini LibriSpeech."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal

from sottovoce.data.corpora import CORPORA, download
from sottovoce.data.corpora.files import Tree, read_text
from sottovoce.data.corpora.published import Line, Published
from sottovoce.data.corpora.report import Report
from sottovoce.errors import ConfigError, MissingError, nearest

PARTS = {  # official part -> our split, utterances
    "train-clean-100": ("train", 28_539),
    "train-clean-360": ("train", 104_014),
    "train-other-500": ("train", 148_688),
    "dev-clean": ("validation", 2_703),
    "dev-other": ("validation", 2_864),
    "test-clean": ("test-clean", 2_620),
    "test-other": ("test-other", 2_939),
}
SPEAKERS = "SPEAKERS.TXT"
GENDERS = {"F": "female", "M": "male"}
MINI = {"train-clean-5": ("train", 1_519), "dev-clean-2": ("validation", 1_089)}
SITE = "http://www.openslr.org/resources"


def _expected(parts: Mapping[str, tuple[str, int]]) -> dict[str, int | None]:
    return {split: sum(count for other, count in parts.values() if other == split) for split, _ in parts.values()}


@CORPORA.register("librispeech")
class LibriSpeech(Published):
    """LibriSpeech: `<part>/<speaker>/<chapter>/<utterance>.flac`, a text file of transcripts a chapter.

    The parts train-* make `train`, dev-* `validation`; test-clean and test-other stay apart. SPEAKERS.TXT, which lies
    beside them, gives the label gender, and so a caption.

    Args:
        source: the folder with the parts, or the one that holds `LibriSpeech`.
        case: of the transcripts, which are in capitals: lower, as an LLM reads most easily, or as they are.
        parts: official ones to use, and to download, such as [train-clean-100, dev-clean], or [mini], which is Mini
            LibriSpeech; those that are there if absent, and of downloads Mini LibriSpeech.

    Raises:
        ConfigError: a part is unknown.
    """

    name = "librispeech"
    expected: ClassVar[Mapping[str, int | None]] = _expected(PARTS)
    suffixes = (".flac",)

    def __init__(
        self, *, source: str, case: Literal["lower", "original"] = "lower", parts: list[str] | None = None
    ) -> None:
        super().__init__(source=source)
        self.case = case
        self.parts = [part for name in parts or () for part in (MINI if name == "mini" else (name,))]
        for part in self.parts:
            if part not in PARTS and part not in MINI:
                told = f"LibriSpeech has no part {part!r}.{nearest(part, (*PARTS, *MINI, 'mini'))}"
                raise ConfigError.at("parts", "unknown-name", told)
        self._homes = (self.source, self.source / "LibriSpeech")

    def download(self, mirror: str | None = None) -> None:
        download.librispeech(self.parts or list(MINI), self.source, mirror or SITE)

    def lines(self, report: Report, tree: Tree) -> Iterator[Line]:
        places = [home / part for home in self._homes for part in (*PARTS, *MINI)]
        folders = {folder.name: folder for folder in places if folder.is_dir()}
        if not folders:
            raise MissingError(f"{self.source} has none of the parts {', '.join(PARTS)}", where=self.source)
        parts: Mapping[str, tuple[str, int]] = PARTS if folders.keys() & PARTS.keys() else MINI
        if self.parts:
            known = {**PARTS, **MINI}
            parts = {part: known[part] for part in self.parts}
        report.expected = _expected(parts)
        genders = self._genders(report)
        for part, (split, _) in parts.items():
            if part in folders:
                yield from self._part(part, split, folders[part], genders, report)
            else:
                report.add("missing part", part)

    def _genders(self, report: Report) -> dict[str, str]:
        """Speaker -> gender; its rows are `14 | F | train-clean-360 | 25.03 | name`, comments begin with `;`."""
        found = [file for home in self._homes if (file := home / SPEAKERS).is_file()]
        if not found:
            report.add("missing", SPEAKERS)
            return {}
        genders = {}
        for number, row in enumerate(read_text(found[0]).splitlines(), 1):
            speaker, sex, *_ = [*(cell.strip() for cell in row.split("|")), ""]
            if sex in GENDERS and not row.startswith(";"):
                genders[speaker] = GENDERS[sex]
            elif row.strip() and not row.startswith(";"):
                report.add("faulty row", f"{SPEAKERS}:{number}: {row!r}")
        return genders

    def _part(self, part: str, split: str, folder: Path, genders: Mapping[str, str], report: Report) -> Iterator[Line]:
        for chapter in sorted(folder.glob("*/*")):
            if not chapter.is_dir():
                continue
            speaker = chapter.parent.name
            texts = chapter / f"{speaker}-{chapter.name}.trans.txt"
            if not texts.is_file():
                report.add("missing", str(texts.relative_to(self.source)))
                continue
            for number, row in enumerate(read_text(texts).splitlines(), 1):
                name, _, said = row.strip().partition(" ")
                if name and said.strip():
                    yield Line(split, chapter / f"{name}.flac", self._record(name, speaker, said.strip(), genders))
                else:
                    report.add("faulty row", f"{texts.relative_to(self.source)}:{number}: {row!r}")

    def _record(self, name: str, speaker: str, said: str, genders: Mapping[str, str]) -> dict[str, object]:
        text = said.lower() if self.case == "lower" else said
        labels = {"labels": {"gender": genders[speaker]}} if speaker in genders else {}
        return {"id": f"librispeech-{name}", "text": text, "speaker": f"librispeech-{speaker}", **labels}
