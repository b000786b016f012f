"""A run looked at: answers one by one, its page, and a folder that was moved."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from tests.helpers.errors import refused

from sottovoce.cli.main import main
from sottovoce.errors import ConfigError, MissingError
from sottovoce.evaluation.metrics import Prediction
from sottovoce.evaluation.records import is_wrong, read_predictions
from sottovoce.evaluation.reports.run_html import confusions_of, resampled, score_panels
from sottovoce.scoring import run_report
from sottovoce.scoring.predict import shown_clip
from sottovoce.scoring.run_report import learning_curves, write_report
from sottovoce.scoring.show import show
from sottovoce.training.run_folder import load_run


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, elsewhere."""
    return Path(shutil.copytree(tiny_run, tmp_path / "elsewhere" / "tiny"))


def test_predictions_hold_the_clip_and_what_was_said(tiny_run: Path, manifests: dict[str, Path]) -> None:
    lines = {row["id"]: row for row in map(json.loads, manifests["test"].read_text().splitlines())}
    for row in read_predictions(tiny_run / "evaluation"):
        assert row.audio and os.path.samefile(row.audio, manifests["test"].parent / lines[row.id]["audio"])
        assert row.text == lines[row.id]["text"]


def test_a_clip_in_the_run_s_own_folder_is_relative_to_it(tmp_path: Path) -> None:
    assert shown_clip(tmp_path / "run/cache/a.wav", tmp_path / "run") == "cache/a.wav"
    assert shown_clip(tmp_path / "runs/a.wav", tmp_path / "run") == str(tmp_path / "runs/a.wav")
    assert shown_clip(None, tmp_path) is None


def test_answers_are_shown_with_clip_text_and_what_is_right(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row for row in read_predictions(run / "evaluation") if (row.task, row.slots) == ("gender", "both")]
    assert main(["show", str(run), "--task", "gender", "--wrong"]) == 0
    out, told = capsys.readouterr()
    wrong = [row for row in rows if row.predicted != row.label]
    assert wrong and re.findall(r"(?m)^(\S+)  gender  wrong", out) == [row.id for row in wrong]
    for row in wrong:
        assert row.audio in out and row.text in out and f"right   {row.label}" in out and row.response in out
    assert told.startswith(f"{len(wrong)} of {len(rows)} ")
    show(str(run / "bundle"), ["asr"], limit=2)
    out, told = capsys.readouterr()
    assert out.count("answer ") == 2 and "2 shown" in told


def test_what_cannot_be_shown_is_refused(run: Path, tmp_path: Path) -> None:
    with refused("unknown-name", "--task", ConfigError):
        show(str(run), ["age"])
    with refused("unknown-name", "--slots", ConfigError):
        show(str(run), slots="voice")
    with refused("bad-value", "--limit", ConfigError):
        show(str(run), limit=0)
    with refused("not-found", "predictions.jsonl", MissingError):
        show(str(tmp_path))


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        (Prediction("u", "asr", "both", "", "A cat.", "a cat"), False),
        (Prediction("u", "asr", "both", "", "a dog", "a cat"), True),
        (Prediction("u", "asr", "both", "", "hmm", ""), False),
        (Prediction("u", "asr", "both", "", "a dog", "a cat", unscored=True), None),
        (Prediction("u", "age", "both", "", "?", "", "child", None), True),
        (Prediction("u", "age", "both", "", "child", "", "child", "child"), False),
        (Prediction("u", "dialogue", "both", "", "oh", "oh", "sad"), None),
        (Prediction("u", "response", "both", "", "oh", "oh", "child", category="age", awareness=-1), True),
        (Prediction("u", "response", "both", "", "oh", "oh", "child", category="age", awareness=1), False),
    ],
)
def test_what_is_wrong(row: Prediction, wrong: bool | None) -> None:
    assert is_wrong(row) is wrong


def test_a_confusion_counts_each_pair_once() -> None:
    said = [("child", "child"), ("child", "adult"), ("child", None), ("adult", "adult"), ("adult", "elder")]
    rows = [Prediction(f"u{i}", "age", "both", "", "", "", label, told) for i, (label, told) in enumerate(said)]
    (matrix,) = confusions_of([*rows, Prediction("v", "asr", "both", "", "a", "a")])["both"]
    assert (matrix.right, matrix.answered) == (["adult", "child"], ["adult", "child", "elder", "none"])
    assert matrix.counts.tolist() == [[1, 0, 1, 0], [1, 1, 0, 1]]


