"""Data that a recipe names in another format, and where it looks for what it names."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import WORDS, write_tone
from tests.helpers.errors import refused

from sottovoce.cli.main import main
from sottovoce.config import best_rq
from sottovoce.config import recipe as recipes
from sottovoce.errors import Code, ManifestError, MissingError
from sottovoce.training.splits import DataSplits, read_splits


@pytest.fixture
def wavs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of clips of eight speakers with a metadata.csv, in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "wavs"
    folder.mkdir()
    rows = ["file_name,transcription,client_id,sex,id"]
    for i in range(16):
        write_tone(folder / f"c{i}.wav", 0.4 + 0.02 * i, 120 + 11 * i)
        rows.append(f"c{i}.wav,{WORDS[i % 4]},s{i % 8},{'F' if i % 2 else 'M'},u{i}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def read(tree: dict[str, Any], *train: dict[str, Any], **sides: Any) -> DataSplits:
    data = {**tree["data"], "validation": [], "test": [], **sides, "train": list(train)}
    return read_splits(recipes.parse({**tree, "data": data}))


def test_a_dataset_is_converted_once_and_again_when_it_has_changed(tree: dict[str, Any], wavs: Path) -> None:
    """Into the cache; what is left out is noted each time."""
    node = {"dataset": "wavs", "labels": {"gender": "sex"}, "columns": {"speaker": "client_id"}}
    (wavs / "metadata.csv").open("a").write("gone.wav,hi,s1,F,gone\n")
    data = read(tree, node)
    first = data.splits["train"].utterances[1]
    assert (first.id, first.speaker, first.labels) == ("u1", "s1", {"gender": "female"})
    assert first.clip.resolve() == wavs / "c1.wav" and [n for n in data.notes if "missing: 1" in n]
    (report,) = Path(tree["data"]["cache"]).glob("sources/wavs-*/report.json")
    before = report.stat().st_mtime_ns
    assert read(tree, node).notes == data.notes and report.stat().st_mtime_ns == before
    text = (wavs / "metadata.csv").read_text().replace("u1\n", "new\n")
    (wavs / "metadata.csv").write_text(text)
    os.utime(wavs / "metadata.csv", ns=(1, 1))
    assert read(tree, node).splits["train"].utterances[1].id == "new"


def test_cuts_of_lhotse_are_read(tree: dict[str, Any], wavs: Path) -> None:
    from lhotse import CutSet, MonoCut, Recording

    cut = MonoCut("x", start=0.1, duration=0.2, channel=0, recording=Recording.from_file("wavs/c0.wav"))
    CutSet.from_cuts([cut]).to_file("cuts.jsonl.gz")
    (utterance,) = read(tree, {"cuts": "cuts.jsonl.gz", "weight": 2.0, "name": "mine"}).splits["train"].utterances
    assert (utterance.id, utterance.seconds) == ("x", 0.2)


def test_each_side_takes_its_own_split_of_a_dataset_or_the_one_it_names(tree: dict[str, Any], wavs: Path) -> None:
    rows = "\n".join(f"wavs/c{i}.wav,{side}" for i, side in enumerate(["train", "dev", "test-clean"]))
    Path("t.csv").write_text(f"path,split\n{rows}\n")
    node: dict[str, Any] = {"dataset": "t.csv"}
    data = read(tree, node, validation=[node], test=[{**node, "split": "test-clean"}])
    assert [[u.id for u in split.utterances] for split in data.splits.values()] == [["c0"], ["c1"], ["c2"]]
    with refused("unknown-name", "data.test[0].split"):
        read(tree, node, test=[node])
    with refused("unknown-name", "data.train[0].columns.text"):
        read(tree, {**node, "columns": {"text": "words"}})


def test_ids_of_two_datasets_do_not_clash(tree: dict[str, Any], wavs: Path) -> None:
    for name in ("a", "b"):
        Path(f"{name}.csv").write_text(f"path,id\nwavs/c{int(name == 'b')}.wav,1\n")
    data = read(tree, {"dataset": "a.csv"}, {"dataset": "b.csv"})
    assert [u.id for u in data.splits["train"].utterances] == ["a-1", "b-1"]


@pytest.mark.parametrize(
    ("code", "where", "node"),
    [
        ("missing-key", "manifest", {}),
        ("conflict", "manifest", {"manifest": "a", "dataset": "b"}),
        ("conflict", "manifest", {"cuts": "a", "dataset": "b"}),
        ("conflict", "columns", {"manifest": "a", "columns": {"text": "x"}}),
        ("conflict", "split", {"manifest": "a", "split": "train"}),
        ("conflict", "allow", {"dataset": "a", "allow": ["/"]}),
        ("bad-value", "map.age", {"dataset": "a", "map": {"age": "x"}}),
    ],
)
def test_keys_that_contradict_each_other(code: Code, where: str, node: dict[str, Any], tree: dict[str, Any]) -> None:
    with refused(code, f"data.train[0].{where}"):
        read(tree, node)


@pytest.mark.parametrize("value", ["FILE", "[FILE]", "{manifest: FILE}", "[{manifest: FILE}]"])
def test_a_file_on_the_command_line_is_a_list_of_one(
    value: str, write_recipe: Callable[..., str], manifests: dict[str, Path]
) -> None:
    made = recipes.load(write_recipe(), [f"data.train={value.replace('FILE', str(manifests['test']))}"])
    assert [node.manifest for node in made.data.train] == [str(manifests["test"])]


def test_wrong_kinds_end_a_command_with_one_message(
    write_recipe: Callable[..., str], wavs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("wavs", "wavs/metadata.csv"):
        assert main(["fit", "--config", write_recipe(), f"data.train={name}", "--dry-run"]) in (0, 2)
        captured = capsys.readouterr()
        assert f"sottovoce manifest {name} --out" in captured.out + captured.err
        with refused("mismatch", name, ManifestError):
            read_splits(recipes.load(write_recipe(), [f"data.train={name}"]))


def test_what_is_not_in_the_working_directory_is_found_beside_the_recipe(
    tree: dict[str, Any], wavs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Manifests, roots and further folders; but what is in the working directory comes first."""
    lab, here = tmp_path / "lab", tmp_path / "here"
    (lab / "lists").mkdir(parents=True)
    here.mkdir()
    line = {"id": "lab", "audio": "c0.wav"}
    (lab / "lists/train.jsonl").write_text(json.dumps(line) + "\n")
    wavs.rename(lab / "wavs")
    node = {"manifest": "lists/train.jsonl", "root": "wavs", "allow": ["wavs"]}
    data = {**tree["data"], "train": [node], "validation": [{"dataset": "wavs"}], "test": []}
    (lab / "recipe.yaml").write_text(json.dumps({**tree, "data": data}))
    monkeypatch.chdir(here)
    recipe = recipes.load(lab / "recipe.yaml")
    assert recipe.data.train[0].manifest == str(lab / "lists/train.jsonl")
    assert [recipe.data.train[0].root, *recipe.data.train[0].allow] == [str(lab / "wavs")] * 2
    assert [len(split.utterances) for split in read_splits(recipe).splits.values()] == [1, 16, 0]
    (here / "lists").mkdir()
    (here / "lists/train.jsonl").write_text(json.dumps(line) + "\n")
    assert recipes.load(lab / "recipe.yaml").data.train[0].manifest == "lists/train.jsonl"
    (lab / "lists/train.jsonl").unlink()
    (here / "lists/train.jsonl").unlink()
    with refused("not-found", "lists/train.jsonl", MissingError):
        read_splits(recipes.load(lab / "recipe.yaml"))


