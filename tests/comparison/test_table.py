"""Tables of systems: every one trained or reused, scored by one judge, and the published numbers never mixed in."""

import csv
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tests.conftest import CONFORMER, EMOTIONS, write_lines
from tests.helpers.errors import refused
from tests.helpers.runs import Write

from sottovoce.cli.main import main
from sottovoce.comparison import table as table_command
from sottovoce.comparison.table import _probe_sides, judged_in_all
from sottovoce.comparison.table_config import load, overrides_for, system_recipe
from sottovoce.data.audio import load_audio
from sottovoce.demo.world import NOUNS, REPLIES
from sottovoce.errors import ConfigError, SottovoceError
from sottovoce.evaluation.judges.base import Judge, Reply, Verdict
from sottovoce.frames import Frames
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.paths import resolve
from sottovoce.scoring import speech_tokens
from sottovoce.scoring.speech_tokens import pooled_tokens
from sottovoce.training.splits import read_splits

JUDGE = {"type": "rule", "exemplars": {name: [f"{name} words about {{thing}}"] for name in EMOTIONS}}


@pytest.fixture
def write_table(alignment: dict[str, Any], tmp_path: Path) -> Write:
    """A baseline and a cascade on it, as files, and the table of both; returns the path of the table's recipe."""
    evaluation = {"batch_size": 5, "max_new_tokens": 4, "tasks": ["response", "emotion"], "slots": ["both"]}
    baseline = {**alignment, "encoder": CONFORMER, "name": "seed-${seed}/baseline", "evaluation": evaluation}
    cascade = {
        **baseline, "name": "seed-${seed}/cascade", "init_from": "${output_dir}/seed-${seed}/baseline/bundle",
        "stages": {}, "cascade": {"epochs": 2, "pool": 4},
    }  # fmt: skip
    for name, made in (("baseline", baseline), ("cascade", cascade)):
        (tmp_path / f"{name}.yaml").write_text(OmegaConf.to_yaml(made))
    (tmp_path / "shared.yaml").write_text(OmegaConf.to_yaml({**baseline, "name": "shared"}))

    def write(**changes: Any) -> str:
        paper = {"quality": [5.46, 0.13], "ser": [20.45]}
        systems = {
            "baseline": {"title": "Baseline", "recipe": "baseline.yaml", "paper": paper},
            "cascade": {"title": "Cascade", "recipe": "cascade.yaml", "probe": False},
        }
        node = {
            "name": "table", "seeds": [1, 2], "systems": systems, "judge": JUDGE, "picture": ["baseline"],
            "bert_score": {"checkpoint": alignment["llm"]["checkpoint"], "layer": 1},
            "output_dir": str(tmp_path / "runs"), **changes,
        }  # fmt: skip
        file = tmp_path / "table.yaml"
        file.write_text(OmegaConf.to_yaml(node))
        return str(file)

    return write


def written(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "comparison.csv").open()))


