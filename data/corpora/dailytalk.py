"""DailyTalk (Lee et al., ICASSP 2023): dialogues of daily life, spoken by a man and a woman."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from sottovoce.data.corpora import CORPORA, download
from sottovoce.data.corpora.files import Tree, find_file, read_text
from sottovoce.data.corpora.published import Line, Published
from sottovoce.data.corpora.report import Report
from sottovoce.data.tasks import caption_from
from sottovoce.errors import ConfigError, ManifestError

VALIDATION = frozenset(  # of the authors' own code: preprocessed_data/DailyTalk/val_frame.txt
    int(number)
    for number in """23 30 59 64 71 79 111 126 143 155 162 164 168 185 188 195 221 258 264 280 289 308 312 321 343 359
    364 371 373 403 422 443 454 468 478 489 507 578 588 590 608 633 634 643 671 684 696 726 749 760 784 819 877 881 898
    969 1020 1023 1046 1091 1103 1104 1112 1126 1133 1172 1211 1229 1238 1250 1251 1298 1325 1366 1399 1414 1417 1418
    1431 1452 1455 1543 1545 1581 1618 1704 1705 1786 1793 1800 1805 1829 1857 1860 1887 1898 1902 1908 1917 1928 1936
    1949 1970 1983 1987 1993 2031 2033 2060 2075 2081 2109 2126 2169 2170 2171 2216 2279 2282 2306 2371 2377 2384 2387
    2406 2436 2463 2522""".split()
)
EMOTIONS = {  # DailyDialog's names; DailyTalk's code calls the first one none
    "no emotion": "neutral", "none": "neutral", "anger": "angry", "disgust": "disgusted", "fear": "fearful",
    "happiness": "happy", "sadness": "sad", "surprise": "surprised",
}  # fmt: skip
GENDERS = {0: "male", 1: "female"}  # Lhotse's recipe for this corpus has them so
_Number = Annotated[str, Field(pattern=r"^\d+$")]
_METADATA = TypeAdapter(dict[_Number, dict[_Number, Any]])  # dialogue -> turn -> what the corpus says of it


@dataclass(frozen=True)
class _Turn:
    speaker: int
    text: str
    emotion: str
    clip: Path
    name: str

    @property
    def labels(self) -> dict[str, str]:
        return {"gender": GENDERS[self.speaker], "emotion": self.emotion}


@CORPORA.register("dailytalk")
class DailyTalk(Published):
    """DailyTalk: `metadata.json`, and `data/<dialogue>/<turn>_<speaker>_d<dialogue>.wav`.

    Either speaker is the user, and the other the assistant. Every turn of a user is where a dialogue ends: the turns
    before it are its context (Wang et al., ICME 2025, section IV-A: samples by truncating conversations), and in
    training the beginning is drawn, too. Replies are left to the LLM.

    Args:
        source: the folder with `metadata.json`, or one above it.
        context: written: as in the paper, a line for each turn, which alone is heard. spoken: the user's earlier
            turns are heard as well, and there is one line a dialogue and user, which training cuts anywhere.
    """

    name = "dailytalk"
    expected = dict.fromkeys(("train", "validation"))
    suffixes = (".wav",)

    def __init__(self, *, source: str, context: Literal["written", "spoken"] = "written") -> None:
        super().__init__(source=source)
        self.context = context

    def download(self, mirror: str | None = None) -> None:
        if mirror:
            raise ConfigError.at("mirror", "conflict", "DailyTalk is on its authors' Google Drive alone")
        download.daily_talk(self.source)

    def lines(self, report: Report, tree: Tree) -> Iterator[Line]:
        file = find_file(self.source, "metadata.json")
        for dialogue, turns in sorted(_read(file).items(), key=lambda item: int(item[0])):
            usable = list(self._turns(dialogue, turns, file.parent / "data", report))
            if len(usable) < len(turns):
                continue
            spoken = [list(row) for _, row in groupby(usable, key=lambda turn: turn.speaker)]
            if more := len(usable) - len(spoken):
                report.notes["two turns of one speaker in a row: joined in the context, the last of them heard"] += more
            split = "validation" if int(dialogue) in VALIDATION else "train"
            for user in GENDERS:
                ends = [at for at, turn in enumerate(spoken) if turn[0].speaker == user]
                for end in ends if self.context == "written" else ends[-1:]:
                    yield self._line(split, spoken[: end + 1])

    def _turns(self, dialogue: str, turns: Mapping[str, Any], home: Path, report: Report) -> Iterator[_Turn]:
        for number, turn in sorted(turns.items(), key=lambda item: int(item[0])):
            where = f"metadata.json: dialogue {dialogue}, turn {number}"
            try:
                speaker, text = int(turn["speaker"]), str(turn["text"]).strip()
                emotion = EMOTIONS[str(turn["emotion"]).strip().lower()]
                if speaker not in GENDERS or not text:
                    raise ValueError(f"speaker {speaker}, text {text!r}")
            except (KeyError, TypeError, ValueError) as error:
                report.add("faulty row", f"{where}: {error}")
            else:
                name = f"{number}_{speaker}_d{dialogue}"
                yield _Turn(speaker, text, emotion, home / dialogue / f"{name}.wav", name)

    def _line(self, split: str, turns: list[list[_Turn]]) -> Line:
        """The last turn, heard, after the others. Of turns that one speaker had in a row the last is heard."""
        own = turns[-1][-1]
        context: list[dict[str, Any]] = []
        clips: dict[int, Path] = {}
        for row in turns[:-1]:
            mine = row[0].speaker == own.speaker
            context.append({"role": "user" if mine else "assistant", "text": " ".join(turn.text for turn in row)})
            if mine and self.context == "spoken" and len(row) == 1:
                context[-1]["caption"] = caption_from(row[0].labels)
                clips[len(context) - 1] = row[0].clip
        record = {
            "id": f"dailytalk-{own.name}", "text": own.text, "speaker": f"dailytalk-{own.speaker}",
            "labels": own.labels, "context": context,
        }  # fmt: skip
        return Line(split, own.clip, record, clips)


def _read(file: Path) -> dict[str, dict[str, Any]]:
    try:
        return _METADATA.validate_json(read_text(file))
    except ValidationError:
        problem = f"{file}: not DailyTalk's metadata, which is {{dialogue: {{turn: {{...}}}}}} with whole numbers"
        raise ManifestError(problem, code="damaged", where=file) from None
