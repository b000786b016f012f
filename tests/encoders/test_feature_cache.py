"""What the cache gives back is what was put, or an error that says which file to delete."""

import multiprocessing
import os
import signal
import tarfile
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from tests.helpers.errors import refused

from sottovoce.encoders import feature_shards
from sottovoce.encoders.cache_formats import CacheDtype, stored_bytes
from sottovoce.encoders.feature_cache import FeatureCache, audio_key
from sottovoce.encoders.feature_dtypes import packed, unpacked
from sottovoce.encoders.feature_shards import INDEX, writers_for

FINGERPRINT = "0123456789abcdef" * 4
KEY = audio_key(np.arange(5, dtype=np.float32))


def frames(count: int = 7) -> torch.Tensor:
    """Values that float16 holds exactly."""
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(count)).half().float()


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path, FINGERPRINT)


def test_what_is_put_is_got(cache: FeatureCache, tmp_path: Path) -> None:
    assert KEY not in cache
    with pytest.raises(KeyError, match=KEY):
        cache.get(KEY)
    cache.put(KEY, frames(3))
    cache.put(KEY, frames() + 1e-6)  # replaces; float16 rounds
    assert KEY in cache and torch.equal(cache.get(KEY), frames()) and cache.get(KEY).dtype == torch.float32
    assert KEY not in FeatureCache(tmp_path, FINGERPRINT[::-1])  # another encoder's
    folder = tmp_path / f"{FINGERPRINT[:16]}-float16"
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {folder / "000000.tar", folder / INDEX}
    with tarfile.open(folder / "000000.tar") as tar:  # anybody can read it
        members = [load(tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    assert [list(member) for member in members] == [["frames"]] * 2
    assert torch.equal(members[1]["frames"], frames().half())


def test_a_slice_of_a_batch_is_kept_without_its_batch(cache: FeatureCache) -> None:
    batch = frames(20).view(4, 5, 4).requires_grad_()
    cache.put(KEY, batch[:, 2])  # not contiguous
    assert torch.equal(cache.get(KEY), batch[:, 2]) and not cache.get(KEY).requires_grad


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:600],
        lambda whole: whole[:600] + bytes([whole[600] ^ 1]) + whole[601:],
        lambda whole: b"\xff" * len(whole),
    ],
)
def test_a_damaged_file_is_named(damage: Callable[[bytes], bytes], cache: FeatureCache, tmp_path: Path) -> None:
    cache.put(KEY, frames())
    (path,) = tmp_path.rglob("*.tar")
    path.write_bytes(damage(path.read_bytes()))
    with refused("damaged", path):
        cache.get(KEY)


@pytest.mark.parametrize("tensors", [{"other": torch.zeros(2)}, {"frames": torch.zeros(2, 3)}])
def test_a_member_of_another_form_is_refused(tensors: dict[str, torch.Tensor], cache: FeatureCache) -> None:
    cache.shards.append([(KEY, save(tensors))])
    with refused("damaged", "000000.tar"):
        cache.get(KEY)


@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_values_that_the_file_cannot_hold_are_refused(value: float, cache: FeatureCache) -> None:
    with refused("nonfinite", KEY):
        cache.put(KEY, torch.full((2, 2), value))
    assert KEY not in cache


