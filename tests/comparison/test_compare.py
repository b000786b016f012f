"""Runs side by side: paired intervals, systems of several seeds, and what must not be compared."""

import csv
import io
import json
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from omegaconf import OmegaConf
from rich.console import Console
from tests.helpers.errors import refused

from sottovoce.cli.main import main
from sottovoce.comparison.compare import compare_runs, grouped
from sottovoce.comparison.finished_runs import flat, read_run, settings, without_seed
from sottovoce.errors import ConfigError, MissingError
from sottovoce.evaluation import Prediction, Record, score_all, write_results
from sottovoce.evaluation.metrics import accuracy, balanced_accuracy, mean_measure, word_error_rate
from sottovoce.evaluation.paired_bootstrap import Estimate, Key, Seeds, estimate
from sottovoce.evaluation.reports import compare_html
from sottovoce.evaluation.reports.compare import Comparison, System, comparison_csv, comparison_of, is_better
from sottovoce.evaluation.reports.compare_html import comparison_html
from sottovoce.evaluation.reports.plots import Panel
from sottovoce.evaluation.reports.results import shown
from sottovoce.evaluation.reports.tables import terminal_tables
from sottovoce.evaluation.retention import Kept, RetentionScore, retention_scores, write_scores
from sottovoce.evaluation.text_similarity import rouge_l
from sottovoce.lightning_modules.callbacks import ThroughputMeter
from sottovoce.scoring.text_retention import AFTER, BEFORE

DUE = {"child": "please ask a grown up", "adult": "switch it off and check the fuse"}

# Statistics


def printed(comparison: Comparison, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(terminal_tables(comparison))
    return console.export_text()


def difference(ours: Seeds, theirs: Seeds) -> Estimate:
    return estimate(ours) - estimate(theirs)


def test_a_paired_interval_is_that_of_a_plain_bootstrap_of_differences() -> None:
    random = np.random.default_rng(5)
    hard = random.normal(size=150)
    ours, theirs = (hard + 0.3 * random.normal(size=150) + shift for shift in (0.2, 0.0))
    found = difference({0: mean_measure(ours)}, {0: mean_measure(theirs)})
    draws = np.random.default_rng(0)  # as `resample`
    drawn = [draws.integers(150, size=150) for _ in range(1000)]
    resampled = [ours[rows].mean() - theirs[rows].mean() for rows in drawn]
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=2e-6)
    assert found.value == pytest.approx(ours.mean() - theirs.mean(), abs=2e-6)
    assert found.is_significant and found.n == 150
    unpaired = np.hypot(*(estimate({0: mean_measure(v)}).high - v.mean() for v in (ours, theirs)))
    assert found.high - found.value < 0.5 * unpaired  # what is hard for both cancels out


def test_a_paired_interval_is_over_speakers_where_they_are_known() -> None:
    """By hand: two speakers of 10 utterances; the gap is 1 for the one and 0 for the other, so 0, 1/2 or 1."""
    who = ["ann"] * 10 + ["bob"] * 10
    ours, theirs = (mean_measure([1.0] * 10 + [tail] * 10, speakers=who) for tail in (1.0, 0.0))
    found = difference({0: ours}, {0: theirs})
    assert (found.value, found.low, found.high, found.n, found.speakers) == (0.5, 0, 1, 20, 2)
    assert difference({0: ours}, {0: ours}).interval == (0, 0)
    alone = difference(*({0: mean_measure(side.rows[:, 0].tolist())} for side in (ours, theirs)))
    assert alone.low > 0.2 and alone.is_significant and not found.is_significant
    with refused("mismatch"):
        estimate({0: ours}) - estimate({0: mean_measure([0.0] * 20)})


