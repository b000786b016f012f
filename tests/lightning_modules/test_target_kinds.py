"""Targets of SpeechEmotionLlama by kind: conditioned on emotion or not, ready or made, and never one for the other."""

import re
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.errors import refused

from sottovoce.config import recipe as recipes
from sottovoce.config.recipe import Recipe
from sottovoce.data.tasks import TASKS, Task
from sottovoce.data.utterance import Utterance
from sottovoce.errors import ConfigError
from sottovoce.generation.chat_prompt import ChatPrompt
from sottovoce.generation.targets import FIELDS
from sottovoce.lightning_modules.run import example_sampler_of
from sottovoce.paths import resolve
from sottovoce.training.llm_targets import teacher_dialogue
from sottovoce.training.splits import build_tasks

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf" / "speech_emotion_llama"
PROMPTS = resolve("sottovoce:data/prompts/speech_emotion_llama")


def spoken(**more: Any) -> Utterance:
    return Utterance("a", Path("a.wav"), "it rains", None, 1.0, **more)


def scored(recipe: Recipe) -> Task:
    return TASKS.build({**recipe.tasks["response"], **recipe.evaluation.task_overrides.get("response", {})})


@pytest.mark.parametrize(("name", "kind"), [("baseline_1", "plain"), ("baseline_2", "plain"), ("v1", "response")])
def test_gap_5_each_system_takes_ready_targets_of_its_own_kind(name: str, kind: str) -> None:
    """Whatever else the manifest has; and all are scored against emotion-conditioned ones."""
    recipe = recipes.load(CONF / f"{name}.yaml")
    (task,) = (task for name, task in build_tasks(recipe).items() if name == "response")
    both = spoken(labels={"emotion": "sad"}, response="Oh dear.", responses={"plain": "Take a coat."})
    assert task.target(both) == {"plain": "Take a coat.", "response": "Oh dear."}[kind]
    assert scored(recipe).target(both) == "Oh dear."
    other = {"plain": {"response": "Oh dear."}, "response": {"responses": {"plain": "Take a coat."}}}[kind]
    assert task.target(spoken(labels={"emotion": "sad"}, **other)) is None  # the run's own LLM makes it
    assert task.target(Utterance("w", None, "it rains", None, 1.0, response="Yes.")) == "Yes."  # written, of no voice


@pytest.mark.parametrize(("name", "kind"), [("baseline_2", "plain"), ("v1", "response")])
def test_gap_5_the_run_and_the_command_ask_for_targets_alike(name: str, kind: str) -> None:
    recipe = recipes.load(CONF / f"{name}.yaml")
    drawing = example_sampler_of(recipe, build_tasks(recipe), "align", cut=False)
    drawn = (drawing(spoken(labels={"emotion": "sad"}), epoch, 0) for epoch in range(40))
    example = next(example for example in drawn if example and example.task == "response")
    slots = {slot: node.text for slot, node in recipe.slots.items()}
    asked = [
        {"role": turn.role, "content": "".join(map(str, turn.pieces))} for turn in teacher_dialogue(example, slots)
    ]
    values = {"emotion": "sad", "transcript": "it rains"}
    assert asked == ChatPrompt(PROMPTS / f"targets_{kind}.txt", FIELDS, "transcript").chat(values)


def test_plain_targets_have_a_teacher_that_says_nothing_of_emotions() -> None:
    """Wherever a recipe names none beside the kind; one that it names stays."""
    plain = (PROMPTS / "companion_plain.txt").read_text().splitlines()[1]
    said = [
        "tasks.response.kind=plain",
        "slots.speech.text=transcript",
        "evaluation.task_overrides.response.kind=response",
    ]
    assert build_tasks(recipes.load(CONF / "v1.yaml", said))["response"].teacher == plain
    named = recipes.load(CONF / "baseline_2.yaml", ["tasks.response.teacher=none"])
    assert build_tasks(named)["response"].teacher is None
    other = "data.train=[{manifest: m, task_overrides: {response: {kind: plain}}}]"
    own = recipes.load(CONF / "baseline_1.yaml", [other]).data.train[0].task_overrides["response"]
    assert TASKS.build({"type": "response", **own}).teacher == plain


@pytest.mark.parametrize(
    ("name", "override", "where"),
    [
        ("v1", "slots.speech.text=transcript", "tasks.response.kind"),  # what once was baseline 2
        ("baseline_2", "slots.speech.text=tagged", "tasks.response.kind"),
        ("baseline_2", "tasks.response.kind=response", "tasks.response.kind"),
        ("baseline_2", "evaluation.task_overrides.response.kind=plain", "evaluation.task_overrides.response.kind"),
        (
            "baseline_2", "data.train=[{manifest: m, task_overrides: {response: {kind: response}}}]",
            "data.train[0].task_overrides.response.kind",
        ),
    ],
)  # fmt: skip
def test_gap_5_targets_of_another_kind_than_the_slots_tell_are_refused(name: str, override: str, where: str) -> None:
    with refused("conflict", where, ConfigError):
        recipes.load(CONF / f"{name}.yaml", [override])


def test_gap_5_a_test_manifest_is_held_to_the_kind_of_the_evaluation() -> None:
    """Which is another than that of training where a baseline is scored as all systems are."""
    said = "data.test=[{manifest: m, task_overrides: {response: {teacher: none}}}]"
    assert recipes.load(CONF / "baseline_1.yaml", [said])
    with refused("conflict", "data.test[0].task_overrides.response.kind", ConfigError):
        recipes.load(CONF / "baseline_1.yaml", [said.replace("teacher: none", "kind: plain")])


def test_gap_5_the_readme_shows_both_commands() -> None:
    shown = re.findall(r"(?m)^    sottovoce targets .* --kind (\w+)", (ROOT / "README.md").read_text("utf-8"))
    assert {"response", "plain"} <= set(shown)


def test_gap_6_baseline_1_learns_replies_from_transcripts_alone() -> None:
    recipe = recipes.load(CONF / "baseline_1.yaml")
    drawing = example_sampler_of(recipe, build_tasks(recipe), "align", cut=True)
    tasks = [example.task for epoch in range(400) if (example := drawing(spoken(), epoch, 0))]
    assert tasks.count("response") == pytest.approx(200, abs=40) and tasks.count("asr") == 400 - tasks.count("response")
    tagged = recipes.load(CONF / "v2.yaml")
    drawing = example_sampler_of(tagged, build_tasks(tagged), "align", cut=True)
    assert drawing.possible(spoken()) == ["asr"]  # there is no emotion to answer
    assert drawing.possible(spoken(labels={"emotion": "sad"})) == ["response", "asr", "caption"]
