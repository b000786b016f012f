"""What users really hand us: each fault is named before training, or left out and counted where the recipe allows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tests.conftest import write_manifest, write_tone
from tests.helpers.runs import Write

from sottovoce.cli.main import main

RATE = 16_000
NOISE = np.random.default_rng(0).normal(0, 0.1, (RATE, 2))
TONE = 0.3 * np.sin(np.arange(RATE) / 8)
BAD: dict[str, Callable[[Path], object]] = {
    "silent": lambda file: soundfile.write(file, np.zeros(RATE), RATE),
    "empty": lambda file: soundfile.write(file, np.zeros(0), RATE),
    "short": lambda file: soundfile.write(file, TONE[:800], RATE),
    "garbage": lambda file: file.write_bytes(b"RIFF" + bytes(range(200))),
}
ODD: dict[str, Callable[[Path], object]] = {
    "phone": lambda file: soundfile.write(file, TONE[:5600], 8000),
    "stereo": lambda file: soundfile.write(file, NOISE, RATE),
    "deep": lambda file: soundfile.write(file, NOISE[:, 0], RATE, subtype="PCM_24"),
    "clipped": lambda file: soundfile.write(file, np.clip(20 * NOISE[:, 0], -1, 1), RATE),
}


def data_with(folder: Path, spoil: Callable[[Path], object]) -> dict[str, Any]:
    """Manifests in which one training clip is spoiled."""
    files = {split: write_manifest(folder, split, n) for split, n in (("train", 6), ("validation", 3), ("test", 3))}
    spoil(folder / "train-1.wav")
    return {split: [{"manifest": str(file)}] for split, file in files.items()}


Fit = Callable[..., int]


@pytest.fixture
def fit(write_recipe: Write, tree: dict[str, Any], tmp_path: Path) -> Fit:
    """`sottovoce fit` of one stage, with one training clip spoiled and `data` changed as said; its exit status."""
    small = {"stages": {"joint": tree["stages"]["joint"]}, "evaluation": {"max_new_tokens": 2, "slots": ["both"]}}

    def run(spoil: Callable[[Path], object], **changes: Any) -> int:
        data = {**data_with(tmp_path, spoil), "cache": str(tmp_path / "cache"), **changes}
        return main(["fit", "--config", write_recipe(data=data, **small)])

    return run


@pytest.mark.parametrize("name", BAD)
def test_an_unusable_clip_stops_the_run_before_training(name: str, fit: Fit, tmp_path: Path, capsys: Any) -> None:
    assert fit(BAD[name]) == 2
    told = capsys.readouterr().err
    assert "train-1.wav" in told and "Traceback" not in told
    assert not list(tmp_path.glob("runs/tiny/stages/*"))


@pytest.mark.parametrize("name", BAD)
def test_an_unusable_clip_is_left_out_counted_and_named(name: str, fit: Fit, capsys: Any) -> None:
    assert fit(BAD[name], policy="skip") == 0
    told = capsys.readouterr().out
    assert "left out, 1 in all" in told and "train-1" in told


@pytest.mark.parametrize("name", ODD)
def test_odd_audio_trains_and_is_answered(name: str, fit: Fit, tmp_path: Path, capsys: Any) -> None:
    assert fit(ODD[name]) == 0
    bundle = str(tmp_path / "runs" / "tiny" / "bundle")
    assert main(["chat", bundle, "--once", "--audio", str(tmp_path / "train-1.wav")]) == 0
    captured = capsys.readouterr()
    assert "answer" in captured.out and ("clip" in captured.err) == (name == "clipped")


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("}\n", "\n", ":2: "),
        ("train-1.wav", "nowhere.wav", "nowhere.wav"),
        ('"happy"', '"hapy"', "'happy'"),
        ('"id": "train-1"', '"id": "train-0"', "duplicate id"),
    ],
)
def test_a_faulty_line_is_named_by_its_number(
    right: str, wrong: str, message: str, write_recipe: Write, tmp_path: Path, capsys: Any
) -> None:
    data = data_with(tmp_path, lambda _: None)
    manifest = tmp_path / "train.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace(right, wrong)
    manifest.write_text("".join(lines))
    assert main(["fit", "--config", write_recipe(data=data)]) == 2
    told = capsys.readouterr().err
    assert "train.jsonl:2: " in told and message in told and "Traceback" not in told


def test_a_clip_on_two_sides_is_refused(write_recipe: Write, manifests: dict[str, Path], capsys: Any) -> None:
    data = {side: [{"manifest": str(manifests["train"])}] for side in ("train", "validation")}
    assert main(["fit", "--config", write_recipe(data=data)]) == 2
    assert "both train and validation" in capsys.readouterr().err


def test_a_clip_longer_than_the_recipe_allows(fit: Fit, capsys: Any) -> None:
    assert fit(lambda file: write_tone(file, 3.0, 200), max_seconds=2.0) == 2
    assert "data.max_seconds" in capsys.readouterr().err


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights": lambda bundle: (bundle / "trained.safetensors").write_bytes(b"\x00" * 100),
    "prints": lambda bundle: (bundle / "fingerprints.json").write_text('{"encoder": "0", "llm": "0"}'),
    "absent": lambda bundle: (bundle / "trained.safetensors").unlink(),
    "recipe": lambda bundle: (bundle / "recipe.yaml").write_text("slots: 3\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_is_refused(damage: str, fit: Fit, tmp_path: Path, capsys: Any) -> None:
    assert fit(lambda _: None) == 0
    bundle = tmp_path / "runs" / "tiny" / "bundle"
    DAMAGES[damage](bundle)
    capsys.readouterr()
    assert main(["chat", str(bundle), "--once", "--audio", str(tmp_path / "train-1.wav")]) == 2
    told = capsys.readouterr().err
    assert "sottovoce: " in told and "Traceback" not in told


@pytest.mark.parametrize("arguments", [["chat", "nowhere", "--once", "--audio", "x.wav"], ["evaluate", "nowhere"]])
def test_a_folder_that_is_not_there(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("sottovoce: ")


def test_a_file_where_a_folder_should_be_is_one_line(write_recipe: Write, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "taken").write_text("")
    assert main(["fit", "--config", write_recipe(output_dir=str(tmp_path / "taken"))]) == 2
    told = capsys.readouterr().err
    assert told.startswith("sottovoce: ") and "taken" in told and told.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        "prepare librispeech --source . --out out case=[",
        "targets a.jsonl --out b.jsonl --engine local checkpoint=x batch_size=[",
        "estimate --config CONFIG --utterances 9 --seconds nan",
        "estimate --config CONFIG --utterances 9 --seconds 100000",
        "estimate --config CONFIG --utterances 9 trainer.devices=0",
        "estimate --config CONFIG --utterances 9 trainer.num_nodes=foo",
    ],
)
def test_odd_values_on_the_command_line_are_one_line(write_recipe: Write, command: str, capsys: Any) -> None:
    assert main([word.replace("CONFIG", write_recipe()) for word in command.split()]) == 2
    told = capsys.readouterr().err
    assert told.startswith("sottovoce: ") and "Traceback" not in told


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainer.precision=fp16", "Did you mean '16-mixed'?"),
        ("trainer.precision=bfloat16", "Did you mean 'bf16-mixed'?"),
        ("stages.joint.lr=1e-3,3e-4", "sottovoce sweep"),
        ("stages.joint.epochs=1,2", "sottovoce sweep"),
    ],
)
def test_what_was_probably_meant_is_told(write_recipe: Write, override: str, told: str, capsys: Any) -> None:
    config = write_recipe()
    assert main(["fit", "--config", config, "--dry-run", override]) == 2
    assert told in capsys.readouterr().err


def test_a_recipe_without_a_slot_is_told_in_our_words(write_recipe: Write, tree: dict[str, Any], capsys: Any) -> None:
    config = write_recipe(slots={"linguistic": tree["slots"]["linguistic"]})
    assert main(["fit", "--config", config, "--dry-run", "slots.linguistic=null"]) == 2
    message = capsys.readouterr().err
    assert "slots: needs at least 1" in message and "Dictionary" not in message
