"""The house keeps its floors: rooms use only rooms below them, and every room exists once."""

import ast
import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from undertone.errors import MissingError
from undertone.paths import resolve

ROOT = Path(__file__).parents[1]
FLOORS = {  # room -> rooms it may use, beside the ground floor
    "adapters": set(),
    "encoders": set(),
    "llms": set(),
    "data": set(),
    "evaluation": set(),
    "lightning_modules": {"adapters", "encoders", "llms", "data", "evaluation"},
    "demo": {"adapters", "encoders", "llms", "data", "evaluation", "lightning_modules"},
}
LAZY = {("lightning_modules/commands.py", "demo")}  # the command that makes the demo anew
GROUND = {
    "audio_llms",
    "errors",
    "files",
    "hub",
    "memory",
    "paths",
    "registry",
    "rooms",
    "server",
    "termination",
    "tree",
    "turns",
    "types",
}


def imports_of(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("undertone."):
            names.add(node.module.split(".")[1])
    return names


@pytest.mark.parametrize("room", FLOORS)
def test_a_room_uses_only_rooms_below_it(room: str) -> None:
    for file in (ROOT / room).glob("**/*.py"):
        allowed = FLOORS[room] | GROUND | {room} | {r for f, r in LAZY if (ROOT / f) == file}
        assert imports_of(file) <= allowed, file


def test_the_ground_floor_uses_no_room() -> None:
    for file in (ROOT / "src" / "undertone").glob("*.py"):
        assert imports_of(file) <= GROUND, file


@pytest.mark.parametrize("name", ["adapters", "adapters.frame_stacking_mlp", "data.tasks", "llms.chat"])
def test_a_room_by_its_folders_name_is_the_same_module(name: str) -> None:
    short, full = (f"importlib.import_module({module!r})" for module in (name, f"undertone.{name}"))
    code = f"import importlib, undertone.{name}; a = {short}; b = {full}; assert a is b"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    code = code.replace(f", undertone.{name}", "")  # and when the short name comes first
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_files_can_be_read_in_one_sitting() -> None:
    files = [file for room in (*FLOORS, "src", "benchmarks") for file in (ROOT / room).glob("**/*.py")]
    assert len(files) > 30
    assert not [str(file) for file in files if len(file.read_text("utf-8").splitlines()) > 320]


def test_importing_the_rooms_does_not_import_the_demo() -> None:
    found = "[m for m in sys.modules if m.startswith('undertone.demo')]"
    code = f"import sys, undertone.lightning_modules.cli; assert not {found}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_is_said_once() -> None:
    assert importlib.metadata.version("undertone") == importlib.import_module("undertone").__version__


def test_a_path_into_the_package_names_a_room_that_has_files() -> None:
    assert (resolve("undertone:demo/backbones") / "encoder.safetensors").is_file()
    with pytest.raises(MissingError, match=r"no room 'demos'.*'demo'"):
        resolve("undertone:demos/backbones")
