"""Few-shot examples of a task: where they stand in prompts, in training, scoring and answers alike."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.runs import Fit, quiet_run

from sottovoce.data.examples import collate
from sottovoce.data.few_shot import few_shot_turns
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.lightning_modules.run import Run
from sottovoce.llms.chat_template import ChatTurn
from sottovoce.serving.chat import spoken_turn
from sottovoce.serving.questions import question
from sottovoce.training.readings import stage_readings
from sottovoce.training.spoken_prompt import dialogue_of

SHOTS = {"look at the red car": "look at the red car", "five two nine": "five two nine"}
TASKS = {"asr": {"shots": SHOTS}, "emotion": {"shots": {"A sad voice.": "The speaker sounds sad."}}}


@pytest.fixture
def shown(tree: dict[str, Any]) -> dict[str, Any]:
    """The tiny recipe with few-shot examples of two tasks."""
    tasks = {name: {**tree["tasks"].get(name, {}), **node} for name, node in TASKS.items()}
    return {**tree, "tasks": {**tree["tasks"], **tasks}}


@pytest.mark.parametrize("place", ["system", "user"])
def test_they_are_written_turns_before_the_question(shown: dict[str, Any], place: str) -> None:
    """Behind the instruction each, where that stands in the user's turn; of other tasks there are none."""
    run = quiet_run({**shown, "instructions": place})
    draw, seen = run.example_sampler("joint", cut=True), set()
    for u in run.data.splits["train"].utterances:
        for epoch in range(8):
            if (example := draw(u, epoch, 0)) is None:
                continue
            seen.add(example.task)
            shots = run.tasks[example.task].shots or {}
            turns = dialogue_of(example, run.slots)
            turns = turns[1:] if place == "system" else turns
            before = f"{example.instruction} " if place == "user" else ""
            wanted = [
                turn for asked, answer in shots.items()
                for turn in (ChatTurn("user", (before + asked,)), ChatTurn("assistant", (answer,)))
            ]  # fmt: skip
            assert turns[: len(wanted)] == wanted
            assert len(turns) - len(wanted) == 1 + len(u.context) or u.context
    assert {"asr", "emotion"} <= seen and len(seen) > 2


def test_a_written_turn_has_none(shown: dict[str, Any]) -> None:
    assert not few_shot_turns(quiet_run(shown).tasks["asr"], "", "user")


@pytest.mark.parametrize("place", ["system", "user"])
def test_they_count_among_the_tokens_of_a_row(tree: dict[str, Any], shown: dict[str, Any], place: str) -> None:
    """What is told of a row grows by as much as its prompt does."""
    with_shots, without = (quiet_run({**recipe, "instructions": place}) for recipe in (shown, tree))
    grown = set()
    for row in range(4):
        more = [a - b for a, b in zip(lengths(with_shots, row), lengths(without, row), strict=True)]
        prompt, told = more
        assert told >= prompt
        grown.add(prompt)
    assert max(grown) > 10


def lengths(run: Run, row: int) -> tuple[int, int]:
    """Of an example that asks for the words: its prompt, and what is told of its utterance, in tokens."""
    u = run.data.splits["train"].utterances[row]
    example = replace(run.example_sampler("joint", cut=True), weights={"asr": 1.0})(u, 0, 0)
    assert example is not None
    (prompt,) = run.module.embed(collate([example], run.audio_reader.read), [dialogue_of(example, run.slots)])
    reading = next(r for r in stage_readings(run.recipe, run.tasks, "joint") if r.name == "asr")
    return len(prompt), run.row_lengths.most_tokens([u], [reading])[0]


@pytest.mark.parametrize("place", ["system", "user"])
def test_a_bundle_asks_as_training_did(shown: dict[str, Any], fit: Fit, place: str) -> None:
    evaluation = {"max_new_tokens": 2, "slots": ["both"], "limit": 1}
    recipe = {**shown, "instructions": place, "stages": {"joint": shown["stages"]["joint"]}, "evaluation": evaluation}
    model, run = read_bundle(fit(**recipe) / "bundle"), quiet_run(recipe)
    for task in ("asr", "emotion", "gender"):
        asked = spoken_turn(model, Path("clip"), question(model.recipe, task, None).instruction, ["linguistic"])
        own = spoken_turn(model, Path("clip"), "What is this?", ["linguistic"])
        shots = few_shot_turns(run.tasks[task], run.tasks[task].instructions()[0], run.recipe.instructions)
        assert len(asked) - len(own) == len(shots) == 2 * len(TASKS.get(task, {}).get("shots", {}))
        first = len(asked) - 1 - len(shots)
        assert [(t.role, t.pieces) for t in asked[first:-1]] == [(t.role, (t.text,)) for t in shots]