def test_seeds_are_scored_together_on_the_same_draws() -> None:
    random = np.random.default_rng(6)
    ours, theirs = random.normal(size=(3, 80)), random.normal(size=(2, 80))
    systems = [{seed: mean_measure(values) for seed, values in enumerate(side)} for side in (ours, theirs)]
    plain = difference({0: mean_measure(ours.mean(axis=0))}, {0: mean_measure(theirs.mean(axis=0))})
    found = difference(*systems)
    assert (found.value, found.low, found.high) == pytest.approx((plain.value, plain.low, plain.high), abs=2e-6)
    assert found.each == {seed: pytest.approx(ours[seed].mean() - theirs[seed].mean(), abs=2e-6) for seed in (0, 1)}
    assert estimate(systems[0]).each == {seed: pytest.approx(ours[seed].mean(), abs=1e-6) for seed in range(3)}
    assert not found.is_significant


def answered(seed: int, rows: int = 30) -> list[Prediction]:
    draw, labels = random.Random(seed), ("low", "mid", "high")
    return [
        Prediction(f"u{i}", "pitch", "both", "?", said, labels[i % 3], labels[i % 3], said)
        for i in range(rows)
        for said in [draw.choice([labels[i % 3], "mid"])]
    ]


@pytest.mark.parametrize("metric", [accuracy, balanced_accuracy, rouge_l, word_error_rate])
def test_identical_runs_differ_by_exactly_nothing_in_every_metric(metric: Any) -> None:
    one, other = metric.measure(answered(1)), metric.measure(answered(2))
    same = difference({1: one, 2: other}, {1: one, 2: other})
    assert (same.value, same.low, same.high, set(same.each.values())) == (0, 0, 0, {0})
    gap, turned = difference({1: one}, {1: other}), difference({1: other}, {1: one})
    assert gap.low < gap.value < gap.high
    assert gap.value == pytest.approx(metric(answered(1)).value - metric(answered(2)).value, abs=2e-6)
    assert (turned.value, turned.low, turned.high) == (-gap.value, -gap.high, -gap.low)


def test_unlike_numbers_of_utterances_are_no_pairs() -> None:
    full, less = accuracy.measure(answered(1)), accuracy.measure(answered(1, 29))
    with refused("mismatch"):
        difference({0: full}, {0: less})
    for seeds in ({0: full, 1: less}, {}):
        with refused("mismatch"):
            estimate(seeds)


def test_2400_utterances_and_three_seeds_take_less_than_two_seconds() -> None:
    values = np.random.default_rng(0).normal(size=(2, 3, 2400))
    start = time.perf_counter()
    difference(*({seed: mean_measure(row) for seed, row in enumerate(side)} for side in values))
    assert time.perf_counter() - start < 2


# Known winners: what a paper would report. The good system is right where the bad one is, and twice more.

RIGHT = {"good": {1: [1, 1, 1, 0], 2: [1, 1, 0, 1]}, "bad": {1: [1, 0, 0, 0], 3: [0, 0, 1, 0]}}
GOOD = {"wer": 0.25, "nats": 0.25, "accuracy": 0.75, "judge_quality": 0.75}  # errors where less is better


