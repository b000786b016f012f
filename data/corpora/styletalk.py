"""StyleTalk (Lin et al., ACL 2024): one sentence in several styles, each with the reply that it deserves."""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from sottovoce.data.corpora import CORPORA
from sottovoce.data.corpora.files import Tree, find_file, read_table
from sottovoce.data.corpora.published import Line, Published, check_share, held_out
from sottovoce.data.corpora.report import Report
from sottovoce.data.tasks import caption_from

COLUMNS = (
    *("diag_id", "context", "curr_audio_id", "res_audio_id", "curr_text", "res_text"),
    *(f"{who}_{what}" for who in ("curr", "res") for what in ("emotion", "speed", "volume")),
)
ROWS = {"train": 1_838, "eval": 858}
ENERGY = {"quiet": "low", "normal": "normal", "loud": "high"}
_TURN = re.compile(r"(?:^|(?<=\s))([AB])\s?:\s")  # "A : Hello. B : Hello."
_OWN = re.compile(r"^\s*([AB])\s*:\s*")


@CORPORA.register("styletalk")
class StyleTalk(Published):
    """StyleTalk: `train.csv`, `eval.csv` and the clips that they name, such as `book_269/c_2.wav`.

    Who speaks the current turn is the user, the other the assistant, whose turn opens the dialogue. The caption tells
    the style; the reply is left to the LLM. `validation` are dialogues of train.csv; `test` is eval.csv.

    `test-reversed` is eval.csv with the roles exchanged (Wang et al., ICME 2025, section IV-A): who replied is now the
    user, and the reply, which was recorded too, the turn that is heard. The model has to lead on from there.

    Args:
        source: the folder with the tables and the clips, at any depth.
        validation: share of the dialogues of train.csv.
        seed: of their choice.
        emotions: whether lines are labelled with the corpus's own emotions (neutral, friendly, unfriendly, cheerful,
            sad, ...); the recipe's task emotion must have them as choices.
        responses: whether lines keep the replies of the corpus, which are then the targets.
    """

    name = "styletalk"
    site = "github.com/DanielLin94144/StyleTalk"
    expected: ClassVar[Mapping[str, int | None]] = {
        "train": None, "validation": None, "test": ROWS["eval"], "test-reversed": ROWS["eval"],
    }  # fmt: skip

    def __init__(
        self, *, source: str, validation: float = 0.1, seed: int = 0, emotions: bool = False, responses: bool = False
    ) -> None:
        super().__init__(source=source)
        check_share(self.name, validation=validation)
        self.validation, self.seed, self.emotions, self.responses = validation, seed, emotions, responses

    def lines(self, report: Report, tree: Tree) -> Iterator[Line]:
        tables = {part: read_table(find_file(self.source, f"{part}.csv"), COLUMNS) for part in ROWS}
        late = held_out([row["diag_id"] for row in tables["train"]], self.validation, self.seed)
        for part, rows in tables.items():
            for number, row in enumerate(rows, 2):  # 1 is the head of the table
                where = f"{part}.csv:{number}"
                dialogue = _dialogue(row)
                if dialogue is None:
                    report.add("faulty row", f"{where}: the turns cannot be told apart")
                    continue
                if part == "train" and (reply := tree.find(row["res_audio_id"])):
                    self._used.add(reply)  # which nobody hears
                split = "test" if part == "eval" else "validation" if row["diag_id"] in late else "train"
                for reversed_ in (False, True) if part == "eval" else (False,):
                    yield from self._line(row, dialogue, f"{split}{'-reversed' * reversed_}", where, tree, report)

    def _line(
        self, row: Mapping[str, str], dialogue: list[str], split: str, where: str, tree: Tree, report: Report
    ) -> Iterator[Line]:
        reverse = split.endswith("-reversed")
        who = "res" if reverse else "curr"
        named = row[f"{who}_audio_id"]
        clip = tree.find(named)
        if clip is None or not clip.as_posix().endswith(Path(named).with_suffix(clip.suffix).as_posix()):
            report.add("missing", f"{named} ({where})")
            return
        turns = dialogue[: 4 if reverse else 3]
        roles = ["user", "assistant"] if len(turns) % 2 == 0 else ["assistant", "user"]
        labels = _labels(row, who)
        name = Path(row["curr_audio_id"]).with_suffix("").as_posix().replace("/", "-")
        record = {
            "id": f"styletalk-{name}{'-reversed' * reverse}",
            "text": dialogue[4 if reverse else 3],
            "labels": labels if self.emotions else {k: v for k, v in labels.items() if k != "emotion"},
            "caption": caption_from(labels),
            "context": [{"role": roles[i % 2], "text": text} for i, text in enumerate(turns)],
            "response": dialogue[4] if self.responses and not reverse else None,
        }
        yield Line(split, clip, record)


def _dialogue(row: Mapping[str, str]) -> list[str] | None:
    """The five turns: three of the context, the current one, the reply. Two speakers take turns."""
    pieces = _TURN.split(row["context"])[1:]  # speaker, text, speaker, text, ...
    current = _OWN.match(row["curr_text"])
    speakers = [*pieces[::2], current[1] if current else ""]
    texts = [*(text.strip() for text in pieces[1::2]), _OWN.sub("", row["curr_text"]).strip(), row["res_text"].strip()]
    texts[-1] = _OWN.sub("", texts[-1])
    take_turns = all(one != other for one, other in pairwise(speakers))
    return texts if len(texts) == 5 and all(texts) and take_turns and speakers[-1] else None


def _labels(row: Mapping[str, str], who: str) -> dict[str, Any]:
    emotion, speed, volume = (row[f"{who}_{what}"].strip().lower() for what in ("emotion", "speed", "volume"))
    found = {"emotion": emotion, "tempo": speed, "energy": ENERGY.get(volume, "")}
    return {name: label for name, label in found.items() if label}
