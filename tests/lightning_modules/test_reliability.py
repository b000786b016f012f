"""Files are whole or not there, damage is named, and numbers that are not finite reach no weight."""

import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from rich.console import Console
from tests.helpers.errors import refused
from torch.utils.data import DataLoader

from sottovoce.cli import components, main
from sottovoce.encoders.feature_cache import FeatureCache
from sottovoce.errors import AudioError, ConfigError, SottovoceError, TrainingError
from sottovoce.io import atomic_open, atomic_write
from sottovoce.lightning_modules import checkpointing
from sottovoce.lightning_modules.callbacks import NonFiniteGuard, propagate_nonfinite
from sottovoce.lightning_modules.checkpointing import (
    LAST,
    PREVIOUS,
    AtomicCheckpointIO,
    BestCheckpoint,
    latest,
    read_checkpoint,
)
from sottovoce.lightning_modules.trainer import readable_errors
from sottovoce.training.run_folder import check_data

QUIET = Console(quiet=True)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files of more than 4000 bytes cannot be written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_that_cannot_be_written_stays_what_it_was(tmp_path: Path, small_disk: None, shared: bool) -> None:
    file = tmp_path / "a.txt"
    atomic_write(file, "before")
    with refused("storage", "a.txt"), atomic_open(file, shared=shared) as s:
        s.write(b"x" * 9000)
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


def test_a_checkpoint_that_cannot_be_written_stays_what_it_was(tmp_path: Path, small_disk: None) -> None:
    file = tmp_path / LAST
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, file)
    with refused("storage"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(5000)}, file)
    assert read_checkpoint(file) == {"epoch": 1} and list(tmp_path.iterdir()) == [file]


def test_an_error_within_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic_open(tmp_path / "a") as stream:
        stream.write(b"half")
        raise KeyError
    assert not list(tmp_path.iterdir())


def refusals(file: Path, check: Callable[[], None]) -> int:
    """How many of 300 files with one bit changed are refused, by name and in one line, where `check` reads them."""
    draw, good, count = random.Random(0), file.read_bytes(), 0
    for _ in range(300):
        bad = bytearray(good)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        file.write_bytes(bad)
        try:
            check()
        except SottovoceError as error:
            assert str(file) in str(error) and "\n" not in str(error)
            count += 1
    return count


def test_any_changed_bit_of_a_checkpoint_is_named_or_does_no_harm(tmp_path: Path) -> None:
    file = tmp_path / LAST
    weights, rest = {"a": torch.randn(40), "b": torch.randn(3, 5)}, {"loops": {"step": 3}, "name": "joint"}
    AtomicCheckpointIO().save_checkpoint({"state_dict": weights, **rest}, file)

    def check() -> None:
        read = read_checkpoint(file)
        assert all(torch.equal(read["state_dict"][name], value) for name, value in weights.items())
        assert {key: read[key] for key in rest} == rest

    assert refusals(file, check) > 285


def test_a_checkpoint_without_a_seal_is_held_against_its_checksums(tmp_path: Path) -> None:
    file, weights = tmp_path / LAST, torch.randn(40)
    torch.save({"a": weights}, file)
    assert torch.equal(read_checkpoint(file)["a"], weights)
    bad = bytearray(file.read_bytes())
    bad[bad.find(weights.numpy().tobytes()) + 9] ^= 1
    file.write_bytes(bad)
    with refused("damaged", file):
        read_checkpoint(file)


def test_any_shorter_checkpoint_is_refused(tmp_path: Path) -> None:
    file = tmp_path / LAST
    AtomicCheckpointIO().save_checkpoint({"a": torch.randn(40)}, file)
    good = file.read_bytes()
    for length in range(0, len(good), 7):
        file.write_bytes(good[:length])
        with refused("damaged", file):
            read_checkpoint(file)


def test_any_changed_bit_of_cached_features_is_named_or_does_no_harm(tmp_path: Path) -> None:
    cache, frames = FeatureCache(tmp_path, "0" * 16), torch.randn(200, 4).half().float()
    cache.put("abc", frames)
    (file,) = tmp_path.rglob("*.tar")

    def check() -> None:
        assert torch.equal(cache.get("abc"), frames)

    assert refusals(file, check) > 150


def test_the_checkpoint_before_steps_in_for_a_damaged_one(tmp_path: Path, capsys: Any) -> None:
    assert latest(tmp_path) is None
    for name, step in ((PREVIOUS, 4), (LAST, 8)):
        AtomicCheckpointIO().save_checkpoint({"step": step}, tmp_path / name)
    assert latest(tmp_path) == tmp_path / LAST
    (tmp_path / LAST).write_bytes(b"PK")
    assert latest(tmp_path) == tmp_path / PREVIOUS
    assert "last.ckpt is damaged" in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {".lock", PREVIOUS, "last.ckpt.damaged"}


