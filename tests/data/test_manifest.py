"""A manifest is read as it was meant, or refused with file, line and id of everything that is wrong with it."""

import json
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tests.helpers.errors import refused

from sottovoce.data.manifest import LONGEST_LINE, Manifest, Turn, Utterance, read_manifest
from sottovoce.errors import Code, ManifestError

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
    keys: dict[str, Any] = {"text": "good day", "speaker": "s1", "seconds": 1.05, "caption": "A voice."}
    keys |= {"response": "Good day!", "labels": {"gender": "male", "emotion": "sad"}}
    (utterance,) = read(write(folder, line(**keys, context=context))).utterances
    turns = Turn("user", "hello", folder / "ok.wav", "A sad voice."), Turn("assistant", "Hi.")
    assert utterance == Utterance(id="a", audio=folder / "ok.wav", context=turns, **keys)


def test_a_paired_line_knows_what_every_speaker_is_to_be_told(folder: Path) -> None:
    lines = [paired(topic="pets/cat"), paired(id="b", response="I am sorry."), paired(id="c", answers=None)]
    without, given, alone = read(write(folder, *lines)).utterances
    assert (without.category, without.topic, without.answers) == ("emotion", "pets/cat", ANSWERS)
    assert without.response == given.response == "I am sorry."  # the answer to this speaker
    assert (alone.category, alone.answers, alone.response, alone.topic) == ("emotion", {}, None, None)


def test_the_least_line_has_its_seconds_from_the_header(folder: Path) -> None:
    (utterance,) = read(write(folder, line())).utterances
    assert utterance == Utterance("a", folder / "ok.wav", None, None, 1.0, {}, None, (), None)


def test_an_empty_transcript_says_that_nothing_is_said(folder: Path) -> None:
    silent, unknown = read(write(folder, line(text=""), line("b"))).utterances
    assert (silent.text, unknown.text) == ("", None)


def test_labels_are_the_same_in_either_form_of_unicode(folder: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "fröhlich") for form in ("NFC", "NFD"))
    bad = paired(labels={"emotion": apart}, answers={apart: "Hm.", "sad": "Oh."})
    (utterance,) = read_manifest(write(folder, bad), choices={"emotion": [composed, "sad"]}).utterances
    assert utterance.labels == {"emotion": composed} and utterance.answers[composed] == utterance.response == "Hm."


def test_null_counts_as_absent(folder: Path) -> None:
    nulls: dict[str, Any] = dict.fromkeys(("text", "speaker", "seconds", "labels", "caption", "context", "response"))
    (utterance,) = read(write(folder, line(**nulls))).utterances
    assert utterance == read(write(folder, line())).utterances[0]


def test_order_is_kept_and_blank_lines_are_passed_over_but_counted(folder: Path) -> None:
    path = write(folder, line("a"), "", "  ", line("b"), line("a"))
    assert f"{path}:5: a: duplicate id: line 1 has it first" in faults(path)
    assert [u.id for u in read(write(folder, line("b"), "", line("a"))).utterances] == ["b", "a"]


GOOD_TURN = {"role": "user", "text": "hello"}


def turn(bad: object) -> dict[str, object]:
    return line(context=[GOOD_TURN, bad])


PROBLEMS: dict[Code, list[object]] = {
    "damaged": [
        '{"id": "a", ', "[" * 100_000, b'{"id": "\xff\xfe"}', '{"id": "a", "text": "x", "text": "y"}', "[1]", "3",
        '{"id": "a", "audio": "ok.wav", "text": "\\ud83d"}', line(audio="empty.wav"), line(audio="text.wav"),
        line(audio="half.wav"),
    ],
    "missing-key": [
        {"audio": "ok.wav"}, {"id": None, "audio": "ok.wav"}, {"id": "a"}, {"id": "a", "text": "x"},
        {"id": "a", "text": "x", "response": "y", "labels": {"emotion": "sad"}},
        {"id": "a", "text": "x", "response": "y", "seconds": 1.0}, {"id": "a", "response": "y"},
        line(answers=ANSWERS, labels={"emotion": "sad"}), paired(answers={"happy": "x"}), turn({"text": "x"}),
        turn({"role": "assistant"}),
    ],
    "bad-value": [
        {"id": 7, "audio": "ok.wav"}, line(""), line(audio=""), line(text=[]), line(text=" "), line(speaker=4),
        line(caption=True), line(response={}), line(audio="nul\0.wav"), line(audio="short.wav"),
        line(audio="long.flac"), line(seconds="1"), line(seconds=True), line(seconds=0), line(seconds=-1.0),
        line(seconds=float("nan")), line(labels=["sad"]), line(labels={"emotion": 1}),
        line(category=7, labels={"emotion": "sad"}), line(topic=""), paired(answers=["x"]),
        paired(answers={**ANSWERS, "happy": " "}), paired(answers={**ANSWERS, "happy": ["x"]}), line(context={}),
        line(context=[{"role": "user", "text": "x"}]), line(context=["x", "y"]), turn({"role": "user", "text": "x"}),
        turn({"role": "assistant", "text": "x", "audio": "ok.wav"}),
        turn({"role": "assistant", "text": "x", "caption": "x"}), turn({"role": "assistant", "text": ""}),
        line(context=[{"role": "assistant", "text": "x"}, GOOD_TURN]),
    ],
    "not-found": [line(audio="none.wav"), line(context=[{**GOOD_TURN, "audio": "none.wav"}])],
    "unsafe": [line(audio="../m.wav"), line(audio="/etc/hostname")],
    "empty": [line(audio="hollow.wav")],
    "mismatch": [line(seconds=10**400), line(seconds=1.2), line(seconds=0.8)],
    "unknown-name": [
        line(labels={"emotoin": "sad"}), line(labels={"emotion": "hapy"}), line(labels={"emotion": "Sad"}),
        paired(answers={**ANSWERS, "hapy": "x"}), turn({"role": "system", "text": "x"}),
    ],
    "conflict": [
        line(category="emotion"), line(category="emotoin", labels={"emotion": "sad"}),
        line(category="emotion", labels="sad"), paired(labels={"emotion": ["sad"]}), paired(response="I am glad."),
    ],
}  # fmt: skip
BAD_LINES = [(code, bad) for code, lines in PROBLEMS.items() for bad in lines]


