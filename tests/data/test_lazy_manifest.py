"""A manifest of any length: what is read, and when, does not depend on how long it is."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tests.conftest import write_lines
from tests.helpers.errors import refused
from tests.helpers.runs import Fit

from sottovoce.data.batch_sampler import BatchSampler, Rows
from sottovoce.data.examples import Example, LazyExamples
from sottovoce.data.lazy_manifest import LazyManifest
from sottovoce.data.manifest import Root, read_manifest
from sottovoce.data.manifest_schema import LineReader
from sottovoce.data.utterance import Utterance
from sottovoce.errors import Code, ManifestError

CHOICES = {"emotion": ("happy", "sad")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "ok.wav", 0.1 * np.sin(np.arange(16000)), 16000)
    return tmp_path


def write(folder: Path, lines: list[Any]) -> Path:
    path = folder / "m.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def line(number: int, **keys: Any) -> dict[str, Any]:
    return {"id": f"u{number}", "audio": "ok.wav", "seconds": 1.0, **keys}


def lines(path: Path, **knobs: Any) -> LazyManifest:
    return LazyManifest(path, CHOICES, Root(path.parent), **knobs)


def test_lines_are_the_utterances_that_the_whole_reading_gives(folder: Path) -> None:
    said = [
        line(0, text='he said "seconds": 9, twice'), "", line(1, labels={"emotion": "sad"}), "   ",
        '{"id": "u2", "seconds" : 1e0, "audio": "ok.wav"}', line(3, topic="seconds"),
        line(4, context=[{"role": "user", "text": "a"}, {"role": "assistant", "text": '"seconds": 7'}]),
    ]  # fmt: skip
    path = write(folder, said)
    assert list(lines(path)) == read_manifest(path, choices=CHOICES).utterances
    assert lines(path).seconds.tolist() == [1.0] * 5
    assert {u.only for u in lines(path, only=["asr"])} == {("asr",)}


def test_a_manifest_is_looked_through_without_a_clip_and_drawn_line_by_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines read a batch: the same for a thousand lines as for twenty thousand."""
    reads = []
    monkeypatch.setattr(LineReader, "read", lambda *a, read=LineReader.read: reads.append(1) or read(*a))  # type: ignore[func-returns-value]
    for count in (1000, 20_000):
        many = lines(write(folder, [line(i, audio="ok.wav" if i < 500 else "none.wav") for i in range(count)]))
        assert len(many) == count and not reads
        sampler = BatchSampler(many.seconds, np.arange(count) < 500, batch_size=4, epochs=2, seed=0)
        for (_, rows, *_), _ in zip(sampler, range(10), strict=False):
            assert [many[row].id for row in rows] == [f"u{row}" for row in rows]
        assert len(reads) == 40
        reads.clear()


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ({"id": "a", "audio": "ok.wav"}, "bad-value"),
        (line(1, seconds=-1), "bad-value"),
        ('{"id": "a", "seconds": 1, "seconds": 2}', "damaged"),
        ('{"id": "a", "seconds": 1e999}', "bad-value"),
        ('{"id": "a", ', "damaged"),
    ],
)
def test_a_line_without_its_length_is_told_before_training(folder: Path, bad: Any, code: Code) -> None:
    with refused(code, "m.jsonl:2", ManifestError) as caught:
        lines(write(folder, [line(0), bad, line(2)]))
    assert len(caught.value.faults) == 1


def test_a_manifest_without_lines_or_without_a_file(folder: Path) -> None:
    with refused("empty", "m.jsonl"):
        lines(write(folder, ["", " "]))
    with refused("not-found", "none.jsonl"):
        lines(folder / "none.jsonl")


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (line(1, audio="none.wav"), "not-found"),
        (line(1, audio="/etc/hostname"), "unsafe"),
        (line(1, labels={"emotion": "hapy"}), "unknown-name"),
        (line(1, seconds=3.0), "mismatch"),
    ],
)
def test_a_faulty_line_is_told_with_its_number_when_it_is_drawn(folder: Path, bad: Any, code: Code) -> None:
    many = lines(write(folder, [line(0), bad]))
    assert many[0].id == "u0"
    with refused(code, "m.jsonl:2", ManifestError):
        many[1]


def test_a_clip_of_another_side_is_told_when_it_is_drawn(folder: Path) -> None:
    many = lines(write(folder, [line(0)]), apart=frozenset([folder / "ok.wav"]))
    with refused("conflict", "m.jsonl:1", ManifestError):
        many[0]


def loader(folder: Path, said: list[Any], **knobs: Any) -> LazyExamples:
    def draw(utterance: Utterance, epoch: int, number: int) -> Example:
        return Example(utterance, "asr", "", (), {"linguistic": "speech"}, frozenset(), "x")

    many = lines(write(folder, said))
    return LazyExamples(many, draw, 1, replace, lambda _: torch.ones(5), **knobs)  # type: ignore[arg-type]


def test_a_faulty_utterance_is_left_out_of_its_batch_and_named(folder: Path) -> None:
    said = [line(0), line(1, audio="none.wav"), line(2)]
    batch = loader(folder, said, skip=True)[Rows(0, [0, 1, 2])]
    assert [e.utterance.id for e in batch.examples] == ["u0", "u2"]
    assert "none.wav" in batch.skipped[0] and batch.to(torch.device("cpu")).skipped == batch.skipped
    instead = loader(folder, said, skip=True)[Rows(0, [1])]
    assert [e.utterance.id for e in instead.examples] == ["u2"] and not instead.counts
    assert "none.wav" in instead.skipped[0]
    with refused("empty", "data.train", ManifestError):
        loader(folder, [said[1]] * 3, skip=True)[Rows(0, [1])]
    with refused("not-found", "m.jsonl:2", ManifestError):
        loader(folder, said, skip=False)[Rows(0, [0, 1, 2])]


def test_a_batch_that_no_task_can_use_does_not_count(folder: Path) -> None:
    """Nothing is wrong with its lines, so that even without `skip` it ends no run."""
    data, draw = (found := loader(folder, [line(n) for n in range(4)], skip=False)), found.draw
    data.draw = lambda u, epoch, number: draw(u, epoch, number) if u.id == "u1" else None
    assert data[Rows(0, [0, 1])].counts and not data[Rows(0, [2, 3])].counts
    assert [e.utterance.id for e in data[Rows(0, [2, 3])].examples] == ["u1"]
    data.draw = lambda u, epoch, number: None
    with refused("empty", "data.train", ManifestError):
        data[Rows(0, [0])]


def test_a_run_whose_lines_are_checked_when_they_are_drawn(
    fit: Fit, tree: dict[str, Any], manifests: dict[str, Path], capsys: Any
) -> None:
    """It trains, leaves a faulty clip out, names it once, and scores; the recipe alone has changed."""
    train = manifests["train"].with_name("long.jsonl")
    records = [json.loads(text) for text in manifests["train"].read_text().splitlines()]
    for record in records:
        record["seconds"] = soundfile.info(str(train.with_name(record["audio"]))).duration
    records[4]["audio"] = "nowhere.wav"
    write_lines(train, records)
    data = {**tree["data"], "train": [{"manifest": str(train)}], "validate": "lazy", "policy": "skip"}
    fit(data=data, stages={"joint": tree["stages"]["joint"]}, evaluation={"max_new_tokens": 2, "slots": ["both"]})
    told = capsys.readouterr().out
    assert "left out, 1 in all" in told and "nowhere.wav: there is no such file" in told
