"""Parts of one's own by file or import path, and attributes in YAML: they train, go with the bundle, need consent."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_plugin import MODULE
from tests.conftest import write_lines
from tests.helpers.errors import refused
from tests.helpers.runs import Fit, Write

from sottovoce import own_parts
from sottovoce.adapters import ADAPTERS
from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.data.own_attribute import build_task, choices_of
from sottovoce.data.tasks import TASKS
from sottovoce.data.utterance import Utterance
from sottovoce.errors import BundleError, ConfigError
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.registry import Registry
from sottovoce.serving.chat import wording

ACCENT: dict[str, Any] = {"type": "attribute", "choices": ["us", "uk"]}


@pytest.fixture(autouse=True)
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which nothing has been named yet."""
    monkeypatch.setattr(own_parts, "_named", set())
    monkeypatch.setenv(own_parts.CONSENT, "0")


def with_adapter(tree: dict[str, Any], kind: str) -> dict[str, Any]:
    slots = {**tree["slots"], "paralinguistic": {"adapter": {"type": kind, "width": 4}, "text": "caption"}}
    return {"slots": slots, "stages": {"joint": tree["stages"]["joint"]}}


def test_an_adapter_in_a_file_beside_the_recipe_trains_and_its_bundle_needs_consent(
    fit: Fit, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "prosody.py").write_text(MODULE)
    bundle = fit(**with_adapter(tree, "./prosody.py:Prosody")) / "bundle"
    assert "--allow-code" in capsys.readouterr().out.partition("sottovoce chat")[2]
    assert (bundle / "code" / "prosody.py").read_text() == MODULE
    assert "./code/prosody.py:Prosody" in (bundle / "recipe.yaml").read_text()
    assert str(tmp_path / "prosody.py") not in (bundle / "recipe.yaml").read_text()
    (told,) = json.loads((bundle / "fingerprints.json").read_text())["code"]
    assert told["type"] == "./code/prosody.py:Prosody" and len(told["sha256"]) == 64
    read_bundle(bundle)  # the same code has been named by the user, in this process

    ran = tmp_path / "ran"
    own_parts._named.clear()
    (tmp_path / "prosody.py").unlink()
    with refused("unsafe", "recipe.yaml", ConfigError) as caught:
        read_bundle(bundle)
    assert "--allow-code" in str(caught.value)
    extending = tmp_path / "mine.yaml"  # to extend a bundle is to open it
    extending.write_text(f"extends: {bundle / 'recipe.yaml'}\n")
    with refused("unsafe", "recipe.yaml", ConfigError):
        recipes.load(extending)
    monkeypatch.setenv(own_parts.CONSENT, "1")
    read_bundle(bundle)
    (bundle / "code" / "prosody.py").write_text(f"open({str(ran)!r}, 'w')\n{MODULE}")
    with refused("damaged", "prosody.py", BundleError):
        read_bundle(bundle)
    assert not ran.exists()


def test_a_bundle_that_names_code_is_refused_by_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "bad.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for name in ("trained.safetensors", "fingerprints.json"):
        (evil / name).write_text("{}")
    (evil / "recipe.yaml").write_text("name: x\nencoder: {type: './bad.py:X'}\n")
    lines = write_lines(tmp_path / "test.jsonl", [])
    for words in (
        ["chat", str(evil)],
        ["evaluate", str(evil), "--test", str(lines)],
        ["judge", str(evil)],
        ["diagnose", str(evil)],
    ):
        assert main(words) == 2
        assert "--allow-code" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert main(["chat", str(evil), "--allow-code"]) == 2  # consent is given: its code runs, and has no class
    assert "bad.py:X" in capsys.readouterr().err and (tmp_path / "ran").exists()
    assert os.environ.pop(own_parts.CONSENT) == "1"


def test_an_import_path_names_a_component_of_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_lab_of_tests.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    filled = ADAPTERS.check({"type": "own_lab_of_tests:Prosody"})
    assert filled == {"type": "own_lab_of_tests:Prosody", "width": 8, "scales": [1.0]}
    assert type(ADAPTERS.build(filled, 4, 6)).__name__ == "Prosody"
    with refused("unknown-key", "adapter.widht"):
        ADAPTERS.check({"type": "own_lab_of_tests:Prosody", "widht": 3})
    other: Registry[Any] = Registry("judge")
    assert other.get("own_lab_of_tests:Prosody").__module__ == "own_lab_of_tests"


@pytest.mark.parametrize(
    ("text", "name", "code", "told"),
    [
        (MODULE, "./absent.py:Prosody", "not-found", "absent.py"),
        (MODULE, "no_such_lab.prosody:Prosody", "not-found", "no_such_lab"),
        (MODULE, "FILE:Prosdy", "unknown-name", "no 'Prosdy' in it. Did you mean 'Prosody'?"),
        ("width = 3", "FILE:width", "bad-value", "no class"),
        ("import torch\nraise RuntimeError('mine')", "FILE:Prosody", "damaged", "mine (broken.py:2)"),
        ("def f(:", "FILE:Prosody", "damaged", "SyntaxError"),
    ],
)
def test_a_part_that_cannot_be_had_is_told_with_its_line(
    text: str, name: str, code: Any, told: str, tmp_path: Path
) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    with refused(code, "adapter.type", ConfigError) as caught:
        ADAPTERS.check({"type": name.replace("FILE", str(file))}, "adapter")
    assert told in str(caught.value)