@pytest.mark.parametrize("metric", GOOD)
def test_a_known_winner_wins_in_every_direction(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 0.75 right against 0.25, over 20 x 4 utterances; bad has seeds 1 and 3, and they share seed 1."""
    lower = metric in ("wer", "nats")
    key, sign, high, low = Key("task", metric, "both"), -1 if lower else 1, GOOD[metric], 1 - GOOD[metric]
    systems = {
        name: {seed: mean_measure([1 - hit if lower else hit for hit in hits] * 20) for seed, hits in seeds.items()}
        for name, seeds in RIGHT.items()
    }
    described = {name: System(sorted(seeds), [f"runs/{name}"]) for name, seeds in systems.items()}
    comparison = comparison_of(described, {key: systems}, "bad")
    scores = comparison.scores[key]
    assert {name: score.value for name, score in scores.items()} == {"good": high, "bad": low}
    assert scores["bad"].each == {1: low, 3: low}
    gap, turned = (comparison.differences[key][pair] for pair in (("good", "bad"), ("bad", "good")))
    assert gap.value == sign * 0.5 and turned.value == -gap.value and gap.each == {1: sign * 0.5}
    assert is_better(metric, gap) is True and is_better(metric, turned) is False
    panels: list[Panel] = []
    monkeypatch.setattr(compare_html, "interval_plot", lambda drawn: panels.extend(drawn) or b"")
    number = f"{shown(metric, gap.value) if lower else '+' + shown(metric, gap.value)}\n"
    for baseline, verdict, other in (("bad", "better", "worse"), ("good", "worse", "better")):
        page = comparison_html(comparison_of(described, {key: systems}, baseline))
        assert page.count(f'<td class="{verdict}">') == 1 and f'<td class="{other}">' not in page
        assert (number in page) == (baseline == "bad")
        assert f'<td class="">{shown(metric, high)}\n' in page and f'<td class="">{shown(metric, low)}\n' in page
        (bar,) = panels[-1].bars
        red, green = int(bar.colour[1:3], 16), int(bar.colour[3:5], 16)  # as the page says: green is better
        assert (green > red) == (verdict == "better") and bar.value is not None
        drawn = (gap if baseline == "bad" else turned).value * (100 if metric in ("wer", "accuracy") else 1)
        assert bar.value[0] == pytest.approx(drawn) and bar.value[1] < drawn < bar.value[2]
    table = printed(comparison)
    assert "Differences to bad" in table and "seeds 1, 3" in table
    rows = list(csv.DictReader(io.StringIO(comparison_csv(comparison))))
    written = {(row["kind"], row["system"], row["against"], row["seed"]): float(row["value"]) for row in rows}
    assert written["difference", "good", "bad", ""] == sign * 0.5
    assert all(float(row["low"]) < float(row["value"]) < float(row["high"]) for row in rows if row["low"])
    assert written["score of a seed", "bad", "", "3"] == low


def test_no_winner_where_the_interval_holds_0() -> None:
    """One utterance of 40 each way: the same score, on other utterances."""
    hits = [[1.0] * 20 + [0.0] * 20, [0.0, *[1.0] * 20, *[0.0] * 19]]
    gap = difference(*({1: mean_measure(side)} for side in hits))
    assert gap.value == 0 and gap.low < 0 < gap.high and is_better("accuracy", gap) is is_better("wer", gap) is None


# Run folders


def said(seed: int, skill: float, rows: int = 24) -> list[Prediction]:
    draw = random.Random(f"{seed} {skill}")
    found = []
    for i in range(rows):
        label = ("child", "adult")[i % 2]
        topic = "child safety/knives" if i >= 16 else "kettle"
        reply = DUE[label] if draw.random() < skill else DUE["adult"]
        for slots in ("both", "text"):
            about = {"speaker": f"s{i % 12}", "category": "age", "topic": topic}
            found.append(Prediction(f"u{i}", "dialogue", slots, "", reply, DUE[label], label, rivals=DUE, **about))
        found.append(Prediction(f"u{i}", "asr", "both", "?", "a cat" if draw.random() < 0.8 else "a dog", "a cat"))
    return found


def kept(drift: float) -> RetentionScore:
    return RetentionScore(tuple(Kept(f"p{i}", "", i / 12 > drift, 1 + i / 10 + drift, 3) for i in range(12)))


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a finished run, as `fit` leaves it."""

    def run(system: str, seed: int = 1, skill: float = 0.9, drift: float = 0.0, **changes: Any) -> Path:
        name = f"pe_ft/seed-{seed}/{system}"
        recipe = {
            "name": name, "seed": seed, "init_from": f"runs/pe_ft/seed-{seed}/connect/bundle",
            "llm": {"checkpoint": "llm", "tuning": {"method": system}}, "evaluation": {"max_new_tokens": 20},
            "tasks": {"dialogue": {"type": "dialogue", "prompts": None}}, "output_dir": str(tmp_path),
            "data": {"test": [{"manifest": "test.jsonl"}], "cache": f"/cache/{seed}"},
        }  # fmt: skip
        recipe = OmegaConf.to_container(OmegaConf.merge(recipe, changes.get("recipe", {})))  # type: ignore[assignment]
        folder = tmp_path / changes.get("folder", name)
        predictions = changes.get("predictions", said(seed, skill))
        before, after = (RetentionScore(kept(by).rows[: changes.get("text_prompts", 12)]) for by in (0, drift))
        told = [Record(name, "retention", m, "text", *s) for m, s in retention_scores(before, after).items()]
        write_results(folder / "evaluation", [*score_all(name, predictions), *told], predictions)
        write_scores(folder / "evaluation" / BEFORE, before)
        write_scores(folder / "evaluation" / AFTER, after)
        (folder / "recipe.yaml").write_text(OmegaConf.to_yaml(recipe))
        (folder / "environment.json").write_text(json.dumps({"commit": "abc", "device": "x86", "threads": 1}))
        stage = folder / "stages" / "1-tune"
        stage.mkdir(parents=True)
        done = {"steps": 7, "trainable": 1000 * len(system), "seconds_per_step": 0.1 * seed, "peak_memory_mb": 900.0}
        (stage / "done.json").write_text(json.dumps(done))
        return folder

    return run


def page_of(*folders: Path, against: str | None = None) -> Comparison:
    return compare_runs([read_run(folder) for folder in folders], against)


def test_systems_stand_side_by_side_with_all_that_was_asked_for(make: Make) -> None:
    page = page_of(make("frozen", skill=0.1), make("lora", skill=1.0, drift=0.3))
    assert list(page.systems) == ["frozen", "lora"] and page.baseline == "frozen" and page.slots == "both"
    keys = {(key.task, key.metric) for key in page.scores}
    assert keys >= {("asr", "wer"), ("age", "pa_score"), ("child safety", "pa_rate"), ("retention", "nats_change")}
    gap = page.differences[Key("age", "pa_rate", "both")]["lora", "frozen"]
    scores = page.scores[Key("age", "pa_rate", "both")]
    assert gap.value == pytest.approx(scores["lora"].value - scores["frozen"].value, abs=2e-6) and gap.is_significant
    assert page.scores[Key("retention", "nats_change", "text")]["lora"].value == pytest.approx(0.1)
    assert page.systems["lora"].costs["tune", "trainable"] == [4000]
    assert page.settings == ["llm.tuning.method"] and page.systems["lora"].settings == {"llm.tuning.method": "lora"}


def test_the_same_run_twice_differs_by_exactly_nothing(make: Make) -> None:
    folder = make("lora")
    page = page_of(folder, folder)
    assert list(page.systems) == ["lora #1", "lora #2"] and page.settings == []
    for gaps in page.differences.values():
        for gap in gaps.values():
            assert (gap.value, gap.low, gap.high, set(gap.each.values())) == (0, 0, 0, {0})


def test_the_order_of_a_file_makes_no_pairs(make: Make) -> None:
    rows = said(1, 0.5)
    page = page_of(make("frozen", predictions=rows), make("lora", predictions=rows[::-1]))
    assert {end for gaps in page.differences.values() for gap in gaps.values() for end in gap.interval} == {0}


def test_runs_that_differ_in_seed_and_name_alone_are_one_system(make: Make) -> None:
    folders = [make(system, seed, skill) for system, skill in (("frozen", 0.4), ("lora", 0.9)) for seed in (2, 1, 3)]
    runs = [read_run(folder) for folder in folders]
    assert {name: [run.seed for run in group] for name, group in grouped(runs).items()} == {
        "frozen": [1, 2, 3], "lora": [1, 2, 3],
    }  # fmt: skip
    comparison = compare_runs(runs)
    assert [list(system.seeds) for system in comparison.systems.values()] == [[1, 2, 3]] * 2
    score = comparison.scores[Key("asr", "wer", "both")]["lora"]
    alone = {run.seed: next(r.value for r in run.records if r.metric == "wer") for run in runs[3:]}
    assert score.each == alone and score.value == pytest.approx(np.mean(list(alone.values())), abs=1e-6)
    assert page_of(*folders[:4]).remarks == [
        "The systems have other seeds, or not equally many: their spreads are not of the same kind."
    ]


def test_a_score_that_a_seed_lacks_is_no_score_of_the_system(make: Make) -> None:
    replies = [p for p in said(2, 0.9) if p.task == "dialogue"]
    page = page_of(make("frozen", 1), make("frozen", 2), make("lora", 1), make("lora", 2, predictions=replies))
    assert set(page.scores[Key("asr", "wer", "both")]) == {"frozen"}
    assert set(page.scores[Key("age", "pa_rate", "both")]) == {"frozen", "lora"}


def test_a_seed_in_a_path_is_no_difference_and_others_are() -> None:
    assert without_seed("runs/seed-1/a-1/seed-12", 1) == "runs/seed-*/a-1/seed-12"
    assert without_seed({"a": ["x/seed3", 3]}, 3) == {"a": ["x/seed*", 3]}
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_keys_of_slots_that_older_runs_lack_are_no_difference(make: Make) -> None:
    slot = {"text": "caption"}
    old = read_run(make("lora", recipe={"slots": {"paralinguistic": slot}}))
    new = {**slot, "layers": "last", "layer_norm": False, "ctc_compression": False, "carries": None}
    for said, same in ((new, True), ({**new, "layers": "2"}, False), ({**new, "carries": "linguistic"}, False)):
        other = replace(old, recipe={**old.recipe, "slots": {"paralinguistic": said}})
        assert (settings(other) == settings(old)) is same


def changed(rows: list[Prediction], **changes: Any) -> list[Prediction]:
    """The first row, and its twin of the other slots, with other values."""
    return [replace(p, **changes) if p.id == "u0" and p.task == "dialogue" else p for p in rows]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"predictions": said(1, 0.9, 22)}, "dialogue.both.id"),
    ({"predictions": changed(said(1, 0.9), label="adult")}, "dialogue.both.label"),
    ({"predictions": changed(said(1, 0.9), speaker="x")}, "dialogue.text.speaker"),
    ({"predictions": changed(said(1, 0.9), topic="boats")}, "dialogue.both.topic"),
    ({"predictions": changed(said(1, 0.9), target="x")}, "dialogue.both.target"),
    ({"predictions": changed(said(1, 0.9), rivals={**DUE, "adult": "x"})}, "dialogue.both.rivals"),
    ({"predictions": changed(said(1, 0.9), judge="llm:x", awareness=1)}, "dialogue.both.judge"),
    ({"predictions": [Prediction("u", "pitch", "both", "", "low", "low", "low", "low")]}, "evaluation.tasks"),
    ({"recipe": {"data": {"test": [{"manifest": "other.jsonl"}]}}}, "data.test"),
    (
        {"recipe": {"data": {"test": [{"manifest": "test.jsonl", "task_overrides": {"asr": {"metric": "cer"}}}]}}},
        "data.test",
    ),
    ({"recipe": {"data": {"test": [{"manifest": "test.jsonl", "captions": "zh.txt"}]}}}, "data.test"),
    ({"recipe": {"data": {"corpus": {"type": "mine"}}}}, "data.corpus"),
    ({"recipe": {"tasks": {"dialogue": {"prompts": "x.txt"}}}}, "tasks.dialogue.prompts"),
    ({"recipe": {"evaluation": {"task_overrides": {"dialogue": {"prompts": "x"}}}}}, "tasks.dialogue.prompts"),
    ({"recipe": {"evaluation": {"max_new_tokens": 9}}}, "evaluation.max_new_tokens"),
    ({"text_prompts": 11}, "evaluation.retention"),
]


