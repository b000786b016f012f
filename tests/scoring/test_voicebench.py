"""VoiceBench of a run: from the published tables to the report, before tuning and after, judged in the run or later."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.helpers.corpora import VOICEBENCH, voicebench
from tests.helpers.errors import refused
from tests.helpers.runs import Write, quiet_run
from tests.helpers.servers import Serve

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.config.sections import VoiceBenchConfig
from sottovoce.errors import MissingError
from sottovoce.evaluation import Record, read_results
from sottovoce.evaluation.voicebench import KINDS
from sottovoce.evaluation.voicebench.scores import Answer, read_answers, write_answers
from sottovoce.scoring.provenance import provenance
from sottovoce.scoring.voicebench import AFTER, BEFORE, manifests, read_prompts, scored, untuned_weights
from sottovoce.training.splits import Split

TUNING = {"method": "lora", "layers": "all", "rank": 2}
STAGE = {"tasks": {"asr": 1}, "train": ["llm"], "lr": 5e-2, "epochs": 3, "batch_size": 4}
COUNT = sum(len(rows) for name, rows in VOICEBENCH.items() if name != "sd-qa/gbr")


def judgement(text: str, number: int) -> Any:
    """Yes to every answer, and ratings of 2, 4 and 3 by turns."""
    said = "Yes" if "<reference>" in text else str([2, 4, 3][(number - 1) % 3])
    return {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}


@pytest.fixture
def prepared(tmp_path: Path) -> str:
    """Manifests of the miniature VoiceBench."""
    voicebench(tmp_path / "published")
    out = tmp_path / "voicebench"
    assert main(["prepare", "voicebench", "--source", str(tmp_path / "published"), "--out", str(out)]) == 0
    return str(out)


@pytest.fixture
def tuned(write_recipe: Write, tree: dict[str, Any]) -> Write:
    """Write a recipe in which the LLM learns to transcribe, and VoiceBench is answered as said."""

    def write(**node: Any) -> str:
        evaluation = {"batch_size": 6, "max_new_tokens": 3, "limit": 2, "slots": ["both"]}
        return write_recipe(
            llm={**tree["llm"], "tuning": TUNING}, stages={"tune": STAGE},
            evaluation={**evaluation, "voicebench": {"max_new_tokens": 5, **node}},
        )  # fmt: skip

    return write


def scores(folder: Path) -> dict[tuple[str, str], Record]:
    records = [record for record in read_results(folder) if record.task.startswith("voicebench")]
    return {(record.task.removeprefix("voicebench").strip(" ()"), record.metric): record for record in records}


def test_from_the_published_tables_to_the_report(tuned: Write, prepared: str, serve: Serve, tmp_path: Path) -> None:
    server = serve(judgement)
    config = tuned(
        manifests=prepared, engine={"type": "openai", "base_url": server.url, "model": "m", "concurrency": 1}
    )
    assert main(["fit", "--config", config]) == 0
    folder = tmp_path / "runs/tiny/evaluation"
    before, after = read_answers(folder / BEFORE), read_answers(folder / AFTER)
    assert [answer.id for answer in before] == [answer.id for answer in after] and len(after) == COUNT
    assert {answer.subset for answer in after} == set(KINDS)
    assert any(a.response != b.response for a, b in zip(after, before, strict=True))  # tuned, and not
    found = scores(folder)
    for subset in ("alpacaeval", "commoneval", "wildvoice"):
        assert found[subset, "rating"].value == 3 and found[subset, "rating"].n == 2
    for answer in after:
        if answer.subset == "sd-qa":
            assert answer.judged == (1, 1, 1) and "gbr" not in answer.id
    for when in ("", "_before"):
        rest = [found[subset, f"score{when}"].value for subset in KINDS if (subset, f"score{when}") in found]
        assert len(rest) == 6
        assert found["", f"score{when}"].value == pytest.approx((3 * 3 / 5 + sum(rest)) / 9, abs=1e-5)
    change = found["", "score"].value - found["", "score_before"].value
    assert found["", "score_change"].value == pytest.approx(change, abs=1e-5)
    page = (folder / "results.md").read_text()
    assert "| voicebench (alpacaeval) | rating (1-5) ↑ | 3.00 [3.00-3.00] |" in page
    assert re.search(r"\| voicebench \| score before ↑ \| \d", page)
    asked = len(server.bodies)
    assert {body["temperature"] for body in server.bodies} == {0.5}
    assert {body["seed"] for body in server.bodies} == {0, 1, 2}
    assert main(["fit", "--config", config]) == 0 and len(server.bodies) == asked  # it is all there


def test_a_judge_that_is_absent_is_asked_later(
    tuned: Write, prepared: str, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = {"type": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m", "retries": 0, "known_as": "m"}
    assert main(["fit", "--config", tuned(manifests=prepared, engine=gone)]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "no overall score" in told and "sottovoce judge" in told
    folder = tmp_path / "runs/tiny/evaluation"
    first = scores(folder)
    assert ("mmsu", "score") in first and ("sd-qa", "panda") in first
    assert not {("alpacaeval", "rating"), ("sd-qa", "score"), ("", "score")} & first.keys()
    said = [answer.response for answer in read_answers(folder / AFTER)]
    url = f"evaluation.voicebench.engine.base_url={serve(judgement).url}"
    assert main(["judge", str(tmp_path / "runs/tiny"), url]) == 0
    later = scores(folder)
    assert later["alpacaeval", "rating"].value == 3 and {("", "score"), ("", "score_change")} <= later.keys()
    assert {key: later[key] for key in first} == first
    assert [answer.response for answer in read_answers(folder / AFTER)] == said
    again = "evaluation.voicebench.engine.base_url=http://127.0.0.1:9/v1"
    assert main(["judge", str(tmp_path / "runs/tiny"), again]) == 0  # by the same name: its judgements are kept
    assert scores(folder)["", "score"] == later["", "score"]


def test_of_one_stage_the_same_command_asks_later(
    tuned: Write, prepared: str, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`judge` knows the scores of the whole run alone."""
    assert main(["fit", "--config", tuned(manifests=prepared, limit=1)]) == 0
    capsys.readouterr()
    command, folder = ["evaluate", str(tmp_path / "runs/tiny"), "--stage", "tune"], tmp_path / "runs/tiny"
    for _ in range(2):
        assert main(command) == 0
        told = " ".join(capsys.readouterr().err.split())
        assert "asked: this one, evaluation.voicebench.engine=" in told and "sottovoce judge" not in told
    own = scores(folder / "evaluation")
    engine = {"type": "openai", "base_url": serve(judgement).url, "model": "m"}
    assert main([*command, f"evaluation.voicebench.engine={json.dumps(engine)}"]) == 0
    of_stage = scores(folder / "evaluation/tune")
    assert of_stage["", "score"].value > 0 and of_stage["alpacaeval", "rating"].value == 3
    assert scores(folder / "evaluation") == own and ("", "score") not in own