def test_intervals_over_speakers_are_drawn_and_told() -> None:
    def rows(*speakers: str | None) -> list[Prediction]:
        heard = enumerate(speakers)  # a speaker is right always, or never
        return [Prediction(f"u{i}", "age", "both", "", "", "", "ab"[i % 2], "ab"[i % 2] if who in ("s", None) else "x",
                           speaker=who) for i, who in heard]  # fmt: skip

    (panel,) = score_panels(rows(*["s"] * 10, *["t"] * 10))
    (bar,) = panel.bars
    assert bar.value and bar.other and bar.value[2] - bar.value[1] > bar.other[1] - bar.other[0]
    assert "speakers" in resampled([], [panel]) and "pale" in resampled([], [panel])
    (alone,) = score_panels(rows(None, None, None))
    assert alone.bars[0].other is None and "Speakers are not known" in resampled([], [alone])


def test_a_run_leaves_a_page_that_needs_nothing_else(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and short clips are in it; a long clip is referred to by a path relative to the page."""
    page = (run / "report.html").read_text()
    assert page.count("<img ") >= 3 and "data:audio/flac;base64," in page and "stages" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    monkeypatch.setattr(run_report, "MAX_SECONDS", 0.2)
    written = write_report(run / "evaluation", run / "report.html", run).read_text()
    found = re.findall(r'<audio[^>]* src="([^"]+)"', written)
    assert found and all((run / name).is_file() and not os.path.isabs(name) for name in found)


def test_a_page_without_matplotlib_has_its_tables(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    page = write_report(run / "evaluation", run / "report.html", run).read_text()
    assert "<img" not in page and "matplotlib" in page and "<td" in page


def test_curves_of_a_run_that_went_on_are_one(tmp_path: Path) -> None:
    for version, steps in ((0, "0,9,2.0\n0,19,1.5\n"), (1, "0,19,1.4\n0,29,1.0\n")):
        folder = tmp_path / f"stages/1-joint/metrics/version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"epoch,step,train/loss\n{steps}")
    ((curve,),) = learning_curves(tmp_path)["1-joint"]
    assert (curve.steps, curve.values) == ([9.0, 19.0, 29.0], [2.0, 1.4, 1.0])


def test_a_run_is_evaluated_where_it_lies_now(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved and renamed, from a folder that has nothing to do with it; nothing appears where it was, or is, called."""
    monkeypatch.chdir(tmp_path)
    recipe = load_run(run)
    assert recipe.folder == run and recipe.name == "tiny"
    other = run.rename(run.with_name("renamed"))
    assert load_run(other).folder == other
    before = {path.name for path in tmp_path.iterdir()}
    asked = [f"evaluation.{key}" for key in ("slots=[both]", "limit=2", "tasks=[gender]")]
    assert main(["evaluate", str(other), *asked]) == 0
    scores = other / "evaluation/joint"
    assert len(read_predictions(scores)) == 2 and (scores / "report.html").is_file()
    assert {path.name for path in tmp_path.iterdir()} == before and not (tmp_path / "elsewhere/tiny").exists()


def test_another_test_side_leaves_a_run_and_its_scores_as_they_are(
    run: Path, manifests: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["evaluation.slots=[both]", "evaluation.limit=1", "evaluation.tasks=[gender]"]
    assert main(["evaluate", str(run), *few]) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["evaluate", str(run), *few, f"data.test=[{{manifest: {manifests['validation']}}}]"]) == 0
    scores = run / "evaluation/joint-validation"
    assert str(scores / "results.md") in capsys.readouterr().out and read_predictions(scores)
    assert {path: path.read_bytes() for path in before} == before


def test_relative_paths_of_a_run_lead_where_they_led_in_training(
    run: Path, manifests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = manifests["test"].parent
    text = (run / "recipe.yaml").read_text().replace(f"{then}/", "")
    (run / "recipe.yaml").write_text(text)
    here = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**here, "folder": str(then)}))
    monkeypatch.chdir(tmp_path)
    assert "train.jsonl" in text and str(then) not in text.partition("data:")[2].partition("cache")[0]
    assert main(["evaluate", "elsewhere/tiny", "evaluation.slots=[both]", "evaluation.limit=1"]) == 0
    assert (run / "evaluation/joint/results.json").is_file() and Path.cwd() == tmp_path
