"""Clips are prepared by all processes of a run, each its share, in the same bits whoever is killed."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tests.helpers.errors import refused
from torch import Tensor

from sottovoce import byte_claims, json_journal
from sottovoce.cli.cache import command
from sottovoce.encoders import feature_shards
from sottovoce.encoders.base import Encoder
from sottovoce.encoders.whisper import WhisperEncoder
from sottovoce.errors import ConfigError
from sottovoce.frames import Frames
from sottovoce.training import preparation
from sottovoce.training.audio_reader import AudioReader
from sottovoce.training.preparation import PART, Preparation, parts_of
from sottovoce.training.preparation_helpers import Job, _end, _launch, helpers_for

fork = multiprocessing.get_context("fork")


class Slow(Encoder):
    """Takes its time, and tells in every frame which clips went through it together."""

    sample_rate, frame_rate, dim, depth = 8_000, 100.0, 3, 1

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.weight, self.seconds, self.loaded = torch.nn.Parameter(torch.ones(1)), seconds, True

    def build(self) -> None: ...

    def load(self) -> None: ...

    def fingerprint(self) -> str:
        return "ab" * 32

    def forward(self, waveform: Tensor, lengths: Tensor) -> Frames:
        time.sleep(self.seconds * len(waveform))
        together = waveform.sum() + lengths.sum()
        rows = [
            torch.stack([row[:n].sum(), together, n]).expand(4, 3) for row, n in zip(waveform, lengths, strict=True)
        ]
        return Frames(torch.stack(rows) / 1000, torch.full_like(lengths, 4))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """320 clips, 20 parts."""
    folder, draw = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    files = [folder / f"{number}.wav" for number in range(320)]
    for number, file in enumerate(files):
        soundfile.write(file, draw.uniform(-0.5, 0.5, 800 + number % 50), 8_000)
    return files


def prepare(root: Path, clips: Sequence[Path], encoder: Encoder | None = None, team: int = 1) -> Preparation:
    encoder = encoder or Slow()
    work = Preparation(AudioReader(encoder, root, 60.0), encoder, clips, team)
    work.run()
    return work


def features(work: Preparation) -> dict[str, Tensor]:
    cache = work.reader.cache
    assert cache is not None and len(work.reader.keys) == 320
    return {key: cache.get(key) for key in set(work.reader.keys.values())}


@pytest.fixture(scope="module")
def whole(clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What one process makes that nobody disturbs."""
    return features(prepare(tmp_path_factory.mktemp("whole"), clips))


def same(found: dict[str, Tensor], whole: dict[str, Tensor]) -> bool:
    return found.keys() == whole.keys() and all(torch.equal(found[key], whole[key]) for key in whole)


def _member(root: Path, clips: list[Path], start: Any, told: Any) -> None:
    torch.set_num_threads(1)
    encode, ends = Preparation._encode, list[float]()

    def timed(self: Preparation, *arguments: Any) -> None:
        encode(self, *arguments)
        ends.append(time.monotonic())

    Preparation._encode = timed  # type: ignore[method-assign]
    start.wait()
    work = prepare(root, clips, Slow(0.01), team=4)
    told.put((work.encoded, ends[-1], same(features(work), features(work))))


