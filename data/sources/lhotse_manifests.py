"""Lhotse's manifests: cuts, recordings with supervisions, and Shar folders, whose clips are read where they lie.

The JSON is read as it is written (Lhotse 1.x), so that Lhotse need not be installed, and nothing that it says is run.
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sottovoce.data.corpora.report import Report
from sottovoce.data.sources.kinds import CUTS, is_lhotse_name
from sottovoce.data.sources.rows import Choice, Row, side
from sottovoce.data.sources.tables import read_objects
from sottovoce.errors import MissingError, SottovoceError

_LIKE = 0.01  # seconds within which a cut is all of its recording


class _Unusable(Exception):
    """Why a cut cannot be used."""


class _Clip(NamedTuple):
    """Audio of a cut: a path, and what of it is meant."""

    audio: str
    channel: int | None
    start: float
    seconds: float
    whole: float  # seconds of the recording

    def keys(self, start: float, seconds: float) -> dict[str, Any]:
        """Keys of a row for so many seconds from `start` (of the cut); of all of the recording the path alone."""
        begin = self.start + max(0.0, start)
        end = min(begin + seconds, self.whole)
        chosen = {"audio": self.audio, **({} if self.channel is None else {"channel": self.channel})}
        all_of_it = begin < _LIKE and end > self.whole - _LIKE
        return chosen if all_of_it else chosen | {"start": round(begin, 6), "end": round(end, 6)}


def read_lhotse(source: Path, choice: Choice, report: Report) -> Iterator[Row]:
    """A row a cut; where several supervisions are in one, a row for each of them, cut out.

    Mixed and padded cuts, changed audio (`transforms`), commands and addresses are named in the report.

    Raises:
        MissingError: recordings or supervisions are there without the other, or a shard's archive is missing.
    """
    files = [source] if source.is_file() else sorted(f for f in source.rglob("*.jsonl*") if is_lhotse_name(f.name))
    by_kind: dict[str, list[Path]] = {"cuts": [], "recordings": [], "supervisions": []}
    for file in files:
        by_kind[_content(file, report)].append(file)
    if by_kind["cuts"]:
        for file in by_kind["cuts"]:
            yield from _cuts(file, _split(file.name, "cuts"), choice, report)
        return
    if len(by_kind["recordings"]) != len(by_kind["supervisions"]) or not by_kind["recordings"]:
        told = "recordings and supervisions belong together: name the folder that holds both, or cuts"
        raise MissingError.at(source, "not-found", told)
    for recordings, supervisions in zip(by_kind["recordings"], by_kind["supervisions"], strict=True):
        yield from _joined(recordings, supervisions, choice, report)


def _content(file: Path, report: Report) -> str:
    """What a file's lines are: cuts, recordings or supervisions."""
    _, first = next(read_objects(file, Report("", file, file, {}, {})), ("", {}))
    if first.get("type") in CUTS or "supervisions" in first:
        return "cuts"
    return "recordings" if "sources" in first else "supervisions"


def _split(name: str, word: str) -> str:
    """`train` of librispeech_cuts_train.jsonl.gz; nothing for cuts.000000.jsonl.gz."""
    behind = name.partition(".jsonl")[0].rpartition(word)[2].strip("._-")
    return "" if re.fullmatch(r"\d*", behind) else side(behind)


def _joined(recordings: Path, supervisions: Path, choice: Choice, report: Report) -> Iterator[Row]:
    """Rows of supervisions in their recordings."""
    split = _split(supervisions.name, "supervisions")
    known = {str(recording["id"]): recording for _, recording in read_objects(recordings, report)}
    for place, found in read_objects(supervisions, report):
        recording = known.get(str(found.get("recording_id")))
        if recording is None:
            report.add("recording of a supervision is missing", place)
            continue
        try:
            channel = found.get("channel", 0)
            clip = _clip(recording, channel, 0.0, float(recording["duration"]))
            values = _said(found) | clip.keys(float(found["start"]), float(found["duration"]))
            yield Row(place, values, split, recordings.parent)
        except _Unusable as why:
            report.add(str(why), place)
        except (KeyError, TypeError, ValueError):
            report.add("malformed row", place)


