"""What libsndfile does not open is decoded by PyAV, or the message says how to convert it."""

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.helpers.av_files import AV_FORMATS, write_av
from tests.helpers.errors import refused

from sottovoce.data.audio import load_audio
from sottovoce.data.audio_decoder import read_header
from sottovoce.data.av_decoder import open_av
from sottovoce.errors import AudioError

UNKNOWN_LENGTH = ("webm of a browser",)  # a file that may end anywhere


def tone(seconds: float = 3.0) -> NDArray[np.float32]:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * 16000)) / 16000)).astype(np.float32)


@pytest.mark.parametrize("name", AV_FORMATS)
def test_each_format_is_read_at_its_level_and_length_and_twice_alike(name: str, tmp_path: Path) -> None:
    file = tmp_path / "clip"
    write_av(file, AV_FORMATS[name], tone(), 16000)
    samples = load_audio(file)
    assert abs(len(samples) - 48000) <= 1152  # an encoder's delay, or its last frame
    middle = samples[8000:40000]
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() == pytest.approx(440 * len(middle) / 16000, abs=2)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.25 if name == "amr" else 0.02)
    np.testing.assert_array_equal(load_audio(file), samples)
    assert read_header(file).seconds == pytest.approx(len(samples) / 16000, abs=1e-4)


@pytest.mark.parametrize("name", AV_FORMATS)
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_a_cut_file_is_damaged_or_ends_where_it_ends(name: str, share: float, tmp_path: Path) -> None:
    file = tmp_path / "clip"
    write_av(file, AV_FORMATS[name], tone(), 16000)
    whole, content = load_audio(file), file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    if name not in UNKNOWN_LENGTH:
        with refused("damaged", file, AudioError):
            load_audio(file)
        return
    samples = load_audio(file)
    assert len(samples) < len(whole)
    np.testing.assert_allclose(samples[:-800], whole[: len(samples) - 800], atol=1e-6)  # resampled: its end differs


@pytest.mark.parametrize("name", ["alac", "webm", "wma"])
def test_a_part_of_a_channel(name: str, tmp_path: Path) -> None:
    file = tmp_path / "clip"
    both = np.stack([tone(), np.roll(tone(), 9)[::-1] * 0.5], axis=1)
    write_av(file, AV_FORMATS[name], both, 16000)
    second = load_audio(Path(f"{file}#channel=1"))
    part = load_audio(Path(f"{file}#channel=1&t=0.5,2"))
    assert len(part) == 24000
    np.testing.assert_allclose(part[200:-200], second[8200:31800], atol=1e-4)
    assert np.abs(second[8000:40000]).max() == pytest.approx(0.15, rel=0.05)
    with refused("bad-value", "#channel=2"):
        load_audio(Path(f"{file}#channel=2"))


def test_without_pyav_the_message_names_format_extra_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "call.m4a"
    write_av(file, AV_FORMATS["m4a"], tone(), 16000)
    monkeypatch.setitem(sys.modules, "av", None)
    with refused("unavailable", file, AudioError) as caught:
        load_audio(file)
    for told in ("MP4", "sottovoce[formats]", "ffmpeg -i call.m4a -ac 1 -ar 16000 out.flac"):
        assert told in str(caught.value)


def test_a_file_without_audio_is_refused(tmp_path: Path) -> None:
    import av

    file = tmp_path / "mute.mp4"
    with av.open(str(file), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10, width=16, height=16, pix_fmt="yuv420p")
        for packet in (*stream.encode(av.VideoFrame(16, 16, "yuv420p")), *stream.encode(None)):
            container.mux(packet)
    with refused("empty", file, AudioError):
        load_audio(file)


def test_no_demuxer_runs_that_opens_other_files(tmp_path: Path) -> None:
    """A playlist names files and servers; FFmpeg would read them."""
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nother.aac\n#EXT-X-ENDLIST\n"
    file = tmp_path / "list.m4a"
    for head in (b"", b"\xff\xf1\n", b"#!AMR\n"):
        file.write_bytes(head + playlist)
        with refused("damaged", file, AudioError):
            load_audio(file)
    with refused("damaged", kind=AudioError), open_av(b"\xff\xf1\n" + playlist, file):
        pass
