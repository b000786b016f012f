"""What a run asks before its first step is asked once: packages, headers of clips, tasks of utterances."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from tests.conftest import write_tone
from tests.helpers.runs import quiet_run
from transformers import get_scheduler

from sottovoce.data import audio_decoder
from sottovoce.data.audio_decoder import read_header
from sottovoce.data.examples import ExampleSampler
from sottovoce.lightning_modules.trainer import lr_factor
from sottovoce.own_parts import entry_points


@pytest.mark.parametrize(("ours", "theirs"), [("linear",) * 2, ("cosine",) * 2, ("constant", "constant_with_warmup")])
@pytest.mark.parametrize(("warmup", "steps"), [(0, 7), (3, 12), (5, 5), (9, 4), (1, 1)])
def test_learning_rates_are_those_of_transformers(ours: str, theirs: str, warmup: int, steps: int) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], 1.0)
    scheduler = get_scheduler(theirs, optimizer, warmup, steps)
    for step in range(steps):
        factor = lr_factor(step, schedule=ours, warmup_steps=warmup, steps=steps)
        assert factor == pytest.approx(scheduler.get_last_lr()[0], abs=1e-15), step
        optimizer.step()
        scheduler.step()


def install(site: Path, package: str, *lines: str) -> None:
    """As much of a package as `pip` leaves for others to find."""
    folder = site / f"{package}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Name: {package}\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("\n".join(lines))


def test_a_package_that_is_installed_later_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for package in ("first", "second"):
        install(tmp_path, package, "[sottovoce.nothing]", f"{package} = {package}:Part", "[of.others]", "x = y:Z")
        assert [point.value for point in entry_points("sottovoce.nothing", package)] == [f"{package}:Part"]
    assert sorted(point.name for point in entry_points("sottovoce.nothing")) == ["first", "second"]
    assert entry_points("sottovoce.nothing", "third") == []


def test_a_header_is_read_once_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, open_audio = Counter[Path](), audio_decoder.open_audio

    def counted(path: Path, most: float) -> Any:
        opened[path] += 1
        return open_audio(path, most)

    monkeypatch.setattr(audio_decoder, "open_audio", counted)
    write_tone(clip := tmp_path / "a.wav", 0.5, 200.0)
    assert [read_header(clip).seconds for _ in range(3)] == [0.5] * 3 and opened[clip] == 1
    soundfile.write(clip, torch.zeros(16_000).numpy(), 16_000)
    assert read_header(clip).seconds == 1.0 and opened[clip] == 2


def test_a_run_opens_each_clip_once_before_it_is_decoded(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    read, opened = audio_decoder.open_streams, Counter[Path]()

    def counted(path: Path, *rest: Any) -> Any:
        opened[path] += 1
        return read(path, *rest)

    monkeypatch.setattr(audio_decoder, "open_streams", counted)
    audio_decoder._header.cache_clear()
    run = quiet_run(tree)
    clips = {clip for split in run.data.splits.values() for clip in split.clips()}
    assert clips and all(opened[clip] <= 2 for clip in clips)  # its header, and its samples


def test_tasks_of_a_stage_are_found_once_for_each_way_to_draw(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = quiet_run(tree)
    split, node = run.data.splits["train"], run.recipe.stages["joint"]
    drawing, asked, possible = run.example_sampler("joint", cut=True), list[str](), ExampleSampler.possible

    def counted(self: ExampleSampler, utterance: Any) -> list[str]:
        asked.append(utterance.id)
        return possible(self, utterance)

    monkeypatch.setattr(ExampleSampler, "possible", counted)
    fresh = split.only([True] * len(split.utterances))
    weights = [fresh.stage_weights(node, drawing, training=True) for _ in range(3)]
    assert (weights[0] > 0).all() and len(asked) == len(split.utterances)
    (task, *_) = drawing.weights
    ids = frozenset(u.id for u in split.utterances)
    barred = replace(drawing, barred=dict.fromkeys(drawing.weights, ids))
    assert task and not fresh.stage_weights(node, barred, training=True).any()
    assert (fresh.stage_weights(node, drawing, training=True) == weights[0]).all()
