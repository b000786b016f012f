"""Parts of one's own, named by file (`./prosody.py:Prosody`) or import path (`my_lab.prosody:Prosody`).

To name one is to run its code. A recipe may name what its user wrote; what a bundle or a finished run names runs only
if the same code is named by the user, on the command line or in a recipe of this process, or if the user consents.
"""

import hashlib
import os
import re
import sys
import traceback
from collections.abc import Iterator
from functools import cache
from importlib import import_module, metadata
from importlib.util import module_from_spec, spec_from_file_location
from inspect import isclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from sottovoce.errors import Code, ConfigError, brief, first_line, nearest

CONSENT = "SOTTOVOCE_ALLOW_CODE"  # environment variable; the commands' --allow-code sets it
BUNDLE_MARK = "fingerprints.json"  # a recipe beside such a file is a bundle's
_NAME = re.compile(r"(?P<place>.+\.py|[A-Za-z_][\w.]*):(?P<attribute>[A-Za-z_]\w*)")
_named: set[str] = set()  # what the user has named in this process: parts as `_identity` tells them apart


def is_own(name: object) -> bool:
    """Whether a `type` names a file or an import path."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def allow_code() -> None:
    """Consent to run what bundles and runs name, in this process and those that it starts."""
    os.environ[CONSENT] = "1"


def names_in(node: Any) -> Iterator[str]:
    """The `type`s of a tree that name files or import paths; entries of `callbacks` may be names alone."""
    if isinstance(node, dict):
        if is_own(name := node.get("type")):
            yield str(name)
        for key, value in node.items():
            yield from names_in(_callbacks(value) if key == "callbacks" else value)
    elif isinstance(node, list):
        for value in node:
            yield from names_in(value)


def located_in(node: Any, folder: Path) -> Any:
    """The tree with files of its parts as absolute paths: those that lie at `folder`, else at the working directory."""
    if isinstance(node, list):
        return [located_in(value, folder) for value in node]
    if not isinstance(node, dict):
        return node
    tree = {key: located_in(_callbacks(value) if key == "callbacks" else value, folder) for key, value in node.items()}
    if is_own(name := node.get("type")) and (place := str(name).rpartition(":")[0]).endswith(".py"):
        given = Path(place).expanduser()
        file = next((at / given for at in (folder, Path.cwd()) if (at / given).is_file()), given)
        tree["type"] = f"{os.path.abspath(file)}:{str(name).rpartition(':')[2]}"
    return tree


def _callbacks(nodes: Any) -> Any:
    return [{"type": node} if isinstance(node, str) else node for node in nodes] if isinstance(nodes, list) else nodes


def name_by_user(tree: Any) -> None:
    """Note that the user has named the parts of a tree."""
    _named.update(map(_identity, names_in(tree)))


def check_consent(tree: Any, source: Path) -> None:
    """`ConfigError` where a tree of somebody else's file names code that the user has not, without consent."""
    if os.environ.get(CONSENT, "0") not in ("", "0"):
        return
    for name in names_in(tree):
        if _identity(name) not in _named:
            why = f"it names code, {brief(name, 200)}, which would run. If you trust it, say --allow-code, or set "
            raise ConfigError.at(source, "unsafe", f"{why}{CONSENT}=1")


def entry_points(group: str, name: str | None = None) -> list[metadata.EntryPoint]:
    """Plug-ins that installed packages declare, all of a group or those of a name, as `importlib.metadata` has them.

    That reads a file of every package, for each question: here once, until something is installed.
    """
    folders = tuple(_Folder(place, _changed(place)) for place in sys.path)
    return [point for point in _declared(folders).get(group, ()) if name in (None, point.name)]


class _Folder(NamedTuple):
    """A folder in which Python looks for packages, and when it was last changed."""

    path: str
    changed: int


def _changed(path: str) -> int:
    try:
        return os.stat(path or ".").st_mtime_ns
    except OSError:
        return 0


@cache
def _declared(_folders: tuple[_Folder, ...]) -> dict[str, list[metadata.EntryPoint]]:
    points = metadata.entry_points()
    return {group: list(points.select(group=group)) for group in points.groups if group.startswith("sottovoce.")}


def origin(name: str, group: str) -> dict[str, str] | None:
    """Where a component comes from, for a bundle: a file or module with its SHA-256, or a package; None if ours."""
    if is_own(name):
        place = name.rpartition(":")[0]
        file = place if place.endswith(".py") else getattr(import_module(place), "__file__", None)
        return {"type": name} | ({"sha256": _sha256(Path(file))} if file else {})
    for plugin in entry_points(group=group, name=name):
        package = plugin.dist
        if package is not None and package.name != "sottovoce":
            return {"type": name, "package": package.name, "version": package.version}
    return None


def load_part(name: str, kind: str) -> type:
    """The class that a file or an import path names; a ConfigError where it cannot be had, with the line at fault."""
    place, _, attribute = name.rpartition(":")
    is_file = place.endswith(".py")
    try:
        module = _module_of(Path(place).expanduser()) if is_file else _imported(place)
    except Exception as error:  # somebody's code may raise anything
        code: Code = "not-found" if isinstance(error, (FileNotFoundError, ModuleNotFoundError)) else "damaged"
        raise ConfigError(f"the {kind} {name} cannot be loaded: {told(error)}", code=code, where="type") from error
    if (found := getattr(module, attribute, None)) is None:
        known = [name for name, value in vars(module).items() if isclass(value) and value.__module__ == module.__name__]
        told_names = f"the {kind} {name} cannot be loaded: there is no {attribute!r} in it.{nearest(attribute, known)}"
        raise ConfigError(told_names, code="unknown-name", where="type")
    if not isclass(found):
        raise ConfigError(f"{name} is no class, which a {kind} must be", code="bad-value", where="type")
    return found


def told(error: Exception) -> str:
    """An error of somebody's code, with the last line of it that ran."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {brief(first_line(error), 300)}{where}"


def _imported(module: str) -> ModuleType:
    if os.getcwd() not in sys.path:  # as `python -m` has it, at the end
        sys.path.append(os.getcwd())
    return import_module(module)


def _module_of(file: Path) -> ModuleType:
    """The module of a file, run once for each content."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file.absolute()}")
    name = f"sottovoce_own_{file.stem}_{_sha256(file)[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _identity(name: str) -> str:
    """A file by its content, so that a copy of it is the same; an import path by itself."""
    place, _, attribute = name.rpartition(":")
    file = Path(place).expanduser()
    return f"{_sha256(file)}:{attribute}" if place.endswith(".py") and file.is_file() else name


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
