"""Made speech of texts: each said by voices that are drawn, once, with the labels of the voices."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.helpers.errors import refused

from sottovoce.cli.main import main
from sottovoce.data.manifest import read_manifest
from sottovoce.data.tts import SYNTHESIZERS
from sottovoce.data.tts.base import NotSpoken, Synthesizer

SAID: list[str] = []
VOICES = ["--voice", "female=ann,eve", "--voice", "male=bob"]
TEXTS = ["We left the old umbrella.", "", "What is the time?", "we left the old umbrella", "He bought a book."]


class Buzz(Synthesizer):
    """A voice is a pitch."""

    name, sample_rate, in_threads = "buzz", 16_000, True

    def speak(self, text: str, *, attribute: str, label: str, voice: str, seed: int) -> NDArray[np.float32]:
        if text.startswith("What"):
            raise NotSpoken("it does not ask")
        SAID.append(text)
        pitch = {"ann": 200, "eve": 240, "bob": 100}[voice]
        return (0.2 * np.sin(2 * np.pi * pitch * np.arange(8000) / 16_000)).astype(np.float32)

    def faults(self, labels: Any, voices: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
        names = [name for by in voices.values() for names in by.values() for name in names]
        return [f"no voice {name}" for name in names if name not in ("ann", "eve", "bob")]


@pytest.fixture(autouse=True)
def buzz(monkeypatch: pytest.MonkeyPatch) -> None:
    SAID.clear()
    monkeypatch.setitem(SYNTHESIZERS._classes, "buzz", Buzz)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n", "utf-8")
    return tmp_path / "texts.txt"


def run(texts: Path, *more: str) -> list[dict[str, Any]]:
    out = texts.parent / "made"
    assert main(["speak", str(texts), "--out", str(out), "--synthesizer", "buzz", *more]) == 0
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text("utf-8").splitlines()]


def test_every_text_is_said_once_and_what_cannot_be_is_named(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(texts, *VOICES)
    assert [line["text"] for line in lines] == [
        TEXTS[0],
        TEXTS[4],
    ]  # a repetition is none, and the question was not said
    assert "not spoken: it does not ask" in (told := capsys.readouterr().out) and "texts.txt:3" in told
    for line in lines:
        assert line["labels"] == {"gender": "male" if line["speaker"] == "bob" else "female"}
        assert line["seconds"] == 0.5
    utterances = read_manifest(texts.parent / "made/manifest.jsonl", choices={"gender": ["female", "male"]}).utterances
    assert [utterance.clip.is_file() for utterance in utterances] == [True, True]


def test_several_voices_say_a_text_and_another_attribute_is_labelled(texts: Path) -> None:
    lines = run(texts, "--voice", "child=eve", "--voice", "adult=ann,bob", "--attribute", "age", "--each", "3")
    assert {(line["text"], line["speaker"]) for line in lines} == {
        (text, voice) for text in (TEXTS[0], TEXTS[4]) for voice in ("ann", "eve", "bob")
    }
    assert {line["labels"]["age"] for line in lines if line["speaker"] == "eve"} == {"child"}


def test_what_is_there_is_not_said_again_and_more_texts_change_nothing(texts: Path) -> None:
    first = run(texts, *VOICES)
    texts.write_text("One more.\n" + texts.read_text("utf-8"), "utf-8")
    SAID.clear()
    second = run(texts, *VOICES)
    assert SAID == ["One more."] and second[1:] == first
    assert run(texts, *VOICES, "--seed", "1") != second


@pytest.mark.parametrize(
    ("more", "code", "where"),
    [
        (["--voice", "female"], "bad-value", "voice"),
        (["--voice", "female=ann,"], "bad-value", "voice"),
        (["--voice", "female=zoe"], "bad-value", "voice"),
        (["--voice", "female=ann", "--each", "2"], "conflict", "each"),
        (["--voice", "female=ann", "--each", "0"], "conflict", "each"),
    ],
)
def test_refusals(texts: Path, more: list[str], code: Any, where: str) -> None:
    from sottovoce.generation.spoken_texts import read_voices, write_speech

    each = int(more[3]) if len(more) > 2 else 1
    with refused(code, where):
        write_speech(texts, texts.parent / "made", {"type": "buzz"}, read_voices(more[1:2]), each=each)


def test_texts_of_which_none_can_be_said_are_refused(texts: Path) -> None:
    from sottovoce.generation.spoken_texts import write_speech

    texts.write_text("What?\n", "utf-8")
    with refused("empty", "texts.txt"):
        write_speech(texts, texts.parent / "made", {"type": "buzz"}, {"female": ["ann"]})
    with refused("not-found", "none.txt"):
        write_speech(texts.parent / "none.txt", texts.parent / "made", {"type": "buzz"}, {"female": ["ann"]})