@pytest.mark.parametrize(("changes", "where"), REFUSED)
def test_what_cannot_be_compared_is_refused_with_the_reason(make: Make, changes: dict[str, Any], where: str) -> None:
    folders = make("frozen"), make("lora", **changes)
    with refused("mismatch", where, ConfigError) as caught:
        page_of(*folders)
    assert all(str(folder) in str(caught.value) for folder in folders)


def test_an_utterance_that_was_answered_twice_is_refused(make: Make) -> None:
    folders = make("frozen"), make("lora", predictions=[*said(1, 0.9), said(1, 0.9)[0]])
    with refused("conflict", "lora/evaluation/predictions.jsonl", ConfigError):
        page_of(*folders)
    assert main(["compare", *map(str, folders)]) == 2


def test_scores_by_another_definition_are_refused(make: Make) -> None:
    folders = [make("frozen"), make("lora")]
    file = folders[1] / "evaluation" / "results.json"
    rows = json.loads(file.read_text())
    next(row for row in rows if row["metric"] == "wer")["value"] += 0.01
    file.write_text(json.dumps(rows))
    with refused("mismatch", file, ConfigError):
        page_of(*folders)


def test_targets_of_other_seeds_may_differ_and_are_told(make: Make) -> None:
    page = page_of(make("frozen"), make("lora", 2, predictions=changed(said(2, 0.9), target="x")))
    assert any("against other targets" in remark for remark in page.remarks)
    with refused("mismatch", "dialogue.both.target"):  # of the same seed as a later run
        page_of(make("a", 1), make("a", 2), make("b", 2, predictions=changed(said(2, 0.9), target="x")))
    with refused("mismatch", "dialogue.both.label"):  # of no other run's seed
        page_of(make("c", 1), make("d", 2, predictions=changed(said(2, 0.9), label="adult")))
    with refused("mismatch", "dialogue.both.target"):  # another LLM made them
        other = {"llm": {"checkpoint": "other"}}
        page_of(make("frozen", 3), make("lora", 4, recipe=other, predictions=changed(said(4, 0.9), target="x")))


