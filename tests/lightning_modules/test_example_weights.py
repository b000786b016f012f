"""Weights of tasks, and of what replaces a slot's speech: drawn as often as they say."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from tests.helpers.errors import refused
from tests.helpers.runs import quiet_run

from sottovoce.config import recipe as recipes
from sottovoce.config.recipe import Recipe
from sottovoce.data.examples import Example
from sottovoce.errors import ConfigError
from sottovoce.lightning_modules.run import example_sampler_of
from sottovoce.training.readings import stage_readings
from sottovoce.training.splits import build_tasks, read_splits


def test_tasks_and_replacements_are_drawn_by_their_weights(recipe: Recipe) -> None:
    run = quiet_run(recipe)
    weights, err = {"asr": 3.0, "emotion": 1.0}, {"speech": 6.0, "text": 1.0, "none": 3.0}
    sampler = replace(run.example_sampler("disentangle", cut=True), weights=weights, err=err)
    utterance = run.data.splits["train"].utterances[0]
    drawn = [example for epoch in range(2000) if (example := sampler(utterance, epoch, 0))]
    tasks = Counter(example.task for example in drawn)
    other = {"asr": "paralinguistic", "emotion": "linguistic"}  # the other slot, which does not carry the task
    sources = Counter(example.sources[other[example.task]] for example in drawn)
    assert tasks["asr"] / 2000 == pytest.approx(0.75, abs=0.04)
    for source, share in {"speech": 0.6, "text": 0.1, "none": 0.3}.items():
        assert sources[source] / 2000 == pytest.approx(share, abs=0.04)


def renamed(tree: dict[str, Any], **carries: Any) -> dict[str, Any]:
    """The tree with its slots called voice and words."""
    names = {"voice": "paralinguistic", "words": "linguistic"}
    slots = {new: {**tree["slots"][old], **carries.get(new, {})} for new, old in names.items()}
    return {**tree, "slots": slots}


CARRIES = {"voice": {"carries": ["paralinguistic"]}, "words": {"carries": "linguistic"}}


def test_gap_12_slots_of_any_name_draw_alike(tree: dict[str, Any]) -> None:
    """ERR goes by what a slot carries: sources, learning adapters, and what rows are measured by."""
    papers, ours = recipes.parse(tree), recipes.parse(renamed(tree, **CARRIES))
    utterances = read_splits(papers).splits["train"].utterances
    drawings = [example_sampler_of(recipe, build_tasks(recipe), "disentangle", cut=True) for recipe in (papers, ours)]
    names = {"paralinguistic": "voice", "linguistic": "words"}

    def of(example: Example | None) -> tuple[object, ...]:
        assert example is not None
        slots = {names.get(slot, slot): source for slot, source in example.sources.items()}
        return example.task, example.instruction, slots, {names.get(slot, slot) for slot in example.trains}

    drawn = [[of(drawing(u, epoch, 0)) for u in utterances for epoch in range(30)] for drawing in drawings]
    assert drawn[0] == drawn[1]
    assert {tuple(sorted(learning)) for *_, learning in drawn[1]} == {("voice",), ("words",)}
    read = [stage_readings(recipe, build_tasks(recipe), "disentangle") for recipe in (papers, ours)]
    measured = [[{names.get(s, s): list(x) for s, x in one.sources.items()} for one in each] for each in read]
    assert measured[0] == measured[1]


def test_gap_12_err_without_a_slot_that_carries_a_task_is_refused(tree: dict[str, Any]) -> None:
    with refused("conflict", "stages.disentangle.err", ConfigError):
        recipes.parse(renamed(tree))
    with refused("conflict", "stages.disentangle.err", ConfigError):  # it has no attribute task
        recipes.parse({**renamed(tree, voice={"carries": "paralinguistic"}),
                       "stages": {"disentangle": {**tree["stages"]["disentangle"], "tasks": {"asr": 1}}}})  # fmt: skip
    recipes.parse(renamed(tree, words={"carries": "linguistic"}))  # one of two tasks is carried
    with refused("bad-value", "slots.words.carries[0]", ConfigError):
        recipes.parse(renamed(tree, words={"carries": "words"}))
    mute = {name: {**slot, "carries": []} for name, slot in tree["slots"].items()}
    with refused("conflict", "stages.disentangle.err", ConfigError):
        recipes.parse({**tree, "slots": mute})