def _cuts(file: Path, split: str, choice: Choice, report: Report) -> Iterator[Row]:
    shard = re.fullmatch(r"cuts\.(\d+)\.jsonl(?:\.gz)?", file.name)
    archive = file.parent / f"recording.{shard[1]}.tar" if shard else None
    packed: dict[str, str] | None = None
    for place, cut in read_objects(file, report):
        try:
            inside = None
            if archive and _types(cut) == {"shar"}:
                packed = _members(archive) if packed is None else packed
                inside = packed.get(str(cut["id"]))
                if inside is None:
                    raise _Unusable(f"no clip of this cut is in {archive.name}")
            for values in _of_cut(cut, inside):
                yield Row(place, values, split, file.parent)
        except _Unusable as why:
            report.add(str(why), place)
        except SottovoceError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError):
            report.add("malformed row", place)


def _of_cut(cut: dict[str, Any], inside: str | None) -> Iterator[dict[str, Any]]:
    if cut.get("type", "MonoCut") not in ("MonoCut", "MultiCut"):
        raise _Unusable(f"{cut['type']}: only what is a part of one recording is read; save it as audio first")
    seconds = float(cut["duration"])
    clip = _clip(cut["recording"], cut.get("channel", 0), float(cut["start"]), seconds, inside)
    supervisions = cut.get("supervisions") or []
    own = dict(cut.get("custom") or {})
    if len(supervisions) < 2:
        said = _said(supervisions[0]) if supervisions else {}
        yield own | said | {"id": cut["id"]} | clip.keys(0.0, seconds)
        return
    for one in supervisions:
        channel = one.get("channel", clip.channel)
        part = clip._replace(channel=channel) if clip.channel is not None and isinstance(channel, int) else clip
        yield own | _said(one) | part.keys(float(one["start"]), float(one["duration"]))


def _said(supervision: dict[str, Any]) -> dict[str, Any]:
    """Columns of a supervision, with its own further ones."""
    columns = {key: supervision.get(key) for key in ("id", "text", "speaker", "gender", "language")}
    return dict(supervision.get("custom") or {}) | columns


def _types(cut: dict[str, Any]) -> set[str]:
    return {str(source.get("type")) for source in (cut.get("recording") or {}).get("sources", [])}


def _clip(recording: dict[str, Any], channel: Any, start: float, seconds: float, inside: str | None = None) -> _Clip:
    """Where a recording's audio is; `inside` is its place in an archive."""
    if recording.get("transforms"):
        raise _Unusable("its recording is changed when it is read (transforms): save it as audio first")
    wanted = channel if isinstance(channel, list) else [channel]
    sources = [one for one in recording["sources"] if set(wanted) & set(one["channels"])]
    if len(sources) != 1:
        raise _Unusable("its channels lie in several files" if sources else "no file of its recording has its channel")
    (source,) = sources
    if inside is None and source["type"] != "file":
        raise _Unusable(f"its recording is a {source['type']}, which is neither run nor fetched; save it as a file")
    channels = list(source["channels"])
    if len(wanted) > 1 and set(wanted) != set(channels):
        raise _Unusable("it has some of its recording's channels: one can be read, or the mean of all")
    chosen = channels.index(wanted[0]) if len(wanted) == 1 and len(channels) > 1 else None
    return _Clip(inside or str(source["source"]), chosen, start, seconds, float(recording["duration"]))


def _members(archive: Path) -> dict[str, str]:
    """Places of the clips in a tar, by the names of their cuts; `FILE:offset+size`, as manifests have them."""
    try:
        with tarfile.open(archive, "r:") as tar:
            return {
                member.name.rpartition(".")[0]: f"{archive.absolute()}:{member.offset_data}+{member.size}"
                for member in tar
                if member.isfile() and not member.name.endswith((".json", ".nodata", ".nometa"))
            }
    except (OSError, tarfile.TarError) as error:
        raise MissingError.at(archive, "not-found", f"this archive cannot be read: {error}") from None
