"""Losses of a stage from its CSV files, also of one that was resumed."""

from pathlib import Path

import pytest

from sottovoce.analysis.stage_losses import LAST, read_stage_losses


def write(folder: Path, version: int, rows: list[str]) -> None:
    file = folder / "metrics" / f"version_{version}" / "metrics.csv"
    file.parent.mkdir(parents=True)
    file.write_text("\n".join(["epoch,lr-AdamW,step,train/loss,val/loss", *rows]) + "\n")


def test_final_and_best_of_all_parts_of_a_stage(tmp_path: Path) -> None:
    write(tmp_path, 0, [f"0,,{step},{5 - step / 10},{value}" for step, value in ((1, ""), (9, 2.0), (19, 9.0))])
    write(tmp_path, 10, ["0,,39,1.0,1.75"])
    write(tmp_path, 2, [",0.1,18,,", "0,,19,3.0,1.5", "0,,29,2.0,"])  # the step is made again, from a checkpoint
    found = read_stage_losses(tmp_path)
    assert found is not None
    assert found.train_final == pytest.approx((4.9 + 4.1 + 3.0 + 2.0 + 1.0) / 5)
    assert (found.val_final, found.val_best, found.best_step) == (1.75, 1.5, 19)
    assert found.gap == pytest.approx(1.75 - 3.0)


def test_the_final_training_loss_is_the_mean_of_the_last_values(tmp_path: Path) -> None:
    write(tmp_path, 0, [f"0,,{step},{float(step)}," for step in range(30)])
    found = read_stage_losses(tmp_path)
    assert found is not None and found.train_final == pytest.approx(sum(range(30 - LAST, 30)) / LAST)
    assert found.val_final is None and found.gap is None


def test_a_stage_without_files_has_no_losses(tmp_path: Path) -> None:
    assert read_stage_losses(tmp_path) is None
