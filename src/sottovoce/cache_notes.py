"""Notes beside what lies in a cache: of which encoder or LLM it is, and which runs have used it."""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sottovoce.errors import StorageError
from sottovoce.io import atomic_write

SUFFIX = ".used.json"


@dataclass
class Note:
    """What an entry of a cache is of, and when (seconds since 1970) each run began to use it, by the run's folder."""

    of: str = ""
    runs: dict[str, float] = field(default_factory=dict)


def note_use(entry: Path, of: str, run: Path) -> None:
    """Write down that a run uses an entry, a file or folder of a cache; where it cannot be written, nothing is."""
    note = read_note(entry)
    note.of, note.runs[str(run.absolute())] = of, time.time()
    with suppress(StorageError):
        atomic_write(note_file(entry), json.dumps(asdict(note), indent=2, ensure_ascii=False) + "\n", shared=True)


def read_note(entry: Path) -> Note:
    """The note of an entry; an empty one where there is none, or none that can be read."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        tree = json.loads(note_file(entry).read_text("utf-8"))
        return Note(str(tree["of"]), {str(run): float(when) for run, when in tree["runs"].items()})
    return Note()


def note_file(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}{SUFFIX}")
