"""Sweeps: what a command line means, runs of a grid and of Optuna, and going on."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.errors import refused
from tests.helpers.runs import Write

from sottovoce.cli.main import main
from sottovoce.comparison import sweep as sweeps
from sottovoce.comparison.sweep import Range, axes_of, best_of, dry_run, grid_name, sweep
from sottovoce.config import recipe as recipes

Tree = dict[str, Any]


@pytest.fixture
def config(write_recipe: Write, tree: Tree) -> str:
    joint = {**tree["stages"]["joint"], "tasks": {"asr": 1}, "epochs": 1, "warmup_steps": 0}
    scored = {"batch_size": 5, "max_new_tokens": 2, "limit": 2, "slots": ["both"]}
    return write_recipe(stages={"joint": joint}, evaluation=scored)


def test_commas_make_values_and_dots_a_range() -> None:
    words = ["a.lr=1e-3, 3e-4", "seed=1,2", "tasks=[x,y],{z: 1, w: 2}", "b=2..8", "c=1e-4..1e-2 log", "d=-1.5..2"]
    others = ["name=n", 'e="1,2"', "file=../x.yaml", "f={a: [1, 2]}", "g=..", "h=a...b", "i=1..x"]
    axes, fixed = axes_of([*words, *others])
    assert axes == {
        "a.lr": ["1e-3", "3e-4"], "seed": ["1", "2"], "tasks": ["[x,y]", "{z: 1, w: 2}"],
        "b": Range(2, 8, False), "c": Range(1e-4, 1e-2, True), "d": Range(-1.5, 2.0, False),
    }  # fmt: skip
    assert isinstance(axes["b"][0], int) and fixed == others


@pytest.mark.parametrize("word", ["lr=2..1", "lr=0..1 log", "lr=1,,2", "lr=1,1"])
def test_values_that_are_none_are_refused(word: str) -> None:
    with refused("bad-value", "lr"):
        axes_of([word])


def test_folders_say_what_differs() -> None:
    assert grid_name({"stages.joint.lr": "1e-3", "seed": "2"}) == "seed-2/lr-1e-3"
    assert "/" not in grid_name({"tasks": "../../x"})
    names = [grid_name({"stages.a.lr": "1", "stages.b.lr": value, "tasks": "{x: 1}"}) for value in ("2", "3")]
    assert names == ["a-lr-1,b-lr-2,tasks-x_1", "a-lr-1,b-lr-3,tasks-x_1"]


def test_a_grid_is_trained_and_compared_once(
    config: str, tree: Tree, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    trained: list[str] = []
    train = sweeps.train_run
    monkeypatch.setattr(sweeps, "train_run", lambda made, *rest: trained.append(made.name) or train(made, *rest))
    words = ["sweep", config, "stages.joint.lr=1e-2,1e-3", "seed=1,2", "name=grid"]
    assert main(words) == 0
    expected = [f"grid/seed-{seed}/lr-{lr}" for lr in ("1e-2", "1e-3") for seed in (1, 2)]
    assert trained == expected
    folder = Path(tree["output_dir"]) / "grid"
    assert all((folder / name.removeprefix("grid/") / "evaluation" / "results.json").is_file() for name in expected)
    page = (folder / "comparison" / "comparison.csv").read_text()
    assert "lr-1e-2" in page and "lr-1e-3" in page and "seed-1" not in page.splitlines()[1]
    assert "val/loss" in capsys.readouterr().out
    assert main(words) == 0 and trained == expected


def test_optuna_goes_on_where_it_was(config: str, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    import optuna

    words = ["stages.joint.lr=1e-4..1e-1 log", "stages.joint.batch_size=3..4", "name=tuned"]
    sweep(config, words, 2)
    folder = Path(tree["output_dir"]) / "tuned"
    before = [(folder / f"trial-00{i}" / "recipe.yaml").read_text() for i in range(2)]
    train = sweeps.train_run

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "train_run", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(config, words, 3)
    trained: list[float] = []
    monkeypatch.setattr(
        sweeps, "train_run", lambda made, *rest: trained.append(made.stages["joint"].lr) or train(made, *rest)
    )
    sweep(config, words, 4)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / sweeps.JOURNAL)))
    study = optuna.load_study(study_name="tuned", storage=storage)
    assert len(study.trials) == 4 and all(trial.state.is_finished() for trial in study.trials)
    assert trained == [trial.params["stages.joint.lr"] for trial in study.trials[2:]]
    assert len({trial.params["stages.joint.lr"] for trial in study.trials}) == 4
    for trial in study.trials:
        made = recipes.load(folder / f"trial-00{trial.number}" / "recipe.yaml")
        assert (
            made.stages["joint"].lr == trial.params["stages.joint.lr"]
            and 1e-4 <= trial.params["stages.joint.lr"] <= 0.1
        )
        assert trial.value == pytest.approx(best_of(made))
    assert before == [(folder / f"trial-00{i}" / "recipe.yaml").read_text() for i in range(2)]
    assert (folder / "comparison" / "comparison.html").is_file()
    with refused("mismatch", "tuned"):
        sweep(config, ["seed=1,2", "name=tuned"], 5)


def test_the_best_validation_is_that_of_the_best_checkpoint(config: str, tree: Tree) -> None:
    sweep(config, ["seed=1,2", "name=grid", "stages.joint.val_checks_per_epoch=3", "stages.joint.lr=0.5"])
    for seed in (1, 2):
        made = recipes.load(Path(tree["output_dir"]) / "grid" / f"seed-{seed}" / "recipe.yaml")
        lines = next(made.folder.rglob("metrics.csv")).read_text().splitlines()
        at = lines[0].split(",").index("val/loss")
        losses = [float(line.split(",")[at]) for line in lines[1:] if line.split(",")[at]]
        assert best_of(made) == pytest.approx(min(losses)) and len(losses) == 3
        done = json.loads((next(made.folder.rglob("done.json"))).read_text())
        assert done["val/loss"] == pytest.approx(losses[-1])


@pytest.mark.parametrize(
    ("code", "where", "words", "trials"),
    [
        ("empty", "overrides", ["seed=1"], None), ("conflict", "stages.joint.lr", ["stages.joint.lr=1..2"], None),
        ("bad-value", "stages.joint.lr", ["stages.joint.lr=1e-3,-1"], None),
        ("unknown-key", "stages.joint.rate", ["stages.joint.rate=1,2"], None),
    ],
)  # fmt: skip
def test_a_sweep_is_checked_before_a_run_begins(
    code: Any, where: str, words: list[str], trials: int | None, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "train_run", lambda *_: pytest.fail("a run has begun"))
    with refused(code, where):
        sweep(config, words, trials)
    with refused(code, where):
        dry_run(config, words, trials)


def test_a_dry_run_tells_runs_and_trains_none(
    config: str, tree: Tree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweeps, "train_run", lambda *_: pytest.fail("a run has begun"))
    assert main(["sweep", config, "--dry-run", "seed=1,2", "stages.joint.lr=1e-3,1e-4"]) == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert len(told) == 4 and {state for state, _ in told} == {"new"}
    assert len({folder for _, folder in told}) == 4 and not (Path(tree["output_dir"]) / "grid").exists()
    assert main(["sweep", config, "--dry-run", "seed=1,2", "stages.joint.lr=1e-3,-1"]) == 2