def test_each_of_four_processes_encodes_a_quarter_and_none_is_idle(
    clips: list[Path], whole: dict[str, Tensor], tmp_path: Path
) -> None:
    start, told = fork.Barrier(4), fork.Queue()
    members = [fork.Process(target=_member, args=(tmp_path, clips, start, told)) for _ in range(4)]
    for member in members:
        member.start()
    counts, ends, _ = zip(*[told.get(timeout=60) for _ in members], strict=True)
    assert sum(counts) == len(whole) == 320
    assert all(80 - PART <= count <= 80 + PART for count in counts), counts
    assert max(ends) - min(ends) < 2 * PART * 0.01 + 1.0  # whoever ends first had no part left to take
    done = prepare(tmp_path, clips)
    assert done.encoded == 0 and same(features(done), whole)
    assert len(list(next(tmp_path.glob("features/*")).iterdir())) == 3  # one shard, its index, claims


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at(owner: Any, name: str, number: int, act: Callable[..., None]) -> None:
    """Call something in place of a function, in its call of this number."""
    original, left = getattr(owner, name), [number]

    def patched(*arguments: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            act(*arguments)
        return original(*arguments)

    setattr(owner, name, patched)


def _half(stream: FileIO, content: bytes) -> None:
    stream.write(content[: len(content) // 2])
    _die()


MOMENTS: dict[str, tuple[Any, str, int, Callable[..., None]]] = {
    "a clip is read": (AudioReader, "_load", 70, lambda *_: _die()),
    "a batch is encoded": (Slow, "layer_frames", 4, lambda *_: _die()),
    "a shard is written": (feature_shards, "write_all", 3, _half),
    "a shard is written and its index is not": (json_journal, "write_all", 3, lambda *_: _die()),
    "the index is written": (json_journal, "write_all", 5, _half),
}


def _until(root: Path, clips: list[Path], moment: str) -> None:
    torch.set_num_threads(1)
    _at(*MOMENTS[moment])
    prepare(root, clips)


def test_killed_at_five_moments_it_ends_in_the_same_bits(
    clips: list[Path], whole: dict[str, Tensor], tmp_path: Path
) -> None:
    for moment in MOMENTS:
        killed = fork.Process(target=_until, args=(tmp_path, clips, moment))
        killed.start()
        killed.join()
        assert killed.exitcode == -signal.SIGKILL, moment
    done = prepare(tmp_path, clips)
    assert 0 < done.encoded < 320 and same(features(done), whole)


def test_a_clip_that_has_not_changed_is_not_read_again(
    clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "SETTLED", -1.0)
    some = [tmp_path / file.name for file in clips[:40]]
    for file, own in zip(clips, some, strict=False):
        own.write_bytes(file.read_bytes())
    first = prepare(tmp_path / "cache", some)
    read, load = list[Path](), AudioReader._load
    monkeypatch.setattr(AudioReader, "_load", lambda self, path: read.append(path) or load(self, path))
    again = prepare(tmp_path / "cache", some)
    assert not read and again.reader.keys == first.reader.keys and again.reader.samples == first.reader.samples
    some[3].write_bytes(clips[100].read_bytes())
    some[4].write_bytes(b"RIFF")
    changed = prepare(tmp_path / "cache", some)
    cut = parts_of(some, AudioReader(Slow(), None, 60.0).count_samples, Slow.sample_rate)
    assert {some[3], some[4]} <= set(read) <= set().union(*(part for part in cut if {*some[3:5]} & {*part}))
    assert list(changed.faults) == [some[4]] and changed.reader.keys[some[3]] not in first.reader.keys.values()
    shorter = AudioReader(Slow(), tmp_path / "cache", 0.05)
    work = Preparation(shorter, Slow(), some[:2])
    work.run()
    assert set(work.faults) == set(some[:2])  # they are too long by now


def test_parts_are_of_like_length_and_bounded() -> None:
    seconds = {Path(str(number)): number % 40 for number in range(200)}
    cut = parts_of(list(seconds), lambda clip: seconds[clip] * 10, 10)
    assert sorted(clip for part in cut for clip in part) == sorted(seconds)
    assert all(len(part) <= PART and len(part) * seconds[part[0]] <= 96 for part in cut)
    assert cut == parts_of(list(seconds)[::-1], lambda clip: seconds[clip] * 10, 10)


def test_without_locks_on_bytes_one_process_works_at_a_time(
    clips: list[Path], whole: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(byte_claims, "fcntl", None)
    logging.getLogger("sottovoce").addHandler(caplog.handler)
    done = prepare(tmp_path, clips)
    logging.getLogger("sottovoce").removeHandler(caplog.handler)
    assert same(features(done), whole) and "one process encodes at a time" in caplog.text


def _works(folder: Path, started: Any) -> None:
    claims = byte_claims.Claims(folder)
    started.set()
    time.sleep(60)
    claims.close()


def test_a_cache_that_is_worked_on_is_not_deleted(clips: list[Path], tmp_path: Path) -> None:
    prepare(tmp_path, clips[:2])
    (folder,), started = tmp_path.glob("features/*"), fork.Event()
    worker = fork.Process(target=_works, args=(folder, started), daemon=True)
    worker.start()
    started.wait(30)
    with refused("conflict", folder, ConfigError):
        command(str(tmp_path), clean=True, older=None, yes=True)
    worker.kill()
    worker.join()
    command(str(tmp_path), clean=True, older=None, yes=True)
    assert not folder.exists()


def test_a_helper_makes_the_same_bits_and_ends_with_who_started_it(
    tiny_whisper: str, clips: list[Path], tmp_path: Path
) -> None:
    encoder = WhisperEncoder(checkpoint=tiny_whisper)
    encoder.load()
    alone = prepare(tmp_path / "alone", clips[:20], encoder)
    assert alone.reader.cache is not None
    node, name = {"type": "whisper", "checkpoint": tiny_whisper}, alone.reader.cache.folder.name
    names = list(map(str, clips[:20]))
    job = Job(node, [2], str(tmp_path / "by"), "float16", name, 60.0, [], names, "cpu", 1, 2)
    helper = _launch(tmp_path, 1, job)
    assert helper.wait(90) == 0, (tmp_path / "1.err").read_text()
    done = prepare(tmp_path / "by", clips[:20], encoder)
    assert done.encoded == 0 and done.reader.cache is not None
    assert all(torch.equal(done.reader.cache.get(k), alone.reader.cache.get(k)) for k in alone.reader.keys.values())
    idle = _launch(tmp_path, 2, job)
    _end(idle)
    assert idle.returncode is not None


def test_threads_that_encode_at_once_make_the_same_bits(
    tiny_whisper: str, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = WhisperEncoder(checkpoint=tiny_whisper)
    encoder.load()
    alone, threads = prepare(tmp_path / "one", clips[:40], encoder).reader, set[int]()
    monkeypatch.setattr(preparation, "CPU_SECONDS", 0.1)  # a batch a clip
    single = prepare(tmp_path / "single", clips[:40], encoder).reader
    read, encode = torch.get_num_threads, WhisperEncoder.layer_frames
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    told = lambda self, *a: threads.add(threading.get_ident()) or encode(self, *a)  # noqa: E731
    monkeypatch.setattr(WhisperEncoder, "layer_frames", told)
    three = prepare(tmp_path / "three", clips[:40], encoder).reader
    assert read() == 1 and len(threads) > 1 and alone.cache and single.cache and three.cache
    for key in alone.keys.values():
        assert torch.equal(single.cache.get(key), three.cache.get(key))
        torch.testing.assert_close(single.cache.get(key), alone.cache.get(key), rtol=2e-3, atol=2e-3)


def test_helpers_are_as_many_as_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert [helpers_for(None, count, 1, threads=False) for count in (0, 300, 600, 10_000)] == [0, 0, 1, 7]
    assert helpers_for(None, 10_000, 1, threads=True) == 0
    assert helpers_for(2, 10, 1, threads=True) == 2 and helpers_for(2, 0, 1, threads=True) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert helpers_for(None, 10_000, 1, threads=False) == 0
