"""Alignment as SpeechEmotionLlama has it: the encoder learns too, and targets have a teacher that speech never sees."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import CONFORMER
from tests.helpers.errors import refused
from tests.helpers.runs import Fit, Write, quiet_run

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.data.examples import slot_text
from sottovoce.data.tasks import TASKS, AttributeTask
from sottovoce.data.utterance import Turn, Utterance
from sottovoce.errors import ConfigError
from sottovoce.evaluation.records import read_predictions
from sottovoce.io import file_sha256
from sottovoce.lightning_modules.bundle import bundle_weights, read_bundle
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.scoring import cascade as cascades
from sottovoce.scoring import predict
from sottovoce.scoring.cascade import StoredStates, emotion_tags
from sottovoce.training.llm_targets import teacher_dialogue
from sottovoce.training.spoken_prompt import dialogue_of

SPOKEN = Utterance("a", Path("a.wav"), "it broke", None, 1.0, {"emotion": "sad"})


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return bundle_weights(folder / "bundle")


def test_a_tag_stands_before_the_words_where_the_emotion_is_known() -> None:
    assert slot_text(SPOKEN, "tagged") == "<sad> it broke"
    assert slot_text(Utterance("a", Path("a.wav"), "it broke", None, 1.0), "tagged") == "it broke"
    assert slot_text(Turn("user", "it broke"), "tagged") == "it broke"
    assert slot_text(Utterance("a", Path("a.wav"), None, None, 1.0, {"emotion": "sad"}), "tagged") is None


def test_an_answer_may_be_the_label_alone() -> None:
    task = TASKS.build({"type": "emotion", "sentence": "{label}"})
    assert task.target(SPOKEN) == "sad"
    with refused("missing-key", "task emotion: sentence", ConfigError):
        TASKS.build({"type": "emotion", "sentence": "sad"})


def test_an_age_has_its_article() -> None:
    task = TASKS.build({"type": "age"})
    assert isinstance(task, AttributeTask)
    assert [task.answer(age) for age in task.choices] == ["The speaker is a child.", "The speaker is an adult."]


def test_questions_stand_before_the_speech_and_the_teacher_is_seen_in_targets_only(alignment: dict[str, Any]) -> None:
    run, drawn = quiet_run(alignment), {}
    for number in range(40):
        example = run.example_sampler("align", cut=True)(run.data.splits["train"].utterances[0], 0, number)
        assert example is not None
        drawn[example.task] = example
    assert set(drawn) == {"response", "asr", "caption", "emotion"}
    for task, example in drawn.items():
        chat = dialogue_of(example, run.module.slots)
        assert [turn.role for turn in chat] == ["user"]
        if task == "response":
            assert len(chat[0].pieces) == 1  # the speech, and nothing else
        else:
            assert chat[0].pieces[0] == f"{run.tasks[task].instructions()[0]} "
        teacher = teacher_dialogue(example, run.targets.slots)
        assert [turn.role for turn in teacher] == (["system", "user"] if task == "response" else ["user"])
        assert teacher[-1].pieces[-1] == "<neutral> we found the lamp"
    assert drawn["response"].teacher and drawn["response"].teacher.startswith("Respond as if you are")


def test_the_encoder_learns_and_is_part_of_the_bundle(
    alignment: dict[str, Any], fit: Fit, manifests: dict[str, Path], capsys: Any
) -> None:
    folder = fit(**alignment)
    before = quiet_run({**alignment, "name": "before"}).module.encoder.state_dict()
    after = {key.removeprefix("encoder."): w for key, w in trained(folder).items() if key.startswith("encoder.")}
    assert after.keys() == before.keys()
    assert sum(not torch.equal(before[name], after[name]) for name in before) > 0.8 * len(before)
    model = read_bundle(folder / "bundle")
    assert all(torch.equal(value, after[name]) for name, value in model.encoder.state_dict().items())
    assert not any(weight.requires_grad for weight in model.llm.parameters())
    audio = str(manifests["test"].parent / "test-0.wav")
    assert main(["chat", str(folder / "bundle"), "--once", "--audio", audio]) == 0
    assert "answer" in capsys.readouterr().out


def test_a_run_starts_from_a_bundle(alignment: dict[str, Any], fit: Fit) -> None:
    folder = fit(**alignment)
    run = quiet_run({**alignment, "name": "next", "init_from": str(folder / "bundle")})
    weights = trained(folder)
    assert weights.keys() == run.module.trained().keys()
    assert all(torch.equal(weights[name], value) for name, value in run.module.trained().items())


def test_an_encoder_that_an_earlier_run_trained_is_part_of_the_next_bundle(alignment: dict[str, Any], fit: Fit) -> None:
    """The next run leaves it alone, yet its adapters make sense to no other encoder."""
    earlier = fit(**alignment)
    stages = {"align": {**alignment["stages"]["align"], "train": ["speech"]}}
    later = fit(**alignment | {"name": "next", "init_from": str(earlier / "bundle"), "stages": stages})
    first, then = trained(earlier), trained(later)
    assert first.keys() == then.keys()
    same = {name for name in first if torch.equal(first[name], then[name])}
    assert same == {name for name in first if name.startswith("encoder.")}
    opened = read_bundle(later / "bundle").encoder.state_dict()
    assert all(torch.equal(value, first[f"encoder.{name}"]) for name, value in opened.items())


def test_a_resumed_run_ends_in_the_same_weights(
    alignment: dict[str, Any], fit: Fit, write_recipe: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, step, seen = trained(fit(**alignment)), SpeechLLM.training_step, 0

    def killed(self: SpeechLLM, *arguments: Any) -> torch.Tensor:
        nonlocal seen
        seen += 1
        if seen == 4:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(SpeechLLM, "training_step", killed)
        assert main(["fit", "--config", write_recipe(**{**alignment, "name": "again"})]) == 130
    parts = trained(fit(**{**alignment, "name": "again"}))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_a_stage_puts_what_learns_in_training_mode(alignment: dict[str, Any]) -> None:
    run = quiet_run({**alignment, "encoder": CONFORMER})
    assert not run.module.encoder.training
    run.module.start_stage("align", 3)
    assert all(part.training for part in run.module.encoder.modules())
    assert not run.module.llm.model.training


@pytest.fixture
def cascade(alignment: dict[str, Any], fit: Fit) -> dict[str, Any]:
    """A cascade on the bundle of a baseline whose Conformer has learned."""
    baseline = {**alignment, "encoder": CONFORMER, "name": "baseline"}
    baseline["slots"] = {"speech": {**alignment["slots"]["speech"], "text": "transcript"}}
    folder = fit(**baseline)
    evaluation = {**alignment["evaluation"], "tasks": ["response", "emotion", "asr"], "text": {"speech": "tagged"}}
    return {
        **baseline, "name": "cascade", "init_from": str(folder / "bundle"), "stages": {},
        "cascade": {"epochs": 2, "pool": 4}, "evaluation": {**evaluation, "slots": ["both", "text"]},
    }  # fmt: skip


def test_a_cascade_writes_what_it_recognises_before_the_speech(
    cascade: dict[str, Any], fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def seen(example: Any, slots: Any) -> Any:
        asked.append((example, dialogue_of(example, slots)))
        return asked[-1][1]

    monkeypatch.setattr(predict, "dialogue_of", seen)
    folder = fit(**cascade)
    assert not (folder / "bundle").exists() and (folder / "ser.safetensors").is_file()
    predictions = read_predictions(folder / "evaluation")
    heard = {p.id: p.predicted for p in predictions if (p.task, p.slots) == ("emotion", "both")}
    assert len(heard) == 3 and set(heard.values()) <= set(cascade["tasks"]["emotion"]["choices"])
    for example, chat in asked:
        tag = f"<{heard[example.utterance.id]}> "
        spoken = "speech" in example.sources.values()
        assert (tag in chat[-1].pieces) == spoken and (example.task != "emotion" or not spoken)
    words = [str(chat[-1].pieces[-1]) for example, chat in asked if example.sources["speech"] == "text"]
    assert words and all(text.startswith("<") for text in words)  # the yardstick knows the emotion
    ser = (folder / "ser.safetensors").read_bytes()
    (folder / "evaluation" / "results.json").unlink()
    assert fit(**cascade) == folder
    assert (folder / "ser.safetensors").read_bytes() == ser
    assert read_predictions(folder / "evaluation") == predictions


def test_one_recogniser_serves_two_cascades(cascade: dict[str, Any], fit: Fit, tmp_path: Path) -> None:
    """Kang et al., section IV-B: it hears by the encoder of the first baseline, whatever that of the second is."""
    first = fit(**cascade)
    other = tmp_path / "other"
    shutil.copytree(cascade["init_from"], other)
    weights = load_file(other / "trained.safetensors")
    moved = {n: -2 * w if n.startswith("encoder.") and w.dim() > 1 else w for n, w in weights.items()}
    save_file(moved, other / "trained.safetensors")
    prints = json.loads((other / "fingerprints.json").read_text())
    prints["trained"] = file_sha256(other / "trained.safetensors")
    (other / "fingerprints.json").write_text(json.dumps(prints))
    node = {"recognizer": str(first), "pool": 4}
    second = fit(**{**cascade, "name": "second", "init_from": str(other), "cascade": node})
    assert not (second / "ser.safetensors").exists()
    said = [read_predictions(folder / "evaluation") for folder in (first, second)]
    tags = [{p.id: p.predicted for p in rows if (p.task, p.slots) == ("emotion", "both")} for rows in said]
    assert tags[0] == tags[1]
    third = {**recipes.load(tmp_path / "recipe.yaml").plain(), "name": "third", "cascade": {"pool": 4}}
    run = quiet_run(third)
    shutil.copy(first / "ser.safetensors", run.recipe.folder / "ser.safetensors")
    with refused("mismatch", "ser.safetensors"):  # by the other encoder it may not
        emotion_tags(run, "test")


def test_states_of_clips_are_read_from_disk(tmp_path: Path) -> None:
    clips = [torch.randn(n, 3, 2, dtype=torch.float16) for n in (4, 1, 7)]
    stored = StoredStates(tmp_path / "states")
    stored.extend(clips[:1])
    assert torch.equal(stored[0], clips[0])
    stored.extend(clips[1:])
    assert len(stored) == 3 and all(torch.equal(a, b) for a, b in zip(stored, clips, strict=True))
    assert torch.equal(stored[-1], clips[-1]) and [len(part) for part in stored[1:]] == [1, 7]


def test_a_recogniser_learns_from_so_many_clips_and_no_more(
    cascade: dict[str, Any], fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    train = cascades.train_emotion_classifier

    def counted(classifier: Any, learned: Any, validation: Any, **knobs: Any) -> Any:
        seen.extend((len(learned.clips), len(learned.labels), len(validation.clips)))
        return train(classifier, learned, validation, **knobs)

    monkeypatch.setattr(cascades, "train_emotion_classifier", counted)
    folder = fit(**{**cascade, "cascade": {"epochs": 1, "pool": 4, "most_clips": 7}})
    assert seen == [7, 7, 5] and not list(folder.glob(".states-*"))


@pytest.mark.parametrize(
    ("change", "code", "where"),
    [({"init_from": None}, "conflict", "slots.speech.adapter"), ({"tasks": {"response": {}}}, "conflict", "cascade")],
)
def test_a_cascade_that_cannot_be_is_refused(
    alignment: dict[str, Any], change: dict[str, Any], code: Any, where: str
) -> None:
    evaluation = {"tasks": ["asr"]}
    recipe = {**alignment, "init_from": "bundle", "stages": {}, "cascade": {}, "evaluation": evaluation, **change}
    with refused(code, where, ConfigError):
        recipes.parse(recipe)


def test_an_encoder_that_hides_its_layers_cannot_carry_a_cascade(alignment: dict[str, Any]) -> None:
    run = quiet_run(alignment)
    run.module.encoder.depth = 0  # as a component that says nothing of layers
    with refused("conflict", "encoder.type"):
        run.module.encoder.hidden_states(torch.zeros(1, 16_000), torch.tensor([16_000]))
