"""Corpora of recorded children, adults and actors: labels, texts and splits of their official layouts."""

from pathlib import Path

import pytest
from tests.helpers.corpora import choices, crema_d, emodb, read, speechocean762, tone, write
from tests.helpers.errors import refused

from sottovoce.data.corpora import CORPORA
from sottovoce.data.corpora.emodb import SENTENCES as GERMAN
from sottovoce.data.corpora.emodb import SPLITS
from sottovoce.data.corpora.published import Published
from sottovoce.data.manifest import read_manifest
from sottovoce.data.tasks import style_caption
from sottovoce.data.utterance import Utterance


def test_speechocean762_tells_children_from_adults(source: Path, out: Path) -> None:
    speechocean762(source / "speechocean762")
    report = write("speechocean762", source, out)
    assert not report.problems
    assert {name: split.lines for name, split in report.splits.items()} == {"train": 14, "validation": 2, "test": 16}
    test = read(out, "test")
    boy, girl, man, woman = (test[f"100{at}00001"] for at in range(4))
    assert (boy.text, boy.speaker, boy.seconds) == ("we call it bear 1", "speechocean762-1000", 0.4)
    assert [u.labels for u in (boy, girl)] == [{"age": "child"}] * 2  # of 6 and of 15 years
    assert [u.labels for u in (man, woman)] == [  # of 18 and 30
        {"age": "adult", "gender": "male"}, {"age": "adult", "gender": "female"},
    ]  # fmt: skip
    told = [style_caption(u) for u in (boy, girl, man, woman)]
    assert told == ["The voice of a child."] * 2 + ["The voice of a man.", "The voice of a woman."]
    assert boy.clip.resolve().name == "100000001.WAV"
    sides = [{u.speaker for u in read(out, side).values()} for side in ("train", "validation", "test")]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 8
    write("speechocean762", source, out, child_gender=True, validation=0.25)
    assert read(out, "test")["100000001"].labels == {"age": "child", "gender": "male"}
    assert len({u.speaker for u in read(out, "validation").values()}) == 2


def test_speechocean762_names_what_it_cannot_use(source: Path, out: Path) -> None:
    speechocean762(source)
    for name, row in (("text", "000000000"), ("utt2spk", "000000001"), ("spk2age", "0001"), ("spk2gender", "0001")):
        file = source / "train" / name
        file.write_text("".join(f"{line}\n" for line in file.read_text().splitlines() if line.split()[0] != row))
    (source / "train/wav.scp").write_text((source / "train/wav.scp").read_text() + "alone\n")
    (source / "WAVE/SPEAKER0002/000200000.WAV").unlink()
    tone(source / "WAVE/SPEAKER0002/000200009.WAV")
    problems = write("speechocean762", source, out).problems
    assert problems["missing"] == ["WAVE/SPEAKER0002/000200000.WAV"]
    assert problems["faulty row"] == [
        "train/wav.scp:17: 'alone'", "train/text: no row of 000000000", "train/utt2spk: no row of 000000001",
    ]  # fmt: skip
    assert problems["unknown label"] == ["train: age and gender of speaker 0001"] * 2
    extra = ("0000/000000000", "0000/000000001", "0002/000200009")
    assert sorted(problems["extra"]) == [f"WAVE/SPEAKER{name}.WAV" for name in extra]
    lines = {**read(out, "train"), **read(out, "validation")}
    assert not lines["000100000"].labels and style_caption(lines["000100000"]) is None


def emotional(out: Path, split: str) -> dict[str, Utterance]:
    """As a recipe reads it that knows boredom."""
    known = {**choices(), "emotion": [*choices()["emotion"], "bored"]}
    lines = read_manifest(out / f"{split}.jsonl", choices=known, allow=[Path("/")]).utterances
    return {line.id: line for line in lines}


def test_emodb_reads_the_names_of_its_files(source: Path, out: Path) -> None:
    emodb(source)
    tone(source / "wav/99a01Fa.wav")
    report = write("emodb", source, out)
    assert report.problems == {"extra": ["wav/99a01Fa.wav"]}  # no actor of EmoDB's
    assert {name: split.lines for name, split in report.splits.items()} == {"train": 27, "validation": 18, "test": 18}
    test = emotional(out, "test")
    assert {line.id[-2:-1]: line.labels["emotion"] for line in test.values()} == {
        "W": "angry", "L": "bored", "E": "disgusted", "A": "fearful", "F": "happy", "T": "sad", "N": "neutral"
    }  # fmt: skip
    one = test["emodb-08b10Fb"]
    assert (one.text, one.speaker, one.labels["gender"]) == (GERMAN["b10"], "emodb-08", "female")
    assert (
        style_caption(one) == "A happy female voice." and style_caption(test["emodb-03a01Wa"]) == "An angry male voice."
    )
    assert all(SPLITS[u.speaker.partition("-")[2]] == "test" for u in test.values() if u.speaker)
    corpus = CORPORA.build({"type": "emodb", "source": str(source)})
    assert isinstance(corpus, Published)
    corpus.hold_out({"test": ["11"]})
    corpus.write(out)
    assert {u.speaker for u in emotional(out, "test").values()} == {"emodb-11"}


def test_crema_d_holds_out_actors_and_reads_its_tables(source: Path, out: Path) -> None:
    crema_d(source)
    (source / "AudioWAV/1001_DFA_SAD_XX.wav").unlink()
    report = write("crema_d", source, out, test=0.2)
    assert report.problems == {"missing": ["AudioWAV/1001_DFA_SAD_XX.wav"]}
    sides = {split: read(out, split) for split in ("train", "validation", "test")}
    actors = {split: {u.speaker for u in lines.values()} for split, lines in sides.items()}
    assert {split: len(names) for split, names in actors.items()} == {"train": 7, "validation": 1, "test": 2}
    assert len(set.union(*actors.values())) == 10
    lines = {name: line for side in sides.values() for name, line in side.items()}
    one = lines["1002_IEO_ANG_HI"]
    assert (one.text, one.labels) == ("It's eleven o'clock.", {"emotion": "angry", "gender": "female", "age": "adult"})
    assert style_caption(one) == "An angry female voice."
    assert [lines[f"1001_DFA_{code}_XX"].labels["emotion"] for code in ("DIS", "FEA", "HAP", "NEU")] == [
        "disgusted", "fearful", "happy", "neutral"
    ]  # fmt: skip


def test_crema_d_names_what_it_cannot_use_and_does_without_its_list(source: Path, out: Path) -> None:
    crema_d(source)
    (source / "SentenceFilenames.csv").unlink()
    tone(source / "AudioWAV/1001_XYZ_ANG_XX.wav")
    tone(source / "AudioWAV/2001_DFA_ANG_XX.wav")
    problems = write("crema_d", source, out).problems
    assert problems["missing"] == ["SentenceFilenames.csv"]
    assert problems["faulty row"] == ["SentenceFilenames.csv: '1001_XYZ_ANG_XX'"]
    assert problems["unknown label"] == ["gender of actor 2001: ''"]


@pytest.mark.parametrize(
    ("name", "knobs", "where"),
    [
        ("speechocean762", {"validation": 1.0}, "validation"),
        ("crema_d", {"test": 0.5, "validation": 0.5}, "validation"),
        ("librispeech", {"parts": ["train-clean"]}, "parts"),
    ],
)
def test_knobs_that_make_no_sense(name: str, knobs: dict[str, object], where: str, source: Path) -> None:
    with refused("unknown-name" if where == "parts" else "bad-value", where):
        CORPORA.build({"type": name, "source": str(source), **knobs})