def test_a_reply_that_one_judge_call_lost_is_left_out_of_all_runs(make: Make) -> None:
    def judged(skill: float, lost: set[str]) -> list[Prediction]:
        rows = [p for p in said(1, skill) if p.task == "dialogue"]
        labels = [None if p.id in lost else i % 3 - 1 for i, p in enumerate(rows)]
        return [replace(p, judge="llm:x", awareness=label) for p, label in zip(rows, labels, strict=True)]

    page = page_of(make("frozen", predictions=judged(0.5, {"u2"})), make("lora", predictions=judged(0.9, {"u2", "u5"})))
    scores = page.scores[Key("age", "pa_score", "both")]
    assert {score.n for score in scores.values()} == {14} and scores["frozen"].value == scores["lora"].value
    declined = {f"u{i}" for i in range(16, 24)}  # all of a topic: which costs the scores of that alone
    page = page_of(make("part", predictions=judged(0.5, declined)), make("whole", predictions=judged(0.9, set())))
    rated = {key.task for key in page.scores if key.metric == "pa_score"}
    assert rated == {"age"}
    assert [remark.partition(":")[0] for remark in page.remarks] == ["child safety, both", "child safety, text"]


def test_what_is_no_finished_run_is_named(make: Make, tmp_path: Path) -> None:
    folder = make("lora")
    (tmp_path / "empty").mkdir()
    with refused("not-found", "empty/recipe.yaml", MissingError):
        page_of(folder, tmp_path / "empty")
    with refused("unknown-name", "against") as caught:
        page_of(folder, make("frozen"), against="froze")
    assert "Did you mean 'frozen'" in str(caught.value)
    with refused("empty", "runs", ConfigError):
        page_of(folder)
    (folder / "evaluation" / "results.json").unlink()
    with refused("not-found", "evaluation/results.json", MissingError):
        read_run(folder)
    assert main(["compare", str(tmp_path / "nothing-*")]) == 2


