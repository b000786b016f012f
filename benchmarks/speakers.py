"""Real speech, dealt by speakers: who is tested in which part, and what is asked of whom."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sottovoce.errors import MissingError

PARTS = (1, 2, 3, 4, 5)
PAIRS = (("03", "08"), ("10", "09"), ("11", "13"))  # a man and a woman of EmoDB; parts 4 and 5 test readers alone
CHILDREN, ACTORS, DIGITS, OTHERS = "speechocean762", "emodb_2s", "fsdd", ("ljspeech_mini", "jfk")
EMOTION, AGE, GENDER = "emotion", "child or adult", "gender"
Row = dict[str, Any]  # a line of a manifest, its audio relative to DIR


class Task(NamedTuple):
    """Clips with a label each."""

    name: str
    rows: list[Row]
    labels: list[str]

    @property
    def speakers(self) -> list[str]:
        return [row["speaker"] for row in self.rows]


def read(data: Path, name: str) -> list[Row]:
    file = data / name / "manifest.jsonl"
    if not file.is_file():
        raise MissingError(f"{file} is not there: --data must hold the folders that `--help` names")
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [{**row, "audio": f"{name}/{row['audio']}"} for row in rows]


def every(rows: Sequence[Row], n: int, start: int = 0) -> set[str]:
    """Every n-th of the speakers, in the order of their names."""
    return set(sorted({row["speaker"] for row in rows})[start::n])


def tested_in(part: int, rows: dict[str, list[Row]]) -> set[str]:
    """The speakers that neither pre-training nor probes of a part (1 to 5) may hear."""
    return every(rows[CHILDREN], len(PARTS), part - 1).union(*PAIRS[part - 1 : part])


def tasks_of(rows: dict[str, list[Row]]) -> list[Task]:
    """Emotion where the words say nothing, age where they would tell but for matched texts, and gender of adults."""
    matched = [row for row in rows[CHILDREN] if row["text_match"] is not None]
    adults = [row for row in rows[CHILDREN] if row["age_group"] == "adult"]
    found = [
        (EMOTION, rows[ACTORS], "emotion"),
        (AGE, matched, "age_group"),
        (GENDER, adults, "gender"),
    ]
    return [Task(name, of_task, [row[key] for row in of_task]) for name, of_task, key in found]


def watched_of(readers: Sequence[Row]) -> set[str]:
    """A tenth of the readers that a part trains on, held out to watch the loss."""
    return every(readers, 10)
