"""Tones of known pitch and loudness, and clips of known tempo, get the labels that the published rules give them."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from tests.helpers.errors import refused

from sottovoce.cli.main import main
from sottovoce.data import acoustic_labels
from sottovoce.data.acoustic_labels import Measured, label_manifest, levels, measure
from sottovoce.errors import Code, ManifestError

RATE = 16000


def voice(hz: float, rms: float, seconds: float = 1.0, rate: int = RATE) -> NDArray[np.float32]:
    """A buzz of ten harmonics, falling by 6 dB an octave, as vowels do."""
    at = np.arange(int(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * hz * k * at) / k for k in range(1, 11))
    return np.asarray(wave * (rms / np.sqrt(np.mean(np.square(wave)))), dtype=np.float32)


def manifest(folder: Path, *lines: object) -> Path:
    path = folder / "m.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), "utf-8")
    return path


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("rate", [8000, 16000, 22050])
@pytest.mark.parametrize("hz", [90.0, 165.0, 330.0])
def test_pitch_is_measured_in_hertz_at_any_sample_rate(hz: float, rate: int) -> None:
    assert measure(voice(hz, 0.1, 0.5, rate), rate, None).f0_hz == pytest.approx(hz, rel=0.01)


def test_loudness_is_the_rms_of_full_scale() -> None:
    # The first and the last frame are half outside of the clip: they have 1/sqrt(2) of the rest.
    assert measure(voice(150, 0.05, 2.0), RATE, None).rms == pytest.approx(0.05, rel=0.03)


def test_noise_is_not_voiced() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, RATE // 2).astype(np.float32)
    assert measure(noise, RATE, None).f0_hz is None


def test_tempo_counts_words_and_leaves_silence_at_the_ends_out() -> None:
    silence = np.zeros(RATE, np.float32)
    clip = np.concatenate([silence, voice(150, 0.05, 1.2), silence])
    assert measure(clip, RATE, "it's a - train, now!").seconds_per_word == pytest.approx(0.3, abs=0.05)
    assert measure(clip, RATE, None).seconds_per_word is None
    assert measure(clip, RATE, "... !").seconds_per_word is None


def test_pauses_between_words_belong_to_the_tempo() -> None:
    word = voice(150, 0.05, 0.3)
    clip = np.concatenate([word, np.zeros(RATE, np.float32), word])
    assert measure(clip, RATE, "well well").seconds_per_word == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    ("label", "hz", "rms"), [("low", 120.0, 0.02), ("normal", 165.0, 0.042), ("high", 215.0, 0.08)]
)
def test_a_tone_gets_its_levels_of_pitch_and_energy(label: str, hz: float, rms: float) -> None:
    assert levels(measure(voice(hz, 0.04, 0.5), RATE, None))["pitch"] == label
    assert levels(measure(voice(150, rms, 0.5), RATE, None))["energy"] == label


@pytest.mark.parametrize(
    ("name", "cuts", "published", "names"),
    [
        ("pitch", acoustic_labels.PITCH_HZ, (136.58, 196.10), ("low", "normal", "high")),
        ("energy", acoustic_labels.ENERGY_RMS, (0.0333, 0.0505), ("low", "normal", "high")),
        ("tempo", acoustic_labels.TEMPO_SECONDS, (0.252, 0.386), ("fast", "normal", "slow")),
    ],
)
def test_levels_are_cut_at_the_published_thresholds(
    name: str, cuts: tuple[float, float], published: tuple[float, float], names: tuple[str, str, str]
) -> None:
    assert cuts == pytest.approx(published, rel=2e-3)

    def label(value: float) -> str:
        measured = {"pitch": Measured(value, 0.04, None), "energy": Measured(None, value, None)}
        return levels(measured.get(name, Measured(None, 0.04, value)))[name]

    below, above = np.nextafter(cuts[0], 0), np.nextafter(cuts[1], np.inf)
    assert [label(value) for value in (below, *cuts, above)] == [names[0], names[1], names[1], names[2]]


def test_what_was_not_measured_gets_no_label() -> None:
    assert levels(Measured(None, 0.04, None)) == {"energy": "normal"}


def test_a_manifest_gets_the_labels_that_its_lines_lack(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", voice(230, 0.08, 1.0), RATE)
    whole = {"pitch": "low", "tempo": "slow", "energy": "low"}
    source = manifest(
        tmp_path,
        {"id": "a", "audio": "a.wav", "text": "née à Genève, oui oui", "speaker": "s"},
        {"id": "b", "audio": "a.wav", "text": "one two", "labels": {"pitch": "low", "emotion": "sad"}},
        {"id": "c", "audio": "none.wav", "labels": whole},  # not even opened
    )
    before = source.read_bytes()
    result = label_manifest(source, tmp_path / "out.jsonl")
    first, second, third = lines_of(result.out)
    assert first["labels"] == {"pitch": "high", "tempo": "fast", "energy": "high"}
    assert [first[key] for key in ("id", "audio", "text", "speaker")] == ["a", "a.wav", "née à Genève, oui oui", "s"]
    assert second["labels"] == {"pitch": "low", "emotion": "sad", "tempo": "slow", "energy": "high"}
    assert third["labels"] == whole
    assert (result.added, result.kept, result.faults) == (5, 4, [])
    assert "née à Genève" in result.out.read_text("utf-8")  # for people to read
    assert source.read_bytes() == before


def test_clips_that_cannot_be_measured_are_named_and_kept(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).normal(0, 0.05, RATE // 2), RATE)
    source = manifest(
        tmp_path,
        {"id": "a", "audio": "silent.wav"},
        {"id": "b", "audio": "noise.wav"},
        {"id": "c", "audio": "text.wav", "labels": {"emotion": "sad"}},
    )
    (tmp_path / "text.wav").write_text("no audio")
    result = label_manifest(source, tmp_path / "out.jsonl")
    *found, last = [str(fault).removeprefix(f"{source}:") for fault in result.faults]
    assert last.startswith(f"3: c: not measured: {tmp_path}/text.wav: not readable as audio")
    assert found == [
        f"1: a: not measured: {tmp_path}/silent.wav: silent: its RMS is 0.0e+00, below 0.0001 of full scale",
        "2: b: pitch: no frame is voiced; tempo: no word in a transcript",
    ]
    told = str(result).splitlines()
    assert told[0] == f"{result.out}: 1 labels added, 0 kept, 3 clips not fully measured"
    assert told[1:] == [str(fault) for fault in result.faults]
    first, second, third = lines_of(result.out)
    assert "labels" not in first and second["labels"] == {"energy": "normal"} and third["labels"] == {"emotion": "sad"}
    assert (result.added, result.kept) == (1, 0)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{", "damaged"),
        ({"id": "a"}, "bad-value"),
        ({"id": "a", "audio": "a.wav", "text": 3}, "bad-value"),
        ({"id": "a", "audio": "a.wav", "labels": ["sad"]}, "bad-value"),
    ],
)
def test_a_broken_manifest_is_refused_and_nothing_is_written(line: object, code: Code, tmp_path: Path) -> None:
    with refused(code, "m.jsonl:1", ManifestError):
        label_manifest(manifest(tmp_path, line), tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]


def test_clips_that_are_not_there_are_refused_in_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever their number; --root says where they are, and then the copy may lie anywhere."""
    (tmp_path / "clips").mkdir()
    soundfile.write(tmp_path / "clips/a.wav", np.random.default_rng(0).normal(0, 0.05, RATE), RATE)
    source = manifest(tmp_path, *({"id": f"u{i}", "audio": "a.wav"} for i in range(300)))
    out = tmp_path / "lists/out.jsonl"
    out.parent.mkdir()
    with refused("not-found", f"{source}:1", ManifestError):
        label_manifest(source, out.with_name("x.jsonl"), root=tmp_path)
    assert main(["label", str(source), "--out", str(tmp_path / "out.jsonl")]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and "300 of 300" in told and "--root" in told
    assert not (tmp_path / "out.jsonl").exists()
    source = manifest(tmp_path, {"id": "u", "audio": "a.wav", "own": 1})
    assert main(["label", str(source), "--out", str(out), "--root", str(tmp_path / "clips")]) == 0
    (line,) = lines_of(out)
    assert line["own"] == 1 and "energy" in str(line["labels"])


def test_the_copy_is_another_file_in_the_same_folder(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", voice(110, 0.04, 0.3), RATE)
    source = manifest(tmp_path, {"id": "a", "audio": "a.wav"})
    (tmp_path / "sub").mkdir()
    for out in (tmp_path / "sub" / ".." / "m.jsonl", tmp_path / "sub" / "out.jsonl"):
        with refused("conflict", out, ManifestError):
            label_manifest(source, out)
    assert label_manifest(source, tmp_path / "sub" / "out.jsonl", root=tmp_path).out.exists()


def test_several_processes_write_what_one_writes(tmp_path: Path) -> None:
    for hz in (110, 220):
        soundfile.write(tmp_path / f"{hz}.wav", voice(hz, 0.04, 0.3), RATE)
    source = manifest(tmp_path, *({"id": f"{hz}", "audio": f"{hz}.wav", "text": "one"} for hz in (110, 220)))
    label_manifest(source, tmp_path / "one.jsonl")
    label_manifest(source, tmp_path / "two.jsonl", workers=2)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
