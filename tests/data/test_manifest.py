"""A manifest is read as it was meant, or refused with file, line and id of everything that is wrong with it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sottovoce.data.manifest import LONGEST_LINE, Manifest, Turn, Utterance, read_manifest
from sottovoce.errors import ManifestError

CHOICES = {"gender": ("male", "female"), "emotion": ("neutral", "happy", "sad")}
ANSWERS = {"happy": "How nice!", "sad": "I am sorry."}
DOCS = Path(__file__).parents[2] / "docs" / "manifest.md"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of a second (ok.wav), and some that cannot be used."""
    clips = tmp_path_factory.mktemp("clips")
    soundfile.write(clips / "ok.wav", 0.1 * np.sin(np.arange(16000)), 16000)
    soundfile.write(clips / "short.wav", 0.1 * np.sin(np.arange(800)), 16000)
    soundfile.write(clips / "hollow.wav", np.zeros(0), 16000)
    soundfile.write(clips / "long.flac", np.zeros(8000 * 3601), 8000)
    (clips / "half.wav").write_bytes((clips / "ok.wav").read_bytes()[:16000])
    (clips / "empty.wav").touch()
    (clips / "text.wav").write_text("no audio")
    return clips


@pytest.fixture
def folder(tmp_path: Path, clips: Path) -> Path:
    return shutil.copytree(clips, tmp_path, dirs_exist_ok=True)


def write(folder: Path, *lines: object) -> Path:
    path = folder / "m.jsonl"
    texts = [line if isinstance(line, str | bytes) else json.dumps(line) for line in lines]
    path.write_bytes(b"".join((text.encode() if isinstance(text, str) else text) + b"\n" for text in texts))
    return path


def line(name: str = "a", **keys: object) -> dict[str, object]:
    return {"id": name, "audio": "ok.wav", **keys}


def paired(**keys: object) -> dict[str, object]:
    return line(**{"labels": {"emotion": "sad"}, "category": "emotion", "answers": ANSWERS, **keys})  # type: ignore[arg-type]


def read(path: Path, **knobs: Any) -> Manifest:
    return read_manifest(path, choices=CHOICES, **knobs)


def faults(path: Path, **knobs: Any) -> str:
    with pytest.raises(ManifestError) as raised:
        read(path, **knobs)
    return str(raised.value)


def test_a_full_line_is_read_as_it_stands(folder: Path) -> None:
    context = [
        {"role": "user", "text": "hello", "audio": "ok.wav", "caption": "A sad voice."},
        {"role": "assistant", "text": "Hi."},
    ]
    keys: dict[str, Any] = {
        "text": "good day",
        "speaker": "s1",
        "seconds": 1.05,
        "caption": "A voice.",
        "response": "Good day!",
    }
    labels = {"gender": "male", "emotion": "sad"}
    (utterance,) = read(write(folder, line(**keys, labels=labels, context=context))).utterances
    assert utterance == Utterance(
        id="a",
        audio=folder / "ok.wav",
        text="good day",
        speaker="s1",
        seconds=1.05,
        labels=labels,
        caption="A voice.",
        context=(Turn("user", "hello", folder / "ok.wav", "A sad voice."), Turn("assistant", "Hi.")),
        response="Good day!",
    )


def test_a_paired_line_knows_what_every_speaker_is_to_be_told(folder: Path) -> None:
    lines = [paired(topic="pets/cat"), paired(id="b", response="I am sorry."), paired(id="c", answers=None)]
    without, given, alone = read(write(folder, *lines)).utterances
    assert (without.category, without.topic, without.answers) == ("emotion", "pets/cat", ANSWERS)
    assert without.response == given.response == "I am sorry."  # the answer to this speaker
    assert (alone.category, alone.answers, alone.response, alone.topic) == ("emotion", {}, None, None)


def test_the_least_line_has_its_seconds_from_the_header(folder: Path) -> None:
    (utterance,) = read(write(folder, line())).utterances
    assert utterance == Utterance("a", folder / "ok.wav", None, None, 1.0, {}, None, (), None)


def test_null_counts_as_absent(folder: Path) -> None:
    nulls: dict[str, Any] = dict.fromkeys(("text", "speaker", "seconds", "labels", "caption", "context", "response"))
    (utterance,) = read(write(folder, line(**nulls))).utterances
    assert utterance == read(write(folder, line())).utterances[0]


def test_order_is_kept_and_blank_lines_are_passed_over_but_counted(folder: Path) -> None:
    path = write(folder, line("a"), "", "  ", line("b"), line("a"))
    assert f"{path}:5: a: duplicate id: line 1 has it first" in faults(path)
    assert [u.id for u in read(write(folder, line("b"), "", line("a"))).utterances] == ["b", "a"]


