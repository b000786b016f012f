"""VoiceBench (Chen et al., 2024): spoken prompts for voice assistants, in eleven subsets."""

import json
from collections import Counter, defaultdict
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
    site = "huggingface.co/datasets/hlt-lab/voicebench"
    expected: ClassVar[Mapping[str, int | None]] = {
        name: count for name, count in SUBSETS.items() if name not in ("sd-qa", "mmsu")
    }
    suffixes = ()  # audio comes inside of tables

    def lines(self, report: Report, tree: Tree) -> Iterator[Line]:
        fields: defaultdict[str, list[str]] = defaultdict(list)
        for subset in SUBSETS:
            homes = (self.source / subset, self.source / "data" / subset)
            tables = next(filter(None, (sorted(home.glob("*.parquet")) for home in homes)), [])
            if not tables:
                report.add("missing subset", subset)
            count: Counter[str] = Counter()
            for table in tables:
                part = table.name.partition("-")[0]
                split = subset if part == "test" else f"{subset}-{part}"
                for row in _rows(table, report, self.source):
                    count[split] += 1
                    for line, rest in self._line(split, count[split], row, table, report):
                        yield line
                        fields[split].append(json.dumps({"id": line.record["id"], **rest}, default=str))
        for split, kept in fields.items():
            atomic_write(report.out / f"{split}.fields.jsonl", "".join(f"{text}\n" for text in kept))

    def _line(
        self, split: str, number: int, row: Mapping[str, Any], table: Path, report: Report
    ) -> Iterator[tuple[Line, dict[str, Any]]]:
        """The line of a row, and what else the row holds; nothing for a row that cannot be used."""
        where = f"{table.relative_to(self.source)}: row {number} of {split}"
        audio = {key: value for key, value in row.items() if isinstance(value, dict) and "bytes" in value}
        rest = {key: value for key, value in row.items() if key not in audio}
        text = next((rest[key] for key in ("prompt", "turns", "text") if rest.get(key)), None)
        text = text[0] if isinstance(text, list) and text else text
        sound = audio[min(audio)]["bytes"] if audio else None
        if not sound or not isinstance(text, str) or not text.strip():
            report.add("faulty row", f"{where}: no {'prompt' if sound else 'audio'}")
            return
        if len(audio) > 1:
            report.notes["later turns of a dialogue, which follow on the model's own answers: the first is used"] += 1
        kind = next((kind for mark, kind in _KINDS.items() if sound.startswith(mark)), "mp3")
        clip = report.out / CLIPS / split / f"{number:05d}.{kind}"
        atomic_write(clip, sound)
        reference = rest.get("reference")
        record = {
            "id": f"voicebench-{split}-{number:05d}", "text": text.strip(),
            "response": reference.strip() if isinstance(reference, str) else None, "topic": split,
        }  # fmt: skip
        renamed = {"original_id": rest["id"]} if "id" in rest else {}
        others = {key: value for key, value in rest.items() if key not in ("prompt", "reference", "id")}
        yield Line(split, clip, record), others | renamed


def _rows(table: Path, report: Report, source: Path) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file, some at a time, so that memory does not grow with it; MissingError without pyarrow."""
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
