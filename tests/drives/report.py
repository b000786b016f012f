"""The report of the drives, docs/drives.md: which recipe, which commands, how long, and what was checked."""

import datetime
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import torch

from tests.drives.breaks import BREAKS
from tests.drives.drive import Result
from tests.drives.plans import PLANS

WIDTH = 120
_HEAD = """\
# Drives

`python -m tests.drives` takes each published recipe as it is, with one overlay for all (`tests/drives/overlay.py`:
sizes, devices, addresses), small random parts of the true classes in place of checkpoints, and corpora in miniature in
their official layouts. It types what these pages tell, in their order, and again (`×`) where a server was slow, wrong
or absent. A recipe that no plan drives is a failure. The short form runs in CI.

Written by `python -m tests.drives --broken --out docs/drives.md` on {date} at commit {commit}
({machine}; seconds of a processor, other work beside it): {seconds}.

After every command its output, rows, scores (every one that the test side or `published` promises), weights (what
trains had gradients, the rest is the same to the bit) and pages are held against the recipe.
"""


def write(out: Path, results: Sequence[Result], tried: Mapping[str, bool]) -> None:
    """Write the page anew; `tried` says which breaks were red."""
    date, machine = datetime.date.today().isoformat(), f"{platform.machine()}, one thread, torch {torch.__version__}"
    seconds = _time(sum(took for result in results for _, took, _ in result.steps))
    commit = " and ".join(dict.fromkeys(result.commit for result in results if result.commit)) or "?"
    head = _HEAD.format(date=date, machine=machine, seconds=seconds, commit=commit)
    rows = ["| drive | recipes | commands | time |", "| --- | --- | --- | ---: |"]
    rows += [_row(result) for result in results]
    absent = [name for name in PLANS if name not in [result.name for result in results]]
    told = f"Not driven in that run: {', '.join(absent)}." if absent else ""
    rows += ["", *wrap(told, WIDTH)] if told else []
    broken = ["", "## Broken on purpose", "", "One key is changed; the drive must be red and say so (`--broken`):", ""]
    for each in BREAKS:
        state = {True: "red", False: "**not red**", None: "not tried"}[tried.get(f"{each.recipe} {each.key}")]
        broken.append(f'- `{each.key}` of `{each.recipe.removeprefix("conf/")}`, "{each.says}": {state}')
    out.write_text("\n".join([head, *rows, *broken]) + "\n", "utf-8")


def _row(result: Result) -> str:
    recipes = ", ".join(pattern.removeprefix("conf/") for pattern in PLANS[result.name].recipes) or "-"
    counts = Counter(_called(words) for words, _, _ in result.steps)
    told = ", ".join(f"{name} × {count}" if count > 1 else name for name, count in counts.items())
    state = (" (short)" if result.short else "") + (
        f" **red: {result.fault.splitlines()[0][:120]}**" if result.fault else ""
    )
    return f"| {result.name}{state} | {recipes} | {told} | {_time(sum(took for _, took, _ in result.steps))} |"


def _called(words: str) -> str:
    """A command in a word or two: prepare meld, fit, fit on 2."""
    name = "fit" if words.startswith("python") else " ".join(words.split()[1 : 3 if "prepare" in words else 2])
    several = re.search(r"trainer\.devices=2 trainer\.strategy=(?:deepspeed_)?(\S+)", words)
    return f"{name} (dry run)" if "--dry-run" in words else f"{name} ({several[1]}, 2)" if several else name


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 100 else f"{seconds:.0f} s"
