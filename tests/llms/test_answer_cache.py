"""Answers that are kept: the same question is asked once, failures again, and a killed run goes on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.errors import refused
from tests.llms.test_engines import chat

from sottovoce.llms import answer_cache
from sottovoce.llms.answer_cache import AnswerCache, CachedEngine
from sottovoce.llms.engines import Chat, Engine, Failure


class Parrot(Engine):
    """Says what it was told; `fails` lists texts that it has no answer to, `stops` the one that ends the process."""

    def __init__(self, fails: Sequence[str] = (), stops: str | None = None) -> None:
        self.name, self.fails, self.stops = "parrot", fails, stops
        self.calls: list[list[str]] = []

    def answer(self, chats: Sequence[Chat], *, seed: int = 0, **_: Any) -> list[str | Failure]:
        texts = [c[-1]["content"] for c in chats]
        if self.stops in texts:
            raise KeyboardInterrupt
        self.calls.append(texts)
        return [Failure("no") if text in self.fails else f"{text} {seed} \u2028 ü" for text in texts]


def test_the_same_question_is_asked_once_ever(tmp_path: Path) -> None:
    parrot, chats = Parrot(), [chat("a"), chat("b"), chat("a")]
    kept = CachedEngine(parrot, tmp_path / "new" / "kept")
    said = kept.answer(chats, max_new_tokens=5)
    assert said == ["a 0 \u2028 ü", "b 0 \u2028 ü", "a 0 \u2028 ü"] and parrot.calls == [["a", "b"]] and kept.asked == 2
    again = CachedEngine(Parrot(stops="a"), tmp_path / "new" / "kept")
    assert again.answer(chats, max_new_tokens=5) == said and again.asked == 0


def test_what_changes_an_answer_is_in_its_key(tmp_path: Path) -> None:
    parrot = Parrot()
    kept = CachedEngine(parrot, tmp_path / "kept")
    limits: list[dict[str, Any]] = [{}, {"max_new_tokens": 6}, {"temperature": 1.0}, {"seed": 1}]
    for each in limits * 2:
        kept.answer([chat("a")], **{"max_new_tokens": 5, **each})
    kept.answer([[{"role": "system", "content": "s"}, *chat("a")]], max_new_tokens=5)
    parrot.name = "another"
    CachedEngine(parrot, tmp_path / "kept").answer([chat("a")], max_new_tokens=5)
    assert len(parrot.calls) == 6


def test_failures_are_asked_again(tmp_path: Path) -> None:
    kept = CachedEngine(Parrot(fails=["b"]), tmp_path / "kept")
    assert kept.answer([chat("a"), chat("b")], max_new_tokens=5) == ["a 0 \u2028 ü", Failure("no")]
    parrot = Parrot()
    again = CachedEngine(parrot, tmp_path / "kept").answer([chat("a"), chat("b")], max_new_tokens=5)
    assert again == ["a 0 \u2028 ü", "b 0 \u2028 ü"] and parrot.calls == [["b"]]


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_cache, "PART", 2)
    file, chats = tmp_path / "kept", [chat(text) for text in "abcdef"]
    with pytest.raises(KeyboardInterrupt):
        CachedEngine(Parrot(stops="e"), file).answer(chats, max_new_tokens=5)
    whole = file.read_bytes()
    file.write_bytes(whole + '{"key": "ü'.encode()[:-1])  # killed in the middle of a line, and of a letter
    parrot = Parrot()
    said = CachedEngine(parrot, file).answer(chats, max_new_tokens=5)
    assert parrot.calls == [["e", "f"]] and said == [f"{text} 0 \u2028 ü" for text in "abcdef"]
    assert file.read_bytes().startswith(whole)
    assert CachedEngine(Parrot(stops="a"), file).answer(chats, max_new_tokens=5) == said


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "kept"
    CachedEngine(Parrot(), file).answer([chat("a")], max_new_tokens=5)
    whole = file.read_bytes()
    old = b'{"key": "x", "answer": "y", "cut": false}\n'  # of a version without checksums
    for line in (b"{}\n", b"[\n", old, whole.replace(b'"a 0', b'"b 0'), whole.replace(b"false", b"true")):
        file.write_bytes(whole + line)
        with refused("damaged", f"{file}:2"):
            AnswerCache(file)


def test_a_dead_engine_is_not_asked_for_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_cache, "PART", 2)
    parrot = Parrot(fails=["c", "d"])
    said = CachedEngine(parrot, tmp_path / "kept").answer([chat(text) for text in "abcdefgh"], max_new_tokens=5)
    assert parrot.calls == [["a", "b"], ["c", "d"]]
    assert said[2:] == [Failure("no")] * 2 + [Failure("not sent: no chat of the part before was answered")] * 4
