"""Tar shards: clips packed into tar files, for storage that is slow to open a million small ones.

The files are in Lhotse's Shar format, so that Lhotse reads them, too (`CutSet.from_shar`); the bytes of a clip stay as
they are. Beside them lies a manifest like any other, whose `audio` says archive, offset and size.
"""

import gzip
import json
import tarfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from sottovoce.data.audio_decoder import Header, read_header
from sottovoce.data.clip_reference import MAX_RECORDING, Part, file_of, read_bytes, split_part
from sottovoce.data.manifest import Root, line_fault, no_utterance, read_lines, refuse
from sottovoce.data.manifest_schema import clip_of, is_written
from sottovoce.errors import AudioError, ConfigError, ManifestError, SottovoceError
from sottovoce.io import atomic_folder

FOLDER = "shards"


@dataclass(frozen=True)
class Packed:
    """What was written."""

    manifest: Path
    utterances: int
    clips: int
    shards: int

    def __str__(self) -> str:
        return f"{self.manifest}: {self.utterances} utterances, {self.clips} clips in {self.shards} tar files"


def write_shards(
    source: Path, out: Path, *, size: int = 1000, root: Path | None = None, allow: Sequence[Path] = ()
) -> Packed:
    """Pack a manifest: `out/manifest.jsonl`, `out/shards/recording.000000.tar`, `out/shards/cuts.000000.jsonl.gz`, ...

    A recording that several lines name is packed once, as the first of them says. Every line gets its `seconds`. The
    folder `out`, which is not there yet, appears when it is whole. `size` is recordings a tar file; `root` and `allow`
    are those of `read_manifest`.

    Raises:
        ConfigError: `out` is there, or `size` is less than 1.
        ManifestError: lines are broken, or clips cannot be used; the first 20 are named.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already: name another folder, or delete it", code="conflict", where=out)
    if size < 1:
        raise ConfigError(f"--size: must be at least 1, found {size}", code="bad-value", where="--size")
    within = Root(source.parent if root is None else root, allow)
    faults: list[ManifestError] = []
    utterances = 0
    with atomic_folder(out) as draft:
        manifest = draft / "manifest.jsonl"
        with closing(_Writer(draft / FOLDER, size)) as writer, manifest.open("w", encoding="utf-8") as stream:
            for number, record in read_lines(source):
                try:
                    packed = _packed(record, within, writer)
                except SottovoceError as error:
                    faults.append(line_fault(source, number, record, error))
                    continue
                stream.write(json.dumps(packed, ensure_ascii=False) + "\n")
                utterances += 1
        if faults or not utterances:
            head = f"{source}: {len(faults)} faults in the lines, {utterances} are good"
            refuse(head, faults or [no_utterance(source)])
    return Packed(out / "manifest.jsonl", utterances, len(writer.places), writer.shards)


def _packed(record: dict[str, Any] | ManifestError, root: Root, writer: "_Writer") -> dict[str, Any]:
    """The line with places in archives in place of files."""
    if isinstance(record, ManifestError):
        raise record
    if is_written(record):
        return record
    turns = record.get("context") or []
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ManifestError("context: a list of objects is needed", code="bad-value")
    place, header = _put(record, root, writer)
    context = [{**turn, "audio": _put(turn, root, writer)[0]} if turn.get("audio") else turn for turn in turns]
    known = {"context": context} if turns else {}
    return {**record, "audio": place, "seconds": record.get("seconds") or round(header.seconds, 4), **known}


def _put(said: dict[str, Any], root: Root, writer: "_Writer") -> tuple[str, Header]:
    given = said.get("audio")
    if not isinstance(given, str):
        raise ManifestError("audio: a string is needed", code="bad-value")
    clip = clip_of(said, root)
    recording, part = split_part(clip)
    try:
        header = read_header(clip)
        whole = read_header(recording, max_seconds=MAX_RECORDING) if part != Part() else header
    except AudioError as error:
        raise AudioError(f"audio: {given}: {error}", code=error.code) from None
    return f"{writer.put(recording, whole, said, part)}{split_part(Path(given))[1]}", header


class _Writer:
    """Appends clips to the last tar file, and begins the next when it holds `size` of them."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size, self.shards = folder, size, 0
        self.places: dict[Path, str] = {}
        self._tar: tarfile.TarFile | None = None
        self._cuts: IO[str] | None = None
        folder.mkdir()

    def close(self) -> None:
        for stream in (self._tar, self._cuts):
            if stream is not None:
                stream.close()

    def put(self, clip: Path, header: Header, said: dict[str, Any], part: Part) -> str:
        """The recording's place, relative to the manifest."""
        if clip not in self.places:
            if len(self.places) % self.size == 0:
                self._begin()
            self.places[clip] = self._append(clip, header, said, part)
        return self.places[clip]

    def _begin(self) -> None:
        self.close()
        self._tar = tarfile.open(self.folder / f"recording.{self.shards:06d}.tar", "w", format=tarfile.USTAR_FORMAT)
        self._cuts = gzip.open(self.folder / f"cuts.{self.shards:06d}.jsonl.gz", "wt", encoding="utf-8")
        self.shards += 1

    def _append(self, clip: Path, header: Header, said: dict[str, Any], part: Part) -> str:
        assert self._tar is not None and self._cuts is not None
        key = f"{len(self.places):09d}"
        data = read_bytes(clip)
        recording = {
            "id": key, "sources": [{"type": "shar", "channels": list(range(header.channels)), "source": ""}],
            "sampling_rate": header.sample_rate, "num_samples": header.frames, "duration": header.seconds,
            "channel_ids": list(range(header.channels)),
        }  # fmt: skip
        offset = self._tar.offset + tarfile.BLOCKSIZE  # of the member's header
        suffix = file_of(clip).suffix.lower() or ".audio"
        for name, content in ((f"{key}{suffix}", data), (f"{key}.json", json.dumps(recording).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            self._tar.addfile(member, BytesIO(content))
        one = header.channels == 1
        channel: Any = 0 if one else list(range(header.channels))
        supervision = {
            "id": str(said.get("id", key)), "recording_id": key, "start": part.start,
            "duration": (part.end or header.seconds) - part.start,
            "channel": channel if part.channel is None else part.channel,
            "text": said.get("text"), "speaker": said.get("speaker"),
        }  # fmt: skip
        cut = {
            "id": key, "start": 0.0, "duration": header.seconds, "channel": channel, "supervisions": [supervision],
            "recording": recording, "type": "MonoCut" if one else "MultiCut",
        }  # fmt: skip
        self._cuts.write(json.dumps(cut, ensure_ascii=False) + "\n")
        return f"{FOLDER}/{Path(str(self._tar.name)).name}:{offset}+{len(data)}"
