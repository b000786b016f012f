"""The command that says which part loses a task: runs with one part crippled on purpose, and one that has learned."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tests.conftest import save_tiny_whisper, tiny_tree, write_lines, write_tone
from tests.helpers.errors import refused
from tests.helpers.families import save_family
from tests.helpers.runs import Fit, quiet_run

from sottovoce.analysis import pooled_features, task_answers
from sottovoce.analysis.diagnose import diagnose
from sottovoce.analysis.stage_losses import read_stage_losses
from sottovoce.analysis.task_answers import text_of_topline
from sottovoce.analysis.trained_run import open_trained
from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.data.examples import collate
from sottovoce.data.tasks import TASKS
from sottovoce.encoders.whisper import WhisperEncoder
from sottovoce.evaluation.metrics import Prediction
from sottovoce.evaluation.records import read_results
from sottovoce.frames import Frames
from sottovoce.lightning_modules.bundle import write_bundle
from sottovoce.lightning_modules.run import Run
from sottovoce.scoring.predict import predict

SENTENCES = ("red", "blue", "one", "two")
SPEAKERS = {"train": 8, "validation": 2, "test": 4}
TUNED = {"method": "weights", "layers": "all"}
TAUGHT = 120  # steps in which the LLM learns from text


def write_side(folder: Path, split: str, speakers: int) -> Path:
    """Every speaker says every sentence, in noise: its low band tells the gender, its high one the words."""
    rng, lines = np.random.default_rng(len(split)), []
    hertz = np.fft.rfftfreq(8_000, 1 / 16_000)
    for speaker in range(speakers):
        for word, text in enumerate(SENTENCES):
            low = (hertz < 700, (hertz >= 700) & (hertz < 1600))[speaker % 2]
            high = (hertz >= 1600 + 1500 * word) & (hertz < 3100 + 1500 * word)
            sound = np.fft.irfft(np.fft.rfft(rng.normal(size=8_000)) * (low | high))
            name = f"{split}-{speaker}-{word}"
            soundfile.write(folder / f"{name}.wav", 0.3 * sound / np.abs(sound).max(), 16_000)
            labels = {"gender": ("male", "female")[speaker % 2]}
            line = {"id": name, "audio": f"{name}.wav", "text": text, "speaker": f"{split}{speaker}", "labels": labels}
            lines.append(line)
    return write_lines(folder / f"{split}.jsonl", lines)


def silenced(tree: dict[str, Any], folder: Path, *names: str) -> dict[str, Any]:
    """The recipe with a Whisper of which some weights are zero."""
    saved = torch.load(tree["encoder"]["checkpoint"], weights_only=True)
    for name in names:
        saved["model_state_dict"][name].zero_()
    torch.save(saved, folder / "silenced.pt")
    return {**tree, "encoder": {"type": "whisper", "checkpoint": str(folder / "silenced.pt")}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tree of a recipe whose LLM has learned to answer text: who speaks, and what is said."""
    folder = tmp_path_factory.mktemp("world")
    manifests = {split: write_side(folder, split, count) for split, count in SPEAKERS.items()}
    tree = tiny_tree(str(save_family("qwen2", folder / "llm")), save_tiny_whisper(folder), manifests, folder)
    tree = silenced(tree, folder, "encoder.positional_embedding")  # which is louder than what random weights hear
    for task, wording in (("asr", "Repeat."), ("gender", "Voice?")):
        (folder / f"{task}.txt").write_text(f"{wording}\n")
        tree["tasks"][task] = {"prompts": str(folder / f"{task}.txt")}
    del tree["tasks"]["emotion"]
    tree["stages"] = {"joint": {"tasks": {"asr": 1, "gender": 1}, "lr": 1e-2, "epochs": 30, "batch_size": 8}}
    tree["evaluation"] = {"batch_size": 16, "max_new_tokens": 12, "slots": ["both", "text"]}
    stages = {"teach": {**tree["stages"]["joint"], "train": ["llm"]}}
    run = quiet_run({**tree, "name": "untaught", "stages": stages, "llm": {**tree["llm"], "tuning": TUNED}})
    teach(run)
    run.module.llm.model.save_pretrained(folder / "taught")
    run.module.llm.chat.tokenizer.save_pretrained(folder / "taught")
    return {**tree, "llm": {**tree["llm"], "checkpoint": str(folder / "taught")}}


