"""Weights of tasks, and of what replaces a slot's speech: drawn as often as they say."""

from collections import Counter
from dataclasses import replace

import pytest
from tests.helpers.runs import quiet_run

from sottovoce.config.recipe import Recipe


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