PROBLEMS: list[tuple[object, str]] = [
    ('{"id": "a", ', "broken line, not JSON in UTF-8: "),
    ("[" * 100_000, "broken line, not JSON in UTF-8: "),
    (b'{"id": "\xff\xfe"}', "broken line, not JSON in UTF-8: "),
    ('{"id": "a", "text": "x", "text": "y"}', "broken line, not JSON in UTF-8: the key 'text' stands there twice"),
    ("[1]", "broken line: a JSON object is needed, not a list"),
    ("3", "broken line: a JSON object is needed, not a number"),
    (line(adio="ok.wav"), "a: unknown key 'adio'. Did you mean 'audio'?"),
    ({"audio": "ok.wav"}, "missing key 'id'"),
    ({"id": None, "audio": "ok.wav"}, "missing key 'id'"),
    ({"id": 7, "audio": "ok.wav"}, "id: a string is needed, not a number"),
    (line(""), "id: the text is empty"),
    ({"id": "a"}, "a: missing key 'audio'"),
    (line(audio=""), "a: audio: the text is empty"),
    (line(text=[]), "a: text: a string is needed, not a list"),
    (line(text=" "), "a: text: the text is empty; leave the key out where nothing is known"),
    (line(speaker=4), "a: speaker: a string is needed, not a number"),
    (line(caption=True), "a: caption: a string is needed, not a boolean"),
    (line(response={}), "a: response: a string is needed, not an object"),
    (line(audio="none.wav"), "a: audio: none.wav: there is no such file"),
    (line(audio="nul\0.wav"), "a: audio: "),
    ('{"id": "a", "audio": "ok.wav", "text": "\\ud83d"}', "broken line, not JSON in UTF-8: "),
    (line(audio="../m.wav"), "a: audio: ../m.wav is outside of "),
    (line(audio="/etc/hostname"), "a: audio: /etc/hostname is outside of "),
    (line(audio="empty.wav"), "a: audio: empty.wav: the file is empty (0 bytes)"),
    (line(audio="text.wav"), "a: audio: text.wav: not readable as audio: "),
    (line(audio="hollow.wav"), "a: audio: hollow.wav: the file holds no samples"),
    (line(audio="short.wav"), "a: audio: short.wav: too short: 0.050 s"),
    (line(audio="long.flac"), "a: audio: long.flac: too long: its header claims 3601 s"),
    (line(audio="half.wav"), "a: audio: half.wav: damaged: its header claims 32000 bytes of samples, 15956 are there"),
    (line(seconds="1"), "a: seconds: a number is needed, not a string"),
    (line(seconds=True), "a: seconds: a number is needed, not a boolean"),
    (line(seconds=0), "a: seconds: must be positive, got 0"),
    (line(seconds=-1.0), "a: seconds: must be positive, got -1.0"),
    (line(seconds=float("nan")), "a: seconds: must be positive, got nan"),
    (line(seconds=10**400), "a: seconds: 1000"),
    (line(seconds=1.2), "a: seconds: 1.2 is not the length of the clip, which lasts 1.000 s"),
    (line(seconds=0.8), "a: seconds: 0.8 is not the length of the clip, which lasts 1.000 s"),
    (line(labels=["sad"]), "a: labels: an object is needed, not a list"),
    (line(labels={"emotoin": "sad"}), "a: labels: unknown attribute 'emotoin'. Did you mean 'emotion'?"),
    (line(labels={"emotion": 1}), "a: labels: emotion: a string is needed, not a number"),
    (line(labels={"emotion": "hapy"}), "a: labels: unknown emotion 'hapy'. Did you mean 'happy'?"),
    (line(labels={"emotion": "Sad"}), "a: labels: unknown emotion 'Sad'. Did you mean 'sad'?"),
    (line(category="emotion"), "a: category: 'emotion' has no label in this line. Known: none"),
    (line(category="emotoin", labels={"emotion": "sad"}), "a: category: 'emotoin' has no label in this line. Did you "),
    (line(category=7, labels={"emotion": "sad"}), "a: category: a string is needed, not a number"),
    (line(category="emotion", labels="sad"), "a: category: 'emotion' has no label in this line."),
    (paired(labels={"emotion": ["sad"]}), "a: category: 'emotion' has no label in this line."),
    (line(topic=""), "a: topic: the text is empty"),
    (line(answers=ANSWERS, labels={"emotion": "sad"}), "a: answers: they hang on a category; "),
    (paired(answers=["x"]), "a: answers: an object is needed, not a list"),
    (paired(answers={**ANSWERS, "hapy": "x"}), "a: answers: unknown emotion 'hapy'. Did you mean 'happy'?"),
    (paired(answers={**ANSWERS, "happy": " "}), "a: answers: happy: a text is needed, not ' '"),
    (paired(answers={**ANSWERS, "happy": ["x"]}), "a: answers: happy: a text is needed, not ['x']"),
    (paired(answers={"happy": "x"}), "a: answers: the answer to this speaker is missing: emotion is 'sad'"),
    (paired(response="I am glad."), "a: response: it is not the answer to this speaker: answers has another for 'sad'"),
    (line(context={}), "a: context: a list is needed, not an object"),
    (line(context=[{"role": "user", "text": "x"}]), "a: context: the last turn must be the assistant's, "),
    (line(context=["x", "y"]), "a: context: turn 2: an object is needed, not a string"),
]

