"""Clips that the page offers: files that were named, else some of the test side of the run beside the bundle."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

from sottovoce.errors import MissingError
from sottovoce.evaluation.records import read_predictions
from sottovoce.scoring.show import places
from sottovoce.serving.audio_input import audio_file

MOST, LETTERS = 6, 60


class Example(NamedTuple):
    """A clip, and what it is called on the page."""

    file: Path
    name: str


def named_examples(files: Sequence[str]) -> list[Example]:
    """Files of the user; MissingError for one that is not there, AudioError for a folder."""
    paths = [audio_file(name) for name in files]
    for path in paths:
        if not path.is_file():
            raise MissingError.at(path, None, "there is no such file (--example)")
    return [Example(path, path.name) for path in paths]


def examples_beside(bundle: Path, most: int = MOST) -> list[Example]:
    """At most so many clips of what the run answered, evenly from all of it, by their words; none without a run."""
    run, scores = places(bundle.expanduser())
    try:
        rows = read_predictions(scores)
    except MissingError:
        return []
    clips = {(run or scores) / row.audio: row.text or Path(row.audio).name for row in rows if row.audio}
    there = [Example(file, shorten(words, LETTERS, placeholder="…")) for file, words in clips.items() if file.is_file()]
    if len(there) <= most:
        return there
    return [there[number * len(there) // most] for number in range(most)]
