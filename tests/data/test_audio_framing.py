"""Joined streams are all read or refused, and a file that breaks off is known by its framing."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from tests.helpers.errors import refused

from sottovoce.data.audio import load_audio
from sottovoce.data.audio_decoder import read_header
from sottovoce.data.audio_framing import frame_bytes, mp3_streams, ogg_streams, past_tags
from sottovoce.errors import AudioError

ID3 = b"ID3\4\0\0\0\0\x02\0" + bytes(256)
APE = b"APETAGEX" + (2000).to_bytes(4, "little") + (32).to_bytes(4, "little") + bytes(16) + bytes(32)


def noise(seconds: float, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * 16000))


def encoded(path: Path, form: str, seconds: float, seed: int = 0, rate: int = 16000, **knobs: object) -> bytes:
    soundfile.write(path, noise(seconds, seed), rate, format=form, **knobs)
    return path.read_bytes()


def bare(mp3: bytes) -> bytes:
    """Without the frame that tells the length."""
    return mp3[frame_bytes(mp3, 0) :]


@pytest.mark.parametrize(("form", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")])
def test_of_joined_streams_all_is_read(form: str, subtype: str, tmp_path: Path) -> None:
    file = tmp_path / "clip"
    parts, samples = [], []
    for seed, seconds in enumerate((2.0, 3.0, 0.7)):
        parts.append(encoded(file, form, seconds, seed, subtype=subtype))
        samples.append(load_audio(file))
    file.write_bytes(b"".join(parts))
    assert read_header(file).frames == sum(map(len, samples))
    np.testing.assert_array_equal(load_audio(file), np.concatenate(samples))
    np.testing.assert_array_equal(load_audio(Path(f"{file}#t=1.5,4")), np.concatenate(samples)[24000:64000])
    for cut in (len(parts[0]) // 2, len(parts[0]) * 9 // 10):  # the first, or the second breaks off
        for content in (parts[0][:cut] + parts[1], parts[1] + parts[0][:cut]):
            file.write_bytes(content)
            with refused("damaged", file, AudioError):
                read_header(file)
    file.write_bytes(parts[0] + encoded(tmp_path / "other", form, 1.0, rate=48000, subtype=subtype))
    with refused("bad-value", file, AudioError) as caught:
        load_audio(file)
    assert "ffmpeg -i clip" in str(caught.value)


@pytest.mark.parametrize("between", [b"", ID3, b"TAG" + bytes(125), APE, b"TAG" + bytes(125) + ID3])
@pytest.mark.parametrize("second_has_length", [True, False])
def test_of_joined_mp3s_all_is_read_whatever_lies_between(
    between: bytes, second_has_length: bool, tmp_path: Path
) -> None:
    file = tmp_path / "a.mp3"
    first, second = encoded(file, "MP3", 2.0), encoded(tmp_path / "b.mp3", "MP3", 3.0, 1)
    second = second if second_has_length else bare(second)
    (tmp_path / "b.mp3").write_bytes(second)
    samples = [load_audio(file), load_audio(tmp_path / "b.mp3")]
    file.write_bytes(ID3 + first + between + second)
    np.testing.assert_array_equal(load_audio(file), np.concatenate(samples))
    assert read_header(file).frames == sum(map(len, samples))


def test_an_mp3_without_tag_that_breaks_off_within_a_frame_or_between_frames(tmp_path: Path) -> None:
    file = tmp_path / "a.mp3"
    content = bare(encoded(file, "MP3", 3.0))
    ends = [0]
    while ends[-1] < len(content):
        ends.append(ends[-1] + frame_bytes(content, ends[-1]))
    assert ends[-1] == len(content)
    for end in (ends[30], ends[50]):
        file.write_bytes(content[:end])
        assert len(load_audio(file)) == 576 * ends.index(end)  # whole frames: it may have ended there
        for more in (1, 5, 40):
            file.write_bytes(content[: end + more])
            with refused("damaged", file, AudioError):
                read_header(file)
    file.write_bytes(content[: ends[30]] + content[ends[30] + 20 :])  # bytes are missing within
    with refused("damaged", file, AudioError):
        read_header(file)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_file_without_a_page_is_damaged(subtype: str, tmp_path: Path) -> None:
    file = tmp_path / "a.ogg"
    content = encoded(file, "OGG", 9.0, subtype=subtype)
    starts = [at for at in range(len(content)) if content[at : at + 5] == b"OggS\0"] + [len(content)]
    assert len(starts) > 5 and ogg_streams(content) == [(0, len(content), True, True)]
    for page in range(2, len(starts) - 1):
        file.write_bytes(content[: starts[page]] + content[starts[page + 1] :])
        with refused("damaged", file, AudioError):
            read_header(file)
    file.write_bytes(content + b"TAG" + bytes(125))  # what lies behind is no page
    assert len(load_audio(file)) == 9 * 16000


@pytest.mark.parametrize(
    ("head", "size"),
    [
        ("fffb9064", 417), ("fffb9264", 418), ("fff348c4", 144), ("ffe318c4", 72),  # layer 3 of MPEG 1, 2 and 2.5
        ("fffd9004", 522), ("fff58004", 417), ("ffff9004", 312),  # layers 2 and 1
        ("ffeb9064", 0), ("fff99064", 0), ("fffbf064", 0), ("fffb0064", 0), ("fffb9c64", 0), ("4f676753", 0),
    ],
)  # fmt: skip
def test_the_size_of_a_frame_by_its_header(head: str, size: int) -> None:
    """By ISO/IEC 11172-3 and 13818-3, such as 144 x 128,000 bit/s / 44,100 Hz = 417.9, a byte more with padding."""
    assert frame_bytes(bytes.fromhex(head), 0) == size


def test_tags_are_passed_over_and_what_is_none_is_not() -> None:
    for tag in (b"", ID3, ID3 + ID3, APE, bytes(7), b"TAG" + bytes(125), b"LYRICSBEGINla la000005LYRICS200"):
        assert past_tags(tag + b"\xff\xfb", 0) == len(tag)
    assert past_tags(b"la la", 0) == 0


def test_a_count_that_is_off_by_one_costs_nothing(tmp_path: Path) -> None:
    """Some encoders count the frame of the tag, some forget the last one."""
    content = bytearray(encoded(tmp_path / "a.mp3", "MP3", 2.0))
    at = content.index(b"Xing") + 8
    count = int.from_bytes(content[at : at + 4], "big")
    for claimed, whole in ((count - 1, True), (count, True), (count + 1, True), (count + 2, False)):
        content[at : at + 4] = claimed.to_bytes(4, "big")
        assert mp3_streams(bytes(content)) == [(0, len(content), whole, True)]


@pytest.mark.parametrize(
    "form", ["FLAC", "WAV", "AU", "CAF", "W64", "RF64", "VOC", "IRCAM", "PAF", "PVF", "MAT4", "AIFF", "SVX", "NIST"]
)
def test_two_files_in_one_are_refused(form: str, tmp_path: Path) -> None:
    """From a file, and from an archive; what libsndfile itself refuses is damaged."""
    file, archive = tmp_path / "clip", tmp_path / "clips.tar"
    first, second = encoded(file, form, 1.0), encoded(file, form, 2.0, 1)
    file.write_bytes(first)
    samples = load_audio(file)
    assert len(samples) == 16000
    file.write_bytes(first + second)
    archive.write_bytes(bytes(512) + first + second)
    for clip in (file, Path(f"{archive}:512+{len(first + second)}")):
        with refused("damaged" if form in ("AIFF", "SVX", "NIST") else "bad-value", clip, AudioError):
            read_header(clip)
    if form == "WAV":
        file.write_bytes(first + b"LIST\x04\0\0\0INFO")  # a chunk behind the samples is none
        np.testing.assert_array_equal(load_audio(file), samples)


def test_a_wav_whose_writer_had_no_time_for_the_length_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    content = bytearray(encoded(file, "WAV", 2.0))
    expected = load_audio(file)
    content[40:44] = bytes(4)
    file.write_bytes(content)
    assert read_header(file).frames == 32000
    np.testing.assert_array_equal(load_audio(file), expected)
    content[40:44] = (20000).to_bytes(4, "little")  # it was once true
    file.write_bytes(content)
    with refused("damaged", file, AudioError) as caught:
        load_audio(file)
    assert "-ignore_length 1" in str(caught.value)