def teach(run: Run) -> None:
    """Train the LLM on text in the slots, from plain small weights."""
    module, drawing = run.module, run.example_sampler(None, cut=False)
    examples = []
    for utterance in run.data.splits["train"].utterances[: 2 * len(SENTENCES)]:
        for task in ("asr", "gender"):
            one = replace(drawing, weights={task: 1.0})(utterance, 0, 0)
            assert one is not None
            examples.append(replace(one, sources=dict.fromkeys(one.sources, "text"), trains=frozenset()))
    torch.manual_seed(0)
    for weight in module.llm.model.parameters():
        torch.nn.init.normal_(weight, std=0.1) if weight.dim() > 1 else torch.nn.init.ones_(weight)
    module.llm.model.requires_grad_(True)
    optimizer, batch = torch.optim.Adam(module.llm.model.parameters(), 5e-3), collate(examples, run.audio_reader.read)
    for _ in range(TAUGHT):
        loss = module.loss(batch)
        optimizer.zero_grad()
        (loss.total / loss.tokens).backward()
        optimizer.step()


def cripple(tree: dict[str, Any], name: str, **changes: Any) -> Path:
    """The folder of a run that nobody has trained."""
    run = quiet_run({**tree, "name": name, **changes})
    write_bundle(run.recipe.folder / "bundle", run.module, [])
    return run.recipe.folder


def verdicts(folder: Path, *words: str) -> dict[str, dict[str, Any]]:
    """Task -> what the command has written of it."""
    assert main(["diagnose", str(folder), *words]) == 0
    report = json.loads((folder / "diagnosis" / "diagnosis.json").read_text())
    return {each["task"]: each for each in report["tasks"]}


def test_an_encoder_that_hears_nothing(world: dict[str, Any], tmp_path: Path) -> None:
    deaf = silenced(world, tmp_path, "encoder.conv1.weight", "encoder.conv1.bias")
    found = verdicts(cripple(deaf, "deaf"))
    assert {task: each["verdict"] for task, each in found.items()} == {"asr": "encoder", "gender": "encoder"}
    assert found["gender"]["frames"]["best"]["value"] == found["asr"]["frames"]["best"]["value"] == 0.5
    assert found["gender"]["topline"]["value"] == 1.0 and found["asr"]["topline"]["value"] == 0.0


def test_slots_that_hear_a_layer_without_it(world: dict[str, Any], tmp_path: Path) -> None:
    folder = cripple(silenced(world, tmp_path, "encoder.ln_post.weight"), "layers")  # the last layer is its bias
    gender = verdicts(folder, "--tasks", "gender")["gender"]
    assert gender["verdict"] == "layers" and "slots.paralinguistic.layers" in gender["sentence"]
    assert gender["frames"]["last"]["value"] == 0.5 and gender["frames"]["best"]["value"] > 0.9
    assert gender["best_layers"] == [1]


def test_an_adapter_that_loses_it(world: dict[str, Any]) -> None:
    run = quiet_run({**world, "name": "adapter"})
    with torch.no_grad():
        for weight in run.module.adapters.parameters():
            weight.zero_()
    write_bundle(run.recipe.folder / "bundle", run.module, [])
    found = verdicts(run.recipe.folder)
    assert {task: each["verdict"] for task, each in found.items()} == {"asr": "adapter", "gender": "adapter"}
    assert {score["value"] for each in found.values() for score in each["tokens"].values()} == {0.5}
    assert all(each["frames"]["last"]["value"] > 0.9 for each in found.values())


def test_tokens_that_the_llm_does_not_use(world: dict[str, Any]) -> None:
    """An adapter that nobody has trained is a random map of the frames: what they carry is still there."""
    found = verdicts(cripple(world, "tokens"))
    assert {task: each["verdict"] for task, each in found.items()} == {"asr": "tokens", "gender": "tokens"}
    assert found["gender"]["tokens"]["paralinguistic"]["value"] > 0.9 and found["gender"]["answers"]["value"] < 0.6
    assert found["gender"]["train"] == 32 and found["gender"]["test"] == 16
    assert found["gender"]["carriers"] == ["paralinguistic"] and found["asr"]["carriers"] == ["linguistic"]


def test_an_llm_that_cannot_say_it(world: dict[str, Any], tiny_llm: str) -> None:
    found = verdicts(cripple({**world, "llm": {**world["llm"], "checkpoint": tiny_llm}}, "llm"), "--tasks", "gender")
    assert found["gender"]["verdict"] == "llm" and found["gender"]["told"] == 1.0


@pytest.fixture(scope="module")
def trained(world: dict[str, Any]) -> Path:
    """The folder of a run that has learned."""
    recipe = recipes.parse({**world, "name": "trained"})
    file = Path(world["output_dir"]) / "trained.yaml"
    file.write_text(json.dumps(recipe.plain()))
    assert main(["fit", "--config", str(file)]) == 0
    return recipe.folder


