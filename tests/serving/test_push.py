"""A bundle on the hub: what is pushed, and that every command takes it by name; against a hub on localhost."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from tests.conftest import write_tone
from tests.helpers.errors import refused
from tests.helpers.hub import FakeHub
from tests.helpers.runs import quiet_run

import sottovoce as sv
from sottovoce import own_parts
from sottovoce.analysis.trained_run import open_trained
from sottovoce.cli.main import main
from sottovoce.config.recipe import load, parse
from sottovoce.errors import MissingError
from sottovoce.hub import BUNDLE_FILES, bundle_folder, bundle_home
from sottovoce.lightning_modules.bundle import read_bundle, write_bundle
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.serving.push import push

ROOT = Path(__file__).parents[2]
NAME = "lab/quick"
ANSWERS = """
import sys, sottovoce as sv
model = sv.load(sys.argv[1], device="cpu")
print([str(model(clip, "asr", max_new_tokens=8)) for clip in sys.argv[2:]])
"""
PROSODY = """
import torch
from sottovoce.adapters.linear import LinearProjection

class Prosody(LinearProjection):
    def __init__(self, d_audio: int, d_llm: int, *, stack: int = 5):
        super().__init__(d_audio, d_llm, stack=stack)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of the quickstart's, untrained: its frozen parts come with the package."""
    torch.manual_seed(2)
    module = SpeechLLM(load(ROOT / "conf/quickstart.yaml"))
    module.configure_model()
    return write_bundle(tmp_path_factory.mktemp("made") / "bundle", module, [])


@pytest.fixture
def clips(tmp_path: Path) -> list[str]:
    files = [tmp_path / f"{hertz}.wav" for hertz in (150, 220)]
    for number, file in enumerate(files):
        write_tone(file, 0.6 + number, 150 + 70 * number)
    return [str(file) for file in files]