@pytest.mark.parametrize(("code", "bad"), BAD_LINES, ids=[str(bad)[:60] for _, bad in BAD_LINES])
def test_each_fault_is_told_with_file_line_id_and_key(code: Code, bad: object, folder: Path) -> None:
    path = write(folder, line("good"), bad)
    with refused(code, "m.jsonl:2", ManifestError):
        read(path)
    kept = read(path, policy="skip")
    assert [u.id for u in kept.utterances] == ["good"] and {fault.where for fault in kept.faults} == {f"{path}:2"}
    if isinstance(bad, dict):
        keys = [key for key in bad if key not in line()] or [""]
        assert all(str(fault).startswith(f"{path}:2: a: ") for fault in kept.faults if bad.get("id") == "a")
        assert any(key in str(fault) for fault in kept.faults for key in keys)


def test_faults_in_the_documentation_are_told_in_its_words(folder: Path) -> None:
    table = DOCS.read_text("utf-8").split("## Faults")[1]
    quoted = re.findall(r"^\| `(.+?)`", table, re.MULTILINE)
    lines = [line("good"), *(bad for _, bad in BAD_LINES), '{"id": "' + "x" * LONGEST_LINE + '"}', line("a")]
    told = [str(fault) for fault in read(write(folder, *lines), policy="skip").faults]
    for text in quoted:
        pattern = re.compile(r":\d+: (a: )?" + ".*".join(map(re.escape, text.split("..."))))
        assert any(pattern.search(fault) for fault in told), text
    assert len(quoted) > 8