def test_bad_arguments(cache: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fingerprint"):
        FeatureCache(tmp_path, "../../../etc/passwd")
    with pytest.raises(ValueError, match="key"):
        cache.put("../escape", frames())
    with pytest.raises(ValueError, match=r"\(frames, dim\)"):
        cache.put(KEY, torch.zeros(2, 3, 4))


def test_a_write_that_fails_leaves_the_old_frames_and_no_draft(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put(KEY, frames(3))
    (path,) = tmp_path.rglob("*.tar")
    before = path.read_bytes()

    def fill(stream: FileIO, content: bytes) -> None:
        stream.write(content[:700])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_shards, "write_all", fill)
    with refused("storage", path):
        cache.put(KEY, frames(5))
    assert torch.equal(cache.get(KEY), frames(3)) and path.read_bytes() == before


def _write_for_ever(root: Path, seed: int) -> None:
    torch.set_num_threads(1)
    cache = FeatureCache(root, FINGERPRINT)
    while True:
        cache.put(KEY, torch.full((2_000, 64), float(seed)))


def test_a_reader_sees_whole_files_while_processes_write_and_are_killed(cache: FeatureCache, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_for_ever, args=(tmp_path, seed), daemon=True) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    try:
        until = time.monotonic() + 20
        while KEY not in cache and time.monotonic() < until:
            time.sleep(0.01)
        for _ in range(100):
            assert set(cache.get(KEY).flatten().tolist()) in ({1.0}, {2.0})
    finally:
        for writer in writers:
            assert writer.pid is not None
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
    assert set(cache.get(KEY).flatten().tolist()) in ({1.0}, {2.0})
    cache.put(KEY, frames())
    assert torch.equal(cache.get(KEY), frames())


def test_audio_key_is_the_sound() -> None:
    clip = np.linspace(-1, 1, 50, dtype=np.float32)
    assert audio_key(clip) == audio_key(clip.copy()) != audio_key(clip[:-1])
    assert audio_key(clip[::2]) == audio_key(clip[::2].copy())  # strides are not sound
    zeros = "df3f619804a92fdb4057192dc43dd748ea778adc52bc498ce80524c014b81119"  # sha256 of four zero bytes
    assert audio_key(np.zeros(1, dtype=np.float32)) == zeros
    for wrong in (clip.astype(np.float64), clip[None]):
        with pytest.raises(ValueError, match="float32"):
            audio_key(wrong)  # type: ignore[arg-type]


def _put_part(root: Path, first: int) -> None:
    torch.set_num_threads(1)
    cache = FeatureCache(root, FINGERPRINT, writers=writers_for(2_000))
    for start in range(first, first + 1_000, 20):
        cache.put_many([(f"key-{number}", torch.full((2, 4), float(number))) for number in range(start, start + 20)])


def test_files_stay_few_whoever_writes(cache: FeatureCache, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_put_part, args=(tmp_path, first)) for first in (0, 1_000)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(list(cache.folder.iterdir())) * 500 <= 2_000
    assert all(cache.get(f"key-{number}").unique().tolist() == [number] for number in range(0, 2_000, 37))


def test_a_lost_index_is_made_anew(cache: FeatureCache, tmp_path: Path) -> None:
    _put_part(tmp_path, 0)
    (cache.folder / INDEX).unlink()
    assert "key-7" not in cache
    cache.shards.recover()
    assert len(cache.shards.places) == 1_000 and cache.get("key-7").unique().tolist() == [7]


def test_a_shard_that_is_gone_or_cut_off_is_not_written_over(cache: FeatureCache) -> None:
    """Else places in the index would lead to what was never put under their keys."""
    cache.put("one", frames(3))
    cache.put("two", frames(4))
    size = (cache.folder / "000000.tar").stat().st_size
    os.truncate(cache.folder / "000000.tar", size - 600)
    again = FeatureCache(cache.folder.parent, FINGERPRINT)
    assert "one" in again and "two" not in again
    again.put("three", frames(5))
    (cache.folder / "000000.tar").unlink()
    again = FeatureCache(cache.folder.parent, FINGERPRINT)
    assert "one" not in again and torch.equal(again.get("three"), frames(5))
    again.put("one", frames(3))
    assert torch.equal(again.get("one"), frames(3))


def test_what_number_formats_cost() -> None:
    """Of frames like a speech encoder's, in which some channels are fifty times as large as the others."""
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0] * 60 + [50.0] * 4)
    most = {"float32": 0.0, "float16": 5e-4, "bfloat16": 4e-3, "int8": 4e-3}  # of a channel's largest value
    mean = {"float32": 0.0, "float16": 2.5e-4, "bfloat16": 2e-3, "int8": 1.2e-2}  # of a channel's mean size
    for dtype in get_args(CacheDtype):
        kept = packed(KEY, x, dtype)
        off = (unpacked(kept, dtype) - x).abs()
        assert (off / x.abs().amax(0)).max() <= most[dtype]
        assert (off.mean(0) / x.abs().mean(0)).max() <= mean[dtype]
        assert sum(each.nbytes for each in kept.values()) == stored_bytes(dtype, 1, *x.shape)
    assert unpacked(packed(KEY, torch.zeros(3, 4), "int8"), "int8").eq(0).all()
    with refused("nonfinite", KEY):
        packed(KEY, torch.full((2, 2), float("nan")), "int8")
