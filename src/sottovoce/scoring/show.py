"""`sottovoce show`: answers of a run one by one, with clip, words and what would be right; or as a page."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sottovoce.config_model import unknown
from sottovoce.errors import ConfigError
from sottovoce.evaluation.metrics import Prediction
from sottovoce.evaluation.records import GENERATED, is_wrong, read_predictions

BUNDLE = "fingerprints.json"  # by which a bundle is known; its module takes seconds to import


def show(
    folder: str,
    task: Sequence[str] = (),
    slots: str | None = None,
    wrong: bool = False,
    limit: int = 20,
    html: bool = False,
) -> None:
    """The command: at most `limit` answers of a run, of some tasks, in one choice of slots; with `wrong` those alone.

    `folder` is a run's, its bundle, or a folder of scores. With `html` it writes the page of the run instead.

    Raises:
        MissingError: nothing has been scored there.
        ConfigError: no such task or choice of slots, or `limit` is below 1.
    """
    run, scores = places(Path(folder))
    if limit < 1:
        raise ConfigError.at("--limit", "bad-value", f"{limit} answers are none: at least 1")
    if html:
        from sottovoce.scoring.run_report import PAGE, write_report  # decodes audio, and draws

        page = write_report(scores, (run or scores) / PAGE, run)
        print(f"written  {page}")
        return
    rows = read_predictions(scores)
    for error in unknown("--task", task, list(dict.fromkeys(row.task for row in rows)), "task of this run"):
        raise error
    known = list(dict.fromkeys(row.slots for row in rows))
    chosen = slots or ("both" if "both" in known else next(iter(known), "both"))
    for error in unknown("--slots", [chosen], known, "choice of slots"):
        raise error
    asked = [row for row in rows if row.slots == chosen and (not task or row.task in task)]
    found = [row for row in asked if is_wrong(row)] if wrong else asked
    console = Console(highlight=False, soft_wrap=True)
    for row in found[:limit]:
        console.print(shown_answer(row, run or scores), end="\n\n")
    if wrong:
        judged = [row for row in asked if is_wrong(row) is not None]
        told = f"{len(found)} of {len(judged)} answers are wrong" if judged else "nothing here is right or wrong"
    else:
        told = f"{len(asked)} answers"
    shown = f", {min(limit, len(found))} shown (--limit)" if len(found) > limit else ""
    print(f"{told}, slots: {chosen}{shown}", file=sys.stderr)


def places(folder: Path) -> tuple[Path | None, Path]:
    """The run that a folder is or belongs to, if any, and where its scores lie."""
    if (folder / BUNDLE).is_file():
        folder = folder.parent
    if (folder / "predictions.jsonl").is_file() and not (folder / "recipe.yaml").is_file():
        run = next((up for up in list(folder.parents)[:2] if (up / "recipe.yaml").is_file()), None)
        return run, folder
    return folder, folder / "evaluation"


def shown_answer(row: Prediction, run: Path) -> Text:
    """One answer for the terminal: clip, words, what would be right, what was said."""
    verdict = {True: "wrong", False: "right", None: ""}[is_wrong(row)]
    clip = "-" if row.audio is None else row.audio if os.path.isabs(row.audio) else str(run / row.audio)
    right = row.label if row.label is not None and row.task not in GENERATED else row.target
    lines = [("audio", clip), ("text", row.text or "-"), ("ask", row.instruction or "-"), ("right", right or "-")]
    text = Text(f"{row.id}  {row.title}  {verdict}".rstrip(), style="bold")
    for name, value in (*lines, ("answer", row.response)):
        text.append(f"\n  {name:<8}", style="not bold dim")
        text.append(value, style="not bold")
    return text