def test_a_table_trains_scores_and_reuses_every_system(write_table: Write, tmp_path: Path, capsys: Any) -> None:
    assert main(["table", write_table()]) == 0
    folder = tmp_path / "runs" / "table"
    rows = written(folder)
    seeds = {(row["system"], row["seed"], row["metric"]) for row in rows if row["kind"] == "score of a seed"}
    ours = {"rouge_1", "rouge_2", "rouge_l", "bert_score", "judge_quality", "judge_emotion", "accuracy"}
    metrics = {"baseline": ours | {"probe"}, "cascade": ours}
    assert seeds >= {(name, seed, m) for name in metrics for seed in ("1", "2") for m in metrics[name]}
    assert ("cascade", "1", "probe") not in seeds
    scores = [row for row in rows if row["kind"] == "score"]
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) and row["n"] == "6" for row in scores)
    pairs = {(row["system"], row["against"]) for row in rows if row["kind"] == "difference"}
    assert pairs == {("cascade", "baseline"), ("baseline", "cascade")}
    assert {row["metric"] for row in rows if row["kind"] == "difference"} >= ours
    columns = ("system", "metric", "value", "low", "high")
    assert [[row[column] for column in columns] for row in rows if row["kind"] == "published"] == [
        ["baseline", "judge_quality", "5.46", "5.33", "5.59"], ["baseline", "accuracy", "0.2045", "", ""],
    ]  # fmt: skip
    assert (folder / "tokens.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "comparison.html").read_text()
    assert page.count("5.46 ±0.13") == 1 and page.index("As published") < page.index("5.46 ±0.13")
    assert "Judge: rule." in page and "data:image/png" in page and "Cascade" in page
    runs = [tmp_path / "runs" / f"seed-{seed}" / name for seed in (1, 2) for name in ("baseline", "cascade")]
    stamps = [(run / "evaluation" / "results.json").stat().st_mtime_ns for run in runs]
    capsys.readouterr()
    assert main(["table", write_table()]) == 0
    shown = capsys.readouterr().out
    assert "stage 1 of 1" not in shown and "As published" in shown and "Differences to baseline" in shown
    assert stamps == [(run / "evaluation" / "results.json").stat().st_mtime_ns for run in runs]
    assert written(folder) == rows


def test_systems_that_were_asked_something_else_have_no_difference(
    write_table: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["table", write_table(picture=[]), "seeds=[1]"]) == 0
    file = tmp_path / "runs" / "seed-1" / "baseline" / "evaluation" / "predictions.jsonl"
    file.write_text(file.read_text().replace('"speaker": "', '"speaker": "not '))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["table", write_table(), "seeds=[1]"]) == 0
    rows = written(tmp_path / "runs" / "table")
    page = (tmp_path / "runs" / "table" / "comparison.html").read_text()
    assert {row["kind"] for row in rows} >= {"score", "published"} and "difference" not in {row["kind"] for row in rows}
    assert "No difference of baseline and cascade" in page and "another speaker" in page
    assert "matplotlib is not installed" in page


