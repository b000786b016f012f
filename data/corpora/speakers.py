"""Splits by speaker: those who are held out of training are heard on one side alone, whatever a corpus's own splits."""

from collections.abc import Mapping, Sequence
from typing import Any

from sottovoce.data.corpora.published import Line, held_out
from sottovoce.data.corpora.report import Report
from sottovoce.errors import ConfigError, brief, nearest

TRAIN = "train"


def hold_out_speakers(lines: Sequence[Line], wanted: Mapping[str, Any], report: Report) -> list[Line]:
    """Move every line of a held-out speaker to its split, and every other line of these splits to the training side.

    Lines without a speaker are named in the report and left out, since they may be anybody's.

    Args:
        lines: of the corpus; their `split` is changed.
        wanted: split -> names of its speakers, with the corpus's prefix or without, or a share of all speakers.
        report: of the corpus.

    Raises:
        ConfigError: a speaker is unknown or wanted twice, or none is left to train on.
    """
    known = sorted({str(line.record["speaker"]) for line in lines if line.record.get("speaker")})
    sides: dict[str, str] = {}
    for split, which in sorted(wanted.items(), key=lambda item: not isinstance(item[1], list)):  # names before shares
        where = f"hold_out.{split}"
        if split == TRAIN or not split.isprintable() or "/" in split:
            raise ConfigError.at(where, "bad-value", "name a split that nothing is trained on, such as test")
        if isinstance(which, list):
            chosen = [_speaker(str(name), known, report.corpus, where) for name in which]
        elif isinstance(which, int | float) and 0 < which < 1:
            free = [name for name in known if name not in sides]
            share = min(1.0, which * len(known) / max(1, len(free)))
            chosen = sorted(held_out(free, share, 0)) or free[:1]
        else:
            told = f"a list of speakers or a share between 0 and 1, found {brief(repr(which), 100)}"
            raise ConfigError.at(where, "bad-value", told)
        for name in chosen:
            if name in sides:
                raise ConfigError.at(where, "conflict", f"{name} is held out for {sides[name]}, too")
            sides[name] = split
    if not set(known) - sides.keys():
        told = f"of {len(known)} speakers none is left to train on; a line needs a `speaker` to be held out by"
        raise ConfigError.at("hold_out", "empty", told)
    kept = []
    for line in lines:
        if not (speaker := line.record.get("speaker")):
            report.add("no speaker to hold out by", str(line.record["id"]))
            continue
        line.split = sides.get(str(speaker), TRAIN if line.split in wanted else line.split)
        kept.append(line)
    report.expected = dict.fromkeys([*report.expected, *wanted])
    return kept


def _speaker(name: str, known: Sequence[str], corpus: str, where: str) -> str:
    for spelling in (name, f"{corpus}-{name}"):
        if spelling in known:
            return spelling
    raise ConfigError.at(where, "unknown-name", f"no speaker is called {brief(repr(name), 100)}.{nearest(name, known)}")
