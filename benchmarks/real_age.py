"""Whether a child speaks, in the frozen LLM's own words: a paralinguistic adapter on a small frozen encoder."""

import json
from collections.abc import Sequence
from pathlib import Path

from speaker_scores import TOLD, Answers
from speakers import AGE, CHILDREN, Row, tested_in, watched_of

from sottovoce.evaluation.records import read_predictions
from sottovoce.lightning_modules.fit import fit
from sottovoce.paths import resolve

CONFIG = resolve("sottovoce:conf/real_age.yaml")


def told(data: Path, runs: Path, rows: dict[str, list[Row]], part: int) -> Answers:
    """Train on the readers of the other parts, and ask about the matched clips of this one."""
    tested = tested_in(part, rows)
    readers = [row for row in rows[CHILDREN] if row["speaker"] not in tested]
    watched = watched_of(readers)
    sides = {
        "train": [row for row in readers if row["speaker"] not in watched],
        "validation": [row for row in readers if row["speaker"] in watched],
        "test": [row for row in rows[CHILDREN] if row["speaker"] in tested and row["text_match"] is not None],
    }
    overrides = [
        f"data.{side}={_source(runs / f'age-{side}-{part}.jsonl', data, of_side)}" for side, of_side in sides.items()
    ]
    fit(str(CONFIG), [*overrides, f"output_dir={runs}", f"name=age-{part}", f"seed={part}"])
    said = read_predictions(runs / f"age-{part}" / "evaluation")
    return Answers(AGE, TOLD, part, None, tuple(said))


def _source(file: Path, data: Path, rows: Sequence[Row]) -> str:
    """Write a manifest of one side; returns it as a recipe has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "id": Path(row["audio"]).stem,
            "audio": row["audio"],
            "text": row["text"].lower(),
            "speaker": row["speaker"],
            "labels": {"age": row["age_group"]},
        }
        for row in rows
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return json.dumps([{"manifest": str(file), "root": str(data)}])
