"""A task asks in several wordings, answers in a sentence, and reads its own answers back."""

import pickle
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.errors import refused

from sottovoce.data.tasks import TASKS, AttributeTask, Task, caption_from, style_caption
from sottovoce.data.utterance import Utterance
from sottovoce.errors import Code, ConfigError

ALL = ["age", "asr", "caption", "dialogue", "emotion", "energy", "gender", "pitch", "response", "tempo"]
GENERATED = ["caption", "dialogue", "response"]
ATTRIBUTES = [name for name in ALL if name not in ("asr", *GENERATED)]


def attribute(name: str, choices: list[str] | None = None) -> AttributeTask:
    task = TASKS.build({"type": name, **({"choices": choices} if choices else {})})
    assert isinstance(task, AttributeTask)
    return task


def utterance(text: Any = None, caption: Any = None, response: Any = None, **labels: str) -> Utterance:
    return Utterance("a", Path("a.wav"), text, None, 1.0, labels, caption, (), response)


def wordings(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines), "utf-8")
    return str(path)


def test_the_built_in_tasks_are_registered_with_what_they_rely_on() -> None:
    assert TASKS.names() == sorted([*ALL, "attribute"])
    relies_on = {name: TASKS.get(name).relies_on for name in ALL}
    voice = dict.fromkeys(ATTRIBUTES, "paralinguistic")
    assert relies_on == {"asr": "linguistic", **dict.fromkeys(GENERATED, "both"), **voice}
    assert all(TASKS.get(name).name == name for name in ALL)


@pytest.mark.parametrize("name", [name for name in ALL if name != "response"])
def test_each_task_has_six_different_wordings_that_are_filled_in(name: str) -> None:
    instructions = TASKS.build({"type": name}).instructions()
    assert len(instructions) == len(set(instructions)) == 6
    assert all(wording == wording.strip() and wording[-1] in ".?" for wording in instructions)
    assert not any("{" in wording or "#" in wording for wording in instructions)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_each_wording_of_an_attribute_lists_the_choices_in_their_order(name: str) -> None:
    assert all("mild, wild, odd" in wording for wording in attribute(name, ["mild", "wild", "odd"]).instructions())
    task = attribute(name)
    assert all(", ".join(task.choices) in wording for wording in task.instructions())


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_each_choice_is_answered_in_a_sentence_that_reads_back_as_it(name: str) -> None:
    task = attribute(name)
    for choice in task.choices:
        spoken = utterance(**{name: choice})
        target = task.target(spoken)
        assert target and target[0].isupper() and target.endswith(".") and f" {choice}" in target
        assert task.label(spoken) == choice == task.parse(target)
        assert task.available(spoken)


def test_answers_are_the_sentences_of_their_attribute() -> None:
    spoken = utterance(gender="female", pitch="high", tempo="slow", energy="low", emotion="sad")
    assert {name: attribute(name).target(spoken) for name in spoken.labels} == {
        "gender": "The speaker is female.", "pitch": "The pitch is high.", "tempo": "The tempo is slow.",
        "energy": "The energy is low.", "emotion": "The speaker sounds sad.",
    }  # fmt: skip


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_recipe_may_set_choices_wordings_and_sentence(name: str) -> None:
    filled = TASKS.check({"type": name})
    assert list(filled) == ["type", "choices", "prompts", "shots", "sentence", "words"]
    assert (filled["choices"], filled["prompts"], filled["sentence"]) == (attribute(name).choices, None, None)
    task = TASKS.build({"type": name, "choices": ["apt", "mild"], "sentence": "It is {a} {label} one."})
    assert task.target(utterance(**{name: "apt"})) == "It is an apt one."
    assert attribute(name) != attribute(name)  # no two are one


def test_a_sentence_must_have_a_place_for_the_label() -> None:
    with refused("missing-key", "task age: sentence", ConfigError):
        TASKS.build({"type": "age", "sentence": "Old."})


@pytest.mark.parametrize(
    ("name", "response", "label"),
    [
        ("gender", "The speaker is female.", "female"),  # "male" is inside of it
        ("gender", "MALE", "male"),
        ("gender", "It is a male or female speaker.", None),
        ("gender", "A males' choir of females", None),
        ("emotion", "I think that she is Happy, very happy!", "happy"),
        ("emotion", "unhappy", None),
        ("emotion", "happy and sad", None),
        ("emotion", "", None),
        ("emotion", "The speaker sounds glad.", None),
        ("tempo", "slow-ish", "slow"),
        ("tempo", "fast.", "fast"),
        ("tempo", "breakfast", None),
    ],
)
def test_a_response_is_read_as_the_one_choice_that_it_names(name: str, response: str, label: str | None) -> None:
    assert attribute(name).parse(response) == label