GOOD_TURN = {"role": "user", "text": "hello"}
TURN_PROBLEMS: list[tuple[object, str]] = [
    ({"role": "system", "text": "x"}, "unknown role 'system'."),
    ({"role": "user", "text": "x"}, "role 'user' where 'assistant' is due: "),
    ({"role": "assistant", "text": "x", "audio": "ok.wav"}, "audio and caption belong to the user's turns only"),
    ({"role": "assistant", "text": "x", "caption": "x"}, "audio and caption belong to the user's turns only"),
    ({"text": "x"}, "missing key 'role'"),
    ({"role": "assistant"}, "missing key 'text'"),
    ({"role": "assistant", "text": ""}, "text: the text is empty"),
    ({"role": "assistant", "text": "x", "speeker": "x"}, "unknown key 'speeker'."),
]
PROBLEMS += [(line(context=[GOOD_TURN, turn]), f"a: context: turn 2: {problem}") for turn, problem in TURN_PROBLEMS]
PROBLEMS += [
    (line(context=[{**GOOD_TURN, "audio": "none.wav"}]), "a: context: turn 1: audio: none.wav: there is no such file"),
    (
        line(context=[{"role": "assistant", "text": "x"}, GOOD_TURN]),
        "a: context: the last turn must be the assistant's, ",
    ),
]


@pytest.mark.parametrize(("bad", "problem"), PROBLEMS, ids=[problem for _, problem in PROBLEMS])
def test_each_fault_is_told_with_file_line_and_id(bad: object, problem: str, folder: Path) -> None:
    path = write(folder, line("good"), bad)
    assert f"\n{path}:2: {problem}" in faults(path)
    kept = read(path, policy="skip")
    assert [u.id for u in kept.utterances] == ["good"]
    assert {fault.line for fault in kept.faults} == {2} and any(problem in str(fault) for fault in kept.faults)


def test_every_fault_stands_in_the_documentation(folder: Path) -> None:
    table = DOCS.read_text("utf-8").split("## Faults")[1]
    quoted = [text for text in re.findall(r"^\| `(.+?)`", table, re.MULTILINE) if text != "context: turn 2: ..."]
    patterns = [re.compile(".*".join(map(re.escape, text.split("...")))) for text in quoted]
    for bad, _ in PROBLEMS:
        for fault in read(write(folder, line("good"), bad), policy="skip").faults:
            # A turn has problems of its own, and those that a line can have.
            told = [fault.problem.replace("turn 1", "turn 2"), re.sub(r"^context: turn \d: ", "", fault.problem)]
            assert any(pattern.match(text) for pattern in patterns for text in told), fault.problem


