"""Clips in tar files: the same samples, read by us and by Lhotse, and nothing that a place could lie about."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tests.helpers.errors import refused

from sottovoce.cli.main import main
from sottovoce.data.audio import load_audio
from sottovoce.data.audio_decoder import read_header
from sottovoce.data.manifest import Manifest, read_manifest
from sottovoce.data.tar_shards import write_shards
from sottovoce.errors import AudioError, Code, ConfigError, ManifestError

CHOICES = {"emotion": ("sad",)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Seven lines over five clips of several kinds, one in a dialogue after another line's clip."""
    rng = np.random.default_rng(0)
    names = ["a.wav", "b.flac", "c.ogg", "d.mp3", "stereo.wav"]
    for number, name in enumerate(names):
        soundfile.write(tmp_path / name, 0.1 * rng.standard_normal((8000 + 400 * number, 1 + (name[0] == "s"))), 16000)
    lines: list[dict[str, Any]] = [{"id": f"u{i}", "audio": name, "text": "hello"} for i, name in enumerate(names)]
    said = [{"role": "user", "text": "a", "audio": "b.flac"}, {"role": "assistant", "text": "b"}]
    lines += [{"id": "u5", "audio": "a.wav", "context": said}, {"id": "u6", "audio": "b.flac", "seconds": 0.525}]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def read(path: Path) -> Manifest:
    return read_manifest(path, choices=CHOICES)


def test_a_packed_manifest_says_what_the_first_said_and_sounds_the_same(source: Path, tmp_path: Path) -> None:
    packed = write_shards(source, tmp_path / "out", size=2)
    assert (packed.utterances, packed.clips, packed.shards) == (7, 5, 3)
    before, after = read(source).utterances, read(packed.manifest).utterances
    assert [(u.id, u.text, len(u.context)) for u in before] == [(u.id, u.text, len(u.context)) for u in after]
    for ours, theirs in zip(after, before, strict=True):
        assert ours.seconds == pytest.approx(theirs.seconds, abs=1e-3)
        np.testing.assert_array_equal(load_audio(ours.audio), load_audio(theirs.audio))
    assert after[5].context[0].audio == after[1].audio == after[6].audio


def test_lhotse_reads_the_same_samples(source: Path, tmp_path: Path) -> None:
    from lhotse import CutSet

    write_shards(source, tmp_path / "out", size=2)
    cuts = list(CutSet.from_shar(in_dir=tmp_path / "out" / "shards"))
    assert len(cuts) == 5 and cuts[0].supervisions[0].text == "hello"
    for cut, name in zip(cuts, ["a.wav", "b.flac", "c.ogg"], strict=False):
        theirs, rate = soundfile.read(tmp_path / name, dtype="float32")
        assert rate == cut.sampling_rate
        np.testing.assert_allclose(cut.load_audio()[0], theirs, atol=1e-6)


def test_the_command_packs_again_what_is_packed(source: Path, tmp_path: Path, capsys: Any) -> None:
    for before, after in ((source, "once"), (tmp_path / "once" / "manifest.jsonl", "twice")):
        assert main(["shards", str(before), "--out", str(tmp_path / after)]) == 0
    assert "7 utterances, 5 clips in 1 tar files" in capsys.readouterr().out
    once, twice = (read(tmp_path / name / "manifest.jsonl").utterances for name in ("once", "twice"))
    for a, b in zip(once, twice, strict=True):
        np.testing.assert_array_equal(load_audio(a.audio), load_audio(b.audio))
    with tarfile.open(tmp_path / "twice" / "shards" / "recording.000000.tar") as tar:
        assert len(tar.getmembers()) == 10


def test_what_cannot_be_packed_is_named_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    source.write_text(
        source.read_text() + '\n{"id": "x", "audio": "none.wav"}\nbroken\n{"id": "y", "audio": "/etc/hosts"}'
    )
    with refused("not-found", "m.jsonl:8", ManifestError) as caught:
        write_shards(source, tmp_path / "out")
    assert [fault.code for fault in caught.value.faults] == ["not-found", "damaged", "unsafe"]
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    (tmp_path / "out").mkdir()
    with refused("conflict", tmp_path / "out", ConfigError):
        write_shards(source, tmp_path / "out")
    with refused("bad-value", "--size", ConfigError):
        write_shards(source, tmp_path / "more", size=0)


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("none.tar:0+100", "not-found"),
        ("a.tar:0+100000000000", "unsafe"),
        ("a.tar:99999999+10", "damaged"),
        ("a.tar:0+99999", "damaged"),
        ("a.tar:0+0", "damaged"),
        ("a.tar:0+512", "damaged"),
    ],
)
def test_a_place_that_lies_is_told(place: str, code: Code, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(512))
    with refused(code, place, AudioError):
        read_header(tmp_path / place)


def test_an_archive_stays_within_the_root_like_a_file(source: Path, tmp_path: Path) -> None:
    write_shards(source, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[0])
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "link.tar").symlink_to(tmp_path / "out" / "shards" / "recording.000000.tar")
    at = record["audio"].split(":")[1]
    for audio in (f"link.tar:{at}", f"../out/shards/recording.000000.tar:{at}"):
        (inner / "m.jsonl").write_text(json.dumps({**record, "audio": audio}))
        with refused("unsafe", "m.jsonl:1", ManifestError):
            read(inner / "m.jsonl")
        assert read_manifest(inner / "m.jsonl", choices=CHOICES, allow=[tmp_path / "out"]).utterances
