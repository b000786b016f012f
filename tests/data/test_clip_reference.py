"""A clip may be one channel or some seconds of a recording: in a path, or by `channel`, `start` and `end`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from tests.helpers.errors import faulty, refused

from sottovoce.data.acoustic_labels import label_manifest
from sottovoce.data.audio import inspect_audio, load_audio
from sottovoce.data.audio_decoder import read_header
from sottovoce.data.clip_reference import Part, Recordings, file_of, split_part, tar_member
from sottovoce.data.lazy_manifest import LazyManifest
from sottovoce.data.manifest import Root, read_manifest
from sottovoce.data.tar_shards import write_shards
from sottovoce.data.utterance import Utterance
from sottovoce.errors import AudioError, ManifestError

FORMATS = [
    ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"),
    ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
    ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("CAF", "ALAC_16"), ("W64", "PCM_16"), ("RF64", "PCM_16"),
    ("NIST", "PCM_16"),
]  # fmt: skip


@pytest.fixture
def call(tmp_path: Path) -> NDArray[np.float32]:
    """`call.wav`, six seconds of two channels, as (samples, 2)."""
    both = np.random.default_rng(0).uniform(-0.5, 0.5, (96000, 2))
    soundfile.write(tmp_path / "call.wav", both, 16000)
    samples: NDArray[np.float32] = soundfile.read(tmp_path / "call.wav", dtype="float32")[0]
    return samples


def manifest(folder: Path, *lines: dict[str, Any]) -> Path:
    path = folder / "m.jsonl"
    path.write_text("\n".join(json.dumps({"id": f"u{row}", **line}) for row, line in enumerate(lines)))
    return path


def read(path: Path) -> list[Utterance]:
    return read_manifest(path, choices={}).utterances


@pytest.mark.parametrize(("form", "subtype"), FORMATS)
def test_a_part_is_to_the_sample_what_the_whole_has_there(form: str, subtype: str, tmp_path: Path) -> None:
    """By seeking or by decoding up to it."""
    file = tmp_path / "clip"
    soundfile.write(file, np.random.default_rng(0).uniform(-0.5, 0.5, (112000, 2)), 16000, subtype, format=form)
    whole = load_audio(file)
    for start, end in ((0, 1), (1.2345, 3), (4.00003, 6.9), (6.5, None)):
        part = Path(f"{file}{Part(None, start, end)}")
        expected = whole[round(start * 16000) : round(end * 16000) if end else None]
        np.testing.assert_array_equal(load_audio(part), expected)
        assert read_header(part).frames == len(expected) == round(inspect_audio(part).seconds * 16000)
    both = soundfile.read(file, dtype="float32")[0]
    np.testing.assert_allclose(load_audio(Path(f"{file}#channel=1&t=1,2")), both[16000:32000, 1], atol=1e-6)
    assert read_header(Path(f"{file}#channel=0")).channels == 1


def test_a_part_of_an_mp3_that_does_not_know_its_length(tmp_path: Path) -> None:
    from tests.data.test_audio_framing import bare, encoded

    file = tmp_path / "a.mp3"
    file.write_bytes(bare(encoded(file, "MP3", 4.0)))
    whole = load_audio(file)
    np.testing.assert_array_equal(load_audio(Path(f"{file}#t=1,2.5")), whole[16000:40000])
    assert read_header(Path(f"{file}#t=1,2.5")).frames == 24000
    for beyond in ("#t=1,9", "#t=9", "#channel=1"):
        with refused("bad-value", beyond, AudioError):
            read_header(Path(f"{file}{beyond}"))


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("a.wav#channel=1", Part(1)), ("a.wav#t=1.5", Part(None, 1.5)), ("a.wav#t=1.5,3", Part(None, 1.5, 3.0)),
        ("a.wav#t=,3", Part(None, 0.0, 3.0)), ("a.wav#channel=0&t=0,3", Part(0, 0.0, 3.0)),
        ("x.tar:512+9#channel=0", Part(0)), ("a.wav#t=0.000001,2", Part(None, 1e-6, 2.0)),
    ],
)  # fmt: skip
def test_a_path_says_which_part(path: str, part: Part) -> None:
    recording, found = split_part(Path(path))
    assert found == part and split_part(Path(f"{recording}{part}")) == (recording, part)
    assert str(file_of(Path(path))) == path.split("#")[0].split(":")[0]
    assert (tar_member(Path(path)) is not None) == (":" in path)


@pytest.mark.parametrize("name", ["take#2.wav", "a.wav#", "a.wav#t=", "a.wav#&t=1", "a#channel=1.wav", "a.wav#t=1,2,3"])
def test_a_name_with_a_hash_is_a_name(name: str) -> None:
    assert split_part(Path(name)) == (Path(name), Part())


def test_lines_name_parts_of_a_recording(call: NDArray[np.float32], tmp_path: Path) -> None:
    turn = {"role": "user", "text": "a", "audio": "call.wav", "channel": 0, "start": 0, "end": 1.25}
    path = manifest(
        tmp_path,
        {"audio": "call.wav", "channel": 0},
        {"audio": "call.wav", "channel": 1, "start": 1.5, "end": 4, "seconds": 2.5},
        {"audio": "call.wav", "start": 5, "context": [turn, {"role": "assistant", "text": "b"}]},
        {"audio": "call.wav", "end": 6.009},  # hundredths that were rounded up
        {"audio": "call.wav#channel=1&t=1.5,4", "channel": None},
    )
    first, second, third, fourth, fifth = read(path)
    assert [u.seconds for u in (first, second, third, fourth, fifth)] == [6.0, 2.5, 1.0, 6.0, 2.5]
    np.testing.assert_array_equal(load_audio(first.audio), call[:, 0])
    np.testing.assert_array_equal(load_audio(second.audio), call[24000:64000, 1])
    np.testing.assert_allclose(load_audio(third.audio), call[80000:].mean(axis=1), atol=1e-6)
    assert third.context[0].audio is not None and fifth.audio == second.audio
    np.testing.assert_array_equal(load_audio(third.context[0].audio), call[:20000, 0])


BAD = faulty({
    "bad-value": [
        ('{"channel": 2}', ""), ('{"channel": -1}', ""), ('{"channel": "left"}', ""), ('{"channel": true}', ""),
        ('{"channel": 0.0}', ""), ('{"start": -1}', ""), ('{"start": "1"}', ""), ('{"start": 6}', ""),
        ('{"start": 1e400}', ""), ('{"end": NaN}', ""), ('{"end": 6.02}', ""), ('{"end": 0}', ""),
        ('{"start": 3, "end": 3}', ""), ('{"start": 3, "end": 3.01}', ""), ('{"end": false}', ""),
    ],
    "conflict": [('{"audio": "call.wav#t=1", "end": 3}', "")],
    "mismatch": [('{"start": 1, "end": 3, "seconds": 6}', "")],
    "unsafe": [('{"audio": "../call.wav#channel=0"}', ""), ('{"audio": "/etc/hosts", "start": 1}', "")],
})  # fmt: skip


@pytest.mark.parametrize(("code", "line", "_"), BAD)
@pytest.mark.parametrize("lazy", [False, True])
def test_what_a_recording_does_not_have_is_told_with_file_and_line(
    code: Any, line: str, _: str, lazy: bool, call: NDArray[np.float32], tmp_path: Path
) -> None:
    path = manifest(tmp_path, {"audio": "call.wav", "seconds": 6}, {"audio": "call.wav", "seconds": 6})
    wrong = {**json.loads(line)}
    wrong = {"id": "u2", "audio": "call.wav", **({"seconds": 2} if lazy else {}), **wrong}
    path.write_text(path.read_text() + "\n" + json.dumps(wrong))
    with refused(code, "m.jsonl:3", ManifestError):
        if lazy:
            LazyManifest(path, {}, Root(tmp_path))[2]
        else:
            read(path)


def test_a_part_of_nothing_is_told(tmp_path: Path, call: NDArray[np.float32]) -> None:
    turns = [{"role": "user", "text": "a", "channel": 0}, {"role": "assistant", "text": "b"}]
    with refused("conflict", "m.jsonl:1", ManifestError):
        read(manifest(tmp_path, {"audio": "call.wav", "context": turns}))


def test_a_lazy_manifest_takes_the_length_from_start_and_end(call: NDArray[np.float32], tmp_path: Path) -> None:
    path = manifest(tmp_path, {"audio": "call.wav", "start": 1.5, "end": 4}, {"audio": "call.wav", "end": 2})
    lazy = LazyManifest(path, {}, Root(tmp_path))
    assert list(lazy.seconds) == [2.5, 2.0] and lazy[0].seconds == 2.5
    np.testing.assert_allclose(load_audio(lazy[0].audio), call[24000:64000].mean(axis=1), atol=1e-6)


def test_shards_hold_a_recording_once_and_parts_stay_parts(call: NDArray[np.float32], tmp_path: Path) -> None:
    from lhotse import CutSet

    turn = {"role": "user", "text": "a", "audio": "call.wav", "channel": 0, "end": 1}
    path = manifest(
        tmp_path,
        {"audio": "call.wav", "channel": 1, "start": 1.5, "end": 4, "text": "hello"},
        {"audio": "call.wav#t=5", "context": [turn, {"role": "assistant", "text": "b"}]},
    )
    packed = write_shards(path, tmp_path / "out")
    assert packed.clips == 1
    before, after = read(path), read(packed.manifest)
    for ours, theirs in zip(after, before, strict=True):
        np.testing.assert_array_equal(load_audio(ours.audio), load_audio(theirs.audio))
        assert ours.seconds == theirs.seconds
    assert after[1].context[0].audio is not None
    np.testing.assert_array_equal(load_audio(after[1].context[0].audio), call[:16000, 0])
    (cut,) = CutSet.from_shar(in_dir=tmp_path / "out" / "shards")
    assert cut.duration == 6 and (cut.supervisions[0].start, cut.supervisions[0].end) == (1.5, 4)
    assert cut.supervisions[0].channel == 1


def test_labels_are_measured_on_the_part(tmp_path: Path) -> None:
    """A low voice for two seconds, then a high one."""
    time = np.arange(32000) / 16000
    voices = [sum(0.1 * np.sin(2 * np.pi * f0 * k * time) / k for k in range(1, 9)) for f0 in (100.0, 300.0)]
    soundfile.write(tmp_path / "call.wav", np.concatenate(voices), 16000)
    path = manifest(tmp_path, {"audio": "call.wav", "end": 2}, {"audio": "call.wav", "start": 2})
    label_manifest(path, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["labels"]["pitch"] for line in lines] == ["low", "high"] and lines[0]["end"] == 2


def test_what_shares_a_moment_of_a_channel() -> None:
    known = Recordings([Path("a.wav#channel=0&t=1,3"), Path("b.wav"), Path("x.tar:0+9#t=5")])
    for clip in ("a.wav", "a.wav#channel=0", "a.wav#t=2,4", "b.wav#t=100", "x.tar:0+9#t=4,6"):
        assert known.shared([Path(clip)]) == [Path(clip)], clip
    for clip in ("a.wav#channel=1", "a.wav#t=3,4", "a.wav#channel=0&t=0,1", "c.wav", "x.tar:0+9#t=1,5", "x.tar:9+9"):
        assert not known.shared([Path(clip)]), clip


def test_channels_that_cancel_each_other_are_told_and_one_of_them_is_read(tmp_path: Path) -> None:
    """Not as silence: neither channel is silent. Nor where a little is left of their mean."""
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    file = tmp_path / "call.wav"
    for second in (-sound, -0.99 * sound, -0.9 * sound):
        soundfile.write(file, np.stack([sound, second], axis=1), 16000, subtype="PCM_24")
        with refused("bad-value", file, AudioError) as caught:
            load_audio(file)
        assert "cancel" in str(caught.value) and "channel: 0" in str(caught.value)
        np.testing.assert_allclose(load_audio(Path(f"{file}#channel=0")), sound, atol=1e-4)
    for second in (0 * sound, -0.5 * sound, sound, np.random.default_rng(1).uniform(-0.5, 0.5, 16000)):
        soundfile.write(file, np.stack([sound, second], axis=1), 16000, subtype="PCM_24")
        np.testing.assert_allclose(load_audio(file), (sound + second) / 2, atol=1e-4)
    soundfile.write(file, np.zeros((16000, 2)), 16000)
    assert "silent" in str(inspect_audio(file).problem)
