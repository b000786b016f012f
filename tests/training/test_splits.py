"""Sides of the data are told apart by content: sounds and speakers, whatever files and ids are called."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from rich.console import Console
from tests.conftest import write_lines
from tests.helpers.errors import refused
from tests.helpers.runs import quiet_run

from sottovoce.config import recipe as recipes
from sottovoce.errors import Code, ManifestError
from sottovoce.lightning_modules.curriculum import train_stages
from sottovoce.lightning_modules.run import prepare_run
from sottovoce.training.stage_rows import stage_rows


def changed(tree: dict[str, Any], split: str, file: Path, **data: Any) -> dict[str, Any]:
    return {**tree, "data": {**tree["data"], split: [{"manifest": str(file)}], **data}}


def with_clip(manifest: Path, clip: str, number: int = 1) -> Path:
    """A copy of a manifest in which one line names another clip."""
    lines = [json.loads(text) for text in manifest.read_text().splitlines()]
    lines[number]["audio"] = clip
    return write_lines(manifest.with_name(f"same-{manifest.name}"), lines)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_same_sound_on_two_sides_is_refused(
    tree: dict[str, Any], manifests: dict[str, Path], split: str, cache: bool
) -> None:
    """Under another name, and in another format of the same samples; with encoder outputs kept or not."""
    folder = manifests["train"].parent
    shutil.copy(folder / "train-3.wav", folder / "copy.wav")
    samples, rate = soundfile.read(folder / "train-4.wav", dtype="int16")
    soundfile.write(folder / "copy.flac", samples, rate)
    for clip in ("copy.wav", "copy.flac"):
        tree["data"]["cache"] = tree["data"]["cache"] if cache else None
        with refused("conflict", f"data.{split}", ManifestError) as caught:
            quiet_run(changed(tree, split, with_clip(manifests[split], clip)))
        assert clip in str(caught.value) and "train-" in str(caught.value)


def test_batches_mix_the_tasks_that_are_drawn(tree: dict[str, Any]) -> None:
    """By epoch: two rows are of one group where the same tasks are drawn from them."""
    run = quiet_run(tree)
    split, draw = run.data.splits["train"], run.example_sampler("joint", cut=True)
    rows = stage_rows(split, replace(run.recipe.stages["joint"], tasks_per_utterance=2), draw, training=True)
    assert callable(rows.groups)
    for epoch in range(2):
        drawn = [tuple(sorted(e.task for k in range(2) if (e := draw(u, epoch, k)))) for u in split.utterances]
        groups = rows.groups(epoch).tolist()
        assert len({*groups}) == len({*drawn}) == len({*zip(groups, drawn, strict=True)}) > 2
    assert rows.groups(0).tolist() != groups


def with_seconds(manifest: Path, number: int, **keys: Any) -> Path:
    """A copy of a manifest whose lines say how long they last, one of them with other keys."""
    lines = [json.loads(text) for text in manifest.read_text().splitlines()]
    lines[number] |= keys
    for line in lines:
        line["seconds"] = soundfile.info(str(manifest.with_name(line["audio"]))).duration
    return write_lines(manifest.with_name(f"lazy-{manifest.name}"), lines)


LATE: dict[str, tuple[dict[str, Any], Code]] = {
    "label": ({"labels": {"emotion": "hapy"}}, "unknown-name"),
    "attribute": ({"labels": {"acent": "us"}}, "unknown-name"),
    "silence": ({"audio": "silence.wav"}, "bad-value"),
    "another side": ({"audio": "test-0.wav"}, "conflict"),
}


@pytest.mark.parametrize(("keys", "code"), LATE.values(), ids=list(LATE))
def test_some_lines_of_a_lazy_manifest_are_looked_at_first(
    tree: dict[str, Any], manifests: dict[str, Path], keys: dict[str, Any], code: Code
) -> None:
    """Under `error` a fault ends the run before any step, with its line; under `skip` it is noted."""
    soundfile.write(manifests["train"].with_name("silence.wav"), np.zeros(16000), 16000)
    file = with_seconds(manifests["train"], 4, **keys)
    with refused(code, f"{file}:5", ManifestError):
        quiet_run(changed(tree, "train", file, validate="lazy"))
    run = quiet_run(changed(tree, "train", file, validate="lazy", policy="skip"))
    assert [note for note in run.data.notes if f"{file}:5" in note and "1 of 12 lines" in note]


def test_keys_that_nobody_reads_are_noted_in_a_lazy_manifest_too(
    tree: dict[str, Any], manifests: dict[str, Path]
) -> None:
    silence = manifests["train"].with_name("silence.wav")
    soundfile.write(silence, np.zeros(16000), 16000)
    file = with_seconds(manifests["train"], 4, txt="a", text="", audio=silence.name, labels={}, context=None)
    run = quiet_run(changed(tree, "train", file, validate="lazy"))  # nothing is said, so that silence is right
    assert [note for note in run.data.notes if "'txt'" in note and "'text'" in note]


def test_the_same_sound_twice_in_training_is_no_fault(tree: dict[str, Any], manifests: dict[str, Path]) -> None:
    shutil.copy(manifests["train"].parent / "train-3.wav", manifests["train"].parent / "twin.wav")
    quiet_run(changed(tree, "train", with_clip(manifests["train"], "twin.wav")))


def test_the_same_sound_is_found_when_it_is_drawn(tree: dict[str, Any], manifests: dict[str, Path]) -> None:
    """Where lines are checked then."""
    folder = manifests["train"].parent
    shutil.copy(folder / "test-1.wav", folder / "leak.wav")
    lines = [json.loads(text) for text in with_clip(manifests["train"], "leak.wav").read_text().splitlines()]
    for line in lines:
        line["seconds"] = soundfile.info(str(folder / line["audio"])).duration
    lazy = changed(tree, "train", write_lines(folder / "lazy-leak.jsonl", lines), validate="lazy", policy="skip")
    run = quiet_run({**lazy, "stages": {"joint": tree["stages"]["joint"]}})
    train_stages(run)
    assert ["leak.wav" in str(fault) for fault in run.data.faults] == [True]


def test_speakers_on_two_sides_are_noted(
    tree: dict[str, Any], manifests: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """With their names, and how many utterances they say; that is no fault."""
    lines = [json.loads(text) for text in manifests["test"].read_text().splitlines()]
    for line in lines[:3]:
        line["speaker"] = "train-s1" if line is lines[0] else "train-s2"
    prepare_run(recipes.parse(changed(tree, "test", write_lines(manifests["test"].with_name("who.jsonl"), lines))),
                Console(width=300))  # fmt: skip
    told = capsys.readouterr().err
    assert "2 speakers of test are in train" in told and "train-s2 (2 utterances), train-s1 (1 utterances)" in told
    assert "speakers of validation" not in told


def test_keys_that_nobody_reads_are_noted_before_training(
    tree: dict[str, Any], manifests: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{**json.loads(text), "languag": "de"} for text in manifests["train"].read_text().splitlines()]
    file = write_lines(manifests["train"].with_name("own.jsonl"), lines)
    prepare_run(recipes.parse(changed(tree, "train", file)), Console(width=300))
    assert f"{file}: keys of your own, not read: 'languag' (12 times" in capsys.readouterr().err
