"""The packages form a directed acyclic graph: each uses only those above it, in every form of import."""

import ast
import importlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sottovoce.errors import MissingError
from sottovoce.paths import resolve

ROOT = Path(__file__).parents[2]
PACKAGE = "sottovoce"
ROOMS = ("adapters", "conf", "data", "demo", "encoders", "evaluation", "lightning_modules", "llms")  # at the root
APART = ("adapters", "encoders", "llms", "data", "evaluation")  # they meet further down
ORDER = (  # a package may use those above it; modules directly in the package are the ground
    "", *APART, "config", "training", "lightning_modules", "scoring", "fit", "serving", "webpage", "estimation",
    "analysis", "comparison", "generation", "demo", "cli",
)  # fmt: skip
FIT = "sottovoce.lightning_modules.fit"  # stands below `scoring`, beside whose scores it trains: a floor of its own


def sources() -> Iterator[tuple[str, Path]]:
    """Every module of the package with its file, by its full name."""
    for top in (ROOT / "src" / PACKAGE, *(ROOT / room for room in ROOMS)):
        for file in sorted(top.rglob("*.py")):
            inside = file.relative_to(ROOT if top.parent == ROOT else top).with_suffix("").parts
            yield ".".join((PACKAGE, *inside)).removesuffix(".__init__"), file


MODULES = dict(sources())
GROUND = {name for name in MODULES if name.count(".") == 1 and MODULES[name].name != "__init__.py"}


def package_of(module: str) -> str:
    """The package that a module lies in: its name below `sottovoce`, and "" for the ground."""
    parts = module.split(".")
    if module == FIT:
        return "fit"
    return "" if len(parts) == 1 or f"{PACKAGE}.{parts[1]}" in GROUND else parts[1]


def imports_of(text: str, module: str) -> set[str]:
    """Full names of ours that a source imports: absolute, relative, as a package's attribute, or by a string."""
    found: set[str] = set()
    tree = ast.parse(text)
    tree.body = [node for node in tree.body if ast.unparse(node).partition("\n")[0] != "if __name__ == '__main__':"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = module.split(".")[: -node.level]
                origin = ".".join([*above, *([node.module] if node.module else [])])
            found |= {origin} | {f"{origin}.{a.name}" for a in node.names if f"{origin}.{a.name}" in MODULES}
        elif isinstance(node, ast.Call) and (named := _named_import(node)):
            found.add(named)
    return {name for name in found if name == PACKAGE or name.startswith(f"{PACKAGE}.")}


def _named_import(call: ast.Call) -> str | None:
    """The module of `import_module("...")` and `__import__("...")`, as far as it is written out."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    first = call.args[0] if call.args else None
    if name not in ("import_module", "__import__") or not isinstance(first, ast.Constant):
        return None
    return str(first.value)


def faults(module: str, text: str) -> list[str]:
    """The imports of a module that lead down, or across between packages that stay apart."""
    own, found = package_of(module), []
    for name in sorted(imports_of(text, module)):
        other = package_of(name)
        if other in ("", own):
            continue
        if ORDER.index(other) > ORDER.index(own) or (own in APART and other in APART):
            found.append(f"{module} imports {name}")
    return found


def test_the_packages_form_a_graph_without_circles() -> None:
    assert len(MODULES) > 150
    assert {package_of(name) for name in MODULES} - {"conf"} == set(ORDER)
    assert not [fault for name, file in MODULES.items() for fault in faults(name, file.read_text("utf-8"))]


@pytest.mark.parametrize(
    "line",
    [
        "from sottovoce.lightning_modules.speech_llm import SpeechLLM",
        "from sottovoce.lightning_modules import speech_llm",
        "import sottovoce.lightning_modules.speech_llm as module",
        "from ..lightning_modules import speech_llm",
        "from .. import lightning_modules",
        "import importlib; importlib.import_module('sottovoce.lightning_modules.speech_llm')",
        "__import__('sottovoce.lightning_modules')",
        "def later():\n    from sottovoce.lightning_modules import speech_llm",
        "if TYPE_CHECKING:\n    from sottovoce.scoring import predict",
        "from sottovoce.cli.main import main",
        "from sottovoce.encoders.base import Encoder",
    ],
)
def test_an_import_that_is_turned_round_is_found(line: str) -> None:
    assert faults("sottovoce.adapters.base", line)


def test_what_is_trained_and_scored_stands_below_the_lightning_room() -> None:
    assert faults("sottovoce.lightning_modules.curriculum", "from sottovoce.lightning_modules.fit import fit")
    assert faults("sottovoce.scoring.predict", "from sottovoce.lightning_modules.fit import fit")
    assert not faults("sottovoce.comparison.table", "from sottovoce.lightning_modules.fit import fit")


def test_the_lightning_room_holds_what_touches_lightning() -> None:
    """Each file imports Lightning, or works on the LightningModule."""
    files = [file for file in (ROOT / "lightning_modules").glob("*.py") if file.name != "__init__.py"]
    assert 5 < len(files) < 20
    for file in files:
        text = file.read_text("utf-8")
        names = {n.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for n in node.names}
        names |= {str(n.module) for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)}
        direct = any(name.split(".")[0] == "lightning" for name in names)
        assert direct or "sottovoce.lightning_modules.speech_llm" in names, file


def test_the_rooms_at_the_root_are_parts_of_the_package() -> None:
    for room in ROOMS:
        assert (ROOT / "src" / PACKAGE / room).resolve() == ROOT / room


def test_files_can_be_read_in_one_sitting() -> None:
    files = [*MODULES.values(), *(ROOT / "benchmarks").glob("*.py")]
    assert not [str(file) for file in files if len(file.read_text("utf-8").splitlines()) > 320]


def test_importing_the_command_line_does_not_import_the_demo() -> None:
    found = "[m for m in sys.modules if m.startswith('sottovoce.demo')]"
    code = f"import sys, sottovoce.cli.main; assert not {found}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_is_said_once() -> None:
    assert importlib.metadata.version("sottovoce") == importlib.import_module("sottovoce").__version__


def test_a_path_into_the_package_names_a_room_that_has_files() -> None:
    assert (resolve("sottovoce:demo/backbones") / "encoder.safetensors").is_file()
    with pytest.raises(MissingError, match=r"no room 'demos'.*'demo'"):
        resolve("sottovoce:demos/backbones")
