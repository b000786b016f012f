"""Paired data: pairs are whole, splits share no words, what is held out stays out, and a killed run goes on."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.helpers.errors import faulty, refused

from sottovoce.cli.main import main
from sottovoce.data.manifest import Manifest, read_manifest
from sottovoce.data.paired_texts import Text, read_texts, select, split_of
from sottovoce.data.skipped import Skipped
from sottovoce.data.tts import SYNTHESIZERS
from sottovoce.data.tts.base import NotSpoken, Synthesizer
from sottovoce.errors import Code, ConfigError, ManifestError
from sottovoce.generation import paired
from sottovoce.generation.paired_config import load
from sottovoce.llms import ENGINES
from sottovoce.llms.engines import Chat, Cut, Engine, Failure
from sottovoce.paths import resolve

CONF = Path(__file__).parents[2] / "conf"
VALUES = {"age": ["child", "adult"], "emotion": ["sad", "happy", "angry"]}
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
SPOKEN: Counter[str] = Counter()  # texts that the synthesizer below was asked for


@SYNTHESIZERS.register("paired_test_tone")
class Tone(Synthesizer):
    """A tone; texts with `mute` cannot be spoken, and `crash` ends the run."""

    in_threads, sample_rate, name = True, 8000, "tone"

    def __init__(self, *, crash: bool = False) -> None:
        self.crash = crash

    def speak(self, text: str, *, attribute: str, label: str, voice: str, seed: int) -> NDArray[np.float32]:
        if self.crash and len(SPOKEN) >= 5:
            raise KeyboardInterrupt
        SPOKEN[f"{text}/{label}"] += 1
        if "mute" in text and label in ("child", "sad"):
            raise NotSpoken("hoarse")
        return np.random.default_rng(seed).uniform(-0.2, 0.2, 2000).astype(np.float32)


@ENGINES.register("paired_test_engine")
class Author(Engine):
    """Writes questions and answers; now and then what it says is of no use."""

    name = "author"
    asked = 0

    def __init__(self) -> None:
        Author.asked = 0

    def answer(self, chats: Sequence[Chat], *, seed: int = 0, **_: Any) -> list[str | Failure]:
        Author.asked += len(chats)
        return [self._one(chat[-1]["content"], seed) for chat in chats]

    def _one(self, prompt: str, seed: int) -> str | Failure:
        if "list number" in prompt:
            topic = prompt.split("this topic: ")[1].split(".")[0]
            number = prompt.split("list number ")[1].split()[0]
            lines = [f'{n}. "What about {topic} {number} {n}?"' for n in range(5)]
            return "\n".join(["Here are your questions:", *lines, lines[0], "ok"])
        value, text = prompt.split(": ")[1].split(".")[0], prompt.split("says: ")[1].split("\n")[0]
        if text.endswith("1 0?") and seed == 0:
            return "two\nlines"
        if text.endswith("1 1?") and value == "child":
            return Cut("it never ends")
        if text.endswith("1 2?") and value == "child":
            return Failure("no")
        return "All the same." if text.endswith("1 3?") else f"{value}, {text}"


def recipe_of(folder: Path, said: Sequence[dict[str, Any]] = (), **keys: Any) -> Path:
    (folder / "texts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in said))
    voices = {
        split: {"age": {"child": [f"{split}-c"], "adult": [f"{split}-a", f"{split}-b"]}, "emotion": {"any": by}}
        for split, by in (("train", ["x", "y"]), ("validation", ["v"]), ("test", ["t", "u"]))
    }
    tree = {
        "out": str(folder / "out"), "categories": {name: {"values": values} for name, values in VALUES.items()},
        "files": [str(folder / "texts.jsonl")], "synthesizer": {"type": "paired_test_tone"}, "voices": voices,
        "shares": SHARES, **keys,
    }  # fmt: skip
    file = folder / "paired.yaml"
    file.write_text(json.dumps(tree))
    return file


def text(number: int, category: str = "age", topic: str = "pets/cat", **keys: Any) -> dict[str, Any]:
    answers = {value: f"{value} {number}" for value in VALUES[category]}
    return {"text": f"question number {number}?", "category": category, "topic": topic, "answers": answers, **keys}


def many(count: int = 60) -> list[dict[str, Any]]:
    categories, topics = ("age", "emotion"), ("pets/cat", "pets/dog", "cars", "safety/fire")
    return [text(n, categories[n % 2], topics[n % 4]) for n in range(count)]


def read(folder: Path, split: str) -> Manifest:
    return read_manifest(folder / "out" / f"{split}.jsonl", choices=VALUES)


@pytest.fixture(autouse=True)
def silence() -> None:
    SPOKEN.clear()


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, paired.Report]:
    held = ["safety", "pets/dog"]
    return tmp_path, paired.make(load(recipe_of(tmp_path, many(), held_out_topics=held)))


def test_the_same_words_are_said_in_every_label_with_the_right_answer(made: tuple[Path, paired.Report]) -> None:
    for split in ("train", "validation", "test", "held_out"):
        pairs: dict[str, list[Any]] = {}
        for line in read(made[0], split).utterances:
            assert line.category and line.response == line.answers[line.labels[line.category]]
            pairs.setdefault(str(line.text), []).append(line)
        for lines in pairs.values():
            category = lines[0].category
            assert [line.labels[category] for line in lines] == VALUES[category]
            assert category == "age" or len({line.speaker for line in lines}) == 1  # `any`: only the label differs


def test_splits_share_no_text_no_voice_and_no_held_out_topic(made: tuple[Path, paired.Report]) -> None:
    lines = {split: read(made[0], split).utterances for split in ("train", "validation", "test", "held_out")}
    texts = {split: {line.text for line in some} for split, some in lines.items()}
    assert sum(map(len, texts.values())) == len(set().union(*texts.values())) == 60
    assert {line.topic for line in lines["held_out"]} == {"safety/fire", "pets/dog"}
    assert {line.topic for split in SHARES for line in lines[split]} == {"pets/cat", "cars"}
    train = {line.speaker for line in lines["train"]}
    assert not any(line.speaker in train for split in ("validation", "test", "held_out") for line in lines[split])


def test_the_report_counts_what_was_made(made: tuple[Path, paired.Report]) -> None:
    folder, report = made
    for split, counts in report.made.items():
        assert counts == Counter(line.category for line in read(folder, split).utterances)
    assert report.spoken == 150 and f"{report}".splitlines()[0].endswith("150 clips spoken, 0 were there")


def test_a_text_keeps_its_split_whatever_else_is_said() -> None:
    texts = [Text(f"words {n}", "age", None, {}, "") for n in range(2000)]
    left = Skipped()
    whole = select(texts, SHARES, {}, [], 0, left)
    half = select(texts[:1000], SHARES, {}, [], 7, left)
    assert all({t.text for t in half[split]} <= {t.text for t in whole[split]} for split in SHARES)
    assert [len(whole[split]) / 2000 for split in SHARES] == pytest.approx([0.6, 0.2, 0.2], abs=0.04)
    assert split_of("words 7", SHARES) == split_of("words 7", {name: 10 * share for name, share in SHARES.items()})
    assert not left.items


def test_duplicates_and_words_of_held_out_topics_are_left_out_and_named() -> None:
    def at(where: str, said: str, topic: str, category: str = "age") -> Text:
        return Text(said, category, topic, {}, where)

    texts = [
        at("1", "Hello there!", "a"),
        at("2", "hello, THERE", "a"),
        at("3", "Fire?", "a"),
        at("4", "fire", "x", "emotion"),
    ]
    left = Skipped()
    splits = select(texts, SHARES, {}, ["x"], 0, left)
    assert [t.where for t in splits["held_out"]] == ["4"]
    assert [t.where for split in SHARES for t in splits[split]] == ["1"]
    assert left.items == {
        "the same words came before": ["2: hello, THERE"],
        "the same words belong to a held-out topic": ["3: Fire?"],
    }


def test_a_split_takes_no_more_than_it_was_given(tmp_path: Path) -> None:
    report = paired.make(load(recipe_of(tmp_path, many(), texts={"train": 5, "test": 50})))
    assert report.texts["train"] == {"age": 5, "emotion": 5}
    assert len([line for line in report.short if line.startswith("test: ")]) == 2
    assert "train has all the texts on age that were asked for" in str(report)


def test_a_pair_that_lacks_a_voice_is_left_out_whole(tmp_path: Path) -> None:
    report = paired.make(load(recipe_of(tmp_path, [*many(30), text(99, text="mute question")])))
    assert report.skipped.items["not spoken: hoarse"][0].startswith("child, ")
    assert "mute" not in "".join(file.read_text() for file in (tmp_path / "out").glob("*.jsonl"))
    assert sum(SPOKEN[f"mute question/{label}"] for label in VALUES["age"]) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on(tmp_path: Path, workers: int) -> None:
    crashing = {"type": "paired_test_tone", "crash": True}
    with pytest.raises(KeyboardInterrupt):
        paired.make(load(recipe_of(tmp_path, many(20), synthesizer=crashing, num_workers=1)))
    assert not list((tmp_path / "out").glob("*.jsonl"))
    there = sorted((tmp_path / "out" / "audio").glob("*.wav"))
    assert len(there) == 5
    there[0].write_bytes(there[0].read_bytes()[:100])  # and one clip was damaged since
    file = recipe_of(tmp_path, many(20), num_workers=workers)
    report = paired.make(load(file))
    assert (report.kept, report.spoken) == (4, 46) and max(SPOKEN.values()) == 2
    lines = [(tmp_path / "out" / f"{split}.jsonl").read_bytes() for split in SHARES]
    again = paired.make(load(file))
    assert (again.kept, again.spoken) == (50, 0)
    assert [(tmp_path / "out" / f"{split}.jsonl").read_bytes() for split in SHARES] == lines


def test_another_seed_or_voice_is_another_clip(tmp_path: Path) -> None:
    paired.make(load(recipe_of(tmp_path, many(10))))
    assert paired.make(load(recipe_of(tmp_path, many(10), seed=1))).kept == 0


def test_realisations_are_drawn_for_each_text(tmp_path: Path) -> None:
    categories = {"age": {"values": VALUES["age"]}, "emotion": {"values": VALUES["emotion"], "realisations": 2}}
    paired.make(load(recipe_of(tmp_path, many(), categories=categories)))
    said: dict[str, list[str]] = {}
    for line in read(tmp_path, "train").utterances:
        said.setdefault(f"{line.category} {line.text}", []).append(line.labels[str(line.category)])
    drawn = {tuple(labels) for name, labels in said.items() if name.startswith("emotion")}
    assert {len(labels) for labels in said.values()} == {2} and len(drawn) == 3


WRITER = {
    "engine": {"type": "paired_test_engine"}, "topics": {"age": ["cats", "dogs"]}, "texts": 20, "at_once": 5,
    "attempts": 2,
}  # fmt: skip


def test_an_llm_writes_texts_and_answers(tmp_path: Path) -> None:
    file = recipe_of(tmp_path, files=[], writer=WRITER, held_out_topics=["dogs"])
    report = paired.make(load(file))
    lines = [line for split in ("train", "validation", "test", "held_out") for line in read(tmp_path, split).utterances]
    assert {str(line.text) for line in lines} == {
        f"What about {topic} {number} {n}?" for topic in ("cats", "dogs") for number in (1, 2) for n in range(5)
    } - {f"What about {topic} 1 {n}?" for topic in ("cats", "dogs") for n in (1, 2, 3)}
    assert all(line.answers == {v: f"{v}, {line.text}" for v in VALUES["age"]} for line in lines)
    assert {line.topic for line in read(tmp_path, "held_out").utterances} == {"dogs"}
    counts = {why: len(names) for why, names in report.skipped.items.items()}
    assert counts == {
        "the LLM wrote the same words before": 4, "not usable, 2 times asked": 2, "not answered: no, 2 times asked": 2,
        "an answer is missing": 4, "the LLM gave two speakers the same answer": 2,
    }  # fmt: skip
    assert report.again == 4 + 2 + 2 and report.asked == Author.asked == 4 + 40 + 8
    assert paired.make(load(file)).asked == 4  # those that fail are asked again; what is known is not


@pytest.mark.parametrize(
    "bad",
    [
        text(1, category="age", txt="x"),
        text(1, text=" "),
        text(1, answers={"child": "x"}),
        text(1, answers={"child": "x", "adult": "y", "adlut": "z"}),
        text(1, answers={"child": "x", "adult": "x"}),
        text(1, answers=["x"]),
        text(1, topic=3),
        {**text(1), "category": "aeg"},
    ],
)
def test_a_file_of_texts_with_a_fault_is_refused(tmp_path: Path, bad: dict[str, Any]) -> None:
    recipe = load(recipe_of(tmp_path, [text(0), bad]))
    with refused("bad-value", "texts.jsonl:2", ManifestError) as caught:
        paired.make(recipe)
    assert len(caught.value.faults) == 1 and not (tmp_path / "out" / "train.jsonl").exists()


def test_a_prompt_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    prompt = tmp_path / "answer.txt"
    prompt.write_text("[user]\n{text:>3000000}")
    with refused("unsafe", prompt, ConfigError):
        paired.make(load(recipe_of(tmp_path, files=[], writer={**WRITER, "answers": str(prompt)})))


@pytest.mark.parametrize(
    ("code", "override", "where"),
    faulty({
        "unknown-key": [
            "held_outs=[]",
        ],
        "bad-value": [
            "out=null", "num_workers=0", "shares.train=-1", "shares={train: 0, validation: 0, test: 0}",
            "categories.age.values=[child]", "categories.age.values=[child,child]", "categories.age.realisations=1",
            "categories.age.realisations=3", "writer.longest_text=2",
        ],
        "unknown-name": [
            ("shares.dev=1.0", "shares"), ("texts.tain=3", "texts"), "synthesizer.type=espaek",
            "writer.engine.type=opnai", ("writer.topics.aeg=[x]", "writer.topics"),
            ("voices.train.age.chlid=[z]", "voices.train.age"), ("voices.train.aeg={}", "voices.train"),
            ("voices.tset={}", "voices"),
        ],
        "missing-key": [
            "files=[]", ("voices.train.age.child=[]", "voices.train.age"),
        ],
        "conflict": [
            ("voices.test.emotion.any=[x]", "voices.test"),
        ],
    }),
)  # fmt: skip
def test_a_recipe_with_a_fault_is_refused(tmp_path: Path, code: Code, override: str, where: str) -> None:
    writer = WRITER if override.startswith("writer") else None
    with refused(code, where, ConfigError):
        load(recipe_of(tmp_path, many(4), writer=writer), [override])


def test_shares_may_be_given_in_part(tmp_path: Path) -> None:
    shares = load(recipe_of(tmp_path, many(4), shares={"train": 0.5})).shares
    assert shares == {"train": 0.5, "validation": 0.1, "test": 0.1}


def test_a_held_out_topic_that_no_text_has_is_an_error(tmp_path: Path) -> None:
    with refused("unknown-name", "held_out_topics", ConfigError):
        paired.make(load(recipe_of(tmp_path, many(), held_out_topics=["saftey"])))


# What comes with the package


def test_the_child_safety_set_is_whole() -> None:
    texts = read_texts(resolve("sottovoce:data/child_safety.jsonl"), {"age": ["child", "adult"]})
    assert Counter(t.topic.partition("/")[0] for t in texts if t.topic) == {"child safety": 70}
    assert sorted(Counter(t.topic for t in texts).values()) == [10] * 7
    assert len({t.key for t in texts}) == 70
    assert len({answer for t in texts for answer in t.answers.values()}) == 140
    for t in texts:  # a child is always sent to somebody who can help
        assert any(who in t.answers["child"] for who in ("grown-up", "doctor")), t.text
        assert "grown-up" not in t.answers["adult"], t.text


def test_the_published_scale_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paired", "--config", str(CONF / "paired_data.yaml"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "train: at most 1500 texts a category, 9000 clips" in said
    assert "test: at most 200 texts a category, 1200 clips" in said and "held_out: 70 texts" in said


def test_the_demo_recipe_holds_out_what_it_says() -> None:
    recipe = load(CONF / "paired_data_demo.yaml")
    texts = [t for file in recipe.files for t in read_texts(resolve(file), recipe.values)]
    left = Skipped()
    splits = select(texts, recipe.shares, recipe.texts, recipe.held_out_topics, recipe.seed, left)
    assert not left.items and len(splits["held_out"]) == 72
    assert {t.category for t in splits["train"]} == {t.category for t in splits["test"]} == set(recipe.categories)


def test_processes_speak_too(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    voices = {
        split: {"age": {"child": [f"en-us+{voice}"], "adult": [f"en-us+{voice}"]}}
        for split, voice in (("train", "f2"), ("validation", "f3"), ("test", "f4"))
    }
    file = recipe_of(
        tmp_path, [text(n) for n in range(4)], synthesizer={"type": "espeak"}, num_workers=2,
        categories={"age": {"values": VALUES["age"]}}, voices=voices,
    )  # fmt: skip
    assert paired.make(load(file)).spoken == 8
    assert len(list((tmp_path / "out" / "audio").glob("*.wav"))) == 8  # and no half-written one
    assert len(list((tmp_path / "out" / "audio").iterdir())) == 8
