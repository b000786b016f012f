"""Every odd clip is either loaded faithfully or refused with its problem."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from tests.helpers.errors import refused

from sottovoce.data.audio import inspect_audio, load_audio
from sottovoce.data.audio_decoder import read_header
from sottovoce.errors import AudioError, Code

FORMATS = [
    ("wav", "PCM_16"), ("wav", "ULAW"), ("wav", "IMA_ADPCM"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("ogg", "OPUS"),
    ("mp3", "MPEG_LAYER_III"), ("aiff", "PCM_16"), ("au", "PCM_16"), ("caf", "PCM_16"), ("w64", "PCM_16"),
    ("rf64", "PCM_16"),
]  # fmt: skip


def tone(seconds: float = 0.5, rate: int = 16000, hz: float = 440.0, peak: float = 0.5) -> NDArray[np.float64]:
    return peak * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)


def noise(seconds: float) -> NDArray[np.float64]:
    return np.random.default_rng(0).uniform(-0.5, 0.5, int(seconds * 16000))


def write(path: Path, samples: NDArray[np.float64], rate: int = 16000, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_every_sample_format_is_decoded_to_full_scale_one(tmp_path: Path, subtype: str) -> None:
    samples = load_audio(write(tmp_path / "a.wav", tone(), subtype=subtype))
    assert samples.dtype == np.float32 and samples.shape == (8000,)
    tolerance = {"PCM_U8": 0.01, "ULAW": 0.02}.get(subtype, 1e-4)
    np.testing.assert_allclose(samples, tone(), atol=tolerance)


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3"])
def test_compressed_clips_keep_length_and_level(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, tone(1.0), 16000)
    samples = load_audio(tmp_path / name)
    assert abs(len(samples) - 16000) < 1600
    assert np.sqrt(np.mean(samples[4000:12000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_any_sample_rate_becomes_the_one_asked_for(tmp_path: Path, rate: int) -> None:
    samples = load_audio(write(tmp_path / "a.wav", tone(1.0, rate), rate))
    assert samples.dtype == np.float32 and abs(len(samples) - 16000) <= 1
    np.testing.assert_allclose(samples[2000:14000], tone(1.0)[2000:14000], atol=2e-3)


def test_what_the_new_rate_cannot_hold_is_filtered_out_and_not_folded_back(tmp_path: Path) -> None:
    file = write(tmp_path / "a.wav", tone(1.0, 48000, 11000.0) + tone(1.0, 48000, 500.0, 0.1), 48000)
    np.testing.assert_allclose(load_audio(file)[2000:14000], tone(1.0, hz=500.0, peak=0.1)[2000:14000], atol=2e-3)


def test_stereo_becomes_the_mean_of_its_channels(tmp_path: Path) -> None:
    file = write(tmp_path / "a.wav", np.stack([tone(peak=0.6), tone(peak=0.2)], axis=1), subtype="PCM_24")
    np.testing.assert_allclose(load_audio(file), tone(peak=0.4), atol=1e-4)
    assert inspect_audio(file).channels == 2


def test_a_clip_longer_than_a_block_is_whole(tmp_path: Path) -> None:
    stereo = noise(25.0).reshape(-1, 2)
    np.testing.assert_allclose(load_audio(write(tmp_path / "a.wav", stereo)), stereo.mean(axis=1), atol=1e-4)


def claiming(path: Path, frames: int) -> Path:
    """A FLAC of a second whose header claims so many samples; 0: that it does not know."""
    soundfile.write(path, tone(1.0), 16000, format="FLAC")
    content = bytearray(path.read_bytes())
    packed = int.from_bytes(content[18:26], "big")  # STREAMINFO: rate 20, channels 3, bits 5, samples 36 bits
    content[18:26] = ((packed >> 36 << 36) | frames).to_bytes(8, "big")
    path.write_bytes(content)
    return path


def half(path: Path, ending: str = "wav", **knobs: Any) -> Path:
    soundfile.write(path, noise(2.0), 16000, format=ending.upper(), **knobs)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def spiked(value: float) -> NDArray[np.float64]:
    return np.where(np.arange(8000) == 5000, value, tone())


BAD: dict[str, tuple[Callable[[Path], object], Code, str]] = {
    "unreadable": (lambda path: path.write_bytes(b"no audio, whatever its name says" * 20), "damaged",
                   "not readable as audio: "),
    "no bytes": (lambda path: path.touch(), "damaged", "the file is empty (0 bytes)"),
    "no samples": (lambda path: write(path, np.zeros(0)), "empty", "the file holds no samples"),
    "folder": (lambda path: path.mkdir(), "not-found", "there is no such file"),
    "missing": (lambda path: None, "not-found", "there is no such file"),
    "silent": (lambda path: write(path, np.zeros(16000)), "bad-value", "silent: its RMS is 0.0e+00"),
    "nearly silent": (lambda path: write(path, tone(peak=1.3e-4), subtype="FLOAT"), "bad-value",
                      "silent: its RMS is 9.2e-05"),
    "cancelling": (lambda path: write(path, np.stack([tone(), -tone()], axis=1)), "bad-value",
                   "its channels cancel each other"),
    "short": (lambda path: write(path, tone(0.05)), "bad-value", "too short: 0.050 s, at least 0.1 s are needed"),
    "not a number": (lambda path: write(path, spiked(np.nan), subtype="FLOAT"), "nonfinite", "not finite"),
    "infinite": (lambda path: write(path, spiked(np.inf), subtype="FLOAT"), "nonfinite", "not finite"),
    "unscaled": (lambda path: write(path, tone() * 32768, subtype="FLOAT"), "bad-value",
                 "not scaled to [-1, 1]: its samples reach 163"),
    "claiming a minute": (lambda path: claiming(path, 60 * 16000), "damaged",
                          "damaged: the header claims 60.00 s, only 1.00 s can be read"),
    "claiming a week": (lambda path: claiming(path, 10**10), "bad-value",
                        "too long: its header claims 625000 s, at most 3600 s are read"),
    "half a flac": (lambda path: half(path, "flac"), "damaged", "damaged: it cannot be decoded to its end"),
    "half a wav": (lambda path: half(path), "damaged",
                   "damaged: its header claims 64000 bytes of samples, 31978 are there"),
}  # fmt: skip


def test_a_clip_may_be_silent_where_nothing_is_said(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", np.zeros(16000))
    with refused("bad-value", "a.wav", AudioError):
        load_audio(tmp_path / "a.wav")
    assert load_audio(tmp_path / "a.wav", silent=True).tolist() == [0.0] * 16000
    write(tmp_path / "b.wav", np.stack([tone(), -tone()], axis=1))
    with refused("bad-value", "b.wav", AudioError):  # there is something, and it is lost
        load_audio(tmp_path / "b.wav", silent=True)


@pytest.mark.parametrize("name", BAD)
def test_an_unusable_clip_is_refused_with_its_name_and_problem(name: str, tmp_path: Path) -> None:
    file, (make, code, problem) = tmp_path / "clip.wav", BAD[name]
    make(file)
    with refused(code, file, AudioError) as caught:
        load_audio(file)
    assert str(file) in str(caught.value) and problem in str(caught.value)
    report = inspect_audio(file)
    assert report.path == file and problem in str(report.problem) and report.warning is None


def test_headerless_samples_are_refused(tmp_path: Path) -> None:
    (tmp_path / "clip.raw").write_bytes(bytes(1000))
    with refused("damaged", "clip.raw"):
        load_audio(tmp_path / "clip.raw")


@pytest.mark.parametrize("ending", ["aiff", "au", "wav", "w64", "rf64", "svx"])
def test_a_clip_that_breaks_off_is_known_by_its_header(tmp_path: Path, ending: str) -> None:
    with refused("damaged", "a.wav", AudioError):
        read_header(half(tmp_path / "a.wav", ending))


@pytest.mark.parametrize(
    ("form", "subtype"),
    [("AVR", "PCM_16"), ("MAT4", "PCM_16"), ("MAT5", "FLOAT"), ("MPC2K", "PCM_16"), ("NIST", "ULAW"), ("SDS", "PCM_16"),
     ("VOC", "PCM_16"), ("CAF", "ALAC_16"), ("HTK", "PCM_16"), ("WAV", "MS_ADPCM"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
     ("MP3", "MPEG_LAYER_III")],
)  # fmt: skip
def test_a_cut_clip_of_a_rare_format_is_damaged_and_a_whole_one_is_read(
    tmp_path: Path, form: str, subtype: str
) -> None:
    file = tmp_path / "clip"
    soundfile.write(file, noise(3.0), 16000, format=form, subtype=subtype)
    assert 48000 <= len(load_audio(file)) <= 49000
    content = file.read_bytes()
    for share in (0.95, 0.5):
        file.write_bytes(content[: int(share * len(content))])
        with refused("damaged", file, AudioError):
            read_header(file)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_written_to_a_pipe_is_whole_though_it_claims_gigabytes(tmp_path: Path, size: int) -> None:
    file = write(tmp_path / "a.wav", tone(1.0))
    content = bytearray(file.read_bytes())
    content[40:44] = struct.pack("<I", size)  # of the data chunk
    file.write_bytes(content)
    assert load_audio(file).shape == (16000,)


def test_a_flac_from_a_pipe_is_whole_though_it_claims_nothing(tmp_path: Path) -> None:
    file = claiming(tmp_path / "a.flac", 0)
    assert read_header(file).frames == len(load_audio(file)) == inspect_audio(file).seconds * 16000 == 16000
    with refused("bad-value", file):
        load_audio(file, max_seconds=0.9)


@pytest.mark.parametrize("frames", [100, 8000, 15999])
def test_a_flac_that_claims_too_little_is_whole(tmp_path: Path, frames: int) -> None:
    file = tmp_path / "a.flac"
    np.testing.assert_allclose(load_audio(claiming(file, frames)), tone(1.0), atol=1e-4)
    assert read_header(file).frames == 16000


def mp3(path: Path, mode: str, seconds: float = 11.0, *, tag: bool) -> NDArray[np.float32]:
    """Write an MP3, whose second half is loud, and return its samples; without the frame that tells its length."""
    loud = np.where(np.arange(int(seconds * 16000)) < seconds * 8000, 0.001, 1) * noise(seconds)
    with soundfile.SoundFile(path, "w", 16000, 1, format="MP3", bitrate_mode=mode, compression_level=0.5) as file:
        file.write(loud)
    samples: NDArray[np.float32] = soundfile.read(path, dtype="float32")[0]
    if not tag:
        head = path.read_bytes()  # MPEG 2, layer 3: 72 bytes a kbit/s of the rate, over the sample rate
        size = 72 * (0, *range(8, 64, 8), *range(64, 176, 16))[head[2] >> 4] * 1000 // 16000 + (head[2] >> 1 & 1)
        path.write_bytes(head[size:])
    return samples


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_without_its_length_is_whole(tmp_path: Path, mode: str) -> None:
    """Then there are encoder delay and padding, too: 1,105 samples at the beginning, and a part of a frame."""
    file = tmp_path / "a.mp3"
    expected, bare = mp3(file, mode, tag=True), tmp_path / "b.mp3"
    mp3(bare, mode, tag=False)
    np.testing.assert_allclose(load_audio(file), expected, atol=1e-6)
    samples = load_audio(bare)
    np.testing.assert_allclose(samples[1105 : 1105 + len(expected)], expected, atol=1e-6)
    assert read_header(bare).frames == len(samples) == -(-(len(expected) + 1105) // 576) * 576
    tagged = tmp_path / "c.mp3"
    tagged.write_bytes(b"ID3\4\0\0\0\0\x02\0" + bytes(256) + bare.read_bytes() + b"TAG" + bytes(125))
    np.testing.assert_array_equal(load_audio(tagged), samples)


@pytest.mark.parametrize("tag", [True, False])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("seconds", [1.5, 11.0])
def test_an_mp3_that_breaks_off_has_nothing_that_was_not_in_it(
    tmp_path: Path, mode: str, seconds: float, tag: bool
) -> None:
    file = tmp_path / "a.mp3"
    mp3(file, mode, seconds, tag=tag)
    whole, content = load_audio(file), file.read_bytes()
    for share in (0.3, 0.5, 0.9):
        file.write_bytes(content[: int(share * len(content))])
        try:
            samples = load_audio(file)
        except AudioError as error:
            assert error.code == "damaged"
        else:  # a whole number of frames, by chance
            assert not tag and len(samples) < len(whole)
            np.testing.assert_array_equal(samples[:-1152], whole[: len(samples) - 1152])


@pytest.mark.parametrize(("ending", "subtype"), FORMATS)
def test_a_clip_decoded_twice_gives_the_same_samples_with_other_work_between(
    tmp_path: Path, ending: str, subtype: str
) -> None:
    """Cut or whole; and never more of them than in the whole file."""
    file = tmp_path / f"a.{ending}"
    soundfile.write(file, noise(3.0), 16000, format=ending.upper(), subtype=subtype)
    content, whole = file.read_bytes(), len(load_audio(file))
    for share in (1.0, 0.9, 0.5):
        file.write_bytes(content[: int(share * len(content))])
        tries = []
        for level in (0.1, 1.0, 1e9):
            np.full(70_000, level, np.float32)  # memory that a decoder may be given next
            try:
                tries.append(load_audio(file).tobytes())
            except AudioError as error:
                tries.append(str(error).encode())
        assert len(set(tries)) == 1 and len(tries[0]) <= 4 * whole


def test_the_longest_length_is_the_callers(tmp_path: Path) -> None:
    file = write(tmp_path / "a.wav", tone(2.0))
    assert load_audio(file, max_seconds=2.0).shape == (32000,)
    with refused("bad-value", file):
        load_audio(file, max_seconds=1.9)


def test_clipping_is_a_warning_and_the_clip_still_loads(tmp_path: Path) -> None:
    file = write(tmp_path / "a.wav", np.clip(tone(peak=1.5), -1, 1))
    report = inspect_audio(file)
    assert report.problem is None and "clipped: 5" in str(report.warning)  # (2 / pi) arccos(1 / 1.5) = 53.5 %
    assert report.clipped_share == pytest.approx(0.535, abs=0.01) and report.peak == pytest.approx(1.0)
    assert load_audio(file).shape == (8000,)


def test_full_scale_is_not_yet_clipping(tmp_path: Path) -> None:
    assert inspect_audio(write(tmp_path / "a.wav", tone(peak=32767 / 32768))).warning is None


def test_a_report_has_the_measures_of_the_clip(tmp_path: Path) -> None:
    report = inspect_audio(write(tmp_path / "a.wav", tone(0.5, 8000), 8000, "PCM_24"))
    assert (report.seconds, report.sample_rate, report.channels, report.subtype) == (0.5, 8000, 1, "PCM_24")
    assert report.peak == pytest.approx(0.5, abs=1e-3) and report.rms == pytest.approx(0.5 / np.sqrt(2), abs=1e-3)
    assert report.clipped_share == 0 and report.problem is None and report.warning is None


def test_the_header_alone_tells_length_and_format(tmp_path: Path) -> None:
    header = read_header(write(tmp_path / "a.wav", np.zeros((4000, 2)), 8000, "PCM_24"))
    assert header == (4000, 8000, 2, "PCM_24") and header.seconds == 0.5
