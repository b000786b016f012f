"""CREMA-D (Cao et al., 2014): twelve English sentences, 91 actors of 20 to 74 years, six emotions."""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

from sottovoce.data.audio_decoder import read_header
from sottovoce.data.corpora import CORPORA, download
from sottovoce.data.corpora.files import Tree, find_file, read_table
from sottovoce.data.corpora.published import Line, Published, check_share, held_out
from sottovoce.data.corpora.report import Report
from sottovoce.data.tasks import caption_from
from sottovoce.errors import AudioError, MissingError

TABLES_SITE = "https://raw.githubusercontent.com/CheyneyComputerScience/CREMA-D/master"
CLIPS_SITE = "https://media.githubusercontent.com/media/CheyneyComputerScience/CREMA-D/master"  # Git LFS
CLIPS_TABLE, ACTORS_TABLE = "SentenceFilenames.csv", "VideoDemographics.csv"
NAME = re.compile(r"(\d{4})_([A-Z]{3})_([A-Z]{3})_(LO|MD|HI|XX|X)")  # actor, sentence, emotion, intensity
EMOTIONS = {
    "ANG": "angry", "DIS": "disgusted", "FEA": "fearful", "HAP": "happy", "NEU": "neutral", "SAD": "sad",
}  # fmt: skip
SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}


@CORPORA.register("crema_d")
class CremaD(Published):
    """CREMA-D: `AudioWAV/1001_DFA_ANG_XX.wav` is actor 1001, a sentence, anger, at no intensity that was asked for.

    It has no official splits: actors are held out. The label emotion is what the actor was asked for.

    Args:
        source: the folder with `AudioWAV` and `VideoDemographics.csv`, or one above it.
        validation: share of the actors.
        test: share of the actors.
        seed: of who is held out.

    Raises:
        ConfigError: the shares leave nobody to train on.
    """

    name = "crema_d"
    expected: ClassVar[Mapping[str, int | None]] = {"train": None, "validation": None, "test": None}
    suffixes = (".wav",)

    def __init__(self, *, source: str, validation: float = 0.1, test: float = 0.15, seed: int = 0) -> None:
        super().__init__(source=source)
        check_share(self.name, validation=validation, test=test)
        self.validation, self.test, self.seed = validation, test, seed

    def download(self, mirror: str | None = None) -> None:
        for table in (CLIPS_TABLE, ACTORS_TABLE):
            download.fetch(f"{mirror or TABLES_SITE}/{table}", self.source / table)
        names = [row["Filename"].strip() for row in read_table(self.source / CLIPS_TABLE, ["Filename"])]
        with ThreadPoolExecutor(self._threads) as pool:
            jobs = [pool.submit(self._fetch, name, mirror or CLIPS_SITE) for name in names if NAME.fullmatch(name)]
            try:
                for job in jobs:
                    job.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _fetch(self, name: str, site: str) -> None:
        """A clip; one that a server has cut short is loaded anew, once."""
        url, file = f"{site}/AudioWAV/{name}.wav", self.source / "AudioWAV" / f"{name}.wav"
        try:
            download.fetch(url, file)
            try:
                read_header(file, tail=True)
            except AudioError:
                file.unlink()
                download.fetch(url, file)
        except MissingError as error:
            if error.code != "not-found":  # a single clip that is not there is missing in the report
                raise

    def lines(self, report: Report, tree: Tree) -> Iterator[Line]:
        home = find_file(self.source, ACTORS_TABLE).parent
        rows = read_table(home / ACTORS_TABLE, ["ActorID", "Sex"])
        genders = {row["ActorID"].strip(): row["Sex"].strip().lower() for row in rows}
        names = [file.stem for file in tree.files]
        if (home / CLIPS_TABLE).is_file():
            names = [row["Filename"].strip() for row in read_table(home / CLIPS_TABLE, ["Filename"])]
        else:
            report.add("missing", CLIPS_TABLE)
        actors = [found[1] for name in names if (found := NAME.fullmatch(name))]
        test = held_out(actors, self.test, self.seed)
        validation = held_out([actor for actor in actors if actor not in test], self.validation, self.seed)
        for name in names:
            found = NAME.fullmatch(name)
            if not found or found[2] not in SENTENCES or found[3] not in EMOTIONS:
                report.add("faulty row", f"{CLIPS_TABLE}: {name!r}")
                continue
            actor, sentence, emotion, _ = found.groups()
            gender = genders.get(actor, "")
            labels = {"emotion": EMOTIONS[emotion]}
            if gender in ("male", "female"):
                labels["gender"] = gender
            else:
                report.add("unknown label", f"gender of actor {actor}: {gender!r}")
            record = {
                "id": f"{self.name}-{name}", "text": SENTENCES[sentence], "speaker": f"{self.name}-{actor}",
                "labels": {**labels, "age": "adult"}, "caption": caption_from(labels),
            }  # fmt: skip
            split = "test" if actor in test else "validation" if actor in validation else "train"
            yield Line(split, home / "AudioWAV" / f"{name}.wav", record)
