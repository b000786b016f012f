"""Overrides: prompts, words and captions of one manifest's own language."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.errors import refused

from sottovoce.data.examples import ExampleSampler, slot_text
from sottovoce.data.overrides import Overrides
from sottovoce.data.tasks import TASKS, AttributeTask, style_caption, task_of
from sottovoce.data.utterance import Utterance
from sottovoce.errors import Code, ConfigError

NODES: dict[str, dict[str, Any]] = {
    name: TASKS.filled({"type": name, **knobs})
    for name, knobs in {"asr": {}, "emotion": {"choices": ["happy", "sad"]}, "gender": {}}.items()
}
WORDS = {"emotion": {"words": {"happy": "高兴", "sad": "悲伤"}, "sentence": "说话人听起来{label}。"}}


def lines(file: Path, *text: str) -> str:
    file.write_text("\n".join(text), "utf-8")
    return str(file)


@pytest.fixture
def chinese(tmp_path: Path) -> Overrides:
    prompts = lines(tmp_path / "asr.txt", "请复述。", "重复一遍。")
    captions = lines(tmp_path / "captions.txt", "# the fullest first", "{emotion}的{gender}声。", "{gender}声。")
    own = Overrides.of(NODES, {"asr": {"prompts": prompts}, **WORDS}, captions)
    assert own is not None
    return own


def utterance(overrides: Overrides | None, **labels: str) -> Utterance:
    return Utterance("a", Path("a.wav"), "你好", None, 1.0, labels, overrides=overrides)


def test_two_languages_train_together_with_their_own_prompts(chinese: Overrides) -> None:
    tasks = {name: TASKS.build(node) for name, node in NODES.items()}
    draw = ExampleSampler(tasks, {"asr": 1.0}, {"s": "transcript"}, frozenset("s"), None, 0, "joint")
    asked = {
        language: {draw(replace(utterance(own), id=str(i)), 0, 0).instruction for i in range(40)}  # type: ignore[union-attr]
        for language, own in (("zh", chinese), ("en", None))
    }
    assert asked == {"zh": {"请复述。", "重复一遍。"}, "en": set(tasks["asr"].instructions())}


def test_labels_are_called_by_the_words_of_the_language_and_stay_the_same(chinese: Overrides) -> None:
    tasks = {name: TASKS.build(node) for name, node in NODES.items()}
    own, usual = (task_of(tasks, "emotion", utterance(o, emotion="sad")) for o in (chinese, None))
    assert isinstance(own, AttributeTask) and own.choices == ("happy", "sad")
    assert own.target(utterance(chinese, emotion="sad")) == "说话人听起来悲伤。"
    assert own.parse("我觉得是高兴") == "happy" and own.parse("happy") is None
    assert all("高兴, 悲伤" in wording for wording in own.instructions())
    assert usual.target(utterance(None, emotion="sad")) == "The speaker sounds sad."
    assert task_of(tasks, "gender", utterance(chinese)) is tasks["gender"]


def test_captions_are_the_fullest_sentence_whose_labels_are_known(chinese: Overrides) -> None:
    assert style_caption(utterance(chinese, emotion="sad", gender="female", pitch="low")) == "悲伤的female声。"
    assert style_caption(utterance(chinese, gender="female")) == "female声。"
    assert style_caption(utterance(chinese, emotion="sad")) is None  # rather than a sentence in another language
    assert style_caption(replace(utterance(chinese, emotion="sad"), caption="A voice.")) == "A voice."
    assert slot_text(utterance(chinese, gender="male"), "caption") == "male声。"  # what stands in under ERR
    assert style_caption(utterance(None, emotion="sad")) == "A sad voice."


@pytest.mark.parametrize(
    ("knobs", "captions", "code", "where"),
    [
        ({}, "{emotoin}声", "unknown-name", "captions.txt:1"),
        ({}, "# nothing", "empty", "captions.txt"),
        ({"asr": {"metric": "ter"}}, None, "bad-value", "metric"),
        ({"emotion": {"words": {"hapy": "高兴"}}}, None, "unknown-name", "emotion.words"),
        (
            {"emotion": {"words": {"happy": "好", "sad": "不好"}, "sentence": "好的，{label}"}},
            None,
            "conflict",
            "emotion",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    knobs: dict[str, Any], captions: str | None, code: Code, where: str, tmp_path: Path
) -> None:
    with refused(code, where, ConfigError):
        Overrides.of(NODES, knobs, captions and lines(tmp_path / "captions.txt", captions))
    assert Overrides.of(NODES, {}, None) is None


def test_they_travel_to_another_process(chinese: Overrides) -> None:
    spoken = utterance(chinese, emotion="sad", gender="female")
    assert style_caption(pickle.loads(pickle.dumps(spoken))) == style_caption(spoken)