@pytest.mark.parametrize("choices", [["Happy", "very happy"], ["very happy", "Happy"]])
def test_of_choices_inside_each_other_the_longest_is_meant(choices: list[str]) -> None:
    task = attribute("emotion", choices)
    assert task.parse("She sounds very happy.") == "very happy"
    assert task.parse("She sounds happy.") == "Happy"
    assert task.parse("very happy, or just happy") is None
    assert attribute("emotion", ["sad", "sad at heart"]).parse("She is sad at heart.") == "sad at heart"


def test_choices_are_taken_literally() -> None:
    assert attribute("emotion", ["a.b", "c+"]).parse("axb or c") is None
    assert attribute("emotion", ["a.b", "c+"]).parse("so c+ it is") == "c+"


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        (["中性", "高兴", "不高兴"], "说话人听起来{label}。"),
        (["中立", "悲しい"], "話者は{label}ようです。"),
        (["기쁨", "슬픔"], "감정은 {label}입니다."),
        (["สุข", "เศร้า"], "ผู้พูดรู้สึก{label}"),
        (["سعيد", "حزين"], "يبدو المتحدث {label}."),
        (["सुखी", "दुखी"], "वक्ता {label} है।"),
        (["fröhlich", "traurig"], "Das klingt {label}."),
    ],
)
def test_labels_are_found_in_sentences_of_any_script(choices: list[str], sentence: str) -> None:
    task = TASKS.build({"type": "emotion", "choices": choices, "sentence": sentence})
    assert isinstance(task, AttributeTask)
    for label in choices:
        for form in ("NFC", "NFD"):  # a tokenizer may compose or take apart what it reads
            assert task.parse(unicodedata.normalize(form, task.answer(label))) == label
    assert task.parse(f"{choices[0]} {choices[1]}") is None


def test_labels_and_choices_may_be_spelled_in_either_form() -> None:
    nfc, nfd = (unicodedata.normalize(form, "fröhlich") for form in ("NFC", "NFD"))
    for choice in (nfc, nfd):
        task = attribute("emotion", [choice, "traurig"])
        assert task.choices[0] == nfc and task.label(utterance(emotion=nfc)) == nfc
        assert task.parse(f"Sehr {nfd}!") == task.parse(f"Sehr {nfc.upper()}!") == nfc


@pytest.mark.parametrize(
    ("knobs", "answer"),
    [
        ({"choices": ["sad", "happy"], "sentence": "Not sad: {label}"}, "Not sad: happy"),
        ({"choices": ["sad", "happy"], "sentence": "un{label}"}, "unsad"),
        ({"choices": ["neutral", "happy"], "words": {"neutral": "a", "happy": "b"}, "sentence": "{label} b"}, "a b"),
    ],
)
def test_a_task_that_cannot_read_its_own_answers_is_refused(knobs: dict[str, Any], answer: str) -> None:
    with refused("conflict", "tasks.emotion", ConfigError) as caught:
        TASKS.build({"type": "emotion", **knobs})
    assert repr(answer) in str(caught.value)


@pytest.mark.parametrize("choices", [["sad"], ["sad", "Sad"], ["sad", " "]])
def test_choices_must_be_two_different_labels(choices: list[str]) -> None:
    with refused("bad-value", "tasks.emotion.choices", ConfigError):
        attribute("emotion", choices)


def test_a_label_that_is_not_a_choice_is_an_error_with_the_nearest() -> None:
    with refused("unknown-name", "a", ConfigError) as caught:
        attribute("emotion").target(utterance(emotion="hapy"))
    assert "Did you mean 'happy'?" in str(caught.value)


def test_asr_needs_a_transcript_and_repeats_it() -> None:
    task = TASKS.build({"type": "asr"})
    assert task.available(utterance("good day")) and task.target(utterance("good day")) == "good day"
    assert not task.available(utterance(emotion="sad"))
    assert task.label(utterance("good day", emotion="sad")) is None and task.parse("sad") is None
    assert task.available(utterance("")) and task.target(utterance("")) == ""  # nothing is said


@pytest.mark.parametrize(
    ("knobs", "rate"),
    [
        ({}, None), ({"metric": "wer", "normalizer": "english"}, None), ({"normalizer": "basic"}, "wer/basic"),
        ({"metric": "cer"}, "cer/basic"), ({"metric": "mer", "normalizer": "none"}, "mer/none"),
    ],
)  # fmt: skip
def test_asr_names_its_error_rate(knobs: dict[str, Any], rate: str | None) -> None:
    assert TASKS.build({"type": "asr", **knobs}).rate == rate


