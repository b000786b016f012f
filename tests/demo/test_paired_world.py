"""Paired speech of the demo world: splits that never touch, right answers that differ, children who sound like it."""

import json
import random
import re
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from sottovoce.data.acoustic_labels import measure
from sottovoce.data.manifest import read_manifest
from sottovoce.data.tts.espeak import ESpeak
from sottovoce.demo import paired_words
from sottovoce.demo.paired_lessons import KINDS, PAIRED, PairedLessons
from sottovoce.demo.paired_words import SAFETY_TOPICS, TOPICS, VALUES, answers, category_of, draw_text, plain, verb_of
from sottovoce.demo.paired_world import Line, PairedWorld, share_of
from sottovoce.demo.pretrain_llm_deep import PHASES
from sottovoce.demo.voices import BOYS, WOMEN, say, speakers
from sottovoce.demo.world import VERBS, Style, split_of
from sottovoce.evaluation.awareness import AwarenessRule, Case
from sottovoce.evaluation.text_similarity import rouge_f1

SPLITS = ("train", "validation", "test")
CHOICES = {name: list(values) for name, values in VALUES.items()}


@pytest.fixture(scope="module")
def world() -> dict[str, list[Line]]:
    pairs = PairedWorld(train=150, validation=30, test=30)
    return {split: pairs.lines(split) for split in SPLITS}


def test_every_verb_is_a_topic_once() -> None:
    assert sorted([*SAFETY_TOPICS, *(verb for verbs in TOPICS.values() for verb in verbs)]) == sorted(VERBS)


@pytest.mark.parametrize("verb", ["fixed", "sold", "left", "lost"])
def test_who_does_not_know_the_speaker_gives_nobodys_answer(verb: str) -> None:
    """Right answers differ; the plain reply is equally near to all of them, and a judge gives it 0."""
    text = f"we {verb} the lamp today"
    due, category = answers(text), category_of(verb)
    assert set(due) == set(VALUES[category]) and len(set(due.values())) == len(due)
    assert len({round(x, 6) for x in rouge_f1("rouge_l", [plain(text)] * len(due), list(due.values()))}) == 1
    unheard = [Case(category, value, plain(text), due) for value in due]
    heard = [Case(category, value, paired_words.answer(text, {category: value}), due) for value in due]
    others = {value: set(due) - {value, "neutral"} for value in due}
    mistaken = [Case(category, value, due[other], due) for value in due for other in others[value]]
    scores = AwarenessRule().judge([*unheard, *heard, *mistaken]).scores
    assert scores == [0.0] * len(unheard) + [1.0] * len(heard) + [-1.0] * len(mistaken)


