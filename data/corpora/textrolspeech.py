"""TextrolSpeech (Ji et al., ICASSP 2024): speech of several corpora with five style labels and a caption each."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from sottovoce.data.corpora import CORPORA
from sottovoce.data.corpora.files import Tree, find_file, read_table
from sottovoce.data.corpora.published import Line, Published, check_share, held_out
from sottovoce.data.corpora.report import Report
from sottovoce.data.tasks import Emotion, Energy, Gender, Pitch, Tempo
from sottovoce.errors import MissingError

TABLE, OFFICIAL_TEST = "random_train.csv", "random_test.csv"
COLUMNS = ("wav_fp", "item_name", "gender", "pitch", "tempo", "energy", "emotion", "style_prompt", "content_prompt")
WRITTEN = {  # attribute -> how this table, or one derived from it, writes a label that is not ours -> our label
    "gender": {"m": "male", "f": "female"},
    "tempo": {"low": "slow", "high": "fast"},
    "emotion": {
        "happiness": "happy", "sadness": "sad", "anger": "angry", "surprise": "surprised", "disgust": "disgusted",
        "fear": "fearful", "contempt": "contemptuous",
    },
}  # fmt: skip
_KNOWN = {
    task.name: {**{label: label for label in task.choices}, **WRITTEN.get(task.name, {})}
    for task in (Gender, Pitch, Tempo, Energy, Emotion)
}


@CORPORA.register("textrolspeech")
class TextrolSpeech(Published):
    """TextrolSpeech: `caption/random_train.csv`, and the audio of its emotional part, LibriTTS and VCTK at any depth.

    The official test side has 200 clips, so that Wang et al. (ICME 2025, section IV-A) cut splits out of the training
    side, without saying how. Here speakers are held out, of each of its corpora apart, so that rare emotions are on
    all sides. `official-test` is the official one, where `random_test.csv` is there.

    Args:
        source: the folder with the table and the audio.
        validation: share of the speakers of each corpus, at least one.
        test: the same.
        seed: of the choice of speakers.
    """

    name = "textrolspeech"
    site = "github.com/jishengpeng/TextrolSpeech"
    expected: ClassVar[Mapping[str, int | None]] = {
        "train": None, "validation": None, "test": None, "official-test": 200,
    }  # fmt: skip

    def __init__(self, *, source: str, validation: float = 0.02, test: float = 0.02, seed: int = 0) -> None:
        super().__init__(source=source)
        check_share(self.name, validation=validation, test=test)
        self.validation, self.test, self.seed = validation, test, seed

    def lines(self, report: Report, tree: Tree) -> Iterator[Line]:
        official = list(self._official(report, tree))
        tested = {line.clip for line in official}
        lines = [line for line in self._table(TABLE, "train", report, tree) if line.clip not in tested]
        sides = self._sides(lines)
        for line in lines:
            line.split = sides[_speaker(line)]
            yield line
        yield from official

    def _official(self, report: Report, tree: Tree) -> Iterator[Line]:
        try:
            yield from self._table(OFFICIAL_TEST, "official-test", report, tree)
        except MissingError:
            report.add("missing", OFFICIAL_TEST)

    def _table(self, name: str, split: str, report: Report, tree: Tree) -> Iterator[Line]:
        """A line for each clip of a table, whose audio is found."""
        seen: set[Path] = set()
        for number, row in enumerate(read_table(find_file(self.source, name), COLUMNS), 2):
            where = f"{name}:{number}"
            clip = tree.find(row["wav_fp"])
            if clip is None:
                report.add("missing", f"{row['wav_fp']} ({where})")
            elif clip in seen:
                report.add("a clip's second caption", f"{row['wav_fp']} ({where})")
            elif labels := _labels(row, where, report):
                seen.add(clip)
                yield Line(split, clip, self._record(row, clip, labels))

    def _record(self, row: Mapping[str, str], clip: Path, labels: dict[str, str]) -> dict[str, object]:
        place = clip.relative_to(self.source).with_suffix("")
        return {
            "id": f"textrolspeech-{place.as_posix().replace('/', '-')}",
            "text": row["content_prompt"].strip(),
            "speaker": _who(row["item_name"] or clip.stem, place),
            "labels": labels,
            "caption": row["style_prompt"].strip(),
        }

    def _sides(self, lines: list[Line]) -> dict[str, str]:
        """Each speaker's split."""
        corpora: defaultdict[str, set[str]] = defaultdict(set)
        for line in lines:
            corpora[_corpus(line.clip.relative_to(self.source))].add(_speaker(line))
        sides: dict[str, str] = {}
        for _, speakers in sorted(corpora.items()):
            test = held_out(list(speakers), self.test, self.seed)
            late = held_out(list(speakers - test), self.validation, self.seed)
            sides |= {who: "test" if who in test else "validation" if who in late else "train" for who in speakers}
        return sides


def _labels(row: Mapping[str, str], where: str, report: Report) -> dict[str, str] | None:
    found = {name: row[name].strip().lower() for name in _KNOWN}
    unknown = [f"{name} {label!r}" for name, label in found.items() if label not in _KNOWN[name]]
    if unknown:
        report.add("unknown label", f"{', '.join(unknown)} ({where})")
        return None
    return {name: _KNOWN[name][label] for name, label in found.items()}


def _corpus(place: Path) -> str:
    """The corpus that a clip comes from: the folders down to two, of which the speakers' folders are below."""
    return "/".join(place.parts[:-1][:2])


def _who(item: str, place: Path) -> str:
    """The speaker, as the corpora write it: what stands before the first mark of the name, or else the clip itself."""
    first = item.replace("-", "_").split("_")[0]
    return f"textrolspeech-{_corpus(place)}-{first if '_' in item or '-' in item else item}"


def _speaker(line: Line) -> str:
    return str(line.record["speaker"])