def test_the_examples_of_the_documentation_are_read_without_fault(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("a1.wav", "a2.flac", "a3.wav", "a4.wav"):
        soundfile.write(tmp_path / "clips" / name, 0.1 * np.sin(np.arange(int(1.52 * 16000))), 16000)
    examples = re.findall(r"```json\n(.+?)```", DOCS.read_text("utf-8"), re.DOTALL)
    choices = {
        **CHOICES,
        "age": ["child", "adult"],
        "emotion": ["sad", "angry"],
        "pitch": ["high"],
        "tempo": ["slow"],
        "energy": ["low"],
    }
    path = write(tmp_path, *(example.replace("\n", " ") for example in examples))
    assert [u.id for u in read_manifest(path, choices=choices).utterances] == ["a1", "a2", "a3", "a4", "a5"]


def test_several_faults_of_a_line_are_all_told(folder: Path) -> None:
    message = faults(write(folder, line(), line("b", audio="none.wav", labels={"emotion": "x"}, seconds=0)))
    assert "3 faults in 1 of 2 lines" in message and message.count("m.jsonl:2: b: ") == 3


def test_twenty_faults_are_shown_and_the_rest_counted(folder: Path) -> None:
    path = write(folder, line("good"), *(line(f"u{i}", audio="none.wav") for i in range(23)))
    message = faults(path)
    assert message.startswith(f"{path}: 23 faults in 23 of 24 lines\n") and message.endswith("\n... and 3 more")
    assert "u19: " in message and "u20: " not in message
    assert len(read(path, policy="skip").faults) == 23


def test_a_duplicate_id_names_the_first_line_and_skip_keeps_the_first(folder: Path) -> None:
    path = write(folder, line("a", text="first"), line("b"), line("a", text="second"))
    assert f"{path}:3: a: duplicate id: line 1 has it first" in faults(path)
    assert [(u.id, u.text) for u in read(path, policy="skip").utterances] == [("a", "first"), ("b", None)]


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_manifest_without_a_good_line_is_refused(policy: str, folder: Path) -> None:
    assert "1 fault in 1 of 1 lines" in faults(write(folder, line(audio="none.wav")), policy=policy)
    assert "holds no utterance" in faults(write(folder), policy=policy)
    assert "holds no utterance" in faults(write(folder, "", " "), policy=policy)
    assert "nowhere.jsonl: the manifest cannot be read" in faults(folder / "nowhere.jsonl", policy=policy)
    assert "the manifest cannot be read" in faults(folder, policy=policy)


def test_an_unknown_policy_is_not_taken_for_another(folder: Path) -> None:
    with pytest.raises(ValueError, match="policy is 'error' or 'skip', not 'ignore'"):
        read(write(folder, line()), policy="ignore")


def test_audio_starts_at_the_root_and_stays_in_it(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    relative, absolute = write(elsewhere, line()), str(folder / "ok.wav")
    assert "there is no such file" in faults(relative)
    assert read(relative, root=folder).utterances[0].audio == folder / "ok.wav"
    path = write(elsewhere, line(audio=absolute))
    assert f"{absolute} is outside of {elsewhere}" in faults(path)
    assert read(path, root=folder).utterances[0].audio == folder / "ok.wav"
    assert read(path, root=Path("/")).utterances[0].audio == folder / "ok.wav"


def test_a_sibling_that_shares_the_roots_beginning_is_outside(tmp_path: Path) -> None:
    for name in ("set", "set2"):
        (tmp_path / name).mkdir()
    soundfile.write(tmp_path / "set2" / "ok.wav", 0.1 * np.sin(np.arange(16000)), 16000)
    assert "is outside of" in faults(write(tmp_path / "set", line(audio="../set2/ok.wav")))


@pytest.mark.parametrize("link", ["corpus", "clip.wav", "again"])
def test_a_link_leads_out_of_the_root_only_where_the_user_allows_it(
    link: str, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "corpus").symlink_to(folder)
    (elsewhere / "clip.wav").symlink_to(folder / "ok.wav")
    (elsewhere / "again").symlink_to("corpus")
    path = write(elsewhere, line(audio=link if link == "clip.wav" else f"{link}/ok.wav"))
    assert f"leads to {folder.resolve() / 'ok.wav'}, which is outside of {elsewhere}" in faults(path)
    assert "outside of" in faults(path, allow=[folder / "sub"])
    for allow in ([folder], [Path("/")], [elsewhere, folder.parent]):
        assert read(path, allow=allow).utterances[0].seconds == 1.0


def test_what_is_allowed_may_be_named_by_its_own_path(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for audio in (str(folder / "ok.wav"), f"../../{folder.parent.name}/{folder.name}/ok.wav"):
        path = write(elsewhere, line(audio=audio))
        assert "outside of" in faults(path)
    assert read(write(elsewhere, line(audio=str(folder / "ok.wav"))), allow=[folder]).utterances[0].seconds == 1.0


def test_a_root_that_is_a_link_holds_what_it_leads_to(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("elsewhere") / "link"
    link.symlink_to(folder)
    write(folder, line())
    assert read(link / "m.jsonl").utterances[0].audio == link / "ok.wav"


def test_a_line_without_end_is_not_read_whole(folder: Path) -> None:
    path = write(folder, line("a"), '{"id": "' + "x" * LONGEST_LINE + '"}', line("b"))
    assert f"{path}:2: broken line: it is longer than {LONGEST_LINE} bytes" in faults(path)
    assert [u.id for u in read(path, policy="skip").utterances] == ["a", "b"]


def test_a_fault_is_one_short_line_whatever_the_file_says(folder: Path) -> None:
    told = faults(write(folder, line("a\nb\x1b[2J", **{"k" * 5000 + "\r": 1})))
    assert (
        len(told.splitlines()) == 2 and len(told) < 2000 and "\x1b" not in told and "a\\nb\\x1b[2J: unknown key" in told
    )


def test_many_unknown_keys_take_no_time_that_grows_with_their_square(folder: Path) -> None:
    keys = {f"k{i}": 1 for i in range(100_000)}
    assert "unknown key" in faults(write(folder, line(**keys)))


def test_reading_needs_no_heavy_library() -> None:
    code = "import sys, sottovoce.data.manifest; sys.exit(bool({'torch', 'librosa', 'lhotse'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
