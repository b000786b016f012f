"""`sottovoce predict`: tables of answers to files, folders and manifests; what is unreadable is a row."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_lines
from tests.helpers.errors import refused

import sottovoce as sv
from sottovoce.cli.main import main
from sottovoce.errors import AudioError, ConfigError, ManifestError, MissingError
from sottovoce.serving import predict as module
from sottovoce.serving.predict import predict


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> sv.Model:
    return sv.load(tiny_run, device="cpu")


@pytest.fixture(autouse=True)
def loaded(model: sv.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load", lambda *_, **__: model)


@pytest.fixture
def folder(manifests: dict[str, Path], tmp_path: Path) -> Path:
    """Three clips, one of them in a folder of its own, and a file that is none."""
    (tmp_path / "wavs/more").mkdir(parents=True)
    for i, name in enumerate(("a.wav", "b.wav", "more/c.WAV")):
        shutil.copy(manifests["test"].parent / f"test-{i}.wav", tmp_path / "wavs" / name)
    (tmp_path / "wavs/notes.txt").write_text("no audio")
    return tmp_path / "wavs"


def rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".csv":
        return list(csv.DictReader(file.open(newline="")))
    text = file.read_text()
    return json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.json"])
def test_a_folder_is_answered_as_each_clip_alone(folder: Path, tmp_path: Path, model: sv.Model, name: str) -> None:
    out = tmp_path / name
    words = ["--task", "emotion", "--out", str(out), "--max-new-tokens", "3"]
    assert main(["predict", "bundle", str(folder), *words]) == 0
    found = rows(out)
    files = [folder / "a.wav", folder / "b.wav", folder / "more/c.WAV"]
    assert [row["file"] for row in found] == list(map(str, files))
    assert [row["answer"] for row in found] == [model(file, "emotion", max_new_tokens=3) for file in files]
    assert "error" not in found[0] and "id" not in found[0]


def test_probabilities_have_columns(folder: Path, tmp_path: Path, model: sv.Model) -> None:
    predict("b", [str(folder)], ["gender"], probabilities=True, out=str(tmp_path / "p.csv"), max_new_tokens=2)
    found = rows(tmp_path / "p.csv")
    shares = model.probabilities(folder / "a.wav", "gender")
    assert {key: float(found[0][f"p({key})"]) for key in shares} == pytest.approx(shares, abs=1e-4)


def test_several_tasks_are_rows_and_a_question_is_one_s_own(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict("b", [str(folder / "a.wav")], ["asr", "gender"], out=str(tmp_path / "o.jsonl"), max_new_tokens=2)
    assert [row["task"] for row in rows(tmp_path / "o.jsonl")] == ["asr", "gender"]
    predict("b", [str(folder / "a.wav")], ask="Who is it?", slots="linguistic", max_new_tokens=2)
    out = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["task"] for row in out] == ["Who is it?"]


def test_a_manifest_needs_no_labels(manifests: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    lines = [{"id": name, "audio": f"wavs/{clip}.wav"} for name, clip in (("x", "b"), ("y", "gone"), ("z", "a"))]
    file = write_lines(tmp_path / "new.jsonl", lines)
    with refused("damaged", kind=AudioError):
        predict("b", [str(file)], ["asr"], out=str(tmp_path / "o.jsonl"), max_new_tokens=2)
    found = {row["id"]: row for row in rows(tmp_path / "o.jsonl")}
    assert found["x"]["answer"] is not None and found["x"]["error"] is None and found["z"]["error"] is None
    assert [row for row in rows(tmp_path / "o.jsonl") if row["error"]] != []


def test_a_line_keeps_its_own_fault_and_labels_do_not_matter(folder: Path, tmp_path: Path) -> None:
    lines = [{"id": "x", "audio": "wavs/b.wav", "labels": {"mood": 3, "gender": "unsure"}}, {"audio": "wavs/a.wav"}]
    file = write_lines(tmp_path / "new.jsonl", lines)
    with refused("damaged", f"{file}:2", kind=AudioError):
        predict("b", [str(file)], ["asr"], out=str(tmp_path / "o.jsonl"), max_new_tokens=2)
    first, second = rows(tmp_path / "o.jsonl")
    assert first["answer"] is not None and first["error"] is None
    assert "'id'" in second["error"] and "sottovoce manifest" in second["error"]


def test_clips_that_cannot_be_read_are_rows_and_the_exit_code_says_so(folder: Path, tmp_path: Path) -> None:
    (folder / "b.wav").write_bytes(b"RIFF no sound")
    out = tmp_path / "o.csv"
    assert main(["predict", "b", str(folder), "--task", "asr", "--out", str(out), "--max-new-tokens", "2"]) == 2
    found = rows(out)
    assert [bool(row["error"]) for row in found] == [False, True, False] and found[2]["task"] == "asr"


def test_one_clip_too_many_for_the_llm_costs_no_other(
    folder: Path, tmp_path: Path, model: sv.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = model.module.embed_prompts

    def too_long(batch: Any, chats: Any) -> Any:
        prompts = embed(batch, chats)
        return [prompt.repeat(100, 1) if len(samples) == longest else prompt
                for prompt, samples in zip(prompts, batch.audio.rows(), strict=True)]  # fmt: skip

    longest = max(len(module_wave) for module_wave in map(_wave, folder.rglob("*.[wW]*")))
    monkeypatch.setattr(model.module, "embed_prompts", too_long)
    with refused("damaged", kind=AudioError):
        predict("b", [str(folder)], ["asr"], out=str(tmp_path / "o.jsonl"), max_new_tokens=2)
    assert sum(row["error"] is not None for row in rows(tmp_path / "o.jsonl")) == 1


def _wave(file: Path) -> Any:
    from sottovoce.data.audio import load_audio

    return load_audio(file)


def test_what_cannot_be_is_refused_before_a_clip_is_read(folder: Path, tmp_path: Path) -> None:
    clip = str(folder / "a.wav")
    with refused("bad-value", "--out", ConfigError):
        predict("b", [clip], out=str(tmp_path / "o.xlsx"))
    with refused("not-found", "gone.wav", MissingError):
        predict("b", [str(folder / "gone.wav")])
    with refused("unknown-name", "--task", ConfigError):
        predict("b", [clip], ["weather"])
    with refused("unknown-name", "--slots", ConfigError):
        predict("b", [clip], ["asr"], slots="voice")
    with refused("conflict", "--ask", ConfigError):
        predict("b", [clip], ["asr"], ask="Who?")
    with refused("conflict", "--probabilities", ConfigError):
        predict("b", [clip], ["asr"], probabilities=True)
    (tmp_path / "table.csv").write_text("file_name,sentence\na.wav,sit\n")
    with refused("mismatch", "table.csv", ManifestError):
        predict("b", [str(tmp_path / "table.csv")], ["asr"])
    (tmp_path / "empty").mkdir()
    with refused("not-found", "empty", MissingError):
        predict("b", [str(tmp_path / "empty")], ["asr"])