def test_an_attribute_in_yaml_trains_and_is_scored(
    fit: Fit, tree: dict[str, Any], manifests: dict[str, Path], tmp_path: Path
) -> None:
    sides = {}
    for split, file in manifests.items():
        lines = [json.loads(text) for text in file.read_text().splitlines()]
        for i, line in enumerate(lines):
            line["audio"] = str(file.parent / line["audio"]) if "audio" in line else line.get("audio")
            line["labels"] = {**line.get("labels", {}), "accent": ACCENT["choices"][i % 2]}
        made = write_lines(tmp_path / f"{split}.jsonl", [{k: v for k, v in x.items() if v is not None} for x in lines])
        sides[split] = [{"manifest": str(made), "root": str(file.parent), "allow": ["/"]}]
    stage = {**tree["stages"]["joint"], "tasks": {"accent": 1, "gender": 1}, "epochs": 1}
    folder = fit(
        tasks={**tree["tasks"], "accent": {**ACCENT, "ask": "Which accent? {choices}", "says": "It is {label}."}},
        data={**tree["data"], **sides}, stages={"joint": stage},
    )  # fmt: skip
    rows = [json.loads(text) for text in (folder / "evaluation" / "predictions.jsonl").read_text().splitlines()]
    assert {row["label"] for row in rows if row["task"] == "accent"} == {"us", "uk"}
    assert "accent" in (folder / "evaluation" / "results.md").read_text()
    model = read_bundle(folder / "bundle")
    assert wording(model, "accent") == "Which accent? us, uk"


def test_an_attribute_of_ones_own_has_wordings_and_a_sentence() -> None:
    task = build_task("regional_accent", ACCENT)
    assert task.name == "regional_accent" and len(set(task.instructions())) == 6
    assert all("regional accent" in text and "us, uk" in text and "{" not in text for text in task.instructions())
    spoken = Utterance("a", Path("a.wav"), None, None, 1.0, {"regional_accent": "uk"})
    assert task.target(spoken) == "The regional accent is uk." and task.parse("uk it is") == "uk"
    assert choices_of({"regional_accent": task})["regional_accent"] == ("us", "uk")
    asked = build_task("accent", {**ACCENT, "ask": ["A? {choices}", "B?"], "says": "It is {label}!"})
    assert asked.instructions() == ["A? us, uk", "B?"]


@pytest.mark.parametrize(
    ("tasks", "code", "where"),
    [
        ({"accent": {"choices": ["us", "uk"]}}, "unknown-name", "tasks"),
        ({"accent": {"type": "attribute"}}, "missing-key", "tasks.accent.choices"),
        ({"accent": {**ACCENT, "choices": ["us"]}}, "bad-value", "tasks.accent.choices"),
        ({"accent": {**ACCENT, "says": "It is so."}}, "missing-key", "sentence"),
        ({"accent": {**ACCENT, "ask": "{nobody}?"}}, "unknown-name", "tasks.accent.ask"),
        ({"accent": {**ACCENT, "ask": "?", "prompts": "x.txt"}}, "conflict", "tasks.accent.ask"),
        ({"german": {"type": "asr"}}, "conflict", "tasks.german.type"),
    ],
)
def test_faults_of_an_attribute_are_named(tree: dict[str, Any], tasks: dict[str, Any], code: Any, where: str) -> None:
    with refused(code, where, ConfigError):
        recipes.parse({**tree, "tasks": {**tree["tasks"], **tasks}})


def test_a_broken_task_of_a_package_breaks_nobody_who_does_not_name_it(
    write_recipe: Write, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its labels may stand in a manifest, too."""
    from sottovoce import registry

    class Broken:
        name, value, group, dist = "digit", "my_lab:Digit", "sottovoce.task", None

        def load(self) -> None:
            raise ImportError("somebody's mistake")

    def points(group: str, name: str | None = None) -> list[Broken]:
        return [Broken()] if group == "sottovoce.task" and name in (None, "digit") else []

    monkeypatch.setattr(registry, "entry_points", points)
    recipe = recipes.load(write_recipe())
    assert "two" in choices_of({})["digit"] and "digit" not in recipe.tasks
    with refused("unavailable", "tasks.digit.type", ConfigError) as caught:
        recipes.parse({**tree, "tasks": {**tree["tasks"], "digit": {}}})
    assert "somebody's mistake" in str(caught.value)
    with refused("unavailable", "type", ConfigError):
        TASKS.get("digit")
