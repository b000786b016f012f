"""Every odd clip is either loaded faithfully or refused with its problem."""

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from sottovoce.data.audio import check_audio, inspect_audio, load_audio, read_header
from sottovoce.errors import AudioError


def tone(seconds: float = 0.5, rate: int = 16000, hz: float = 440.0, peak: float = 0.5) -> NDArray[np.float64]:
    return peak * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)


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
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (200_000, 2))
    np.testing.assert_allclose(load_audio(write(tmp_path / "a.wav", noise)), noise.mean(axis=1), atol=1e-4)


def unreadable(path: Path) -> None:
    path.write_bytes(b"this is not audio at all, whatever its name says" * 20)


def no_bytes(path: Path) -> None:
    path.touch()


def no_samples(path: Path) -> None:
    write(path, np.zeros(0))


def folder(path: Path) -> None:
    path.mkdir()


def missing(path: Path) -> None:
    pass


def silent(path: Path) -> None:
    write(path, np.zeros(16000))


def nearly_silent(path: Path) -> None:
    write(path, tone(peak=1.3e-4), subtype="FLOAT")


def cancelling(path: Path) -> None:
    write(path, np.stack([tone(), -tone()], axis=1))


def fifty_milliseconds(path: Path) -> None:
    write(path, tone(0.05))


def not_a_number(path: Path) -> None:
    write(path, np.where(np.arange(8000) == 5000, np.nan, tone()), subtype="FLOAT")


def infinite(path: Path) -> None:
    write(path, np.where(np.arange(8000) == 5000, np.inf, tone()), subtype="FLOAT")


def unscaled(path: Path) -> None:
    write(path, tone() * 32768, subtype="FLOAT")


def raw(path: Path) -> None:
    path.with_suffix(".raw").write_bytes(bytes(1000))


def claiming(path: Path, frames: int) -> None:
    soundfile.write(path, tone(1.0), 16000, format="FLAC")
    content = bytearray(path.read_bytes())
    packed = int.from_bytes(content[18:26], "big")  # STREAMINFO: rate 20, channels 3, bits 5, samples 36 bits
    content[18:26] = ((packed >> 36 << 36) | frames).to_bytes(8, "big")
    path.write_bytes(content)


def claiming_a_week(path: Path) -> None:
    claiming(path, 10**10)


def claiming_a_minute(path: Path) -> None:
    claiming(path, 60 * 16000)


def broken_off(path: Path) -> None:
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 32000), 16000, format="FLAC")
    path.write_bytes(path.read_bytes()[:20000])


def half_a_wav(path: Path) -> None:
    content = write(path, tone()).read_bytes()
    path.write_bytes(content[: len(content) // 2])


BAD = {
    unreadable: "not readable as audio: ",
    no_bytes: "the file is empty (0 bytes)",
    no_samples: "the file holds no samples",
    folder: "there is no such file",
    missing: "there is no such file",
    silent: "silent: its RMS is 0.0e+00",
    nearly_silent: "silent: its RMS is 9.2e-05",
    cancelling: "silent: ",
    fifty_milliseconds: "too short: 0.050 s, at least 0.1 s are needed",
    not_a_number: "not finite",
    infinite: "not finite",
    unscaled: "not scaled to [-1, 1]: its samples reach 163",
    claiming_a_minute: "damaged: it cannot be decoded to its end",
    claiming_a_week: "too long: its header claims 625000 s, at most 3600 s are read",
    broken_off: "damaged: it cannot be decoded to its end",
    half_a_wav: "damaged: its header claims 16000 bytes of samples, 7978 are there",
}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_an_unusable_clip_is_refused_with_its_name_and_problem(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "clip.wav"
    make(file)
    with pytest.raises(AudioError) as raised:
        load_audio(file)
    assert str(file) in str(raised.value) and BAD[make] in str(raised.value)
    report = inspect_audio(file)
    assert report.path == file and BAD[make] in str(report.problem) and report.warning is None


def test_headerless_samples_are_refused(tmp_path: Path) -> None:
    raw(tmp_path / "clip.wav")
    assert "not readable as audio" in str(inspect_audio(tmp_path / "clip.raw").problem)


@pytest.mark.parametrize("ending", ["aiff", "au", "wav"])
def test_a_clip_that_breaks_off_is_known_by_its_header(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"a.{ending}"
    half_a_wav(file)
    with pytest.raises(AudioError, match=r"damaged: its header claims \d+ bytes of samples, \d+ are there"):
        read_header(file)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_written_to_a_pipe_is_whole_though_it_claims_gigabytes(tmp_path: Path, size: int) -> None:
    file = write(tmp_path / "a.wav", tone(1.0))
    content = bytearray(file.read_bytes())
    content[40:44] = struct.pack("<I", size)  # of the data chunk
    file.write_bytes(content)
    assert load_audio(file).shape == (16000,)


def test_a_decoder_that_stops_early_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.wav", tone(1.0))
    monkeypatch.setattr(soundfile.SoundFile, "blocks", lambda *_, **__: iter([np.full((8000, 1), 0.1, np.float32)]))
    assert inspect_audio(file).problem == "damaged: the header claims 1.00 s, only 0.50 s can be read"


def test_the_longest_length_is_the_callers(tmp_path: Path) -> None:
    file = write(tmp_path / "a.wav", tone(2.0))
    assert load_audio(file, max_seconds=2.0).shape == (32000,)
    with pytest.raises(AudioError, match=r"too long: its header claims 2 s, at most 1\.9 s are read"):
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


def test_many_clips_are_reported_in_the_order_given(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.wav", tone(0.2 + 0.1 * i)) for i in range(6)]
    paths.insert(3, tmp_path / "missing.wav")
    reports = check_audio(paths, workers=3)
    assert [report.path for report in reports] == paths
    assert [report.problem is None for report in reports] == [True] * 3 + [False] + [True] * 3


def test_the_header_alone_tells_length_and_format(tmp_path: Path) -> None:
    header = read_header(write(tmp_path / "a.wav", np.zeros((4000, 2)), 8000, "PCM_24"))
    assert header == (4000, 8000, 2, "PCM_24") and header.seconds == 0.5