# What is written


def test_the_command_leaves_a_table_and_a_page_that_needs_nothing(make: Make, tmp_path: Path, capsys: Any) -> None:
    for seed in (1, 2):
        make("frozen", seed, 0.3)
        make("lora<b>", seed, 1.0, 0.3)
    pattern = f"{tmp_path}/pe_ft/seed-*/"
    assert main(["compare", f"{pattern}frozen", f"{pattern}lora<b>"]) == 0
    table = capsys.readouterr().out
    assert "Differences to frozen" in table and "PA-rate" in table and "llm.tuning.method" in table
    page = (tmp_path / "pe_ft" / "comparison" / "comparison.html").read_text()
    assert re.findall(r"(?:src|href|srcset)=.(?!data:image/)|<(?:script|link|iframe|object)", page) == []
    for tag in ("table", "tr", "td", "th", "details", "small", "code", "p"):
        assert len(re.findall(rf"<{tag}[ >]", page)) == page.count(f"</{tag}>")
    assert "lora<b>" not in page and "lora&lt;b&gt;" in page and "url(" not in page and "@import" not in page
    assert page.count("data:image/svg+xml") == 2 and ">nan" not in page and "matplotlib" not in page
    options = ["--out", str(tmp_path / "o"), "--against", "lora<b>"]
    assert main(["compare", f"{pattern}frozen", f"{pattern}lora<b>", *options]) == 0
    assert "Differences to lora<b>" in capsys.readouterr().out and (tmp_path / "o" / "comparison.csv").is_file()


