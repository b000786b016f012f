"""StyleTalk and DailyTalk: who is the user, what was said before, and where a dialogue is cut."""

import json
import random
from pathlib import Path

import pytest
from tests.conftest import write_lines
from tests.helpers.corpora import choices, dailytalk, read, style_row, styletalk, tone, write
from tests.helpers.errors import refused
from tests.helpers.families import FAMILIES, tokenizer_of

from sottovoce.data.examples import cut
from sottovoce.data.manifest import read_manifest
from sottovoce.data.utterance import Utterance
from sottovoce.errors import ManifestError
from sottovoce.llms.chat_template import ChatFormat, ChatTurn


def turns(utterance: Utterance) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in utterance.context]


def test_styletalk_and_its_reversal(source: Path, out: Path) -> None:
    styletalk(source, [style_row("music_1", 0), style_row("music_1", 1)])
    report = write("styletalk", source, out)
    assert report.problems == {}
    assert {name: split.lines for name, split in report.splits.items()} == {
        "train": 36, "validation": 4, "test": 2, "test-reversed": 2
    }  # fmt: skip
    plain, reverse = read(out, "test")["music_1-c_0"], read(out, "test-reversed")["music_1-c_0-reversed"]
    assert (plain.text, plain.caption) == ("Good for you.", "A friendly voice with slow tempo and high energy.")
    assert turns(plain) == [("assistant", "Hi there!"), ("user", "Hello: you?"), ("assistant", "Fine.")]
    assert plain.audio.name == "c_0.wav" and plain.response is None
    assert plain.labels == {"tempo": "slow", "energy": "high"}
    # The other speaker is the user now, whose recorded reply is heard; what was heard before is written.
    assert (reverse.text, reverse.caption) == ("And you?", "A cheerful voice with normal tempo and low energy.")
    said = ("Hi there!", "Hello: you?", "Fine.", "Good for you.")
    assert turns(reverse) == list(zip(("user", "assistant") * 2, said, strict=True))
    assert reverse.audio.name == "r_0.wav" and reverse.response is None


def test_a_dialogue_of_styletalk_is_on_one_side_and_the_seed_says_on_which(source: Path, out: Path) -> None:
    styletalk(source, [style_row("music_1", 0)])
    seen = set()
    for seed in (0, 0, 1):
        write("styletalk", source, out, seed=seed)
        late = {name.split("-")[0] for name in read(out, "validation")}
        assert len(late) == 2 and not late & {name.split("-")[0] for name in read(out, "train")}
        seen.add(frozenset(late))
    assert len(seen) == 2


def test_styletalk_takes_either_speaker_for_the_user_and_names_what_it_cannot_read(source: Path, out: Path) -> None:
    other = style_row("food_2", 0, context="B : The new place is open. A : No way! B : We must go.", who="A")
    odd = style_row("food_3", 0, context="A : Hi! B : Hello. A : Well.", who="A")  # A twice in a row
    styletalk(source, [other, odd, style_row("food_4", 0, context="Hi!"), style_row("food_5", 0)])
    (source / "audio/food_5/r_0.wav").unlink()
    (source / "audio/food_5/c_0.wav").write_bytes(b"RIFF")
    report = write("styletalk", source, out, emotions=True, responses=True)
    assert report.problems["faulty row"] == [f"eval.csv:{n}: the turns cannot be told apart" for n in (3, 4)]
    assert report.problems["missing"] == ["food_5/r_0.wav (eval.csv:5)"]
    assert [name.split(":")[0] for name in report.problems["damaged"]] == ["audio/food_5/c_0.wav"]
    assert [name for name in report.problems["extra"] if "food_5" in name] == []
    known = {**choices(), "emotion": ["friendly", "sad", "cheerful"]}
    (line,) = read_manifest(out / "test.jsonl", choices=known, allow=[Path("/")]).utterances
    assert [turn.role for turn in line.context] == ["assistant", "user", "assistant"]
    assert line.context[0].text == "The new place is open." and line.labels["emotion"] == "friendly"
    assert line.response == "And you?"


