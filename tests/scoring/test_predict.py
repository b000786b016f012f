"""Predictions on the test side: which questions are asked, in which slots, and against what they are held."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.helpers.errors import refused
from tests.helpers.runs import quiet_run

from sottovoce.data.examples import collate
from sottovoce.data.utterance import Turn
from sottovoce.errors import ManifestError
from sottovoce.frames import Frames
from sottovoce.lightning_modules.run import Run
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.progress import Progress
from sottovoce.scoring import predict as module
from sottovoce.scoring.predict import predict
from sottovoce.training.spoken_prompt import dialogue_of


def prepared(tree: dict[str, Any], **evaluation: Any) -> Run:
    tree["evaluation"] = {"batch_size": 9, "max_new_tokens": 2, **evaluation}
    run = quiet_run(tree)
    run.module.start_stage("joint", 1)
    return run


@pytest.mark.parametrize(
    ("limit", "rows"),
    [(1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (4, [0, 1, 3, 4]), (6, list(range(6))), (9, list(range(6)))],
)
def test_a_limit_is_spread_evenly_over_the_test_side(tree: dict[str, Any], limit: int, rows: list[int]) -> None:
    """A manifest may be sorted, by speaker or label: its first rows would be a biased sample."""
    predictions = predict(prepared(tree, limit=limit, tasks=["gender"], slots=["both"]))
    assert sorted(p.id for p in predictions) == [f"test-{row}" for row in rows]


def test_a_limit_counts_each_task_and_each_part_apart(tree: dict[str, Any]) -> None:
    test = tree["data"]["test"][0]["manifest"]
    tree["data"]["test"] = [{"manifest": test, "name": "plain"}]
    predictions = predict(prepared(tree, limit=2, tasks=["gender", "asr"], slots=["both"]))
    asked = sorted((p.title, p.id) for p in predictions)
    assert asked == [(f"{task} (plain)", f"test-{row}") for task in ("asr", "gender") for row in (0, 3)]


def test_each_choice_of_slots_has_its_own_sources(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[dict[str, str], dict[str, str]]] = []
    dialogue_of = module.dialogue_of

    def seen(example: Any, slots: Any) -> Any:
        asked.append((dict(example.sources), dict(slots)))
        return dialogue_of(example, slots)

    monkeypatch.setattr(module, "dialogue_of", seen)
    run = prepared(tree, limit=1, tasks=["asr"], text={"linguistic": "tagged"})
    sources = {p.slots: tuple(given.values()) for p, (given, _) in zip(predict(run), asked, strict=True)}
    assert sources == {
        "both": ("speech", "speech"), "paralinguistic": ("speech", "none"), "linguistic": ("none", "speech"),
        "text": ("text", "text"),
    }  # fmt: skip
    slots = ("paralinguistic", "linguistic")
    assert {tuple(texts[slot] for slot in slots) for _, texts in asked} == {("caption", "tagged")}  # as evaluation says
    assert run.module.slots["linguistic"] == "transcript"  # and training is left as it was


def test_a_prediction_is_held_against_its_own_utterance(tree: dict[str, Any]) -> None:
    run = prepared(tree, tasks=["gender", "asr", "dialogue"], slots=["both"])
    utterances = {u.id: u for u in run.data.splits["test"].utterances}
    predictions = predict(run)
    assert len(predictions) == 3 * len(utterances)
    emotions = set(tree["tasks"]["emotion"]["choices"])
    for p in predictions:
        u = utterances[p.id]
        labels = {"gender": u.labels["gender"], "asr": None, "dialogue": u.labels["emotion"]}
        targets = {"gender": f"The speaker is {u.labels['gender']}.", "asr": u.text}
        assert (p.label, p.speaker) == (labels[p.task], u.speaker)
        assert p.target == targets.get(p.task, p.target)
        assert set(p.rivals or ()) == (emotions if p.task == "dialogue" else set())
        if p.rivals and p.label:  # the LLM's own reply to the words in the true emotion is what it was to learn
            assert p.target == p.rivals[p.label] and len(set(p.rivals.values())) > 1


def test_rows_are_answered_beside_others_of_their_length(tree: dict[str, Any]) -> None:
    """A long dialogue would make all rows of its batch as long."""
    run = prepared(tree, batch_size=3, tasks=["asr", "gender"], slots=["both", "text"])
    talk = tuple(Turn(role, "and then i said that it was late") for role in ("user", "assistant") * 3)
    test = run.data.splits["test"]
    test.utterances = [replace(u, context=talk if at % 2 else ()) for at, u in enumerate(test.utterances)]
    asked = module._asked(run, "test", Progress(Console(quiet=True))).rows
    parts = [asked[start : start + 3] for start in range(0, len(asked), 3)]
    assert [len({bool(example.context) for _, example in part}) for part in parts] == [1] * 8
    assert [len({(mode, example.task) for mode, example in part}) for part in parts] == [1] * 8


@pytest.mark.parametrize("size", [1, 4])
def test_a_clip_is_heard_once_for_all_tasks_and_choices_of_slots(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    run = prepared(tree, batch_size=size, tasks=["asr", "gender"])
    heard, calls, adapt = Counter[str](), Counter[str](), SpeechLLM.adapt

    def counted(self: SpeechLLM, slot: str, frames: Frames) -> Frames:
        heard[slot] += len(frames.lengths)
        calls[slot] += 1
        return adapt(self, slot, frames)

    monkeypatch.setattr(SpeechLLM, "adapt", counted)
    seconds = {u.id: u.seconds for u in run.data.splits["test"].utterances}
    places = [(p.slots, p.task, seconds[p.id]) for p in predict(run)]
    assert places == sorted(places)  # however they were answered
    clips = {clip for u in run.data.splits["test"].utterances for clip in u.clips}
    assert heard == {"paralinguistic": len(clips), "linguistic": len(clips)}
    assert set(calls.values()) == {-(-len(clips) // size)}


def test_speech_does_not_depend_on_who_asks_first(tree: dict[str, Any]) -> None:
    """Processes that share the rows give the same answers, to the bit."""
    run = prepared(tree, batch_size=3)
    examples = [example for _, example in module._asked(run, "test", Progress(Console(quiet=True))).rows]
    orders = (examples, examples[::-1], examples[1::2] + examples[::2])
    tables = [module.ClipSpeech(run, examples, 3) for _ in orders]
    found = [
        {key: rows for example in order for key, rows in (table.batch([example]).speech or {}).items()}
        for order, table in zip(orders, tables, strict=True)
    ]
    assert found[0] and all(one.keys() == found[0].keys() for one in found)
    assert all(torch.equal(one[key], rows) for one in found for key, rows in found[0].items())
    together = run.module.speech_embeddings(
        collate(examples[:1], run.audio_reader.read), [run.module.llm.chat.prompt(dialogue_of(examples[0], run.slots))]
    )[0]  # as training has it
    for key, rows in together.items():
        torch.testing.assert_close(found[0][key], rows)


def test_nothing_to_score_is_an_error(tree: dict[str, Any]) -> None:
    with refused("empty", "data.test", ManifestError):
        predict(prepared(tree, tasks=["pitch"]))