def test_a_score_that_fails_costs_itself(
    write_table: Write, manifests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe whose speakers are on both sides, then one without labels; then the table names other utterances."""
    test, train = ([{"manifest": str(manifests[side])}] for side in ("test", "train"))
    folder = tmp_path / "runs" / "table"
    lines = [json.loads(line) for line in manifests["train"].read_text().splitlines()]
    for line in lines:
        line["id"] = f"again-{line['id']}"
        line.pop("context", None)
    copied = []
    for line in lines:  # the speakers of the training side, in clips of their own
        clip = tmp_path / line["audio"]
        clip.write_bytes((manifests["train"].parent / line["audio"]).read_bytes())
        copied.append({**line, "audio": clip.name})
    shared = [{"manifest": str(write_lines(tmp_path / "shared.jsonl", copied))}]
    bare = [{**line, "labels": {}} for line in copied]
    unlabelled = [{"manifest": str(write_lines(tmp_path / "bare.jsonl", bare))}]
    moved: list[Any] = []
    monkeypatch.setattr(speech_tokens, "on_device", lambda part: nullcontext(moved.append(part)))
    for probe, found in (
        ({"train": train, "test": shared}, False), ({"train": unlabelled, "test": test}, False),
        ({"train": train, "test": test}, True),
    ):  # fmt: skip
        assert main(["table", write_table(probe=probe, picture=[]), "seeds=[1]"]) == 0
        rows, page = written(folder), (folder / "comparison.html").read_text()
        assert ({row["metric"] for row in rows if row["system"] == "baseline"} >= {"probe"}) == found
        assert ("No linear probe of baseline" in page) != found
        assert {"judge_quality", "bert_score"} <= {row["metric"] for row in rows if row["kind"] == "score"}
    assert len(moved) >= 2  # encoder and adapters go where a GPU is
    cut = load(Path(write_table(probe={"train": train, "test": test}, probe_train=4, picture=[])))
    kept, _ = _probe_sides(cut, system_recipe(cut, "baseline", 1))
    assert [u.id for u in kept] == ["train-0", "train-3", "train-6", "train-9"]  # spread over the manifest


def test_a_reply_without_a_score_in_one_run_is_left_out_of_all() -> None:
    scores = {
        "a": {1: {"u1": 8.0, "u2": 4.0, "u3": 3.0}, 2: {"u1": 6.0, "u2": None, "u3": 1.0}},
        "b": {1: {"u1": 10.0, "u2": 7.0, "u3": 2.0}, 2: {"u1": 9.0, "u2": 7.0, "u3": 1.0}},
        "silent": {1: {"u1": 9.0, "u2": 7.0, "u3": 1.0}, 2: dict.fromkeys(("u1", "u2", "u3"))},
    }
    found = judged_in_all(scores)
    assert {name: {seed: m.value for seed, m in seeds.items()} for name, seeds in found.items()} == {
        "a": {1: 5.5, 2: 3.5}, "b": {1: 6.0, 2: 5.0},
    }  # fmt: skip
    assert {len(measure.rows) for seeds in found.values() for measure in seeds.values()} == {2}


@pytest.mark.parametrize(
    ("changes", "code", "where"),
    [
        ({"picture": ["baselin"]}, "unknown-name", "picture"),
        ({"seeds": []}, "bad-value", "seeds"),
        ({"systems": {}}, "bad-value", "systems"),
        ({"judge": None}, "conflict", "bert_score"),
        ({"systems": {name: {"title": name, "recipe": "baseline.yaml"} for name in "ab"}}, "conflict",
         "systems.b.recipe"),
        ({"judge": {"type": "rul"}}, "unknown-name", "judge.type"),
        ({"systems": {"a": {"title": "A", "recipe": "shared.yaml"}}}, "conflict", "systems.a.recipe"),
        ({"systems": {"a": {"title": "A", "recipe": "none.yaml"}}}, "not-found", "none.yaml"),
        ({"systems": {"a": {"title": "A", "recipe": "baseline.yaml", "paper": {"rogue_1": [1.0]}}}}, "unknown-name",
         "systems.a.paper"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_is_refused_before_anything_runs(
    write_table: Write, tmp_path: Path, changes: dict[str, Any], code: Any, where: str
) -> None:
    with refused(code, where, ConfigError):
        load(Path(write_table(**{"picture": [], **changes})))
    assert not (tmp_path / "runs").exists()


def test_pooled_tokens_are_means_that_no_neighbour_changes(write_table: Write, tmp_path: Path) -> None:
    """Against each clip alone through encoder and adapter; the LLM is as it was."""
    assert main(["table", write_table(), "seeds=[1]"]) == 0
    assert not (tmp_path / "runs" / "seed-2").exists()
    made = system_recipe(load(Path(write_table())), "baseline", 1)
    module, test = read_bundle(made.folder / "bundle"), read_splits(made).splits["test"].utterances
    assert json.loads((made.folder / "bundle" / "fingerprints.json").read_text())["llm"] == module.llm.fingerprint()
    together = pooled_tokens(module, test)
    for row, utterance in zip(together, test, strict=True):
        clip = torch.from_numpy(load_audio(Path(utterance.audio), 16_000))[None]
        with torch.no_grad():
            tokens = module.adapters["speech"](module.encoder(*Frames.pad([clip[0]])))
        assert torch.allclose(row, tokens.x[0].mean(0), atol=1e-5)


def test_the_demos_table_judges_by_what_the_demo_world_says() -> None:
    table = load(resolve("sottovoce:conf/speech_emotion_llama/table.yaml"))
    neutral_name = {emotion: [reply.replace("{name}", "")] for emotion, reply in REPLIES.items()}
    assert table.judge["exemplars"] == neutral_name
    assert table.judge["things"] == NOUNS


@pytest.mark.parametrize("name", ["table", "table_8b"])
def test_every_system_has_its_row_and_its_own_folder(name: str) -> None:
    table = load(resolve(f"sottovoce:conf/speech_emotion_llama/{name}.yaml"))
    made = [system_recipe(table, system, seed) for seed in table.seeds for system in table.systems]
    assert len({recipe.folder for recipe in made}) == len(made) == 7 * len(table.seeds)
    assert all(recipe.seed in table.seeds for recipe in made)
    recognised = {"ser", "ser_unweighted"}
    assert np.all([system.paper.keys() & recognised and "emotion" in system.paper for system in table.systems.values()])
    assert [name for name, system in table.systems.items() if "ser_unweighted" in system.paper] == [
        "cascade_1", "cascade_2",
    ]  # fmt: skip


def test_the_table_at_scale_probes_all_systems_on_one_side() -> None:
    """Baseline 1 is aligned on speech without emotions; and the cascades share a recogniser."""
    table = load(resolve("sottovoce:conf/speech_emotion_llama/table_8b.yaml"))
    assert table.probe and "expressive" in table.probe.train[0].manifest and table.probe_train <= 50_000
    cascades = [system_recipe(table, f"cascade_{number}", 0) for number in (1, 2)]
    assert cascades[1].cascade and cascades[1].cascade.recognizer == str(cascades[0].folder)


@pytest.mark.parametrize("name", ["table", "table_8b"])
def test_systems_stand_on_those_of_their_own_table(name: str) -> None:
    """And of their own seed: what a recipe takes of another run is in the folder of one that stands before it."""
    table = load(resolve(f"sottovoce:conf/speech_emotion_llama/{name}.yaml"))
    before: list[Path] = []
    for system in table.systems:
        recipe = system_recipe(table, system, table.seeds[-1])
        taken = [Path(recipe.init_from).parent] if recipe.init_from else []
        taken += [Path(recipe.cascade.recognizer)] if recipe.cascade and recipe.cascade.recognizer else []
        assert set(taken) <= set(before), system
        before.append(recipe.folder)


def test_a_row_of_several_processes_is_a_command_of_its_own(
    write_table: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the others would wait in the next row while the first one scores."""
    commands: list[list[str]] = []
    monkeypatch.setattr(table_command, "fit", lambda *_: pytest.fail("in this process"))
    monkeypatch.setattr(
        table_command.subprocess, "run", lambda command: commands.append(command) or SimpleNamespace(returncode=3)
    )
    said = ["trainer.devices=2", "trainer.strategy=ddp"]
    with refused("died", "baseline"):
        table_command.table(write_table(overrides=said))
    assert commands[0][1:4] == ["-m", "sottovoce.lightning_modules.fit", "--config"] and {*said} < {*commands[0]}
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun has started them all
    monkeypatch.setattr(table_command, "fit", lambda *_: commands.append([]))
    with suppress(SottovoceError):
        table_command.table(write_table(overrides=said))
    assert commands[1:] and not any(commands[1:])


def test_a_null_that_leaves_no_row_out_is_refused(write_table: Write) -> None:
    """A slip of the pen there would train the row."""
    with refused("unknown-name", "systems.cascad", ConfigError):
        load(Path(write_table()), ["systems.cascad=null"])
    assert "cascade" not in load(Path(write_table()), ["systems.cascade=null"]).systems


def test_overrides_go_to_every_recipe(write_table: Write, tmp_path: Path) -> None:
    assert overrides_for(load(Path(write_table())), "baseline", 2) == ["seed=2", f"output_dir={tmp_path / 'runs'}"]


def test_a_row_may_be_its_recipe_with_overrides(write_table: Write, tmp_path: Path) -> None:
    """It has a folder in the table's, the numbers that are its own, and what the table says to every recipe."""
    paper = {"both": {"response": {"rouge_l": [0.5]}}}
    shorter = {"title": "Shorter", "recipe": "baseline.yaml", "overrides": ["evaluation.limit=3"], "published": paper}
    systems = {"baseline": {"title": "B", "recipe": "baseline.yaml"}, "shorter": shorter, "cascade": None}
    said = ["published={both: {emotion: {accuracy: [0.25]}}}", "evaluation.max_new_tokens=3"]
    table = load(Path(write_table(systems=systems, overrides=said, judge=None, bert_score=None, picture=[])))
    made = {name: system_recipe(table, name, 2) for name in table.systems}
    assert [*made] == ["baseline", "shorter"] and {m.evaluation.max_new_tokens for m in made.values()} == {3}
    assert made["baseline"].published == {"both": {"emotion": {"accuracy": [0.25]}}}
    assert made["baseline"].evaluation.limit is None
    assert made["shorter"].published == paper and made["shorter"].evaluation.limit == 3
    assert made["shorter"].folder == tmp_path / "runs" / "table" / "seed-2" / "shorter"
    shorter["published"] = {}
    again = load(Path(write_table(systems=systems, overrides=said, judge=None, bert_score=None, picture=[])))
    assert system_recipe(again, "shorter", 1).published == {}  # those of its recipe are not about it


def test_a_table_without_a_judge_has_the_recipes_own_scores(write_table: Write, tmp_path: Path) -> None:
    """Scores by judges of the recipes stand in it as each run wrote them, without differences."""
    config = write_table(judge=None, bert_score=None, picture=[])
    assert main(["table", config, "seeds=[1]"]) == 0
    file = tmp_path / "runs" / "seed-1" / "baseline" / "evaluation" / "results.json"
    told = json.loads(file.read_text())
    more = {"task": "response", "metric": "cs_style/qwen", "value": 4.2, "low": 4.0, "high": 4.5, "n": 6}
    bench = {**more, "task": "voicebench", "metric": "score", "value": 0.7, "low": 0.6, "high": 0.9}
    file.write_text(json.dumps([*told, *({**told[0], "baseline": None, **row} for row in (more, bench))]))
    assert main(["table", config, "seeds=[1]"]) == 0
    rows = written(tmp_path / "runs" / "table")
    scored = {row["metric"] for row in rows if row["kind"] == "score"}
    assert "rouge_l" in scored and not scored & {"bert_score", "judge_quality", "probe"}
    for row in (more, bench):
        mine, _ = (r for r in rows if (r["task"], r["metric"]) == (row["task"], row["metric"]))  # and that of its seed
        assert (mine["kind"], mine["system"], mine["metric"] in scored) == ("score", "baseline", True)
        numbers = ("value", "low", "high", "n")
        assert [float(mine[key]) for key in numbers] == [row[key] for key in numbers]
    page = (tmp_path / "runs" / "table" / "comparison.html").read_text()
    assert "CS style (qwen)" in page and "no paired differences" in page and "linear probe" not in page


class HalfJudge(Judge):
    """Scores the quality of every other reply: in the second run of those that it left out in the first."""

    name, run = "half", 0

    def judge(self, items: Sequence[Reply]) -> dict[str, Verdict]:
        self.run += 1
        half = [5.0 if row % 2 == self.run % 2 else None for row in range(len(items))]
        return {"quality": Verdict(half), "emotion": Verdict([5.0] * len(items))}


def test_a_judge_that_scores_no_reply_in_every_run_costs_that_score(
    write_table: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_command.JUDGES, "build", lambda *_: HalfJudge())
    assert main(["table", write_table(picture=[], bert_score=None), "seeds=[1]"]) == 0
    folder = tmp_path / "runs" / "table"
    scored = {row["metric"] for row in written(folder) if row["kind"] == "score"}
    assert "judge_emotion" in scored and "judge_quality" not in scored
    assert "No judge_quality" in (folder / "comparison.html").read_text()


def test_bert_score_goes_where_a_gpu_is(write_table: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[Any] = []
    monkeypatch.setattr(table_command, "on_device", lambda part: nullcontext(moved.append(part)))
    assert main(["table", write_table(picture=[]), "seeds=[1]"]) == 0
    assert [type(part).__name__ for part in moved] == ["Qwen2Model"]