def test_dailytalk_ends_at_every_turn_of_either_speaker(source: Path, out: Path) -> None:
    dailytalk(source, {"0": [1, 0, 1, 0], "23": [0, 1]})
    report = write("dailytalk", source, out)
    assert report.problems == {} and report.splits["train"].lines == 4 and report.splits["validation"].lines == 2
    lines = read(out, "train")
    last = lines["3_0_d0"]
    assert turns(last) == [("assistant", "turn 0"), ("user", "turn 1"), ("assistant", "turn 2")]
    assert (last.text, last.labels, last.speaker) == ("turn 3", {"gender": "male", "emotion": "happy"}, "dailytalk-0")
    assert turns(lines["2_1_d0"]) == [("user", "turn 0"), ("assistant", "turn 1")]
    assert lines["0_1_d0"].context == () and all(turn.audio is None for turn in last.context)
    assert list(read(out, "validation")) == ["0_0_d23", "1_1_d23"]  # dialogue 23 is the authors' validation


def test_dailytalk_may_be_heard_throughout_and_is_then_cut_in_training(source: Path, out: Path) -> None:
    dailytalk(source, {"0": [1, 0, 1, 0, 1]})
    write("dailytalk", source, out, context="spoken")
    lines = read(out, "train")
    assert sorted(lines) == ["3_0_d0", "4_1_d0"]
    heard = [turn.audio.name if turn.audio else None for turn in lines["3_0_d0"].context]
    assert heard == [None, "1_0_d0.wav", None]
    assert lines["3_0_d0"].context[1].caption == "A happy male voice."
    rng = random.Random(0)
    cuts = {(u.audio.name, len(c)) for u, c in (cut(lines["3_0_d0"], rng, anywhere=True) for _ in range(80))}
    # The end: either turn of the user. The beginning: the assistant's opening, a turn of the user, or nothing at all.
    assert cuts == {("1_0_d0.wav", 0), ("1_0_d0.wav", 1), ("3_0_d0.wav", 0), ("3_0_d0.wav", 2), ("3_0_d0.wav", 3)}


def test_dailytalk_joins_turns_in_a_row_and_leaves_out_what_it_cannot_read(source: Path, out: Path) -> None:
    page = dailytalk(source, {"0": [0, 0, 1], "1": [0, 1], "2": [0, 1]})
    page["1"]["1"]["emotion"] = "boredom"
    (source / "dailytalk/metadata.json").write_text(json.dumps(page))
    (source / "dailytalk/data/2/0_0_d2.wav").unlink()
    report = write("dailytalk", source, out)
    lines = read(out, "train")
    assert turns(lines["2_1_d0"]) == [("assistant", "turn 0 turn 1")] and sum(report.notes.values()) == 1
    assert report.problems["faulty row"] == ["metadata.json: dialogue 1, turn 1: 'boredom'"]
    assert report.problems["missing"] == ["dailytalk/data/2/0_0_d2.wav"] and "1_1_d2" in lines
    (source / "dailytalk/metadata.json").write_text("[]")
    with refused("damaged", "metadata.json", ManifestError):
        write("dailytalk", source, out)


def test_an_opening_of_the_assistant_is_read_and_still_must_alternate(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav")
    assistant, user = {"role": "assistant", "text": "Hi!"}, {"role": "user", "text": "Hello."}
    file = tmp_path / "m.jsonl"
    for context in ([assistant], [assistant, user, assistant]):
        write_lines(file, [{"id": "a", "audio": "a.wav", "context": context}])
        assert len(read_manifest(file, choices={}).utterances[0].context) == len(context)
    for context in ([assistant, user], [assistant, assistant]):
        write_lines(file, [{"id": "a", "audio": "a.wav", "context": context}])
        with refused("bad-value", "m.jsonl:1", ManifestError):
            read_manifest(file, choices={})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_told_a_dialogue_that_the_assistant_opens(family: str) -> None:
    chat = ChatFormat(tokenizer_of(family), [1])
    turns = [ChatTurn("system", ("Be kind.",)), ChatTurn("assistant", ("Welcome!",)), ChatTurn("user", ("Hello.",))]
    for dialogue in (turns, turns[1:]):
        (ids,) = chat.prompt(dialogue)
        assert isinstance(ids, list)
        written = chat.tokenizer.decode(ids)
        assert written.index("Welcome!") < written.index("Hello.")
        assert (len(dialogue) == 3) == ("Be kind." in written)
