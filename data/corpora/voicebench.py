"""VoiceBench (Chen et al., 2024): spoken prompts for voice assistants, in eleven subsets."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from sottovoce.data.corpora import CORPORA
from sottovoce.data.corpora.files import Tree
from sottovoce.data.corpora.published import CLIPS, Line, Published
from sottovoce.data.corpora.report import Report
from sottovoce.errors import MissingError
from sottovoce.io import atomic_write

SUBSETS = {
    "alpacaeval": 199, "alpacaeval_full": 636, "commoneval": 200, "wildvoice": 1_000, "openbookqa": 455, "mmsu": 3_074,
    "sd-qa": 553, "mtbench": 46, "ifeval": 345, "bbh": 1_000, "advbench": 520,
}  # fmt: skip
_KINDS = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mp3"}


@CORPORA.register("voicebench")
class VoiceBench(Published):
    """VoiceBench: a snapshot of the dataset, `<subset>/<split>-*.parquet`, which holds the audio, too.

    Each subset is a manifest of its name; sd-qa, whose splits are accents, one an accent (`sd-qa-usa`), and so are
    subjects of mmsu where they are splits. What a row has beside audio, prompt and reference is kept in
    `<manifest>.fields.jsonl`, by id. Reading Parquet takes pyarrow (`pip install pyarrow`).

    Args:
        source: the folder with the subsets.
    """

    name = "voicebench"
    expected: ClassVar[Mapping[str, int | None]] = {
        name: count for name, count in SUBSETS.items() if name not in ("sd-qa", "mmsu")
    }
    suffixes = ()  # audio comes inside of tables

    def lines(self, report: Report, tree: Tree) -> Iterator[Line]:
        """See `Published.lines`."""
        fields: dict[str, list[str]] = {}
        for subset in SUBSETS:
            tables = sorted((self.source / subset).glob("*.parquet")) or sorted(
                (self.source / "data" / subset).glob("*.parquet")
            )
            if not tables:
                report.add("missing subset", subset)
            count: dict[str, int] = {}
            for table in tables:
                part = table.name.partition("-")[0]
                split = subset if part == "test" else f"{subset}-{part}"
                for row in _rows(table, report, self.source):
                    number = count[split] = count.get(split, 0) + 1
                    line, rest = self._line(split, number, row, table, report)
                    if line is not None:
                        yield line
                        fields.setdefault(split, []).append(json.dumps({"id": line.record["id"], **rest}, default=str))
        for split, kept in fields.items():
            atomic_write(report.out / f"{split}.fields.jsonl", "".join(f"{text}\n" for text in kept))

    def _line(
        self, split: str, number: int, row: Mapping[str, Any], table: Path, report: Report
    ) -> tuple[Line | None, dict[str, Any]]:
        where = f"{table.relative_to(self.source)}: row {number} of {split}"
        audio = {key: value for key, value in row.items() if isinstance(value, dict) and "bytes" in value}
        rest = {key: value for key, value in row.items() if key not in audio}
        text = next((rest[key] for key in ("prompt", "turns", "text") if rest.get(key)), None)
        text = text[0] if isinstance(text, list) and text else text
        sound = audio[min(audio)]["bytes"] if audio else None
        if not sound or not isinstance(text, str) or not text.strip():
            report.add("faulty row", f"{where}: no {'prompt' if sound else 'audio'}")
            return None, rest
        if len(audio) > 1:
            report.note("later turns of a dialogue, which follow on the model's own answers: the first is used")
        clip = report.out / CLIPS / split / f"{number:05d}.{_kind(sound)}"
        atomic_write(clip, sound)
        reference = rest.get("reference")
        record = {
            "id": f"voicebench-{split}-{number:05d}",
            "text": text.strip(),
            "response": reference.strip() if isinstance(reference, str) else None,
            "topic": split,
        }
        return Line(split, clip, record, {}), {
            k: v for k, v in rest.items() if k not in ("prompt", "reference", "id")
        } | ({"original_id": rest["id"]} if "id" in rest else {})


def _kind(sound: bytes) -> str:
    return next((kind for mark, kind in _KINDS.items() if sound.startswith(mark)), "mp3")


def _rows(table: Path, report: Report, source: Path) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file, some at a time, so that memory does not grow with it.

    Raises:
        MissingError: pyarrow is not installed.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        problem = "VoiceBench comes as Parquet files, which pyarrow reads: pip install pyarrow"
        raise MissingError(problem, code="unavailable", where="pyarrow") from None
    try:
        with parquet.ParquetFile(table) as file:
            for batch in file.iter_batches(batch_size=32):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        report.add("damaged", f"{table.relative_to(source)}: {str(error).splitlines()[0]}")
