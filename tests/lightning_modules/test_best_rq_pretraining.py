"""Pre-training: what it hears and hides, resume to the bit, an encoder at the end, and errors that say what to do."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tests.conftest import write_lines
from tests.helpers.errors import refused
from tests.helpers.runs import Write, run_killed

from sottovoce.config import best_rq as recipes
from sottovoce.data.batch_sampler import Rows
from sottovoce.encoders import ENCODERS
from sottovoce.encoders.best_rq import Masking
from sottovoce.encoders.conformer import ConformerEncoder
from sottovoce.errors import ConfigError, ManifestError, MissingError
from sottovoce.lightning_modules.best_rq_pretraining import Pretraining, begin, dry_run, pretrain, training_loader
from sottovoce.paths import resolve
from sottovoce.training.best_rq_data import Batch, Crops, read_splits

NUMBERS = {"layers": 2, "width": 16, "feedforward": 32, "heads": 2, "kernel": 3}


def write_sweep(file: Path, seconds: float, start: float) -> None:
    """A tone whose pitch and loudness wander, so that frames differ from each other."""
    at = np.arange(int(seconds * 16_000)) / 16_000
    phase = 2 * np.pi * (start * at + 60 * np.sin(2 * np.pi * 1.5 * at))
    voice = sum(np.sin(k * phase) / k for k in range(1, 8))
    soundfile.write(file, 0.1 * voice * (1 + 0.5 * np.sin(2 * np.pi * 4 * at)), 16_000)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest of ten clips, and a folder of three."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "held").mkdir()
    lines = []
    for i in range(10):
        write_sweep(folder / f"{i}.wav", 0.5 + 0.13 * (i % 4), 110 + 20 * i)
        lines.append({"audio": f"{i}.wav", "text": "never read", "mood": "nor is this"})
    write_lines(folder / "train.jsonl", lines)
    for i in range(3):
        write_sweep(folder / "held" / f"{i}.wav", 0.8, 130 + 30 * i)
    return folder


@pytest.fixture
def write(speech: Path, tmp_path: Path) -> Write:
    """Write a tiny recipe, changed as said, and return its path."""
    tree = {
        "name": "tiny", "seed": 3, "steps": 7, "batch_size": 4, "lr": 1e-2, "warmup_steps": 2,
        "validate_every": 3, "checkpoint_every": 2, "output_dir": str(tmp_path / "runs"),
        "encoder": {"type": "conformer", **NUMBERS, "dropout": 0.1},
        "quantizer": {"codebooks": 2, "codes": 12},
        "data": {"train": [{"manifest": f"{speech}/train.jsonl"}], "validation": [{"folder": f"{speech}/held"}]},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
    }  # fmt: skip

    def written(**changes: Any) -> str:
        file = tmp_path / "recipe.yaml"
        file.write_text(OmegaConf.to_yaml({**tree, **changes}))
        return str(file)

    return written


def found(config: str) -> Any:
    return read_splits(recipes.load(config).data, lambda rows, total: rows)


def test_a_run_leaves_an_encoder_that_recipes_can_name(write: Write, tmp_path: Path, capsys: Any) -> None:
    folder = pretrain(write(), [])
    done = json.loads((folder.parent / "done.json").read_text())
    assert done["steps"] == 7 and 0 < done["val/loss"] < 5 and 0 <= done["val/accuracy"] <= 1
    kept = ENCODERS.build({"type": "conformer", "checkpoint": str(folder), **NUMBERS})
    kept.load()
    module = begin(recipes.load(write()))
    untrained = module.best_rq.encoder.state_dict()
    assert any(not torch.equal(value, untrained[name]) for name, value in kept.state_dict().items())
    weights = torch.load(folder.parent / "last.ckpt", weights_only=True)
    assert weights["global_step"] == 6  # the validation after it was the last occasion before the end
    shown = capsys.readouterr()
    assert f"checkpoint: {folder}" in shown.out and "7 steps" in shown.out and "10 clips" in shown.err


def test_the_kept_encoder_returns_the_frames_of_the_one_that_was_trained(write: Write, tmp_path: Path) -> None:
    module = begin(recipes.load(write()))
    trained = module.best_rq.encoder.eval()
    trained.save(tmp_path / "encoder")
    kept = ConformerEncoder(checkpoint=str(tmp_path / "encoder"), **NUMBERS)
    kept.load()
    clips = torch.randn(2, 9_000).clamp(-1, 1), torch.tensor([9_000, 5_000])
    with torch.no_grad():
        assert torch.equal(kept(*clips).x, trained(*clips).x) and kept.fingerprint() == trained.fingerprint()


def test_a_tiny_run_learns(write: Write) -> None:
    """After 40 steps, hidden frames of held-out clips are less of a surprise."""
    long = {"validate_every": 40, "checkpoint_every": 40}
    first, last = (
        json.loads((pretrain(write(**long, **run), []).parent / "done.json").read_text())
        for run in ({"name": "first", "steps": 1, "lr": 1e-9}, {"name": "last", "steps": 40})
    )
    assert last["val/loss"] < first["val/loss"] - 0.3 and last["val/accuracy"] > first["val/accuracy"]
    assert all(first[blind] == last[blind] for blind in ("val/blind_loss", "val/blind_accuracy"))
    assert 1 < first["val/blind_loss"] < np.log(12)


def test_training_drops_out_and_validation_does_not(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    modes, loss = [], Pretraining.loss

    def noted(self: Pretraining, batch: Batch) -> Any:
        modes.append((torch.is_grad_enabled(), self.best_rq.encoder.training))
        return loss(self, batch)

    monkeypatch.setattr(Pretraining, "loss", noted)
    pretrain(write(), [])
    assert set(modes) == {(True, True), (False, False)}
    order = [
        grad for (grad, _), after in zip(modes, [*modes[1:], None], strict=True) if grad or after != (False, False)
    ]
    assert order == [True] * 3 + [False] + [True] * 3 + [False, True, False]  # a validation at the end, too


def test_a_finished_run_started_again_only_reports(write: Write) -> None:
    folder = pretrain(write(), [])
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*")}
    assert pretrain(write(), []) == folder
    assert {file: file.stat().st_mtime_ns for file in before} == before
    with refused("mismatch", "seed"):
        pretrain(write(seed=4), [])


def test_a_killed_run_ends_in_the_same_weights(write: Write, tmp_path: Path) -> None:
    """Killed after the validation of step 3, and again after the checkpoint of step 4: the same bit for bit."""
    whole = pretrain(write(output_dir=str(tmp_path / "whole")), [])
    config = write(output_dir=str(tmp_path / "killed"))
    for at, last in ((4, 3), (2, 4)):  # training steps since the start
        run_killed(at, "pretrain", "--config", config)
        checkpoint = torch.load(tmp_path / "killed" / "tiny" / "last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == last
    again = pretrain(config, [])
    ours, theirs = load_file(whole / "conformer.safetensors"), load_file(again / "conformer.safetensors")
    assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (whole.parent / "done.json").read_text() == (again.parent / "done.json").read_text()


def test_a_run_that_was_killed_before_it_saved_its_encoder_still_saves_it(write: Write) -> None:
    """The last checkpoint is of the last step: nothing is left to train."""
    folder = pretrain(write(steps=4, validate_every=3), [])
    ours = load_file(folder / "conformer.safetensors")
    assert torch.load(folder.parent / "last.ckpt", weights_only=True)["global_step"] == 4
    scores = (folder.parent / "done.json").read_text()
    (folder.parent / "done.json").unlink()
    (folder / "conformer.safetensors").unlink()
    theirs = load_file(pretrain(write(steps=4, validate_every=3), []) / "conformer.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (folder.parent / "done.json").read_text() == scores  # validation hides and drowns the same each time


def test_what_is_heard_and_hidden_is_a_function_of_seed_side_epoch_and_id(write: Write) -> None:
    clips = found(write()).train
    crops = Crops(clips, 0.4, Masking(8, 0.1, 0.1), 3, "train")
    audio, mask = crops.draw(clips[1], 5)
    batch = crops[Rows(5, [4, 1, 2])]
    assert torch.equal(batch.audio.rows()[1], audio) and torch.equal(batch.mask[1], mask)
    for other in (crops.draw(clips[1], 6), Crops(clips, 0.4, Masking(8, 0.1, 0.1), 4, "train").draw(clips[1], 5),
                  Crops(clips, 0.4, Masking(8, 0.1, 0.1), 3, "validation").draw(clips[1], 5)):  # fmt: skip
        assert not torch.equal(other[0], audio) and not torch.equal(other[1], mask)


def test_long_clips_are_cut_at_random_places_and_short_ones_stay(write: Write) -> None:
    clips = found(write()).train
    crops = Crops(clips, 0.6, Masking(), 0, "train")
    whole, _ = Crops(clips, 60.0, Masking(), 0, "train").draw(clips[2], 0)
    assert len(whole) == int(0.76 * 16_000)
    begins = set()
    for epoch in range(20):
        cut, mask = crops.draw(clips[2], epoch)
        assert len(cut) == 9_600 and len(mask) == 60
        begins |= {start for start in range(len(whole) - 9_600 + 1) if torch.equal(whole[start : start + 9_600], cut)}
    assert len(begins) > 10 and max(begins) - min(begins) > 1_000
    assert len(crops.draw(clips[0], 0)[0]) == 8_000


def test_the_loss_is_a_mean_over_the_frames_of_all_ranks(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks with unlike batches: the mean of what they return is the loss of one batch that holds both."""
    recipe = recipes.load(write(encoder={"type": "conformer", **NUMBERS, "dropout": 0.0}, masking={"noise": 0.0}))
    module, clips = begin(recipe), found(write()).train
    crops = Crops(clips, 60.0, Masking(), 3, "train")
    batches = [crops[Rows(0, [0, 4, 8])], crops[Rows(0, [3])]]
    counts = [module.loss(batch).targets.numel() for batch in batches]
    assert counts[0] != counts[1]

    def step(batch: Batch, ranks: int, everywhere: int) -> torch.Tensor:
        strategy = SimpleNamespace(reduce=lambda count, reduce_op: torch.tensor(float(everywhere)))
        trainer = SimpleNamespace(strategy=strategy, world_size=ranks, global_step=0, global_rank=0)
        monkeypatch.setattr(type(module), "trainer", trainer)
        return module.training_step(batch, 0)

    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    apart = [step(batch, 2, sum(counts)) for batch in batches]
    together = crops[Rows(0, [0, 4, 8, 3])]
    assert torch.allclose(sum(apart) / 2, step(together, 1, sum(counts)), rtol=1e-5)