def test_splits_share_no_text_and_no_voice(world: dict[str, list[Line]]) -> None:
    texts = {split: {line.text for line in lines} for split, lines in world.items()}
    voices = {split: {line.speaker.split(".")[0] for line in lines} for split, lines in world.items()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not texts[one] & texts[other] and not voices[one] & voices[other]
    assert all(split_of(text) == split for split in SPLITS for text in texts[split])


def test_each_text_is_spoken_with_every_value_by_different_speakers(world: dict[str, list[Line]]) -> None:
    for text, group in groupby(world["train"], key=lambda line: line.text):
        lines = list(group)
        category = category_of(verb_of(text))
        assert tuple(line.labels[category] for line in lines) == VALUES[category]
        assert len({line.speaker for line in lines}) == len(lines)
        assert [line.answer for line in lines] == [answers(text)[line.labels[category]] for line in lines]
    calm = {line.style.emotion for line in world["train"] if category_of(verb_of(line.text)) != "emotion"}
    assert calm == {"neutral"}
    counts = {name: sum(category_of(verb_of(line.text)) == name for line in world["train"]) for name in VALUES}
    assert counts == {"age": 100, "gender": 100, "emotion": 200}


def test_topics_of_child_safety_are_in_the_test_split_alone(world: dict[str, list[Line]]) -> None:
    topics = {split: {paired_words.topic_of(verb_of(line.text)) for line in world[split]} for split in SPLITS}
    held_out = {f"{paired_words.SAFETY}/{verb}" for verb in SAFETY_TOPICS}
    assert not (topics["train"] | topics["validation"]) & held_out and held_out < topics["test"]
    assert topics["train"] == {verb for verbs in TOPICS.values() for verb in verbs}
    asked = [line for line in world["test"] if verb_of(line.text) in SAFETY_TOPICS]
    assert len({line.text for line in asked}) == 70 and len(asked) == 140
    assert {category_of(verb) for verb in SAFETY_TOPICS} == {"age"}


def test_plain_texts_are_no_texts_of_pairs_and_their_replies_heed_nobody(world: dict[str, list[Line]]) -> None:
    lines = PairedWorld(train=120, validation=0, test=0, plain=True).lines("train")
    assert {share_of(line.text) for line in lines} == {"plain"}
    assert not {line.text for line in lines} & {line.text for line in world["train"]}
    assert {line.answer for line in lines} == {plain(line.text) for line in lines}
    assert {verb_of(line.text) for line in lines} == set(VERBS)
    assert 40 < sum(line.age == "child" for line in lines) < 80
    assert "gender" not in next(line for line in lines if line.age == "child").labels


def test_what_is_said_is_a_function_of_the_seed() -> None:
    one, other = (PairedWorld(train=12, validation=0, test=0, seed=seed).lines("train") for seed in (0, 1))
    assert one == PairedWorld(train=12, validation=0, test=0).lines("train") and one != other


def test_a_corpus_is_made_once_and_its_manifests_are_valid(tmp_path: Path) -> None:
    pairs = PairedWorld(train=3, validation=0, test=0, safety=1, workers=1)
    made = pairs.prepare(tmp_path)
    stamp = made["test"].stat().st_mtime_ns
    assert pairs.prepare(tmp_path) == made and made["test"].stat().st_mtime_ns == stamp
    train = read_manifest(made["train"], choices=CHOICES).utterances
    assert len(train) == 2 + 2 + 4
    assert all(u.category and u.response == u.answers[u.labels[u.category]] for u in train)
    test = read_manifest(made["test"], choices=CHOICES).utterances
    assert {u.topic for u in test} == {f"{paired_words.SAFETY}/{verb}" for verb in SAFETY_TOPICS}
    replies = PairedWorld(train=2, validation=0, test=0, plain=True, workers=1).prepare(tmp_path)["train"]
    assert len(read_manifest(replies, choices=CHOICES).utterances) == 2 and replies != made["train"]
    assert "answers" not in json.loads(replies.read_text().splitlines()[0])


def test_children_have_small_heads_and_high_voices() -> None:
    assert set(BOYS) < {voice for voices in WOMEN.values() for voice in voices}
    assert all(speakers(split, sex, child=True) for split in SPLITS for sex in VALUES["gender"])
    synthesizer, hertz = ESpeak(), dict[bool, list[float]]()
    for child in (True, False):
        for number in range(6):
            style = Style("female", ("low", "high")[number % 2], "slow", "strong", "neutral")
            who = random.Random(number).choice(speakers("test", "female", child))
            audio = say(synthesizer, "we found the lamp today", style, who, random.Random(number), child=child)
            hertz.setdefault(child, []).append(measure(audio, 16_000, "we found the lamp today").f0_hz or 0.0)
    assert np.median(hertz[True]) > 1.3 * np.median(hertz[False])


def test_lessons_answer_by_what_is_told_of_the_speaker() -> None:
    lessons = PairedLessons(0, "validation", PHASES[-1])
    for kind in PAIRED * 3:
        messages, target = lessons.lesson(kind)
        text = messages[-1]["content"]
        assert (target == plain(text)) == (kind != "paired")
        if kind == "paired":
            value = next(value for value, due in answers(text).items() if due == target)
            assert re.search(rf"\b{value}\b", text)
    assert {split_of(lessons.lesson("asr")[1]) for _ in range(20)} == {"validation"}
    assert all(lessons.lesson(kind)[1] for kind in KINDS)


def test_a_text_with_given_verbs_only() -> None:
    drawn = [draw_text(random.Random(i), "test", ("fixed", "lost")) for i in range(20)]
    assert {verb_of(text) for text in drawn} == {"fixed", "lost"} and all(split_of(text) == "test" for text in drawn)