def test_what_has_failed_is_made_up_for_by_the_same_command(
    tuned: Write, prepared: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, fields = tmp_path / "runs/tiny/evaluation", Path(prepared) / "bbh.fields.jsonl"
    whole = fields.read_text()
    fields.write_text("[]\n")
    config = tuned(manifests=prepared, limit=1)
    assert main(["fit", "--config", config]) == 0
    assert "bbh.fields.jsonl" in capsys.readouterr().err and not scores(folder)
    others = read_results(folder)
    fields.write_text(whole)
    assert main(["fit", "--config", config]) == 0
    assert ("bbh", "score_change") in scores(folder)
    assert [record for record in read_results(folder) if not record.task.startswith("voicebench")] == others


def test_a_row_that_cannot_be_scored_costs_its_own_subset(
    tuned: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipes.load(tuned(manifests="nowhere"))
    bbh = [Answer(f"bbh-{name}", "bbh", "?", "Yes", "yes", {"original_id": name}) for name in ("navigate", "snarks")]
    write_answers(tmp_path / AFTER, [Answer("o", "openbookqa", "?", "A", "A"), *bbh])
    records = scored("ours", recipe, tmp_path, Console())
    assert [(r.system, r.task, r.metric, r.value) for r in records] == [("ours", "voicebench (openbookqa)", "score", 1)]
    told = " ".join(capsys.readouterr().err.split())
    assert "voicebench, bbh: bbh-snarks" in told and "no overall score" in told and "sottovoce judge" not in told
    assert scored("ours", recipe, tmp_path / "elsewhere", Console()) == []


def test_results_depend_on_the_prompts_and_not_on_the_judge(tuned: Write, tree: dict[str, Any]) -> None:
    def made_with(**node: Any) -> Any:
        return provenance(recipes.load(tuned(manifests="here", **node)), Split())

    assert made_with() == made_with(engine={"type": "openai", "base_url": "http://x/v1", "model": "m"}, panda="pedant")
    assert made_with() != made_with(limit=3) and made_with()["evaluation"]["voicebench"]["manifests"] == "here"
    assert "voicebench" not in provenance(recipes.parse(tree), Split())["evaluation"]  # as runs had it before


def test_the_model_leaves_with_its_weights_and_none_are_kept_where_nothing_asks(tuned: Write, prepared: str) -> None:
    run = quiet_run(recipes.load(tuned(manifests=prepared)))
    kept = untuned_weights(run)
    assert kept and any(name.startswith("llm.") for name in kept)
    with torch.no_grad():
        for name, weight in run.module.named_parameters():
            if "lora_B" in name:
                weight += 1
    now = run.module.trained()
    assert all(kept[name].eq(0).all() for name in kept if "lora_B" in name)  # a copy, not a view
    run.recipe.evaluation.voicebench = None
    assert untuned_weights(run) is None and any(now[name].ne(kept[name]).any() for name in kept)


def test_manifests_that_are_not_there_are_refused_before_the_training(tuned: Write, tmp_path: Path) -> None:
    run = quiet_run(recipes.load(tuned(manifests=str(tmp_path / "nowhere"))))
    with refused("not-found", "evaluation.voicebench.manifests", MissingError):
        untuned_weights(run)


def test_subsets_accents_and_limits(prepared: str) -> None:
    node = VoiceBenchConfig(manifests=prepared)
    names = {subset: [file.name for file in files] for subset, files in manifests(node).items()}
    assert list(names) == list(KINDS) and names["alpacaeval"] == ["alpacaeval_full.jsonl"]
    assert names["sd-qa"] == ["sd-qa-usa.jsonl"] and names["mmsu"] == ["mmsu-law.jsonl", "mmsu-physics.jsonl"]
    assert len(list(read_prompts(VoiceBenchConfig(manifests=prepared, accents=["usa", "gbr"])))) == COUNT + 1
    limited = list(read_prompts(VoiceBenchConfig(manifests=prepared, limit=1)))
    assert [subset for subset, _, _ in limited] == list(KINDS)
    (Path(prepared) / "alpacaeval_full.jsonl").rename(Path(prepared) / "alpacaeval.jsonl")
    assert [file.name for file in manifests(node)["alpacaeval"]] == ["alpacaeval.jsonl"]
    given = {u.id: fields for _, u, fields in read_prompts(node)}
    assert given["voicebench-bbh-00002"] == {"original_id": "hyperbaton_12"}
    assert given["voicebench-ifeval-00002"]["kwargs"][0] == {"num_words": 300, "relation": "at least"}
    (Path(prepared) / "bbh.fields.jsonl").write_text(json.dumps([1]) + "\n")
    with refused("damaged", "bbh.fields.jsonl"):
        list(read_prompts(node))
