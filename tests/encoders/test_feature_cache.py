"""What the cache gives back is what was put, or an error that says which file to delete."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from tests.helpers.errors import refused

from sottovoce.encoders.feature_cache import FeatureCache, audio_key

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
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [tmp_path / FINGERPRINT[:16] / KEY[:2] / f"{KEY}.safetensors"]
    with safe_open(files[0], "pt") as file:
        assert list(file.keys()) == ["frames"] and file.get_tensor("frames").dtype == torch.float16


def test_a_slice_of_a_batch_is_kept_without_its_batch(cache: FeatureCache) -> None:
    batch = frames(20).view(4, 5, 4).requires_grad_()
    cache.put(KEY, batch[:, 2])  # not contiguous
    assert torch.equal(cache.get(KEY), batch[:, 2]) and not cache.get(KEY).requires_grad


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:-3],
        lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]),
        lambda whole: b"\xff" * len(whole),
        lambda whole: save({"other": torch.zeros(2)}),
        lambda whole: save({"frames": torch.zeros(2, 3)}),  # float32, as older versions could write
    ],
)
def test_a_damaged_file_is_named(damage: Callable[[bytes], bytes], cache: FeatureCache, tmp_path: Path) -> None:
    cache.put(KEY, frames())
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    with refused("damaged", path):
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
    monkeypatch.setattr(os, "replace", Mock(side_effect=OSError(28, "No space left on device")))
    with refused("storage"):
        cache.put(KEY, frames(5))
    assert torch.equal(cache.get(KEY), frames(3))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


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
