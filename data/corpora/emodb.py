"""EmoDB (Burkhardt et al., 2005), acted German: ten sentences, ten actors, seven emotions."""

import re
from collections.abc import Iterator, Mapping
from typing import ClassVar

from sottovoce.data.corpora import CORPORA, download
from sottovoce.data.corpora.files import Tree
from sottovoce.data.corpora.published import Line, Published
from sottovoce.data.corpora.report import Report
from sottovoce.data.tasks import caption_from
from sottovoce.errors import MissingError

SITE = "http://www.emodb.bilderbar.info/download"
NAME = re.compile(r"(\d\d)([ab]\d\d)([WLEAFTN])([a-z])")  # actor, sentence, emotion, take
EMOTIONS = {  # by the first letter of their German names
    "W": "angry", "L": "bored", "E": "disgusted", "A": "fearful", "F": "happy", "T": "sad", "N": "neutral",
}  # fmt: skip
SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
ACTORS = {
    "03": "male", "08": "female", "09": "female", "10": "male", "11": "male",
    "12": "male", "13": "female", "14": "female", "15": "male", "16": "female",
}  # fmt: skip
SPLITS = {"03": "test", "08": "test", "09": "validation", "10": "validation"}  # actor -> ours; the others train


@CORPORA.register("emodb")
class EmoDB(Published):
    """EmoDB: German, acted; `wav/03a01Fa.wav` is actor 03, sentence a01, happiness (Freude), take a.

    It has no official splits: a woman and a man are held out for each of validation and test; `hold_out` holds out
    others. `bored` is none of the default labels of the task `emotion`.

    Args:
        source: the folder with `wav`, or one above it.
    """

    name = "emodb"
    expected: ClassVar[Mapping[str, int | None]] = {"train": 347, "validation": 81, "test": 107}
    suffixes = (".wav",)

    def __init__(self, *, source: str) -> None:
        super().__init__(source=source)

    def download(self, mirror: str | None = None) -> None:
        download.fetch_archive(f"{mirror or SITE}/download.zip", self.source)

    def lines(self, report: Report, tree: Tree) -> Iterator[Line]:
        if not tree.files:
            raise MissingError(f"there is no wav file in {self.source} or below it", where=self.source)
        for file in tree.files:
            found = NAME.fullmatch(file.stem)
            if found and found[1] in ACTORS and found[2] in SENTENCES:
                actor, sentence, letter, _ = found.groups()
                labels = {"gender": ACTORS[actor], "emotion": EMOTIONS[letter]}
                record = {
                    "id": f"emodb-{file.stem}", "text": SENTENCES[sentence], "speaker": f"emodb-{actor}",
                    "labels": {**labels, "age": "adult"}, "caption": caption_from(labels),
                }  # fmt: skip
                yield Line(SPLITS.get(actor, "train"), file, record)