def test_processes_that_find_a_damaged_checkpoint_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads it slowly, so that without a lock all would set it aside."""
    AtomicCheckpointIO().save_checkpoint({"step": 4}, tmp_path / PREVIOUS)
    (tmp_path / LAST).write_bytes(b"PK")

    def slowly(file: Path, **knobs: Any) -> Any:
        try:
            return read_checkpoint(file, **knobs)
        finally:
            time.sleep(0.2)

    monkeypatch.setattr(checkpointing, "read_checkpoint", slowly)
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(lambda _: latest(tmp_path), range(3))) == {tmp_path / PREVIOUS}


def test_a_folder_without_a_whole_checkpoint_is_refused_and_left_alone(tmp_path: Path) -> None:
    for name in (PREVIOUS, LAST):
        (tmp_path / name).write_bytes(b"PK")
    for _ in range(2):  # the second time, too
        with refused("damaged", PREVIOUS):
            latest(tmp_path)


class Slope(L.LightningModule):
    """One weight that goes down by 0.1 a step; batches are (name, factor of the loss)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.row_losses: torch.Tensor | None = None
        self.seen: list[float] = []

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        self.seen.append(self.weight.item())
        self.row_losses = (self.weight * batch.factors).detach()
        return propagate_nonfinite((self.weight * batch.factors).sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def slide(factors: list[float], folder: Path, **options: Any) -> tuple[Slope, NonFiniteGuard]:
    batches = [SimpleNamespace(ids=[f"clip-{i}"], factors=torch.tensor([factor])) for i, factor in enumerate(factors)]
    module, guard = Slope(), NonFiniteGuard(folder / "skipped.jsonl", "joint")
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[guard], default_root_dir=folder, **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return module, guard


def test_a_step_that_is_not_finite_is_left_out_and_named(tmp_path: Path) -> None:
    module, guard = slide([1, float("nan"), 1, float("inf"), float("nan"), 1], tmp_path)
    assert [*module.seen, module.weight.item()] == pytest.approx([0, -0.1, -0.1, -0.2, -0.2, -0.2, -0.3])
    assert [entry["utterances"] for entry in guard.skipped] == [["clip-1"], ["clip-3"], ["clip-4"]]
    assert (tmp_path / "skipped.jsonl").read_text().count("\n") == 3


def test_a_loss_that_no_weight_can_help_is_left_out_too(tmp_path: Path) -> None:
    weight = torch.ones(1, requires_grad=True)
    propagate_nonfinite(weight.sum() + float("nan")).backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None and weight.grad.isnan().all()
    weight.grad = None
    propagate_nonfinite(weight.sum() * 3).backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None and weight.grad.item() == 3


def test_three_in_a_row_stop_the_run(tmp_path: Path) -> None:
    with refused("nonfinite", "stages.joint", TrainingError) as caught:
        slide([1, *[float("nan")] * 5], tmp_path)
    assert "step 4: the loss is not finite; utterances: clip-3." in str(caught.value)


def test_an_overflow_of_fp16_is_counted_and_lowers_the_scale(tmp_path: Path) -> None:
    """The first scale overflows on purpose; the loss is finite, so that all of the batch is named."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    module, guard = slide([4, 4, 4, 1, 1], tmp_path, plugins=[precision])
    assert [entry["not finite"] for entry in guard.skipped] == ["gradient"] * 2
    assert module.seen == pytest.approx([0, 0, 0, -0.4, -0.5], abs=1e-3) and scaler.get_scale() == 2.0**125


def test_what_was_left_out_is_kept_in_checkpoints(tmp_path: Path) -> None:
    _, guard = slide([1, float("nan")], tmp_path)
    again = NonFiniteGuard(tmp_path / "skipped.jsonl", "joint")
    again.load_state_dict(guard.state_dict())
    assert again.skipped == guard.skipped and again.in_a_row == 1


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path) -> None:
    began = {"train": [("a", 1.0, 1.0), ("b", 2.0, 1.0)], "validation": [("c", 1.0, 1.0)]}
    (tmp_path / "last.ckpt").touch()
    for _ in range(2):
        check_data(tmp_path, began)
    for other in ([("a", 1.0, 1.0)], [("b", 2.0, 1.0), ("a", 1.0, 1.0)], [("a", 1.0, 2.0), ("b", 2.0, 1.0)]):
        with refused("mismatch", tmp_path, ConfigError) as caught:
            check_data(tmp_path, {**began, "train": other})
        assert "the data of train are" in str(caught.value)


TRAINER = L.Trainer(accelerator="cpu", logger=False)


@pytest.mark.parametrize(
    ("told", "reader"),
    [("(pid 71) is killed by signal: Killed. ", "71"), ("(pid(s) 7, 8) exited unexpectedly", "7, 8")],
)
def test_a_reader_that_has_died_is_told_in_a_line(told: str, reader: str) -> None:
    with refused("died", "data.num_workers", TrainingError) as caught, readable_errors(TRAINER):
        raise RuntimeError(f"DataLoader worker {told}")
    assert f"pid {reader}" in str(caught.value) and "\n" not in str(caught.value)


def test_an_error_of_a_reader_is_its_last_line() -> None:
    with pytest.raises(AudioError) as caught, readable_errors(TRAINER):
        raise AudioError("Caught AudioError in DataLoader worker process 0.\nTraceback\n  x\nu.AudioError: a.wav: gone")
    assert str(caught.value) == "a.wav: gone"


def test_an_error_of_the_program_keeps_its_traceback() -> None:
    error = RuntimeError("sizes do not match")
    with pytest.raises(RuntimeError) as caught, readable_errors(TRAINER):
        raise error
    assert caught.value is error


def test_a_warning_unwinds_a_command_and_is_its_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(components, "list_components", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main.main(["list"]) == 143 and "same command" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_whose_folder_was_moved_knows_its_best_checkpoint(tmp_path: Path) -> None:
    """A later, worse one must not take its place."""
    before, after = (BestCheckpoint(tmp_path / name / "best.ckpt") for name in ("before", "after"))
    score, place = torch.tensor(0.5), str(tmp_path / "before" / "best.ckpt")
    before.best_model_score = before.current_score = score
    before.best_model_path, before.best_k_models = place, {place: score}
    after.load_state_dict(before.state_dict())
    moved = str(tmp_path / "after" / "best.ckpt")
    assert after.best_model_score == score and after.best_k_models == {moved: score} and after.best_model_path == moved