@pytest.mark.parametrize("ranks", [1, 3])
def test_steps_go_on_through_as_many_epochs_as_they_need(write: Write, ranks: int) -> None:
    clips, recipe = found(write()).train, recipes.load(write(steps=40))
    heard = set()
    for rank in range(ranks):
        trainer: Any = SimpleNamespace(global_rank=rank, world_size=ranks)
        order = [*training_loader(recipe, clips, trainer, 0).sampler]
        assert len(order) == 40 and [*training_loader(recipe, clips, trainer, 33).sampler] == order[33:]
        assert order[-1][0] > 5  # epochs
        heard |= {row for rows in order for row in rows.numbers}
    assert heard == set(range(10))


def test_the_published_steps_are_not_laid_out_before_the_first(write: Write) -> None:
    """Half a million steps of 2,048 are a billion draws, which take hours and fill the memory."""
    clips, recipe = found(write()).train * 2_000, recipes.load(resolve("sottovoce:conf/best_rq.yaml"))
    sampler = training_loader(recipe, clips, cast(Any, SimpleNamespace(global_rank=3, world_size=128)), 499_999).sampler
    assert len(cast(Any, sampler)) == 500_000
    (last,) = sampler
    assert last.epoch == 500_000 // 10 - 1 and len(last.numbers) == 16


