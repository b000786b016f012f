"""The program itself: version, messages' level, completion, lists for programs and for files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.helpers.errors import refused

from sottovoce import __version__
from sottovoce.cli.main import OF_OTHERS, main
from sottovoce.config.recipe import load
from sottovoce.errors import ConfigError
from sottovoce.logs import set_up_logging


def test_the_version_by_option_and_as_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"sottovoce {__version__}\n"
    done = subprocess.run([sys.executable, "-m", "sottovoce", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"sottovoce {__version__}\n"


def completed(line: str, file: Path) -> set[str]:
    """What a shell offers behind a line; in a process of its own, since argcomplete takes over its file descriptors."""
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n"}
    asked["_ARGCOMPLETE_STDOUT_FILENAME"] = str(file)
    subprocess.run([sys.executable, "-m", "sottovoce"], env=os.environ | asked, check=True)
    return {word.strip() for word in file.read_text().split("\n")}


def test_a_shell_completes_commands_and_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "offered"
    assert {"fit", "evaluate"} <= completed("sottovoce ", file)
    assert completed("sottovoce list ad", file) == {"adapter"}
    assert "--dry-run" in completed("sottovoce fit --", file)
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0 and "sottovoce" in capsys.readouterr().out


def test_one_kind_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "adapter", "--json"]) == 0
    [(kind, found)] = json.loads(capsys.readouterr().out).items()
    pooled = next(one for one in found if one["type"] == "pooled_soft_prompt")
    assert kind == "adapter" and {"name": "tokens", "type": "int", "default": 10} in pooled["knobs"]
    assert not [knob for one in found for knob in one["knobs"] if "Annotated" in knob["type"]]
    assert main(["list", "metric", "--json"]) == 0
    assert "wer" in {one["type"] for one in json.loads(capsys.readouterr().out)["metric"]}


def test_a_list_in_a_file_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "adapter"]) == 0
    told = capsys.readouterr().out
    assert "…" not in told and max(map(len, told.splitlines())) > 100 and "whisper" not in told


def test_the_level_of_messages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    log = logging.getLogger("sottovoce.tests")
    set_up_logging("warning")
    log.info("not told")
    log.warning("told\x1b[2J")
    assert capsys.readouterr().err == "warning: told\\x1b[2J\n"
    monkeypatch.setenv("SOTTOVOCE_LOG", "DEBUG")
    set_up_logging()
    set_up_logging()
    log.debug("more")
    monkeypatch.setenv("LOCAL_RANK", "1")
    set_up_logging()
    log.warning("another process")
    assert capsys.readouterr().err == "debug sottovoce.tests: more\n"
    monkeypatch.setenv("SOTTOVOCE_LOG", "loud")
    with refused("unknown-name", "SOTTOVOCE_LOG"):
        set_up_logging()
    monkeypatch.undo()
    set_up_logging()


def test_an_import_sets_up_nothing() -> None:
    code = (
        "import logging, sottovoce.cli.main; assert not logging.getLogger('sottovoce').handlers + logging.root.handlers"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})


def test_a_recipe_may_stand_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[2]
    recipe = str(root / "conf/quickstart.yaml")
    for words in ([recipe, "seed=7"], ["seed=7", recipe], ["--config", recipe, "seed=7"]):
        assert main(["fit", *words, "--print-config"]) == 0 and "\nseed: 7\n" in capsys.readouterr().out
    for words in ([recipe, recipe], ["seed=7"], [f"name={recipe}"]):  # which of them, or none
        with pytest.raises(SystemExit) as ended:
            main(["fit", *words])
        assert ended.value.code == 2


def test_options_of_other_trainers_are_told_as_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", "conf/quickstart.yaml", "--learning_rate", "1e-3", "--num-train-epochs=3"])
    told = capsys.readouterr().err
    assert "stages.STAGE.lr" in told and "stages.STAGE.epochs" in told


def test_every_key_that_is_told_for_an_option_is_one() -> None:
    keys = {key.replace("stages.STAGE", "stages.joint") for key in OF_OTHERS.values()}
    values = {"llm.checkpoint": "x", "data.train": "x.jsonl", "data.validation": "x.jsonl", "trainer.strategy": "ddp",
              "trainer.precision": "bf16-mixed", "logging": "{samples: 1}", "output_dir": "x"}  # fmt: skip
    with_each = [f"{key}={values.get(key, 1)}" for key in sorted(keys)]
    try:
        load("conf/quickstart.yaml", with_each)
    except ConfigError as error:
        assert not [fault for fault in (error, *error.faults) if fault.code == "unknown-key"]


@pytest.mark.parametrize("words", [["nope.yaml"], ["conf/quickstart.yaml", "stages.joint.lrr=1e-4"]])
def test_a_mistake_in_a_recipe_is_told_before_libraries_are_imported(words: list[str]) -> None:
    program = f"import sys\nfrom sottovoce.cli.main import main\nprint(main(['fit', *{words}]), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.split() == ["2", "False"], done.stderr
