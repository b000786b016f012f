"""Targets by an LLM: each usable line gets the answer to its own prompt; what has none is left out and named."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from tests.conftest import write_lines
from tests.helpers.errors import refused
from tests.helpers.families import save_family

from sottovoce.cli.main import main
from sottovoce.data.manifest import read_manifest
from sottovoce.errors import Code, ConfigError, ManifestError
from sottovoce.generation.chat_prompt import ChatPrompt
from sottovoce.generation.targets import FIELDS, KINDS, Kind, targets, write_targets
from sottovoce.llms import answer_cache
from sottovoce.llms.answer_cache import AnswerCache
from sottovoce.llms.engines import Chat, Cut, Engine, Failure
from sottovoce.paths import resolve
from sottovoce.templates import read_wordings

PROMPTS = resolve("sottovoce:data/prompts/speech_emotion_llama")
LINES: list[dict[str, Any]] = [
    {"id": "a", "audio": "a.wav", "text": "it rains", "labels": {"emotion": "sad"}, "speaker": "s1", "note": [1]},
    {"id": "b", "audio": "b.wav", "text": "it rains", "labels": {"emotion": "happy"}},
    {"id": "c", "audio": "c.wav", "labels": {"emotion": "sad"}},
    {"id": "d", "audio": "d.wav", "text": "no label"},
    {"id": "e", "audio": "e.wav", "text": "it rains", "labels": {"emotion": "sad"}, "response": "An old one."},
    {"id": "f", "audio": "f.wav", "text": " ", "labels": None},
]


class Scripted(Engine):
    """Answers with its own last turn, unless `answers` says otherwise for a part of it."""

    def __init__(self, **answers: str | Failure | type[BaseException]) -> None:
        self.name, self.answers = "scripted", answers
        self.asked: list[Chat] = []

    def answer(self, chats: Sequence[Chat], **_: Any) -> list[str | Failure]:
        return [self._one(chat) for chat in chats]

    def _one(self, chat: Chat) -> str | Failure:
        text = chat[-1]["content"]
        special = next((answer for part, answer in self.answers.items() if part in text), None)
        if isinstance(special, type):
            raise special
        self.asked.append(chat)
        return special or f"Answer to: {text}"


def write(folder: Path, lines: Sequence[dict[str, Any]] = LINES) -> Path:
    return write_lines(folder / "train.jsonl", lines)


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]]


def made(folder: Path, kind: str = "response", engine: Engine | None = None, **more: Any) -> tuple[Any, Any]:
    """The lines that were written, and the report."""
    source = write(folder, more.pop("lines", LINES))
    out = folder / f"{kind}.jsonl"
    report = write_targets(source, out, cast(Kind, kind), engine or Scripted(), **more)
    return lines_of(out), report


def test_each_line_keeps_its_keys_and_gets_the_answer_to_its_own_prompt(tmp_path: Path) -> None:
    engine = Scripted()
    lines, report = made(tmp_path, engine=engine)
    assert [line["response"] for line in lines] == [f"Answer to: <{e}> it rains" for e in ("sad", "happy", "sad")]
    assert [{**line, "response": 0} for line in lines] == [{**LINES[i], "response": 0} for i in (0, 1, 4)]
    (system, user), *_ = engine.asked
    assert system["role"] == "system" and system["content"].startswith("Respond as if you are a natural conversation")
    assert user == {"role": "user", "content": "<sad> it rains"}
    assert (report.written, report.replaced, report.asked) == (3, 1, 2)  # the same prompt is asked once


def own_prompt(kind: str) -> ChatPrompt:
    return ChatPrompt(PROMPTS / f"targets_{kind}.txt", FIELDS, "transcript")


def test_the_papers_prompts_read_alike_wherever_they_stand() -> None:
    (companion,), (caption,) = (read_wordings(PROMPTS / f"{name}.txt", {}) for name in ("companion", "caption"))
    values = {"emotion": "sad", "transcript": "it rains"}
    texts = {kind: [turn["content"] for turn in own_prompt(kind).chat(values)] for kind in KINDS}
    about_emotion = " If the user input indicates an emotion, respond as if you are being spoken to in that emotion:"
    assert companion.endswith(about_emotion)
    assert texts["response"] == [companion, "<sad> it rains"]
    assert texts["plain"] == [companion.removesuffix(about_emotion), "it rains"]
    assert texts["caption"] == [f"{caption} <sad> it rains"]


def test_what_cannot_be_asked_is_counted_and_named(tmp_path: Path) -> None:
    _, report = made(tmp_path)
    source = tmp_path / "train.jsonl"
    assert report.skipped.items == {
        "no transcript (`text`)": [f"{source}:3: c", f"{source}:6: f"],
        "no emotion label (`labels.emotion`)": [f"{source}:4: d"],
    }
    assert str(report).splitlines() == [
        f"{tmp_path / 'response.jsonl'}: 3 targets, 1 of them in place of others; 2 prompts asked",
        "  2 left out: no transcript (`text`)",
        f"    {source}:3: c",
        f"    {source}:6: f",
        "  1 left out: no emotion label (`labels.emotion`)",
        f"    {source}:4: d",
    ]


def test_plain_knows_no_emotion(tmp_path: Path) -> None:
    engine = Scripted()
    lines, report = made(tmp_path, "plain", engine)
    said = [("a", "it rains"), ("b", "it rains"), ("d", "no label"), ("e", "it rains")]
    ready = [(line["id"], line["responses"]) for line in lines]
    assert ready == [(name, {"plain": f"Answer to: {text}"}) for name, text in said]
    assert [line.get("response") for line in lines] == [None, None, None, "An old one."]  # of another kind
    assert report.asked == 2
    assert not any("emotion" in turn["content"] or "sad" in turn["content"] for chat in engine.asked for turn in chat)


def test_a_prompt_of_ones_own_stands_in_place_of_the_papers(tmp_path: Path) -> None:
    engine = Scripted()
    lines, _ = made(tmp_path, engine=engine, prompt=PROMPTS / "spoken_feeling.txt")
    assert [line["response"] for line in lines] == [f"Answer to: I am {e}. it rains" for e in ("sad", "happy", "sad")]
    lines, _ = made(tmp_path, "plain", engine, prompt=PROMPTS / "spoken_plain.txt")
    assert [line["id"] for line in lines] == ["a", "b", "d", "e"]  # no feeling is needed
    assert not any("sad" in turn["content"] for turn in engine.asked[-1])


def test_right_answers_know_no_prompt(tmp_path: Path) -> None:
    words = ["--kind", "answers", "--prompt", "p.txt", "--out", str(tmp_path / "out.jsonl")]
    assert main(["targets", str(write(tmp_path)), *words]) == 2
    assert not (tmp_path / "out.jsonl").exists()


def test_captions_have_a_key_of_their_own(tmp_path: Path) -> None:
    engine = Scripted()
    more = {**LINES[0], "responses": {"other": "stays", "caption": "goes"}}
    lines, report = made(tmp_path, "caption", engine, lines=[more, LINES[1]])
    assert all(len(chat) == 1 and chat[0]["content"].startswith("You will hear a speech") for chat in engine.asked)
    answered = f"Answer to: {engine.asked[0][0]['content']}"
    assert lines[0] == {**more, "responses": {"other": "stays", "caption": answered}}
    assert lines[1]["responses"]["caption"].endswith(": <happy> it rains") and "response" not in lines[1]
    assert report.replaced == 1


def test_gap_5_kinds_of_targets_stand_in_one_manifest(manifests: dict[str, Path]) -> None:
    """Each command adds its own to what the one before has left."""
    source = manifests["test"]
    for kind in KINDS:
        out = source.with_name(f"{source.stem}-{kind}.jsonl")
        write_targets(source, out, kind, Scripted())
        source = out
    choices = {"emotion": ["neutral", "happy", "sad", "angry"], "gender": ["male", "female"]}
    for spoken in read_manifest(source, choices=choices).utterances:
        emotion, said = spoken.labels["emotion"], spoken.text
        assert spoken.response == f"Answer to: <{emotion}> {said}"
        assert spoken.responses["plain"] == f"Answer to: {said}" and emotion in spoken.responses["caption"]


def test_the_dialogue_before_is_part_of_a_reply_and_not_of_a_caption(tmp_path: Path) -> None:
    context = [{"role": "user", "text": "hello", "audio": "z.wav"}, {"role": "assistant", "text": "hi"}]
    for kind, roles in (("response", ["system", "user", "assistant", "user"]), ("caption", ["user"])):
        engine = Scripted()
        made(tmp_path, kind, engine, lines=[{**LINES[0], "context": context}])
        assert [turn["role"] for turn in engine.asked[0]] == roles


MACHINE = "refused, or spoken as a machine"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("As an AI language model, I have no weather.", MACHINE),
        ("Well, I'm just an AI, but that is sad.", MACHINE),
        ("I’m an artificial intelligence.", MACHINE),
        ("I don't have personal feelings, but I see.", MACHINE),
        ("I can't assist with that.", MACHINE),
        ("I'm not able to hear your voice.", MACHINE),
        ("I cannot process audio.", MACHINE),
        ("<happy> What a day!", MACHINE),
        (Failure("HTTP 500"), "not answered: HTTP 500"),
        (Cut("And then I"), "cut at max_new_tokens"),
        ("I'm sorry to hear that, what a day.", None),
        ("I can't help but smile at that!", None),
        ("Have you seen the film about an AI? I can't wait!", None),
        ("I don't have an umbrella either.", None),
        ("I am a bit lost for words.", None),
        ("As an aim in life, that is fine. You feel <really> well?", None),
    ],
)
def test_answers_that_are_no_targets_are_dropped(tmp_path: Path, answer: str | Failure, reason: str | None) -> None:
    lines, report = made(tmp_path, engine=Scripted(**{"<happy>": answer}))
    assert [line["response"] for line in lines if line["id"] == "b"] == ([] if reason else [answer]) and lines[0]
    assert report.skipped.items.get(reason) == ([f"{tmp_path / 'train.jsonl'}:2: b"] if reason else None)


def test_the_answer_behind_a_thought_is_kept(tmp_path: Path) -> None:
    """As of Qwen3 behind a server, which thinks unless it is told not to."""
    answers = {"<happy>": "<think>\nShe is happy.\n</think>\n\nOh nice!", "<sad>": Cut("<think>\nHe is")}
    lines, report = made(tmp_path, engine=Scripted(**answers))
    assert [line["response"] for line in lines] == ["Oh nice!"]
    ((reason, names),) = [item for item in report.skipped.items.items() if "thoughts" in item[0]]
    assert reason.startswith("not answered") and len(names) == 2


def test_a_killed_run_goes_on_and_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_cache, "PART", 2)
    many = [{**LINES[0], "id": str(i), "text": f"word {i} ü"} for i in range(7)]
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, engine=Scripted(**{"word 4": KeyboardInterrupt}), lines=many)
    assert not (tmp_path / "response.jsonl").exists()
    engine = Scripted()
    lines, _ = made(tmp_path, engine=engine, lines=many)
    assert [chat[-1]["content"] for chat in engine.asked] == [f"<sad> word {i} ü" for i in (4, 5, 6)]
    assert [line["response"] for line in lines] == [f"Answer to: <sad> word {i} ü" for i in range(7)]
    again, report = made(tmp_path, engine=Scripted(**{"word": KeyboardInterrupt}), lines=many)
    assert again == lines and report.asked == 0


def test_without_a_single_target_nothing_is_written(tmp_path: Path) -> None:
    with refused("empty", "train.jsonl", ManifestError) as caught:
        made(tmp_path, engine=Scripted(rains=Failure("gone")))
    assert "3 left out: not answered: gone" in str(caught.value)
    assert not (tmp_path / "response.jsonl").exists()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{", "damaged"),
        ('{"id": "x", "text": 3}', "bad-value"),
        ('{"id": "x", "labels": {"emotion": 3}}', "bad-value"),
        ('{"id": "x", "responses": "y"}', "bad-value"),
        ('{"id": "x", "context": [{"role": "user"}]}', "bad-value"),
    ],
)
def test_a_broken_line_is_named_before_anything_is_asked(tmp_path: Path, line: str, code: Code) -> None:
    source, engine = write(tmp_path, LINES[:1]), Scripted()
    source.write_text(source.read_text() + line + "\n")
    with refused(code, "train.jsonl:2", ManifestError):
        write_targets(source, tmp_path / "out.jsonl", "response", engine)
    assert not engine.asked


def test_what_is_no_copy_beside_its_source_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path)
    with refused("conflict", "sub/out.jsonl", ManifestError):  # audio paths are relative
        write_targets(source, tmp_path / "sub" / "out.jsonl", "response", Scripted())
    with refused("conflict", source, ManifestError):
        write_targets(source, source, "response", Scripted())
    with refused("unknown-name", "kind", ConfigError):
        write_targets(source, tmp_path / "out.jsonl", cast(Kind, "respones"), Scripted())


def test_the_command_writes_a_manifest_that_trains(manifests: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    source = manifests["test"]
    out, llm = source.with_name("with_responses.jsonl"), save_family("llama3", tmp_path)
    overrides = [f"checkpoint={llm}", "dtype=float32", "batch_size=4", "device=cpu"]
    arguments = argparse.Namespace(
        manifest=str(source), out=str(out), kind="response", prompt=None, engine="local", max_new_tokens=4,
        overrides=overrides,
    )  # fmt: skip
    with refused("empty", source, ManifestError) as caught:  # a random LLM never comes to an end
        targets(arguments)
    assert "6 left out: cut at max_new_tokens" in str(caught.value)
    cache = AnswerCache(out.with_name(f"{out.name}.answers"))
    cache.add({key: str(answer) for key, answer in cache.answers.items()})  # as if it had
    targets(arguments)
    assert f"{out}: 6 targets; 0 prompts asked" in capsys.readouterr().out
    choices = {"emotion": ["neutral", "happy", "sad", "angry"], "gender": ["male", "female"]}
    assert all(u.response for u in read_manifest(out, choices=choices).utterances)
    with pytest.raises(ConfigError, match="write key=value"):
        targets(argparse.Namespace(**{**vars(arguments), "overrides": ["cpu"]}))


def test_knobs_may_stand_behind_options(manifests: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    source, llm = str(manifests["test"]), save_family("llama3", tmp_path)
    knobs = [f"checkpoint={llm}", "dtype=float32", "batch_size=4", "device=cpu"]
    options = ["--out", str(manifests["test"].with_name("out.jsonl")), "--max-new-tokens", "4"]
    for words in ([source, *options, *knobs], [*options, source, *knobs], [source, *knobs, *options]):
        assert main(["targets", *words]) == 2
        assert "6 left out: cut at max_new_tokens" in capsys.readouterr().err  # it has been asked, by all the knobs
    for stray in ("cpu", "--devise=cpu"):
        with pytest.raises(SystemExit):
            main(["targets", source, *options, *knobs, stray])
        assert f"unrecognized arguments: {stray}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "code", "where"),
    [
        ("Hello\n[user]\n{transcript}", "bad-value", "prompt.txt:1"),
        ("[system]\nBe kind: {transcript}.\n", "missing-key", "prompt.txt"),
        ("[user]\n{transcripts}", "unknown-name", "prompt.txt"),
        ("[system]\n{emotions}\n[user]\n{transcript}", "unknown-name", "prompt.txt"),
        ("[user]\n{transcript} }", "bad-value", "prompt.txt"),
        ("[user]\n{transcript:>3000000}", "unsafe", "prompt.txt"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused(tmp_path: Path, text: str, code: Code, where: str) -> None:
    (tmp_path / "prompt.txt").write_text(text)
    with refused(code, where, ConfigError):
        ChatPrompt(tmp_path / "prompt.txt", FIELDS, "transcript")
