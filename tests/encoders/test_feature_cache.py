"""What the cache gives back is what was put, or an error that says which file to delete."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sottovoce.encoders.feature_cache import FeatureCache, audio_key
from sottovoce.errors import ConfigError, SottovoceError

FINGERPRINT = "0123456789abcdef" * 4
KEY = audio_key(np.arange(5, dtype=np.float32))


def frames(count: int = 7) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(count))


def test_what_is_put_is_got(tmp_path: Path) -> None:
    exact, half = FeatureCache(tmp_path / "a", FINGERPRINT, "float32"), FeatureCache(tmp_path / "b", FINGERPRINT)
    for cache in (exact, half):
        assert KEY not in cache
        cache.put(KEY, frames())
        assert KEY in cache and cache.get(KEY).dtype == torch.float32
    assert torch.equal(exact.get(KEY), frames())
    assert torch.equal(half.get(KEY), frames().half().float())
    size = {cache.dtype: (cache.folder / KEY[:2] / f"{KEY}.safetensors").stat().st_size for cache in (exact, half)}
    assert size[torch.float32] - size[torch.float16] == 7 * 4 * 2


def test_the_place_on_disk(tmp_path: Path) -> None:
    FeatureCache(tmp_path, FINGERPRINT).put(KEY, frames())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [tmp_path / FINGERPRINT[:16] / KEY[:2] / f"{KEY}.safetensors"]
    with safe_open(files[0], "pt") as file:
        assert list(file.keys()) == ["frames"]


def test_another_encoder_finds_nothing(tmp_path: Path) -> None:
    FeatureCache(tmp_path, FINGERPRINT).put(KEY, frames())
    assert KEY not in FeatureCache(tmp_path, FINGERPRINT[::-1])


def test_a_slice_of_a_batch_is_kept_without_its_batch(tmp_path: Path) -> None:
    cache, batch = FeatureCache(tmp_path, FINGERPRINT, "float32"), torch.randn(4, 5, 3, requires_grad=True)
    cache.put(KEY, batch[:, 2])  # not contiguous
    assert torch.equal(cache.get(KEY), batch[:, 2]) and not cache.get(KEY).requires_grad


def test_put_again_replaces(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, FINGERPRINT, "float32")
    cache.put(KEY, frames(3))
    cache.put(KEY, frames(5))
    assert torch.equal(cache.get(KEY), frames(5))


def test_nothing_under_a_key(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=KEY):
        FeatureCache(tmp_path, FINGERPRINT).get(KEY)


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:-3], lambda whole: b"\xff" * len(whole)])
def test_a_damaged_file_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, FINGERPRINT)
    cache.put(KEY, frames())
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SottovoceError, match="deleting it is safe") as caught:
        cache.get(KEY)
    assert str(path) in str(caught.value)


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, FINGERPRINT)
    cache.put(KEY, frames())
    (path,) = tmp_path.rglob("*.safetensors")
    save_file({"other": torch.zeros(2)}, path)
    with pytest.raises(SottovoceError, match=KEY):
        cache.get(KEY)


def test_the_other_dtype_is_not_passed_off_as_this_one(tmp_path: Path) -> None:
    FeatureCache(tmp_path, FINGERPRINT, "float16").put(KEY, frames())
    with pytest.raises(SottovoceError, match=r"holds torch\.float16.*deleting"):
        FeatureCache(tmp_path, FINGERPRINT, "float32").get(KEY)


@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_values_that_the_file_cannot_hold_are_refused(value: float, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, FINGERPRINT)
    with pytest.raises(SottovoceError, match="not finite"):
        cache.put(KEY, torch.full((2, 2), value))
    assert KEY not in cache


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'float16'"):
        FeatureCache(tmp_path, FINGERPRINT, "flaot16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fingerprint"):
        FeatureCache(tmp_path, "../../../etc/passwd")
    cache = FeatureCache(tmp_path, FINGERPRINT)
    with pytest.raises(ValueError, match="key"):
        cache.put("../escape", frames())
    with pytest.raises(ValueError, match=r"\(frames, dim\)"):
        cache.put(KEY, torch.zeros(2, 3, 4))


def test_a_write_that_fails_leaves_the_old_frames_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FeatureCache(tmp_path, FINGERPRINT, "float32")
    cache.put(KEY, frames(3))

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(SottovoceError, match="No space"):
        cache.put(KEY, frames(5))
    assert torch.equal(cache.get(KEY), frames(3))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def _write_for_ever(root: Path, seed: int) -> None:
    torch.set_num_threads(1)
    cache = FeatureCache(root, FINGERPRINT, "float32")
    while True:
        cache.put(KEY, torch.full((2_000, 64), float(seed)))


def test_a_reader_sees_whole_files_while_processes_write_and_are_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_for_ever, args=(tmp_path, seed), daemon=True) for seed in (1, 2)]
    cache = FeatureCache(tmp_path, FINGERPRINT, "float32")
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


def test_audio_key_is_the_sound(tmp_path: Path) -> None:
    clip = np.linspace(-1, 1, 50, dtype=np.float32)
    assert audio_key(clip) == audio_key(clip.copy()) != audio_key(clip[:-1])
    assert audio_key(clip[::2]) == audio_key(clip[::2].copy())  # strides are not sound
    assert audio_key(np.zeros(1, dtype=np.float32)) == (
        "df3f619804a92fdb4057192dc43dd748ea778adc52bc498ce80524c014b81119"  # sha256 of four zero bytes
    )
    for wrong in (clip.astype(np.float64), clip[None]):
        with pytest.raises(ValueError, match="float32"):
            audio_key(wrong)  # type: ignore[arg-type]
