"""speechocean762 (Zhang et al., 2021): English read by 250 speakers of Mandarin, half of them children."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from sottovoce.data.corpora import CORPORA, download
from sottovoce.data.corpora.files import Tree, find_file, read_text
from sottovoce.data.corpora.librispeech import SITE
from sottovoce.data.corpora.published import Line, Published, check_share, held_out
from sottovoce.data.corpora.report import Report

ADULT = 18  # years; nobody in the corpus is 16 to 18
GENDERS = {"m": "male", "f": "female"}
VOICES = {"male": "man", "female": "woman"}
OFFICIAL = ("train", "test")


@CORPORA.register("speechocean762")
class Speechocean762(Published):
    """speechocean762: `WAVE/`, and in `train/` and `test/` tables in Kaldi's layout, such as wav.scp and spk2age.

    Speakers of the training side are held out for validation. The label age is child or adult. Gender is a label of
    adults alone: whether a child is a boy or a girl can hardly be heard.

    Args:
        source: the folder with `WAVE`, or one above it.
        validation: share of the training side's speakers.
        child_gender: children have the label gender, too.
        seed: of who is held out.

    Raises:
        ConfigError: the share leaves nobody to train on.
    """

    name = "speechocean762"
    expected: ClassVar[Mapping[str, int | None]] = {"train": None, "validation": None, "test": 2_500}

    def __init__(self, *, source: str, validation: float = 0.1, child_gender: bool = False, seed: int = 0) -> None:
        super().__init__(source=source)
        check_share(self.name, validation=validation)
        self.validation, self.child_gender, self.seed = validation, child_gender, seed

    def download(self, mirror: str | None = None) -> None:
        download.fetch_archive(f"{mirror or SITE}/101/speechocean762.tar.gz", self.source)

    def lines(self, report: Report, tree: Tree) -> Iterator[Line]:
        home = find_file(self.source, "train/wav.scp").parents[1]
        for part in OFFICIAL:
            if not (home / part / "wav.scp").is_file():
                report.add("missing part", part)
                continue
            said, speakers, ages, genders = (
                self._table(home / part / name, report) for name in ("text", "utt2spk", "spk2age", "spk2gender")
            )
            held = held_out(list(speakers.values()), self.validation, self.seed) if part == "train" else set()
            for name, file in self._table(home / part / "wav.scp", report).items():
                if name not in said or name not in speakers:
                    report.add("faulty row", f"{part}/{'utt2spk' if name in said else 'text'}: no row of {name}")
                    continue
                speaker = speakers[name]
                labels, caption = self._voice(ages.get(speaker, ""), genders.get(speaker, ""))
                if not labels:
                    report.add("unknown label", f"{part}: age and gender of speaker {speaker}")
                record = {
                    "id": f"{self.name}-{name}", "text": said[name].lower(), "speaker": f"{self.name}-{speaker}",
                    "labels": labels, "caption": caption,
                }  # fmt: skip
                yield Line("validation" if speaker in held else part, home / file, record)

    def _table(self, file: Path, report: Report) -> dict[str, str]:
        """Rows of a table: what stands before the first white space -> the rest."""
        found: dict[str, str] = {}
        for number, row in enumerate(read_text(file).splitlines(), 1):
            key, *rest = row.split(maxsplit=1) if row.strip() else ("",)
            if rest:
                found[key] = rest[0].strip()
            elif key:
                report.add("faulty row", f"{file.relative_to(self.source)}:{number}: {row!r}")
        return found

    def _voice(self, age: str, gender: str) -> tuple[dict[str, str], str | None]:
        """Labels of a speaker, and a caption that tells them."""
        known = GENDERS.get(gender.lower())
        child = age.isdecimal() and int(age) < ADULT
        labels = {"age": "child" if child else "adult"} if age.isdecimal() else {}
        if known and (self.child_gender or not child):
            labels["gender"] = known
        who = "child" if child else VOICES[known] if known else "grown-up"
        return labels, f"The voice of a {who}." if labels else None
