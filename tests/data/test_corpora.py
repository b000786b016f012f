"""Published corpora become manifests: official splits, and every file that is missing, extra or damaged by its name."""

import contextlib
import json
import os
import shutil
from argparse import Namespace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import soundfile
from pyarrow import parquet
from tests.helpers.corpora import FFMPEG, kept, librispeech, meld, read, table, text, textrolspeech, tone, write
from tests.helpers.errors import refused

from sottovoce import registry
from sottovoce.cli.main import main
from sottovoce.data.corpora import CORPORA
from sottovoce.data.corpora.published import Published
from sottovoce.data.tasks import style_caption
from sottovoce.errors import ConfigError, MissingError
from sottovoce.generation.prepare import prepare


def test_librispeech_in_its_parts(source: Path, out: Path) -> None:
    librispeech(source / "LibriSpeech")
    report = write("librispeech", source, out)
    assert {name: split.lines for name, split in report.splits.items()} == {
        "train": 4, "validation": 4, "test-clean": 2, "test-other": 2
    }  # fmt: skip
    assert report.problems == {"missing part": ["train-clean-360"]}
    assert [report.splits[name].expected for name in ("train", "test-clean")] == [281_241, 2_620]
    first = read(out, "test-clean")["4-7-0000"]
    assert (first.text, first.speaker, first.seconds) == ("it rained on 0", "librispeech-4", 0.4)
    assert first.audio.resolve() == (source / "LibriSpeech/test-clean/4/7/4-7-0000.flac").resolve()
    assert (first.labels, style_caption(first)) == ({"gender": "female"}, "A female voice.")
    assert read(out, "train")["1-7-0001"].labels == {"gender": "male"}
    assert not read(out, "test-other")["5-7-0000"].labels  # of whom SPEAKERS.TXT says nothing
    write("librispeech", source / "LibriSpeech", out, case="original")
    assert read(out, "train")["0-7-0000"].text == "IT RAINED ON 0"


def test_librispeech_without_its_speakers_has_no_labels(source: Path, out: Path) -> None:
    librispeech(source)
    (source / "SPEAKERS.TXT").write_text("0 | ? | x\n")
    assert write("librispeech", source, out).problems["faulty row"] == ["SPEAKERS.TXT:1: '0 | ? | x'"]
    (source / "SPEAKERS.TXT").unlink()
    assert write("librispeech", source, out).problems["missing"] == ["SPEAKERS.TXT"]
    assert not read(out, "train")["0-7-0000"].labels