def test_an_attribute_needs_its_own_label() -> None:
    task = attribute("pitch")
    assert not task.available(utterance("good day", emotion="sad"))
    assert task.target(utterance(emotion="sad")) is None


def test_dialogue_needs_words_and_style_or_a_ready_response() -> None:
    task = TASKS.build({"type": "dialogue"})
    assert task.available(utterance("good day", emotion="sad")) and task.available(utterance("good day", "A voice."))
    assert task.available(utterance(response="Hello."))
    assert not task.available(utterance("good day")) and not task.available(utterance(emotion="sad"))
    assert not task.available(utterance("", emotion="sad"))  # there is nothing to reply to
    assert task.target(utterance("good day", emotion="sad")) is None  # the run's LLM makes it
    assert task.target(utterance("good day", response="Hello.")) == "Hello."


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize(
    ("texts", "labels", "served"),
    [
        (["transcript"], {}, True), (["caption", "transcript"], {}, False), (["caption"], {}, False),
        (["caption", "transcript"], {"gender": "male"}, True),
        (["tagged"], {"gender": "male"}, False), (["tagged"], {"emotion": "sad"}, True),
    ],
)  # fmt: skip
def test_gap_6_a_reply_needs_the_texts_of_the_slots(
    name: str, texts: list[str], labels: dict[str, str], served: bool
) -> None:
    task = TASKS.build({"type": name})
    assert task.serves(utterance("good day", **labels), texts) == served
    assert not task.serves(utterance(None, emotion="sad"), texts)


@pytest.mark.parametrize(
    ("labels", "caption"),
    [
        ("emotion=sad gender=female pitch=high tempo=slow energy=low", "A sad female voice with high pitch, slow tempo and low energy."),  # noqa: E501
        ("energy=low tempo=slow pitch=high gender=female emotion=sad", "A sad female voice with high pitch, slow tempo and low energy."),  # noqa: E501
        ("emotion=sad", "A sad voice."),
        ("emotion=angry", "An angry voice."),
        ("emotion=angry gender=male", "An angry male voice."),
        ("gender=male", "A male voice."),
        ("pitch=high energy=low", "A voice with high pitch and low energy."),
        ("tempo=fast", "A voice with fast tempo."),
        ("emotion=sad accent=Scottish pitch=low", "A sad voice with low pitch and Scottish accent."),
        ("", "A voice."),
    ],
)  # fmt: skip
def test_labels_become_a_sentence(labels: str, caption: str) -> None:
    assert caption_from(dict(pair.split("=") for pair in labels.split())) == caption


def test_style_is_the_given_caption_or_one_of_the_labels() -> None:
    assert style_caption(utterance(caption="A tired voice.", emotion="sad")) == "A tired voice."
    assert style_caption(utterance(emotion="sad")) == "A sad voice."
    assert style_caption(utterance("good day")) is None


def test_own_wordings_replace_those_of_the_project(tmp_path: Path) -> None:
    file = wordings(tmp_path / "w.txt", "# a comment", "", "  {choices}: which?  ", "{{literally}} {choices}")
    task = TASKS.build({"type": "tempo", "choices": ["slow", "fast"], "prompts": file})
    assert task.instructions() == ["slow, fast: which?", "{literally} slow, fast"]


@pytest.mark.parametrize(
    ("name", "line", "code", "where"),
    [
        ("tempo", "Which of {choises}?", "unknown-name", "w.txt:2"),
        ("tempo", "Which of {}?", "unknown-name", "w.txt:2"),
        ("asr", "Which of {choices}?", "unknown-name", "w.txt:2"),
        ("tempo", "Which of {choices?", "bad-value", "w.txt:2"),
        ("tempo", "Which of {choices:d}?", "unsafe", "w.txt:2"),
        ("asr", "", "empty", "w.txt"),
    ],
)
def test_a_faulty_wording_is_refused(name: str, line: str, code: Code, where: str, tmp_path: Path) -> None:
    with refused(code, where, ConfigError):
        TASKS.build({"type": name, "prompts": wordings(tmp_path / "w.txt", "# wordings", line)})


def test_a_missing_file_of_wordings_is_an_error(tmp_path: Path) -> None:
    with refused("not-found", "none.txt", ConfigError):
        TASKS.build({"type": "asr", "prompts": str(tmp_path / "none.txt")})


def test_instructions_cannot_be_changed_from_outside() -> None:
    task = TASKS.build({"type": "asr"})
    task.instructions().clear()
    assert len(task.instructions()) == 6


@pytest.mark.parametrize("name", ALL)
def test_a_task_travels_to_another_process(name: str) -> None:
    task: Task = pickle.loads(pickle.dumps(TASKS.build({"type": name})))
    assert task.instructions() == TASKS.build({"type": name}).instructions()