def test_recipes_of_pre_training_find_folders_beside_them(
    wavs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {"train": [{"folder": "wavs"}], "validation": [{"folder": "wavs"}]}
    tree = {"name": "x", "encoder": {"type": "conformer"}, "data": node, "steps": 1, "batch_size": 1, "lr": 1.0}
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    monkeypatch.chdir("/")
    assert best_rq.load(tmp_path / "recipe.yaml").data.train[0].folder == str(wavs)


@pytest.mark.parametrize("named", ["manifests", "datasets"])
def test_from_a_folder_of_clips_to_a_scored_run(
    named: str, fit: Callable[..., Path], tree: dict[str, Any], wavs: Path
) -> None:
    """By the command, whose manifests a recipe names; or by a recipe that names the table itself."""
    words = ["wavs", "--out", "mine", "--label", "gender=sex", "--split-by", "speaker"]
    assert main(["manifest", *words, "--validation", "0.25", "--test", "0.25", "--seed", "1"]) == 0
    if named == "manifests":
        sides: dict[str, Any] = {s: [{"manifest": f"mine/{s}.jsonl", "allow": ["wavs"]}] for s in recipes.SPLITS}
    else:
        for number, side in enumerate(recipes.SPLITS):
            head, *rows = Path("wavs/metadata.csv").read_text().splitlines()
            Path(f"wavs/{side}.csv").write_text("\n".join([head, *rows[number::3]]) + "\n")
        sides = {s: [{"dataset": f"wavs/{s}.csv", "labels": {"gender": "sex"}}] for s in recipes.SPLITS}
    stage = {**tree["stages"]["joint"], "tasks": {"gender": 1}, "epochs": 1}
    run = fit(
        data={**tree["data"], **sides}, stages={"joint": stage}, evaluation={"max_new_tokens": 2, "slots": ["both"]}
    )
    scores = json.loads((run / "evaluation/results.json").read_text())
    assert "gender" in json.dumps(scores) and (run / "bundle/trained.safetensors").is_file()
