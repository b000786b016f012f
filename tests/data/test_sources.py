"""Data in other formats become manifests: each example of docs/data_formats.md, and what can be wrong with it."""

import gzip
import json
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import soundfile
from tests.conftest import write_lines, write_tone
from tests.helpers.errors import refused
from tests.helpers.examples import commands, shown, write_files

from sottovoce import registry
from sottovoce.cli.main import main
from sottovoce.data.corpora.report import Report
from sottovoce.data.manifest import read_manifest
from sottovoce.data.sources.columns import known_labels
from sottovoce.data.sources.convert import Request, convert
from sottovoce.data.sources.kinds import KINDS, foreign_kind, kind_at
from sottovoce.errors import Code

A1 = {"id": "a1", "audio": "source/a1.wav", "seconds": 1.0}
EXPECTED: dict[str, tuple[str, dict[str, Any]]] = {  # source -> split, its line
    "ages.csv": ("train", json.loads(shown("mine/train.jsonl"))),
    "pets": ("train", {**A1, "text": "sit", "labels": {"gender": "female"}}),
    "moods": ("test", {**A1, "id": "b1", "audio": "source/b1.wav", "labels": {"emotion": "happy"}}),
    "saved": ("train", {**A1, "id": "0000000", "audio": "clips/train/0000000.wav", "text": "sit",
                        "labels": {"emotion": "happy"}}),
    "nemo.json": ("train", {**A1, "audio": "source/a1.wav#t=0.25,0.75", "seconds": 0.5, "text": "sit"}),
    "kaldi": ("train", {"id": "u1", "audio": "source/a1.wav#t=0.25,0.75", "seconds": 0.5,
                        "labels": {"gender": "female"}}),
    "cuts_train.jsonl.gz": ("train", {**A1, "id": "u1", "text": "sit", "speaker": "s1",
                                      "labels": {"gender": "female"}}),
    "chats.jsonl": ("train", {**A1, "response": "At noon.", "extra": {"instruction": "Answer briefly."}}),
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the clips a1.wav to a4.wav, of a second each."""
    monkeypatch.chdir(tmp_path)
    for number in range(1, 5):
        write_tone(tmp_path / f"a{number}.wav", 1.0, 100 + 40 * number)
    return tmp_path


def lines(report: Report, split: str = "train") -> list[dict[str, Any]]:
    return [json.loads(text) for text in report.manifests[split].read_text("utf-8").splitlines()]


def table(file: Path, *rows: str) -> Path:
    file.write_text("\n".join(rows) + "\n")
    return file


def run(source: object, **changes: Any) -> Report:
    return convert(Request(str(source), **changes), Path("mine"))


@pytest.mark.parametrize("source", commands())
def test_each_example_of_the_page_becomes_the_manifest_that_it_should(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its command; and our own reader has nothing to say about it where a recipe allows what is printed."""
    write_files(tmp_path, monkeypatch)
    assert main(commands()[source]) == 0
    split, expected = EXPECTED[source]
    file = tmp_path / "mine" / f"{split}.jsonl"
    assert [json.loads(text) for text in file.read_text().splitlines()] == [expected]
    assert foreign_kind(file) is None
    printed = capsys.readouterr().out
    allow = [tmp_path] if "source/" in expected["audio"] else []
    assert f"{split}: [{{manifest: mine/{split}.jsonl" in printed and ("allow" in printed) == bool(allow)
    manifest = read_manifest(file, choices=known_labels(), allow=allow)
    assert not manifest.notes and manifest.utterances[0].seconds == expected["seconds"]


def test_a_broken_plug_in_stops_no_conversion(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = EntryPoint("accent", "no_such_lab:Accent", "sottovoce.task")
    points = {None: [broken], "accent": [broken]}
    monkeypatch.setattr(registry, "entry_points", lambda group, name=None: points.get(name, []))
    known_labels.cache_clear()
    report = run(table(here / "train.csv", "file,gender", "a1.wav,f"))
    known_labels.cache_clear()
    assert lines(report)[0]["labels"] == {"gender": "female"}
    assert "accent" in caplog.text and "no_such_lab" in caplog.text


@pytest.mark.parametrize("name", ["absent", "lab/absent"])
def test_a_folder_that_is_not_here_is_told_with_the_hub(here: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with refused("not-found", name) as caught:
        run(name)
    assert "no such folder" in str(caught.value) and "hub" in str(caught.value)


def test_every_kind_has_an_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands().keys() == EXPECTED.keys()
    write_files(tmp_path, monkeypatch)
    assert {kind_at(Path(source)) for source in commands()} == KINDS.keys() - {"json"}


@pytest.mark.parametrize("source", sorted({*EXPECTED, "table.jsonl", "list.json", "rows.parquet"} - {"json"}))
def test_a_wrong_kind_of_manifest_is_told_by_name(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that converts it, once, whatever the number of lines."""
    write_files(tmp_path, monkeypatch)
    write_lines(tmp_path / "table.jsonl", [{"file_name": "a1.wav", "sentence": "sit"}])
    (tmp_path / "list.json").write_text(json.dumps([{"id": "x", "audio": "a1.wav"}]))
    if source == "rows.parquet":
        from datasets import load_from_disk

        load_from_disk("saved").to_parquet(source)
    with refused("mismatch", source) as caught:
        read_manifest(Path(source), choices={})
    assert f"sottovoce manifest {source} --out" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_our_own_broken_manifests_are_not_taken_for_others(here: Path) -> None:
    for text in ('{"id": "x", "text": "a"}\n', '{"id": \n', "garbage\n", '{"audio": "a1.wav"}\n', ""):
        assert foreign_kind(table(here / "own.jsonl", text)) is None, text


def test_labels_are_mapped_spelled_as_ours_and_dropped(here: Path) -> None:
    """What no task knows stays where it was asked for, and is told; unasked, it stays aside."""
    rows = ["a1.wav,kid,F,10", "a2.wav,Adult,male_masculine,61", "a3.wav,unknown,,x", "a4.wav,teens,other,99"]
    source = table(here / "t.csv", "path,group,gender,years", *rows)
    values = {"age": {"kid": "child", "unknown": ""}}
    report = run(source, labels={"age": "group"}, values=values)
    assert [line.get("labels") for line in lines(report)] == [
        {"age": "child", "gender": "female"}, {"age": "adult", "gender": "male"}, None, {"age": "teens"}
    ]  # fmt: skip
    assert lines(report)[3]["extra"] == {"gender": "other", "years": "99"}
    assert any("'teens'" in note for note in report.notes) and any("'other'" in note for note in report.notes)
    ranges = {"age": {"0-12": "child", "13-60": "adult", "61-98": "adult", "x": ""}}
    found = [line["labels"].get("age") for line in lines(run(source, labels={"age": "years"}, values=ranges))
             if "labels" in line]  # fmt: skip
    assert found == ["child", "adult", "99"]


def test_splits_by_speaker_are_drawn_by_the_seed_and_share_nobody(here: Path) -> None:
    rows = [f"a{1 + n % 4}.wav,s{n % 10},u{n}" for n in range(40)]
    source = table(here / "t.csv", "path,speaker,id", *rows, "a1.wav,,nobody")
    made = {}
    for seed in (1, 1, 2):
        report = run(source, split_by="speaker", seed=seed, validation=0.3, test=0.4)
        sides = {name: {line["speaker"] for line in lines(report, name)} for name in report.splits}
        assert {name: len(who) for name, who in sides.items()} == {"train": 3, "validation": 3, "test": 4}  # of all
        assert len(set.union(*sides.values())) == 10
        assert [*report.problems] == ["no speaker to split by"] and report.splits["train"].lines == 12
        made.setdefault(seed, sides)
        assert made[seed] == sides
    assert made[1] != made[2]
    assert list(report.splits) == ["train", "validation", "test"]


def test_splits_of_a_column_are_kept_and_stale_ones_go(here: Path) -> None:
    source = table(here / "t.csv", "path,split,fold", "a1.wav,dev,x", "a2.wav,training,y", "a3.wav,../up,x")
    report = run(source)
    assert {name: len(lines(report, name)) for name in report.splits} == {"train": 1, "validation": 1}
    assert report.problems == {"split is no name": ["t.csv:4: ../up"]} and not (here / "up.jsonl").exists()
    (here / "mine/own.jsonl").touch()
    again = run(source, split_column="fold")
    assert list(again.splits) == ["x", "y"]
    assert {name for name in ("train", "validation", "own") if any(f"{name}.jsonl" in n for n in again.notes)} == {
        "train", "validation"
    }  # fmt: skip
    assert {file.name for file in (here / "mine").glob("*.jsonl")} == {"x.jsonl", "y.jsonl", "own.jsonl"}


def test_what_is_left_out_is_named_by_reason(here: Path) -> None:
    (here / "bad.wav").write_bytes(b"RIFF????WAVE")
    source = table(here / "t.csv", "path,text", "a1.wav,hi", "gone.wav,hi", "bad.wav,hi", ",hi", "a2.wav", "a3.wav,a,b")
    report = run(source)
    assert {kind: len(found) for kind, found in report.problems.items()} == {
        "missing": 1, "damaged": 1, "no audio": 1, "malformed row": 2
    }  # fmt: skip
    assert report.problems["missing"] == [f"t.csv:3: {here / 'gone.wav'}"]
    assert json.loads((here / "mine/report.json").read_text())["problems"]["missing"]["count"] == 1
    with refused("empty", source):
        run(table(here / "t.csv", "path", "gone.wav"))


def test_ids_are_those_of_the_source_or_of_the_clip_and_never_twice(here: Path) -> None:
    source = table(here / "t.csv", "path,id", "a1.wav,x", "a2.wav,x", "a3.wav,", "a3.wav,")
    report = run(source)
    assert [line["id"] for line in lines(report)] == ["x", "x-2", "a3", "a3-2"]
    assert any("twice" in note for note in report.notes)


@pytest.mark.parametrize(
    ("code", "where", "changes"),
    [
        ("unknown-name", "columns.text", {"columns": {"text": "sentense"}}),
        ("unknown-name", "columns.txt", {"columns": {"txt": "sentence"}}),
        ("unknown-name", "labels.age", {"labels": {"age": "ages"}}),
        ("unknown-name", "--format", {"kind": "csvs"}),
        ("missing-key", "--split-by", {"test": 0.1}),
        ("conflict", "--split-by", {"split_by": "speaker"}),
        ("bad-value", "validation", {"split_by": "speaker", "validation": 1.0}),
    ],
)
def test_what_cannot_be_meant_is_refused(code: Code, where: str, changes: dict[str, Any], here: Path) -> None:
    source = table(here / "t.csv", "path,sentence,speaker", "a1.wav,hi,s1")
    with refused(code, where):
        run(source, **changes)


@pytest.mark.parametrize("words", [["--label", "age"], ["--map", "age=child"], ["--map", "kid:=x"]])
def test_a_pair_that_is_none_is_refused(words: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(here / "t.csv", "path", "a1.wav")
    assert main(["manifest", "t.csv", "--out", "mine", *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_a_source_that_is_not_there_is_refused(here: Path) -> None:
    (here / "note.txt").write_text("hello\n")
    with refused("not-found", "nowhere.csv"):
        run("nowhere.csv")
    with refused("bad-value", "note.txt"):
        run("note.txt")


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_of_any_delimiter_and_encoding(sign: str, encoding: str, here: Path) -> None:
    source = here / "t.csv"
    source.write_bytes(f'path{sign}text\r\na1.wav{sign}"grün{sign} {"x" * 200_000}"\r\n'.encode(encoding))
    (line,) = lines(run(source))
    assert line["text"].startswith(f"grün{sign} x") and len(line["text"]) > 200_000


def test_a_tsv_whose_quotes_are_words_is_read(here: Path) -> None:
    """Common Voice: a sentence may begin with a quote that never ends."""
    source = table(here / "t.tsv", "path\tsentence", 'a1.wav\t"Stop', "a2.wav\tgo")
    assert [line["text"] for line in lines(run(source))] == ['"Stop', "go"]


def test_json_tables_keep_what_a_manifest_has(here: Path) -> None:
    """Our own manifests, too, which can be split again."""
    talk = [{"role": "user", "text": "hi", "audio": "a2.wav"}, {"role": "assistant", "text": "yes?"}]
    whole = {"id": "x", "audio": "a1.wav", "text": "sit", "labels": {"age": "child"}, "context": talk,
             "category": "age", "answers": {"child": "no", "adult": "yes"},
             "start": 0.25, "end": 0.75, "notes": {"a": [1]}}  # fmt: skip
    report = run(write_lines(here / "own.jsonl", [whole, {"id": "w", "text": "hi", "response": "yes"}]))
    first, written = lines(report)
    assert first == {**{key: whole[key] for key in ("id", "text", "labels", "category", "answers")},
                     "audio": "source/a1.wav#t=0.25,0.75", "seconds": 0.5, "extra": {"notes": {"a": [1]}},
                     "context": [{**talk[0], "audio": "source/a2.wav"}, talk[1]]}  # fmt: skip
    assert written == {"id": "w", "text": "hi", "response": "yes"}
    read_manifest(report.manifests["train"], choices=known_labels(), allow=[here])


def test_a_root_is_where_paths_start(here: Path) -> None:
    (here / "clips").mkdir()
    shutil.move(here / "a1.wav", here / "clips/b1.wav")
    (here / "lists").mkdir()
    source = table(here / "lists/t.csv", "path", "b1.wav")
    assert lines(run(source, root="clips"))[0]["audio"] == "source/b1.wav"
    with refused("empty"):
        run(source)


def test_clips_below_the_manifests_need_no_link(here: Path) -> None:
    report = convert(Request(str(table(here / "t.csv", "path", "a1.wav"))), here)
    assert lines(report)[0]["audio"] == "a1.wav" and report.clips is None and not (here / "source").exists()


def test_files_that_no_row_names_are_told(here: Path) -> None:
    table(here / "metadata.csv", "file_name", "a1.wav", "a2.wav", "a3.wav")
    assert convert(Request(str(here)), here / "mine").problems == {"extra": ["a4.wav"]}


def test_nemo_hears_as_much_as_duration_says(here: Path) -> None:
    rows = [{"audio_filepath": str(here / "a1.wav"), "duration": seconds} for seconds in (1.0, 0.5)]
    report = run(write_lines(here / "n.json", [*rows, {"audio_filepath": "a2.wav", "duration": "x"}]))
    assert [line["seconds"] for line in lines(report)] == [1.0, 0.5] and len(report.problems["malformed row"]) == 1


def test_commands_of_kaldi_are_not_run(here: Path) -> None:
    (here / "data").mkdir()
    table(here / "data/wav.scp", f"r1 {here / 'a1.wav'}", "r2 touch ran; cat a2.wav |", "r3 foo.ark:17")
    table(here / "data/text", "r1 hello there", "r2 no")
    table(here / "data/utt2spk", "r1 s1")
    table(here / "data/spk2age", "s1 adult")
    report = run("data")
    assert lines(report) == [{"id": "r1", "audio": "source/a1.wav", "seconds": 1.0, "text": "hello there",
                              "speaker": "s1", "labels": {"age": "adult"}}]  # fmt: skip
    assert sorted(name for names in report.problems.values() for name in names) == ["r2", "r3"]
    table(here / "data/wav.scp", "r2 touch ran; cat a2.wav |")
    with refused("unsafe", "wav.scp"):
        run("data")
    assert not (here / "ran").exists()


def save_cuts(folder: Path) -> Any:
    """A cut of a part of a stereo file, one with two supervisions, and a mixed one."""
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    tone = soundfile.read(folder / "a1.wav")[0]
    soundfile.write(folder / "stereo.wav", [[a, a / 2] for a in tone], 16000)
    both, mono = (Recording.from_file(folder / name) for name in ("stereo.wav", "a2.wav"))
    said = [SupervisionSegment(f"v{i}", "a2", start=i * 0.5, duration=0.5, text=f"t{i}") for i in (0, 1)]
    part = MonoCut("part", start=0.25, duration=0.5, channel=1, recording=both, custom={"dataset": "x"})
    two = MonoCut("two", start=0, duration=1, channel=0, recording=mono, supervisions=said)
    return CutSet.from_cuts([part, two, two.drop_supervisions().with_id("mixed").pad(duration=2)])


def test_cuts_of_lhotse(here: Path) -> None:
    save_cuts(here).to_file("cuts.jsonl")
    report = run("cuts.jsonl")
    assert [(line["id"], line["audio"], line.get("text")) for line in lines(report)] == [
        ("part", "source/stereo.wav#channel=1&t=0.25,0.75", None),
        ("v0", "source/a2.wav#t=0,0.5", "t0"), ("v1", "source/a2.wav#t=0.5,1", "t1"),
    ]  # fmt: skip
    assert lines(report)[0]["extra"] == {"dataset": "x"} and sum(map(len, report.problems.values())) == 1


def test_shar_is_read_where_it_lies(here: Path) -> None:
    (here / "shar").mkdir()
    save_cuts(here).subset(first=2).to_shar("shar", fields={"recording": "flac"}, shard_size=1)
    report = run("shar")
    assert [line["id"] for line in lines(report)] == ["part", "v0", "v1"] and not report.problems
    assert lines(report)[0]["audio"].startswith("source/recording.000000.tar:")
    read = read_manifest(report.manifests["train"], choices={}, allow=[here]).utterances
    assert [u.seconds for u in read] == [0.5, 0.5, 0.5]
    (here / "shar/recording.000001.tar").unlink()
    with refused("not-found", "recording.000001.tar"):
        run("shar")


def test_recordings_and_supervisions_of_lhotse_belong_together(here: Path) -> None:
    cuts = save_cuts(here).subset(cut_ids=["two"])
    (here / "sets").mkdir()
    cuts.decompose(here / "sets")
    for kind in ("recordings", "supervisions"):
        (here / f"sets/{kind}.jsonl.gz").rename(here / f"sets/corpus_{kind}_dev.jsonl.gz")
    report = run("sets")
    assert [(line["id"], line["text"]) for line in lines(report, "validation")] == [("v0", "t0"), ("v1", "t1")]
    with refused("not-found"):
        run("sets/corpus_supervisions_dev.jsonl.gz")


def test_commands_of_lhotse_are_not_run(here: Path) -> None:
    save_cuts(here).to_file("cuts.jsonl")
    cuts = [json.loads(text) for text in (here / "cuts.jsonl").read_text().splitlines()]
    cuts[0]["recording"]["sources"][0] |= {"type": "command", "source": "touch ran; cat stereo.wav"}
    with gzip.open(here / "cuts.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(cut) + "\n" for cut in cuts)
    report = run("cuts.jsonl.gz")
    assert [line["id"] for line in lines(report)] == ["v0", "v1"] and not (here / "ran").exists()


CHATS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "sharegpt": (
        [{"conversations": [{"from": "human", "value": "<audio>"}, {"from": "gpt", "value": "Yes."}],
          "audios": ["a1.wav"]}],
        [{**A1, "response": "Yes."}],
    ),
    "a path inside": (
        [{"messages": [{"role": "user", "content": "<audio>a1.wav</audio>"},
                       {"role": "assistant", "content": "Yes."}]}],
        [{**A1, "response": "Yes."}],
    ),
    "parts": (
        [{"messages": [{"role": "system", "content": "Be kind."},
                       {"role": "user", "content": [{"type": "audio", "audio": "a1.wav"}]},
                       {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}], "lang": "en"}],
        [{**A1, "response": "Yes.", "extra": {"lang": "en", "system": "Be kind."}}],
    ),
    "turns": (
        [{"id": "c", "audios": ["a1.wav", "a2.wav"],
          "messages": [{"role": "user", "content": "<audio>hi"}, {"role": "assistant", "content": "Yes?"},
                       {"role": "user", "content": "<audio>"}, {"role": "assistant", "content": "Bye."}]}],
        [{**A1, "id": "c-1", "response": "Yes?", "extra": {"instruction": "hi"}},
         {"id": "c-2", "audio": "source/a2.wav", "seconds": 1.0, "response": "Bye.", "context": [
             {"role": "user", "text": "hi", "audio": "source/a1.wav"}, {"role": "assistant", "text": "Yes?"}]}],
    ),
    "text alone": (
        [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Yes?"}]}],
        [{"id": "text", "text": "hi", "response": "Yes?"}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHATS)
def test_chats_of_several_dialects(kind: str, here: Path) -> None:
    chats, expected = CHATS[kind]
    report = run(write_lines(here / "chats.jsonl", chats))
    assert lines(report) == expected and not report.problems
    read_manifest(report.manifests["train"], choices={}, allow=[here])


def test_chats_that_cannot_be_used_are_named(here: Path) -> None:
    answer = {"role": "assistant", "content": "Yes."}
    user = {"role": "user", "content": "<audio>"}
    bad: list[dict[str, Any]] = [
        {"messages": [user]}, {"messages": [user, answer]},
        {"messages": [user, answer], "audios": ["a1.wav", "a2.wav"]},
        {"messages": [{"role": "user", "content": "<audio><audio>"}, answer], "audios": ["a1.wav", "a2.wav"]},
        {"messages": [{"content": "x"}]}, {"messages": "x"},
    ]  # fmt: skip
    report = run(write_lines(here / "chats.jsonl", [{"messages": [user, answer], "audios": ["a1.wav"]}, *bad]))
    assert len(lines(report)) == 1 and sum(map(len, report.problems.values())) == len(bad)
    transcripts = run("chats.jsonl", columns={"text": "response"})
    assert lines(transcripts) == [{**A1, "text": "Yes."}]


def test_datasets_have_splits_classes_and_arrays(here: Path) -> None:
    from datasets import Dataset, DatasetDict

    row = {"sentence": "sit", "id": 7, "nested": {"a": [1.5]}}
    heard = {"audio": {"array": [0.1, -0.1] * 4000, "sampling_rate": 8000}}
    kept = {name: Dataset.from_list([row | heard]) for name in ("train", "dev")}
    DatasetDict(kept).save_to_disk("saved")
    report = run("saved")
    assert {name: len(lines(report, name)) for name in report.splits} == {"train": 1, "validation": 1}
    (line,) = lines(report)
    assert (line["id"], line["seconds"], line["text"]) == ("7", 1.0, "sit") and line["extra"] == {
        "nested": {"a": [1.5]}
    }
    assert list(run("saved", split="validation").splits) == ["validation"]
    with refused("unknown-name", "split"):
        run("saved", split="tset")
    (here / "saved/dev/state.json").write_text("{")
    with refused("not-found", "saved"):
        run("saved")


def test_without_datasets_a_message_says_what_to_install(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with refused("unavailable", "datasets"):
        run("org/name")


def test_clips_of_a_hostile_source_stay_below_its_manifests(here: Path) -> None:
    """Whatever a dataset calls the clips inside of it."""
    from datasets import Dataset

    data = (here / "a1.wav").read_bytes()
    Dataset.from_list([{"audio": {"bytes": data, "path": "../../up.wav"}, "id": "../../x"}]).to_parquet("t.parquet")
    report = run("t.parquet")
    assert lines(report)[0]["audio"] == "clips/train/0000000.wav" and not list(here.parent.glob("*.wav"))


def test_labels_that_a_side_lacks_or_nobody_asks_about_are_told(here: Path) -> None:
    rows = [f"a{1 + n % 4}.wav,s{n},{'us' if n else 'uk'},{'child' if n % 2 else 'adult'}" for n in range(20)]
    source = table(here / "t.csv", "path,speaker,accent,who", *rows)
    options: dict[str, Any] = {"split_by": "speaker", "validation": 0.2, "test": 0.3}
    seed = next(seed for seed in range(1, 9) if _in_training(source, seed))
    own = run(source, seed=seed, labels={"accent": "accent"}, **options)
    assert any("accent" in note and "tasks" in note for note in own.notes)
    assert {note.partition(" ")[0] for note in own.notes if "uk" in note} == {"validation", "test"}
    known = run(source, seed=1, labels={"age": "who"}, **options)
    assert not any("tasks" in note or "nobody" in note for note in known.notes)


def _in_training(source: Path, seed: int) -> bool:
    report = run(source, seed=seed, split_by="speaker", validation=0.2, test=0.3)
    return "s0" in {line["speaker"] for line in lines(report)}