def test_a_run_that_has_learned(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(task_answers, "predict", None)  # the run has answered all of this
    found = verdicts(trained)
    told = capsys.readouterr().out
    assert {task: each["verdict"] for task, each in found.items()} == {"asr": "learned", "gender": "learned"}
    report = json.loads((trained / "diagnosis" / "diagnosis.json").read_text())
    loss = report["stage_loss"]
    assert loss["val_final"] >= loss["val_best"] and loss["gap"] == pytest.approx(
        loss["val_final"] - loss["train_final"]
    )
    assert report["source"] == str(trained / "bundle")
    page = (trained / "diagnosis" / "diagnosis.md").read_text()
    for each in found.values():
        assert each["sentence"] in page and each["sentence"] in told
        assert each["loss"]["test"]["speech"] < each["loss"]["test"]["none"]
        assert f"{each['loss']['train']['speech']:.3f}" in page
        assert f"{100 * each['tokens']['linguistic']['value']:.1f} [" in page
        assert (trained / "diagnosis" / f"{each['task']}.png").read_bytes().startswith(b"\x89PNG")
    scored = {record.task: record.value for record in read_results(trained / "evaluation") if record.slots == "both"}
    assert found["asr"]["answers"]["value"] == scored["asr"]


def test_layers_are_computed_once_and_others_from_the_cache(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ["diagnose", str(trained), "--tasks", "gender", "--out", str(out)]
    assert main(words) == 0
    first = json.loads((out / "diagnosis.json").read_text())
    monkeypatch.setattr(pooled_features, "_computed", None)
    monkeypatch.setattr(WhisperEncoder, "forward", None)  # what slots hear is in the run's own cache
    assert main(words) == 0
    assert json.loads((out / "diagnosis.json").read_text()) == first
    assert [each["task"] for each in first["tasks"]] == ["gender"]
    monkeypatch.undo()
    seen: list[Any] = []
    computed = pooled_features._computed

    def counted(*given: Any) -> Frames:
        seen.append(given)
        return computed(*given)

    monkeypatch.setattr(pooled_features, "_computed", counted)
    assert main([*words, "--limit", "8"]) == 0  # other clips
    assert seen and json.loads((out / "diagnosis.json").read_text())["tasks"][0]["test"] == 8


def test_answers_of_another_evaluation_are_made_anew(trained: Path, tmp_path: Path, monkeypatch: Any) -> None:
    made: list[list[str]] = []

    def counted(run: Run) -> list[Prediction]:
        made.append(run.recipe.modes)
        return predict(run)

    monkeypatch.setattr(task_answers, "predict", counted)
    words = ["diagnose", str(trained), "--tasks", "gender", "--out", str(tmp_path)]
    assert main(words) == 0 and made == []
    assert main([*words, "evaluation.max_new_tokens=11"]) == 0 and made == [["both"], ["text"]]


def test_a_bundle_on_manifests_of_ones_own(world: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    """Where the training data are gone, probes are cross-validated over the speakers of the test side."""
    bundle = shutil.copytree(trained / "bundle", tmp_path / "moved")
    test, gone = world["data"]["test"][0]["manifest"], "data.train=[{manifest: nowhere.jsonl}]"
    words = ["diagnose", str(bundle), "--tasks", "asr,gender", "--out", str(tmp_path / "out")]
    assert main([*words, "--test", test, gone]) == 0
    report = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert report["stage_loss"] is None and report["source"] == str(bundle)
    for each in report["tasks"]:
        assert each["verdict"] == "learned" and each["train"] == 0 and each["loss"]["train"] == {}
        assert "cross-validated over 4 folds" in each["notes"][0] and each["frames"]["last"]["n"] == 16
        assert len(each["best_layers"]) == 4
    with refused("not-found", "nowhere.jsonl"):
        diagnose(str(bundle), out=str(tmp_path), overrides=[gone])


def test_test_speakers_are_not_learned_from(world: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    """The training side holds utterances of test speakers: they are left out of what probes learn from."""
    known = [json.loads(line) for line in Path(world["data"]["train"][0]["manifest"]).read_text().splitlines()]
    folder = Path(world["data"]["test"][0]["manifest"]).parent
    shared = [{**line, "speaker": "test0" if line["speaker"] == "train0" else line["speaker"]} for line in known]
    file = write_lines(folder / "shared.jsonl", shared)
    words = ["diagnose", str(trained), "--tasks", "gender", "--out", str(tmp_path)]
    assert main([*words, f"data.train=[{{manifest: {file}}}]"]) == 0
    assert json.loads((tmp_path / "diagnosis.json").read_text())["tasks"][0]["train"] == 28


def test_a_slot_that_says_words_alone_gets_a_caption_for_the_topline(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[str], dict[str, Any]]] = []

    def seen(run: Run) -> list[Prediction]:
        asked.append((run.recipe.modes, dict(run.recipe.evaluation.text)))
        return predict(run)

    monkeypatch.setattr(task_answers, "predict", seen)
    slot = {**world["slots"]["linguistic"], "text": "transcript"}
    tuned = {**world["llm"], "tuning": TUNED}  # as in PE-FT
    stages = {"joint": {**world["stages"]["joint"], "train": ["llm", "speech"]}}
    found = verdicts(cripple(world, "one", slots={"speech": slot}, llm=tuned, stages=stages), "--tasks", "gender")
    gender = found["gender"]
    assert asked == [(["both"], {}), (["text"], {"speech": "caption"})]
    assert gender["told"] == 1.0 and gender["topline"]["n"] == 16
    assert set(gender["loss"]["test"]) == {"speech", "none"}  # the transcript tells nothing
    assert text_of_topline(TASKS.build({"type": "asr"}), {"a": "caption", "b": "caption"}) == {"a": "transcript"}
    assert text_of_topline(TASKS.build({"type": "emotion"}), {"a": "tagged"}) == {}
    assert text_of_topline(TASKS.build({"type": "age"}), {"a": "tagged"}) == {"a": "caption"}


def test_an_encoder_that_was_trained_and_replies(alignment: dict[str, Any]) -> None:
    """SpeechEmotionLlama: one slot, an encoder in the bundle, and tasks that no label describes."""
    found = verdicts(cripple(alignment, "align"))
    assert set(found) == {"response", "asr", "caption", "emotion"}
    assert "trained" in found["asr"]["left_out"]["decoder"]
    for task in ("response", "caption"):
        each = found[task]
        assert set(each["loss"]["test"]) == {"speech", "text", "none"} and each["topline"]["value"] > 0
        assert each["frames"] == each["tokens"] == {} and "probes" in each["left_out"]
    assert set(found["emotion"]["tokens"]) == {"speech"}


def test_a_stage_is_chosen_by_name(fit: Fit) -> None:
    folder = fit(evaluation={"batch_size": 5, "max_new_tokens": 4, "limit": 2, "tasks": ["gender"]})
    before = {file: file.read_bytes() for file in folder.glob("*.*") if file.is_file()}
    found = verdicts(folder, "--stage", "joint", "--tasks", "gender")
    report = json.loads((folder / "diagnosis" / "diagnosis.json").read_text())
    assert report["source"] == str(folder / "stages" / "1-joint" / "best.ckpt")
    losses = read_stage_losses(folder / "stages" / "1-joint")
    assert losses and report["stage_loss"] == {**losses._asdict(), "gap": losses.gap}
    assert found["gender"]["test"] == 6
    assert {file: file.read_bytes() for file in before} == before  # recipe and environment of the run stay
    with refused("unknown-name", "--stage"):
        diagnose(str(folder), stage="jiont")
    with refused("conflict", "--stage"):
        diagnose(str(folder / "bundle"), stage="joint")
    shutil.rmtree(folder / "bundle")
    (folder / "stages" / "3-holistic" / "best.ckpt").unlink()
    with refused("not-found", "best.ckpt"):
        diagnose(str(folder), stage="holistic")
    assert open_trained(folder, None, []).source.endswith("2-disentangle/best.ckpt")  # as far as it has come


def test_mistakes_are_refused(trained: Path, tmp_path: Path) -> None:
    with refused("bad-value", "--limit"):
        diagnose(str(trained), limit=1)
    with refused("unknown-name", "--tasks"):
        diagnose(str(trained), tasks=["gendre"])
    with refused("not-found", "--test"):
        diagnose(str(trained), test=[str(tmp_path / "nowhere.jsonl")])
    with refused("not-found", "recipe.yaml"):
        diagnose(str(tmp_path))
    write_tone(tmp_path / "tone.wav", 0.5, 200)
    empty = write_lines(tmp_path / "empty.jsonl", [{"id": "a", "audio": "tone.wav", "speaker": "x"}])
    with refused("empty", "empty.jsonl"):
        diagnose(str(trained), tasks=["gender"], test=[str(empty)])