def test_without_matplotlib_the_page_has_tables_and_says_so(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = page_of(make("frozen"), make("lora"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = comparison_html(comparison)
    assert "matplotlib is not installed" in page and "<img" not in page and page.count("<table>") >= 4


@pytest.mark.parametrize("systems", [2, 7])
def test_the_terminal_table_is_whole_in_80_columns(make: Make, systems: int) -> None:
    names = ["frozen", *(f"selective_{i}" for i in range(systems - 1))]
    comparison = page_of(*(make(name, seed, 0.5, -0.1) for name in names for seed in (1, 2)))
    whole, narrow = (sorted(re.sub(r"[\s─]", "", printed(comparison, width))) for width in (300, 80))
    assert whole == narrow


def test_the_file_has_every_number(make: Make) -> None:
    page = page_of(*(make(system, seed, 0.5 + seed / 9) for seed in (1, 2) for system in ("frozen", "lora")))
    rows = list(csv.DictReader(io.StringIO(comparison_csv(page))))
    pick = {"metric": "pa_rate", "task": "age", "slots": "both", "system": "lora"}
    found = [row for row in rows if all(row[key] == value for key, value in pick.items())]
    assert [row["kind"] for row in found] == [
        "score", "score of a seed", "score of a seed", "difference", "difference of a seed", "difference of a seed",
    ]  # fmt: skip
    score = page.scores[Key("age", "pa_rate", "both")]["lora"]
    assert float(found[0]["value"]) == score.value and float(found[2]["value"]) == score.each[2]
    assert found[3]["against"] == "frozen" and float(found[0]["lowest"]) <= score.value <= float(found[0]["highest"])
    assert [row["speakers"] for row in found[:2]] == ["12", ""] and found[3]["speakers"] == "12"
    cost = next(row for row in rows if row["kind"] == "cost" and row["metric"] == "seconds_per_step")
    assert [float(cost[key]) for key in ("value", "lowest", "highest")] == pytest.approx([0.15, 0.1, 0.2])
    assert comparison_html(page) == comparison_html(page)


# The meter


class Slow(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        time.sleep(0.5 if batch_idx == 0 else 0.02)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        time.sleep(0.3)
        return super().validation_step(batch, batch_idx)


def test_a_meter_leaves_out_the_first_step_and_validation(tmp_path: Path) -> None:
    meter = ThroughputMeter()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=8, val_check_interval=1, limit_val_batches=1, callbacks=[meter], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Slow())
    assert len(meter.seconds) == 7
    assert 0.02 <= meter.report()["seconds_per_step"] < 0.3
    before = meter.report()["peak_memory_mb"]
    assert 50 < before < 100_000
    torch.ones(60_000_000)  # 240 MB, for a while
    assert meter.report()["peak_memory_mb"] >= before
    assert "seconds_per_step" not in ThroughputMeter().report()