def test_a_manifest_needs_no_more_than_audio(write: Write, speech: Path) -> None:
    clips = found(write()).train
    assert [clip.id for clip in clips] == [f"{i}.wav" for i in range(10)]
    assert clips[3].audio == speech / "3.wav" and clips[3].seconds == pytest.approx(0.89)
    assert [clip.id for clip in found(write()).validation] == ["0.wav", "1.wav", "2.wav"]


SIDES = {"train": [{"folder": "a"}], "validation": [{"folder": "b"}]}


@pytest.mark.parametrize(
    ("changes", "code", "where"),
    [
        ({"stepz": 5}, "unknown-key", "stepz"),
        ({"steps": "many"}, "bad-value", "steps"),
        ({"steps": 0}, "bad-value", "steps"),
        ({"batch_size": None}, "bad-value", "batch_size"),
        ({"masking": {"spam": 32}}, "unknown-key", "masking.spam"),
        ({"masking": {"probability": 0.0}}, "bad-value", "masking.probability"),
        ({"quantizer": {"codes": 0}}, "bad-value", "quantizer.codes"),
        ({"encoder": {"type": "conformer", "layer": 2}}, "unknown-key", "encoder.layer"),
        ({"encoder": {"type": "whisper", "checkpoint": "tiny"}}, "conflict", "encoder.type"),
        ({"data": {"train": [{"manifest": "a"}]}}, "missing-key", "data.validation"),
        ({"data": {**SIDES, "train": []}}, "bad-value", "data.train"),
        ({"data": {**SIDES, "train": [{}]}}, "conflict", "data.train[0]"),
        ({"data": {**SIDES, "train": [{"folder": "a", "root": "c"}]}}, "conflict", "data.train[0].root"),
        ({"trainer": {"max_steps": 3}}, "conflict", "trainer.max_steps"),
    ],
)
def test_a_faulty_recipe_says_what_is_wrong(write: Write, changes: dict[str, Any], code: Any, where: str) -> None:
    with refused(code, where, ConfigError):
        recipes.load(write(**changes))


