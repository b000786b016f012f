"""The map of the package: its layers by imports, and the first docstring line of every file.

`python docs/gen_map.py` writes docs/map.txt, and the packages between the marks in docs/architecture.md.
"""

import ast
import re
from collections import defaultdict
from functools import cache
from glob import glob
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PAGE, MAP = ROOT / "docs" / "architecture.md", ROOT / "docs" / "map.txt"
BEGIN, END = "<!-- packages: python docs/gen_map.py -->\n", "<!-- end of packages -->\n"
ENTRIES = ("sottovoce.lightning_modules.fit", "sottovoce.__main__")  # they may import what stands above them


@cache
def modules() -> dict[str, Path]:
    """Every module by its full name, with its file: `src/sottovoce` and what its links lead to."""
    files = glob("sottovoce/**/*.py", root_dir=SOURCE, recursive=True)
    names = (name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in files)
    return dict(sorted(zip(names, map(SOURCE.joinpath, files), strict=True)))


@cache
def tree(file: Path) -> ast.Module:
    """The syntax tree of a file, read once."""
    return ast.parse(file.read_text("utf-8"))


def package_of(module: str) -> str:
    """`data` for `sottovoce.data.tts.base`; "" for the modules directly in `sottovoce`."""
    name = ".".join(module.split(".")[:2])
    return name.partition(".")[2] if modules()[name].name == "__init__.py" else ""


def layers() -> list[list[str]]:
    """Packages by the longest chain of imports below them; a package imports from earlier layers alone."""
    uses: dict[str, set[str]] = defaultdict(set)
    for module, file in modules().items():
        own = package_of(module)
        for node in ast.walk(tree(file)) if module not in ENTRIES else ():
            target = node.module if isinstance(node, ast.ImportFrom) else None
            if isinstance(node, ast.Constant) and isinstance(node.value, str):  # a command's "module:function"
                named = re.fullmatch(r"([\w.]+):\w+", node.value)
                target = f"sottovoce.{named[1]}" if named else None
            if target in modules():
                uses[own].add(package_of(str(target)))
        uses[own] -= {own}
    sorter, found = TopologicalSorter(uses), list[list[str]]()
    sorter.prepare()  # which tells of packages that import each other in a circle
    while sorter.is_active():
        found.append(sorted(sorter.get_ready()))
        sorter.done(*found[-1])
    return found


def summary(file: Path) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((ast.get_docstring(tree(file)) or "").split("\n\n")[0].split())


def packages() -> str:
    """The layers and a table of the packages, in Markdown."""
    order = layers()
    shown = "\n".join("    " + "  ".join(package or "sottovoce.*" for package in layer) for layer in order)
    rows = [f"| `{p}` | {summary(modules()[f'sottovoce.{p}'])} |" for layer in order for p in layer if p]
    return "\n".join([shown, "", "| package | content |", "|---|---|", *rows]) + "\n"


def files() -> str:
    """A line for every file, package by package, in plain text."""
    lines = [f"{__doc__.partition('.')[0]}. Written by `python docs/gen_map.py`."]
    order = [package for layer in layers() for package in layer]
    for _, file in sorted(modules().items(), key=lambda item: order.index(package_of(item[0]))):
        place = str(file.relative_to(SOURCE / "sottovoce"))
        if file.name == "__init__.py":
            lines += ["", f"{place.removesuffix('__init__.py'):36}{summary(file)}"]
        else:
            lines.append(f"  {place:34}{summary(file)}")
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/architecture.md with the packages as they are now."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{packages()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    MAP.write_text(files(), "utf-8")