def test_what_is_missing_extra_or_damaged_is_counted_and_named_and_in_no_manifest(source: Path, out: Path) -> None:
    librispeech(source)
    chapter = source / "test-other/5/7"
    whole = (chapter / "5-7-0001.flac").read_bytes()
    (chapter / "5-7-0000.flac").unlink()
    (chapter / "5-7-0001.flac").write_bytes(whole[: len(whole) // 2])  # its header still claims all of it
    tone(chapter / "5-7-0002.flac")
    (source / "dev-clean/2/7/2-7-0000.flac").write_bytes(b"")
    (source / "dev-other/3/7/3-7.trans.txt").unlink()
    with (source / "train-clean-100/0/7/0-7.trans.txt").open("a") as stream:
        stream.write("0-7-0009\n")
    report = write("librispeech", source, out)
    assert {kind: len(names) for kind, names in report.problems.items()} == {
        "missing part": 1, "missing": 2, "damaged": 2, "extra": 3, "faulty row": 1, "empty split": 1
    }  # fmt: skip
    named = report.problems
    assert named["missing"] == ["dev-other/3/7/3-7.trans.txt", "test-other/5/7/5-7-0000.flac"]
    assert [name.split(": ")[0] for name in named["damaged"]] == [
        "dev-clean/2/7/2-7-0000.flac", "test-other/5/7/5-7-0001.flac"
    ]  # fmt: skip
    assert "test-other/5/7/5-7-0002.flac" in named["extra"] and named["empty split"] == ["test-other"]
    assert not (out / "test-other.jsonl").exists() and list(read(out, "validation")) == ["2-7-0001"]
    assert kept(out)["problems"]["damaged"] == {"count": 2, "names": named["damaged"]}
    assert "damaged: 2" in str(report) and "dev-clean/2/7/2-7-0000.flac: the file is empty" in str(report)


def test_a_second_call_finds_everything_in_place_and_the_command_does_it_again(source: Path, out: Path) -> None:
    librispeech(source)
    corpus = CORPORA.build({"type": "librispeech", "source": str(source)})
    made = corpus.prepare(out)
    assert set(made) == {"train", "validation", "test-clean", "test-other"}
    before = made["train"].read_bytes()
    assert main(["prepare", "librispeech", "--source", str(source), "--out", str(out)]) == 0
    assert (out / "train.jsonl").read_bytes() == before
    shutil.rmtree(source / "train-clean-100")
    assert corpus.prepare(out) == made and made["train"].read_bytes() == before
    other = CORPORA.build({"type": "librispeech", "source": str(source), "case": "original"}).prepare(out)
    assert other["train"] != made["train"] and b"IT RAINED" in other["train"].read_bytes()
    assert main(["prepare", "librispeech", "--source", str(source), "--out", str(out)]) == 0
    assert len(read(out, "train")) == 2


def test_an_interrupted_call_is_not_taken_for_a_finished_one(source: Path, out: Path) -> None:
    librispeech(source)
    corpus = CORPORA.build({"type": "librispeech", "source": str(source)})
    made = corpus.prepare(out)
    (made["train"].parent / "report.json").unlink()  # it is written last
    made["train"].write_text("")
    assert corpus.prepare(out) == made and len(read(made["train"].parent, "train")) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("librispeech --source nowhere", "nowhere is no folder"),
        ("librispeech", "say where it was unpacked: --source"),
        ("libri --source .", "no corpus is called 'libri'. Did you mean 'librispeech'"),
        ("librispeech --source . cas=lower", "cas"),
        ("demo_world --source .", "takes no --source"),
        ("textrolspeech --source . test=0.6 validation=0.6", "together below 1"),
    ],
)
def test_a_wrong_command_is_told_in_a_line(words: str, message: str, tmp_path: Path, capsys: Any) -> None:
    with contextlib.chdir(tmp_path):
        assert main(["prepare", *words.split(), "--out", "m"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told and message in " ".join(told.split())


@pytest.mark.parametrize("name", [name for name in CORPORA.names() if "source" in CORPORA.knobs(name)])
def test_a_folder_without_the_corpus_is_refused(name: str, source: Path, out: Path) -> None:
    source.mkdir()
    with pytest.raises(MissingError) as caught:
        write(name, source, out)
    assert caught.value.where == str(source)
    assert not (out / "report.json").exists()


def test_textrolspeech_splits_by_speaker_in_each_of_its_corpora(source: Path, out: Path) -> None:
    rows = textrolspeech(source)
    table(source / "caption/random_train.csv", rows)
    report = write("textrolspeech", source, out)
    sides = {split: read(out, split) for split in ("train", "validation", "test")}
    assert {name: len(lines) for name, lines in sides.items()} == {"train": 12, "validation": 2, "test": 2}
    speakers = [{u.speaker for u in lines.values()} for lines in sides.values()]
    assert not speakers[0] & speakers[1] and not speakers[0] & speakers[2] and not speakers[1] & speakers[2]
    for lines in sides.values():  # the rare emotion is on every side
        assert {u.labels["emotion"] for u in lines.values()} == {"sad", "neutral"}
    line = next(u for u in sides["train"].values() if u.labels["emotion"] == "sad")
    assert line.labels == {"gender": "female", "pitch": "low", "tempo": "fast", "energy": "normal", "emotion": "sad"}
    assert line.caption and line.caption.startswith("A voice, ") and line.text == "Hello."
    assert report.problems == {"missing": ["random_test.csv"], "empty split": ["official-test"]}
    before = {split: list(lines) for split, lines in sides.items()}
    write("textrolspeech", source, out)
    assert {split: list(read(out, split)) for split in sides} == before
    write("textrolspeech", source, out, seed=1)
    assert {split: list(read(out, split)) for split in sides} != before


def test_textrolspeech_names_rows_that_it_cannot_use(source: Path, out: Path) -> None:
    rows = textrolspeech(source)
    rows[0]["emotion"] = "joyous"
    rows[1]["wav_fp"] = "/their/gone.wav"
    table(source / "caption/random_train.csv", [*rows, {**rows[2], "style_prompt": "Again."}])
    table(source / "caption/random_test.csv", [rows[3]])
    report = write("textrolspeech", source, out)
    assert report.problems["unknown label"] == ["emotion 'joyous' (random_train.csv:2)"]
    assert report.problems["missing"] == ["/their/gone.wav (random_train.csv:3)"]
    assert len(report.problems["a clip's second caption"]) == 1 and len(report.problems["extra"]) == 2
    official = read(out, "official-test")
    assert len(official) == 1
    for split in ("train", "validation", "test"):  # the official test side is not trained on
        assert not official.keys() & read(out, split).keys()


def test_meld_takes_the_sound_out_of_videos_once(source: Path, out: Path, tmp_path: Path) -> None:
    meld(source)
    (source / "train_splits/dia3_utt1.mp4").write_text("broken")
    (source / "dev_splits_complete/dia3_utt2.mp4").unlink()  # the same name is in another folder
    (source / "output_repeated_splits_test/final_videos_testdia3_utt0.mp4").write_text("video")
    with refused("unavailable", tmp_path / "ffmpeg", MissingError):
        write("meld", source, out, ffmpeg=str(tmp_path / "ffmpeg"))
    (tmp_path / "tone.raw").write_bytes(soundfile.read(tone(tmp_path / "tone.flac"), dtype="int16")[0].tobytes())
    (tmp_path / "ffmpeg").write_text(FFMPEG)
    (tmp_path / "ffmpeg").chmod(0o755)
    report = write("meld", source, out, ffmpeg=str(tmp_path / "ffmpeg"))
    assert report.problems == {
        "missing": ["dev_splits_complete/dia3_utt2.mp4 (dev_sent_emo.csv:4)"],
        "damaged": ["train_splits/dia3_utt1.mp4: dia3_utt1.mp4: moov atom not found"],
        "extra": ["output_repeated_splits_test/final_videos_testdia3_utt0.mp4"],
    }
    assert {name: (s.lines, s.expected) for name, s in report.splits.items()} == {
        "train": (2, 9_989), "validation": (2, 1_109), "test": (3, 2_610)
    }  # fmt: skip
    line = read(out, "test")["test-dia3_utt2"]
    assert (line.labels, line.text, line.speaker) == ({"emotion": "surprised"}, "You\u2019re here!", "meld-Joey")
    (source / "train_splits/dia3_utt1.mp4").write_text("video")
    os.remove(tmp_path / "ffmpeg")
    with refused("unavailable", tmp_path / "ffmpeg", MissingError):  # one clip is still to be made
        write("meld", source, out, ffmpeg=str(tmp_path / "ffmpeg"))
    (source / "train_splits/dia3_utt1.mp4").unlink()
    assert write("meld", source, out, ffmpeg=str(tmp_path / "ffmpeg")).splits["test"].lines == 3  # the others are there


def expresso(source: Path) -> None:
    audio = source / "audio_48khz"
    for name in ("ex01_happy_00001", "ex01_happy_00002"):
        tone(audio / "read/ex01/happy/base" / f"{name}.wav")
    tone(audio / "read/ex02/default/longform/ex02_default_longform_00001.wav", 3.0)
    tone(audio / "conversational/ex04-ex03/animal-animaldir/ex04-ex03_animal-animaldir_001.wav", 20.0, channels=2)
    text(source / "read_transcriptions.txt", "ex01_happy_00001\tGood day.", "ex01_happy_00002\tSo long!")
    dialogue = "ex04-ex03_animal-animaldir_001"
    text(
        source / "VAD_segments.txt",
        "#VAD",
        "ex02_default_longform_00001\t(0.0, 1.0) (1.2, 1.4) (2.0, 3.0)",
        f"{dialogue}/channel1\t(0.0, 2.0) (18.0, 19.0)",
        f"{dialogue}/channel2\t(1.0, 17.0)",
    )
    text(source / "splits/train.txt", "# head", "ex01_happy_00001", f"{dialogue}\t(1.5s,)", "ex03_gone_00001")
    text(source / "splits/dev.txt", "ex02_default_longform_00001")
    text(source / "splits/test.txt", "ex01_happy_00002", f"{dialogue}\t(,1.5s)")


def test_expresso_cuts_long_recordings_by_channel_inside_of_their_split(source: Path, out: Path) -> None:
    expresso(source)
    report = write("expresso", source, out)
    assert report.problems == {"missing": ["ex03_gone_00001.wav (splits/train.txt:4)"]}
    train, dev, test = (read(out, split) for split in ("train", "validation", "test"))
    lengths = {name: round(u.seconds, 3) for name, u in train.items()}
    dialogue = "ex04-ex03_animal-animaldir_001"
    assert lengths == {
        "ex01_happy_00001": 0.4,
        f"{dialogue}-1-0001500": 0.5,  # of 0.0 to 2.0, from 1.5 on
        f"{dialogue}-1-0018000": 1.0,
        f"{dialogue}-2-0001500": 15.0,  # at most 15 s
        f"{dialogue}-2-0016500": 0.5,
    }
    assert train["ex01_happy_00001"].text == "Good day." and train[f"{dialogue}-2-0001500"].text is None
    assert train["ex01_happy_00001"].labels == {"gender": "male", "emotion": "happy"}
    assert train[f"{dialogue}-2-0001500"].caption == "A male voice in a style that is animal-directed."
    assert train[f"{dialogue}-1-0018000"].labels == {"gender": "female"}  # an animal is no emotion
    assert {round(u.seconds, 3) for u in dev.values()} == {1.0} and len(dev) == 2  # 0.2 s are too short
    assert {u.labels["emotion"] for u in dev.values()} == {"neutral"}
    assert sorted(test) == ["ex01_happy_00002", f"{dialogue}-1-0000000", f"{dialogue}-2-0001000"]
    samples, rate = soundfile.read(train[f"{dialogue}-2-0001500"].audio)  # the second channel has twice the pitch
    assert rate == 16_000 and abs(np.argmax(np.abs(np.fft.rfft(samples[:rate]))) - 400) <= 1
    assert len(read(write("expresso", source, out, conversations=False).out, "train")) == 1


def test_held_out_speakers_are_on_one_side_alone(source: Path, out: Path) -> None:
    """By the command: whatever the official splits, so that a probe has no speaker on both sides."""
    expresso(source)
    words = ["prepare", "expresso", "--source", str(source), "--out", str(out)]
    assert main([*words, "hold_out={validation: [expresso-ex02], test: [ex04]}"]) == 0
    sides = {split: read(out, split).values() for split in ("train", "validation", "test")}
    who = {split: {str(u.speaker).removeprefix("expresso-") for u in side} for split, side in sides.items()}
    assert who == {"train": {"ex01", "ex03"}, "validation": {"ex02"}, "test": {"ex04"}}
    assert sum(map(len, sides.values())) == 10  # as many as without
    assert kept(out)["knobs"]["hold_out"] == {"validation": ["expresso-ex02"], "test": ["ex04"]}
    assert "extra" not in kept(out)["problems"]
    for wanted, code, where in (
        ("{test: [ex09]}", "unknown-name", "hold_out.test"), ("{train: [ex01]}", "bad-value", "hold_out.train"),
        ("{test: 1.5}", "bad-value", "hold_out.test"), ("0.1", "bad-value", "hold_out"),
        ("{test: [ex01], dev: [ex01]}", "conflict", "hold_out.dev"),
        ("{test: [ex01, ex02, ex03, ex04]}", "empty", "hold_out"),
    ):  # fmt: skip
        with refused(code, where, ConfigError):
            overrides = [f"hold_out={wanted}"]
            given = {"source": str(source), "out": str(out), "download": False, "mirror": None}
            prepare(Namespace(corpus="expresso", overrides=overrides, **given))


def test_a_share_of_the_speakers_of_any_corpus_is_held_out(source: Path, out: Path) -> None:
    rows = textrolspeech(source)
    table(source / "caption/random_train.csv", rows)
    corpus = CORPORA.build({"type": "textrolspeech", "source": str(source)})
    assert isinstance(corpus, Published)
    whole = {u.id for split in ("train", "validation", "test") for u in read(corpus.write(out).out, split).values()}
    corpus.hold_out({"test": 0.25, "validation": 0.5})
    report = corpus.write(out)
    sides = {split: read(out, split).values() for split in report.splits if (out / f"{split}.jsonl").is_file()}
    who = {split: {u.speaker for u in side} for split, side in sides.items()}
    count = len(set().union(*who.values()))
    assert sum(map(len, who.values())) == count  # nobody is on two sides
    assert (len(who["test"]), len(who["validation"])) == (round(0.25 * count), round(0.5 * count))
    assert {u.id for side in sides.values() for u in side} == whole


def voicebench(source: Path, tmp_path: Path) -> None:
    sound = tone(tmp_path / "one.wav").read_bytes()
    audio = {"bytes": sound, "path": "one.wav"}
    subsets: dict[str, list[dict[str, Any]]] = {
        "alpacaeval_full/test-00000-of-00001": [{"audio": audio, "prompt": "Why?"}, {"audio": audio, "prompt": "Who?"}],
        "sd-qa/usa-00000-of-00001": [{"audio": audio, "prompt": "Where?", "reference": "Here."}],
        "mtbench/test-00000-of-00001": [{"audio1": audio, "audio2": audio, "turns": ["One?", "Two?"], "id": 81}],
        "ifeval/test-00000-of-00001": [
            {"audio": audio, "prompt": "Say it.", "id": "x7", "instruction_id_list": ["a", "b"]},
            {"audio": None, "prompt": "Say it.", "id": "x8", "instruction_id_list": []},
        ],
    }
    for name, rows in subsets.items():
        file = source / f"{name}.parquet"
        file.parent.mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    (source / "bbh").mkdir()
    (source / "bbh/test-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")


def test_voicebench_comes_out_of_its_tables_with_every_field_kept(source: Path, out: Path, tmp_path: Path) -> None:
    voicebench(source, tmp_path)
    report = write("voicebench", source, out)
    assert {name: split.lines for name, split in report.splits.items()} == {
        "alpacaeval_full": 2, "sd-qa-usa": 1, "mtbench": 1, "ifeval": 1
    }  # fmt: skip
    assert report.splits["alpacaeval_full"].expected == 636
    missing = "alpacaeval commoneval wildvoice openbookqa mmsu advbench"
    assert report.problems["missing subset"] == missing.split()
    assert report.problems["faulty row"] == ["ifeval/test-00000-of-00001.parquet: row 2 of ifeval: no audio"]
    assert report.problems["damaged"][0].startswith("bbh/test-00000-of-00001.parquet: ")
    assert sum(report.notes.values()) == 1  # the dialogue's second turn
    answered = read(out, "sd-qa-usa")["sd-qa-usa-00001"]
    assert (answered.text, answered.response) == ("Where?", "Here.")
    assert read(out, "mtbench")["mtbench-00001"].text == "One?"
    fields = json.loads((out / "ifeval.fields.jsonl").read_text())
    assert fields == {"id": "voicebench-ifeval-00001", "original_id": "x7", "instruction_id_list": ["a", "b"]}


def test_somebodys_own_corpus_plugs_in(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = EntryPoint("mine", "tests.helpers.corpora:Mine", "sottovoce.corpus")
    known = {("sottovoce.corpus", "mine"): [plugin]}
    monkeypatch.setattr(registry, "entry_points", lambda group, name="mine": known.get((group, name), []))
    tone(source / "a.wav")
    tone(source / "deep/b.flac")
    assert main(["prepare", "mine", "--source", str(source), "--out", str(out), "greeting=good day"]) == 0
    assert {name: u.text for name, u in read(out, "train").items()} == {"a": "good day", "b": "good day"}
    assert kept(out)["splits"]["train"]["expected"] == 3 and "mine" in CORPORA.names()