def test_an_argument_that_lightning_does_not_take_is_named(write: Write) -> None:
    with refused("unknown-key", "trainer.devicez", ConfigError):
        pretrain(write(trainer={"accelerator": "cpu", "devicez": 1}), [])


def test_missing_speech_is_named(write: Write) -> None:
    data = {"train": [{"manifest": "no/such.jsonl"}], "validation": [{"folder": "no/folder"}]}
    with refused("not-found", "no/such.jsonl", MissingError) as caught:
        pretrain(write(data=data), [])
    assert all(part in str(caught.value) for part in ("such.jsonl (looked for /", "no/folder ", "{folder: DIR}"))


def test_faulty_clips_are_named_or_left_out(write: Write, speech: Path, tmp_path: Path, capsys: Any) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    (tmp_path / "text.wav").write_text("no audio")
    for name in ("fair", "good"):
        write_sweep(tmp_path / f"{name}.wav", 0.5, 200)
    data = {"train": [{"folder": str(tmp_path)}], "validation": [{"folder": str(speech / "held")}]}
    with refused("damaged", "text.wav", ManifestError) as caught:
        found(write(data=data))
    assert [(fault.code, Path(fault.where).name) for fault in caught.value.faults] == [
        ("damaged", "text.wav"), ("bad-value", "silent.wav"),
    ]  # fmt: skip
    kept = found(write(data={**data, "policy": "skip"}))
    assert [clip.id for clip in kept.train] == ["fair.wav", "good.wav"] and len(kept.faults) == 2
    pretrain(write(data={**data, "policy": "skip"}, steps=1), [])
    assert "left out, 2 in all" in capsys.readouterr().err
    for name in ("fair", "good"):
        (tmp_path / f"{name}.wav").unlink()
    with refused("empty", "data.train", ManifestError):
        found(write(data={**data, "policy": "skip"}))


def test_a_clip_on_both_sides_is_refused(write: Write, speech: Path) -> None:
    data = {"train": [{"folder": str(speech)}], "validation": [{"folder": str(speech / "held")}]}
    with refused("conflict", "data.validation", ManifestError):
        found(write(data=data))


def test_the_recipes_of_the_package_are_the_published_numbers(capsys: Any) -> None:
    config = str(resolve("sottovoce:conf/best_rq.yaml"))
    recipe = recipes.load(config)
    assert (recipe.masking.span, recipe.masking.probability, recipe.masking.noise) == (32, 0.025, 0.1)
    assert (recipe.quantizer.codebooks, recipe.quantizer.codes, recipe.quantizer.code_dim) == (16, 8192, 16)
    assert recipe.steps == 500_000 and recipe.data.crop_seconds == 60
    assert recipe.batch_size * recipe.trainer["devices"] * recipe.trainer["num_nodes"] == 2048
    dry_run(config, [])
    shown = capsys.readouterr().out
    encoder = next(line for line in shown.splitlines() if "trains, is kept" in line)
    assert "1,00" in encoder  # 1.00 billion
    small = recipes.load(resolve("sottovoce:conf/best_rq_small.yaml"))
    module = begin(small)
    assert 1_500_000 < sum(weight.numel() for weight in module.best_rq.encoder.parameters()) < 2_500_000