def test_the_examples_of_the_documentation_are_read_without_fault(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("a1.wav", "a2.flac", "a3.wav", "a4.wav"):
        soundfile.write(tmp_path / "clips" / name, 0.1 * np.sin(np.arange(int(1.52 * 16000))), 16000)
    examples = re.findall(r"```json\n(.+?)```", DOCS.read_text("utf-8"), re.DOTALL)
    choices = {**CHOICES, "age": ["child", "adult"], "emotion": ["sad", "angry"]}
    choices |= {"pitch": ["high"], "tempo": ["slow"], "energy": ["low"]}
    path = write(tmp_path, *(example.replace("\n", " ") for example in examples))
    assert [u.id for u in read_manifest(path, choices=choices).utterances] == ["a1", "a2", "a3", "a4", "a5", "a6"]


def test_several_faults_of_a_line_are_all_told(folder: Path) -> None:
    message = faults(write(folder, line(), line("b", audio="none.wav", labels={"emotion": "x"}, seconds=0)))
    assert "3 faults in 1 of 2 lines" in message and message.count("m.jsonl:2: b: ") == 3


def test_twenty_faults_are_shown_and_the_rest_counted(folder: Path) -> None:
    path = write(folder, line("good"), *(line(f"u{i}", audio=f"none{i}.wav") for i in range(23)))
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
    (empty := folder / "empty").mkdir()
    assert "1 fault in 1 of 1 lines" in faults(write(folder, line(audio="none.wav")), policy=policy)
    assert "holds no utterance" in faults(write(folder), policy=policy)
    assert "holds no utterance" in faults(write(folder, "", " "), policy=policy)
    assert "nowhere.jsonl: the manifest cannot be read" in faults(folder / "nowhere.jsonl", policy=policy)
    assert "the manifest cannot be read" in faults(empty, policy=policy)


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
    told = faults(write(folder, line("a\nb\x1b[2J", labels={"k" * 5000 + "\r": "x"})))
    assert len(told.splitlines()) == 2 and len(told) < 2000
    assert "\x1b" not in told and "a\\nb\\x1b[2J: labels: unknown attribute" in told
    (note,) = read(write(folder, line(**{"k" * 5000 + "\r\x1b": 1}))).notes
    assert len(note) < 500 and "\x1b" not in note and "\r" not in note


def test_many_unknown_keys_take_no_time_that_grows_with_their_square(folder: Path) -> None:
    keys = {f"k{i}": 1 for i in range(100_000)}
    assert len(read(write(folder, line(**keys))).notes) == 1


def test_keys_of_a_users_own_are_passed_over_and_noted_once(folder: Path) -> None:
    """With the first line and how often; one note asks about what may be misspelt, one names the others."""
    lines = [line(f"u{i}", language="de", duration=1.0) for i in range(3)]
    talk = [{"role": "user", "text": "hi", "speeker": "x"}, {"role": "assistant", "text": "hi"}]
    manifest = read(write(folder, *lines, line("typo", tex="good day"), line("talk", context=talk)))
    assert len(manifest.utterances) == 5 and manifest.utterances[3].text is None
    typos, own = manifest.notes
    assert "'tex'" in typos and "line 4" in typos and "'text'" in typos
    assert "'speeker'" in typos and "line 5" in typos and "'speaker'" in typos
    assert "'language' (3 times, first in line 1)" in own and "'duration'" in own and "did you mean" not in own


def test_what_stands_under_extra_is_a_users_own(folder: Path) -> None:
    """Whatever it is called, and without a note; but it is an object."""
    assert read(write(folder, line(extra={"tex": 1, "duration": [2]}))).notes == []
    assert "extra" in faults(write(folder, line(extra="x")))


def test_one_fault_of_many_lines_is_told_once(folder: Path) -> None:
    """The first line, how many more, and three of them; what only looks alike stays apart."""
    accent = [line(f"u{i}", labels={"accent": "x"}) for i in range(300)]
    numbers = [{"id": i, "audio": "ok.wav"} for i in range(30)]
    path = write(folder, line("good"), *accent, *numbers, line("other", labels={"dialect": "x"}))
    with pytest.raises(ManifestError) as caught:
        read(path)
    head, first, ids, last = str(caught.value).splitlines()
    assert "331 faults in 331 of 332 lines" in head and len(caught.value.faults) == 331
    assert first.startswith(f"{path}:2: u0: ") and "299 more" in first and f"{path}:3: u1, {path}:4: u2" in first
    assert f"{path}:6" not in first and ids.startswith(f"{path}:302: ") and "29 more" in ids
    assert last.startswith(f"{path}:332: other: ") and "more" not in last


def test_clips_that_lie_elsewhere_are_told_once(folder: Path) -> None:
    """Each of them has another name; those that are missing are named."""
    rows = [line(f"u{i}", audio=f"/elsewhere/{i}.wav") for i in range(30)]
    path = write(folder, line("good"), *rows, *(line(f"m{i}", audio=f"{i}.wav") for i in range(2)))
    with pytest.raises(ManifestError) as caught:
        read(path)
    _, outside, *missing = str(caught.value).splitlines()
    assert "29 more" in outside and "/elsewhere/0.wav" in outside and len(missing) == 2


BOM = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_passed_over(folder: Path) -> None:
    """At the beginning, and where files have been joined."""
    path = write(folder, BOM + json.dumps(line("a")).encode(), BOM + json.dumps(line("b")).encode(), BOM)
    assert [u.id for u in read(path).utterances] == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_told_once_with_its_remedy(encoding: str, folder: Path) -> None:
    path = folder / "m.jsonl"
    path.write_bytes("\n".join(json.dumps(line(f"u{i}")) for i in range(20)).encode(encoding))
    with refused("damaged", "m.jsonl", ManifestError) as caught:
        read(path, policy="skip")
    assert "iconv" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_line_of_text_alone_is_a_written_turn(folder: Path) -> None:
    """It has a length by which batches of like length are made, and a context as any other."""
    talk = [{"role": "user", "text": "hello", "audio": "ok.wav"}, {"role": "assistant", "text": "Hi."}]
    written = {"id": "w", "text": "how are you today, my friend?", "response": "Well."}
    utterance, other = read(write(folder, {**written, "context": talk}, {**written, "id": "x"})).utterances
    assert (utterance.audio, utterance.response, utterance.clips) == (None, "Well.", [folder / "ok.wav"])
    assert other.clips == [] and 1.0 < other.seconds < 4.0 and other.place.endswith("m.jsonl:2")


def test_reading_needs_no_heavy_library() -> None:
    code = "import sys, sottovoce.data.manifest; sys.exit(bool({'torch', 'librosa', 'lhotse'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