def elsewhere(home: Path, name: str, clips: list[str], **variables: str) -> str:
    """What a bundle answers in a process that has an empty home, and knows nothing but where the hub is."""
    home.mkdir(exist_ok=True)
    known = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    known |= {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", **variables}
    words = [sys.executable, "-c", ANSWERS, name, *clips]
    done = subprocess.run(words, capture_output=True, text=True, env=known, cwd=home)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_pushed_bundle_answers_the_same_on_another_machine_with_and_without_network(
    hub: FakeHub, bundle: Path, clips: list[str], tmp_path: Path
) -> None:
    push(str(bundle), NAME)
    model = sv.load(bundle, device="cpu")
    here = str([str(model(clip, "asr", max_new_tokens=8)) for clip in clips])
    home = tmp_path / "home"
    assert elsewhere(home, NAME, clips, HF_ENDPOINT=hub.url) == here and len({*eval(here)}) > 1
    hub.asked.clear()
    assert elsewhere(home, NAME, clips, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1") == here
    assert not hub.asked


def test_a_repository_is_the_bundle_and_what_its_owner_put_beside_it(hub: FakeHub, bundle: Path) -> None:
    push(str(bundle), NAME)
    first = hub.files(NAME)
    assert set(first) == {*BUNDLE_FILES}
    assert first["trained.safetensors"] == (bundle / "trained.safetensors").read_bytes()
    hub.repositories[NAME].commit("main", first | {"voice.wav": b"RIFF", "code/old.py": b"", "model.pkl": b"bad"})
    push(str(bundle), NAME)
    assert set(hub.files(NAME)) == {*first, "voice.wav", "model.pkl"}
    hub.asked.clear()
    folder = bundle_folder(NAME)
    assert {file.name for file in folder.iterdir()} == {*BUNDLE_FILES}
    assert not any("model.pkl" in asked or "voice.wav" in asked for asked in hub.asked)


def test_a_branch_is_a_revision_and_the_newest_commit_is_taken(hub: FakeHub, bundle: Path) -> None:
    push(str(bundle), NAME, revision="v2", language=["en", "de"], license="apache-2.0")
    with refused("not-found", NAME):  # main is empty
        read_bundle(NAME)
    card = (bundle_folder(f"{NAME}@v2") / "README.md").read_text()
    assert f"sottovoce chat {NAME}@v2 --audio" in card and f'sv.load("{NAME}@v2")' in card
    assert yaml.safe_load(card.split("---\n")[1])["language"] == ["en", "de"]
    push(str(bundle), NAME, revision="v2")
    assert "license: unknown" in (bundle_folder(f"{NAME}@v2") / "README.md").read_text()
    for name in (f"{NAME}@v3", "lab/other", "lab/other@v2"):
        with refused("not-found", name, MissingError):
            bundle_folder(name)


def test_a_private_one_needs_the_token_and_so_does_whoever_writes(
    hub: FakeHub, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(str(bundle), NAME, private=True)
    assert hub.repositories[NAME].private and (bundle_folder(NAME) / "recipe.yaml").is_file()
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", f"{constants.HF_HUB_CACHE}-of-somebody-else")
    with refused("not-found", NAME):
        bundle_folder(NAME)
    with refused("unavailable", NAME) as caught:
        push(str(bundle), NAME)
    assert "HF_TOKEN" in str(caught.value)


def test_every_command_takes_a_bundle_by_name(
    hub: FakeHub, bundle: Path, clips: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(bundle.parent), NAME]) == 0  # as `runs/quickstart`, whose bundle is meant
    manifest = tmp_path / "mine.jsonl"
    lines = [{"id": clip, "audio": clip, "text": "we found it", "speaker": clip} for clip in clips]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    scored = ["--test", str(manifest), "--task", "asr", "evaluation.max_new_tokens=4", f"data.cache={tmp_path / 'c'}"]
    analysis = ["encoder=false", f"manifest={manifest}", "allow=[/]", "limit=2"]
    for words in (
        ["chat", NAME, "--once", "--audio", clips[0]],
        ["predict", NAME, clips[0], "--task", "asr", "--max-new-tokens", "4"],
        ["evaluate", NAME, *scored],
        ["export", NAME, "--out", str(tmp_path / "exported")],
    ):
        assert main(words) == 0, capsys.readouterr().err
    home = tmp_path / "runs" / "lab--quick"
    assert (home / "evaluation" / "mine" / "predictions.jsonl").is_file() and bundle_home(NAME) == Path(
        "runs/lab--quick"
    )
    assert main(["evaluate", NAME]) == main(["diagnose", NAME, "--stage", "joint"]) == 2  # it is a bundle, and no run
    config = str(ROOT / "conf/analysis.yaml")
    assert main(["analyze", NAME, "--config", config, *analysis]) == 0 and (home / "analysis" / "layers.json").is_file()
    capsys.readouterr()
    trained = open_trained(Path(NAME), None, [])
    assert trained.folder == Path("runs/lab--quick") and trained.module.slots


def test_a_run_begins_from_a_bundle_by_name(hub: FakeHub, bundle: Path, tree: dict[str, Any]) -> None:
    push(str(bundle), NAME)
    ours = load(bundle / "recipe.yaml", own=False)
    scored = replace(ours.evaluation, tasks=["asr"])
    data = parse(tree).data
    tasks = {name: node for name, node in ours.tasks.items() if name == "asr"}
    recipe = replace(ours, stages={}, init_from=NAME, data=data, evaluation=scored, tasks=tasks, output_dir="out")
    module = quiet_run(recipe).module
    expected = read_bundle(bundle).trained()
    assert all(torch.equal(weight, expected[name]) for name, weight in module.trained().items()) and expected
    with refused("not-found", "init_from"):
        quiet_run(replace(recipe, init_from="lab/other", name="other"))


def test_a_local_folder_of_that_name_wins(hub: FakeHub, bundle: Path, tmp_path: Path) -> None:
    push(str(bundle), NAME)
    hub.asked.clear()
    copytree(bundle, tmp_path / NAME)
    assert bundle_folder(NAME) == Path(NAME) and bundle_home(NAME) == Path("lab")
    read_bundle(NAME)
    assert not hub.asked


def test_nothing_of_this_machine_is_pushed(hub: FakeHub, tiny_run: Path, tiny_llm: str, tiny_whisper: str) -> None:
    made = tiny_run / "bundle"
    assert {file.stat().st_mode & 0o777 for file in made.rglob("*") if file.is_file()} == {0o644}
    for override, where in (("llm.checkpoint=lab/llm", "encoder.checkpoint"), ("encoder.checkpoint=x/y", "checkpoint")):
        with refused("unsafe", where):
            push(str(made), NAME, overrides=[override])
    assert not hub.asked
    push(str(made), NAME, overrides=["llm.checkpoint=lab/llm", "encoder.checkpoint=openai/whisper-tiny"])
    files = hub.files(NAME)
    for name, content in files.items():
        for private in (Path(tiny_llm).parent, Path(tiny_whisper).parent, tiny_run.parent, Path.home()):
            assert str(private).encode() not in content, name
    recipe = yaml.safe_load(files["recipe.yaml"])
    assert recipe["data"]["train"][0]["manifest"] == "train.jsonl" and "logging" not in recipe
    fields = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert fields["base_model"] == ["lab/llm", "openai/whisper-tiny"] and fields["library_name"] == "sottovoce"
    assert fields["pipeline_tag"] == "audio-text-to-text" and {"asr", "gender"} <= set(fields["tags"])
    scores = json.loads((tiny_run / "evaluation" / "results.json").read_text())
    (wer,) = [row["value"] for row in scores if (row["task"], row["metric"], row["slots"]) == ("asr", "wer", "both")]
    results = fields["model-index"][0]["results"]
    metrics = {metric["name"]: metric["value"] for result in results for metric in result["metrics"]}
    assert metrics["asr: WER (english) ↓"] == pytest.approx(100 * wer, abs=0.06)
    assert {result["task"]["type"] for result in results} == {"automatic-speech-recognition", "audio-classification"}


def test_code_goes_along_and_needs_consent_where_it_arrives(
    hub: FakeHub, tmp_path: Path, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_parts, "_named", set())
    monkeypatch.setenv(own_parts.CONSENT, "0")
    (tmp_path / "prosody.py").write_text(PROSODY)
    quick = load(ROOT / "conf/quickstart.yaml").plain()
    own = {"adapter": {"type": f"{tmp_path}/prosody.py:Prosody"}, "text": "caption"}
    recipe = parse({**quick, "slots": {**quick["slots"], "paralinguistic": own}})
    module = SpeechLLM(recipe)
    module.configure_model()
    made = write_bundle(tmp_path / "made" / "bundle", module, [])
    push(str(made), NAME)
    assert hub.files(NAME)["code/prosody.py"] == PROSODY.encode()
    assert (
        b"./code/prosody.py:Prosody" in hub.files(NAME)["recipe.yaml"] and b"prosody.py" in hub.files(NAME)["README.md"]
    )
    with refused("unsafe", "recipe.yaml"):
        read_bundle(NAME)
    monkeypatch.setenv(own_parts.CONSENT, "1")
    assert type(read_bundle(NAME).adapters["paralinguistic"]).__name__ == "Prosody"
    (made / "code" / "prosody.py").write_text(f"HERE = {str(tmp_path / 'made')!r}\n")
    with refused("damaged", "prosody.py"):
        push(str(made), NAME)


def test_what_cannot_be_pushed_is_refused_before_anything_is_sent(hub: FakeHub, bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    copytree(bundle, broken)
    (broken / "README.md").write_text(f"# mine\n\nThe clips are in {tmp_path}/clips.\n")
    with refused("unsafe", "README.md:21"):
        push(str(broken), NAME)
    (broken / "trained.safetensors").write_bytes(b"\0" * 100)
    with refused("damaged", "trained.safetensors"):
        push(str(broken), NAME)
    for name in ("quick", "a/b/c", "lab/quick@v2", "../quick"):
        with refused("bad-value", "repository"):
            push(str(bundle), name)
    assert not hub.asked


def test_a_hub_that_is_not_there_is_one_message(
    bundle: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(bundle), NAME]) == main(["chat", NAME]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 2 and all(line.startswith(f"sottovoce: {NAME}: ") for line in told)
