"""Map of the package: its layers by imports, and the first docstring line of every file.

`python docs/gen_map.py` writes it anew between the marks in docs/architecture.md.
"""

import ast
import os
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- map: python docs/gen_map.py -->\n", "<!-- end of map -->\n"
ENTRY = "sottovoce.lightning_modules.fit"  # an entry: it may import what stands above its own package


def modules() -> dict[str, Path]:
    """Every module by its full name, with its file: `src/sottovoce` and what its links lead to."""
    found = {}
    for folder, _, files in os.walk(ROOT / "src" / "sottovoce", followlinks=True):
        for file in (Path(folder) / name for name in files if name.endswith(".py")):
            parts = file.relative_to(ROOT / "src").with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = file
    return dict(sorted(found.items()))


def package_of(module: str, known: dict[str, Path]) -> str:
    """`data` for `sottovoce.data.tts.base`; "" for the modules directly in `sottovoce`."""
    name = ".".join(module.split(".")[:2])
    return name.partition(".")[2] if known[name].name == "__init__.py" else ""


def layers(known: dict[str, Path]) -> list[list[str]]:
    """Packages by the longest chain of imports below them; a package imports from earlier layers alone."""
    uses: dict[str, set[str]] = defaultdict(set)
    for module, file in known.items():
        own = package_of(module, known)
        for node in ast.walk(ast.parse(file.read_text("utf-8"))) if module != ENTRY else ():
            target = node.module if isinstance(node, ast.ImportFrom) else None
            if target in known:
                uses[own].add(package_of(str(target), known))
        uses[own] -= {own}
    ranks: dict[str, int] = {}
    while len(ranks) < len(uses):
        ready = {p: max((ranks[u] for u in used), default=-1) for p, used in uses.items() if used <= ranks.keys()}
        if ready.keys() == ranks.keys():
            raise ValueError(f"packages import each other in a circle: {sorted(uses.keys() - ranks.keys())}")
        ranks = {package: rank + 1 for package, rank in ready.items()}
    return [sorted(p for p in ranks if ranks[p] == rank) for rank in range(max(ranks.values()) + 1)]


def summary(file: Path) -> str:
    """The first line of a docstring, up to a colon or semicolon if that leaves three words."""
    text = " ".join((ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").split("\n\n")[0].split())
    for mark in ("; ", ". ", ": "):
        head = text.partition(mark)[0]
        text = head if len(head.split()) > 2 else text
    return text.rstrip(".:").replace("|", "\\|")


def render() -> str:
    """The map in Markdown."""
    known = modules()
    order = layers(known)
    shown = "\n".join("    " + " | ".join(package or "sottovoce (modules)" for package in layer) for layer in order)
    parts = ["Layers, computed from the imports; a package imports only from the lines above its own:\n", shown + "\n"]
    for package in [package for layer in order for package in layer]:
        files = {m: f for m, f in known.items() if package_of(m, known) == package}
        root = known.get(f"sottovoce.{package}", known["sottovoce"])
        rows = [
            f"`{file.relative_to(root.parent)}`|{summary(file)}" for file in files.values() if file.name != "__init__.py"
        ]
        parts.append(f"### `{package or 'src/sottovoce'}`\n\n{summary(root)}.\n")
        if rows:
            parts.append("\n".join(["file|content", "---|---", *rows]) + "\n")
    return "\n".join(parts)


def page() -> str:
    """docs/architecture.md with the map as it is now."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{render()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
