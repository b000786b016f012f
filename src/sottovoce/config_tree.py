"""YAML files that may extend one another, and overrides from the command line: plain nested dicts come out.

A file may come from somebody else. It is measured before anything is made of it, nothing that it says is imported, and
it cannot grant what only the command line may grant: to run code that comes with a checkpoint.
"""

from collections.abc import Iterable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any, cast

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sottovoce.errors import ConfigError, brief

Tree = dict[str, Any]
TRUST = "trust_remote_code"  # the key that a file may have, but not set to true

_BYTES = 1 << 20  # of a file; the largest recipe of ours has 6,000
_NODES = 100_000  # keys and values, those that aliases repeat counted again
_DEPTH = 50
_FILES = 100  # that one recipe extends, counted each time


def read_tree(path: Path, overrides: Iterable[str] = ()) -> Tree:
    """Read a YAML file with all that it extends, then apply `key.sub=value` overrides in order.

    Raises:
        ConfigError: a file is missing, is not a mapping, is no recipe by its size, or extends itself; an override is
            not `key=value`; or a file asks for trust that no override gives.
    """
    tree = _Reader().read(path, ())
    asks = [*_trusting(tree)]
    for override in overrides:
        change = _change(override)
        asks = [key for key in asks if key not in _trusting(change)]
        tree = merge(tree, change)
    if granted := [key for key in asks if key in _trusting(tree)]:
        raise ConfigError(
            f"{path}: {granted[0]}: the file asks to run code that comes with the checkpoint. If you trust that code, "
            f"say so on the command line: --trust-remote-code, or {granted[0]}=true"
        )
    return tree


def read_overrides(overrides: Iterable[str]) -> Tree:
    """What `key.sub=value` arguments say.

    Raises:
        ConfigError: one is not `key=value`, or its value is not readable.
    """
    tree: Tree = {}
    for override in overrides:
        tree = merge(tree, _change(override))
    return tree


def _change(override: str) -> Tree:
    if "=" not in override:
        raise ConfigError(f"override {override!r}: write key=value, such as stages.joint.lr=1e-4")
    try:
        return _plain(OmegaConf.from_dotlist([override]))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ConfigError(f"override {override!r}: {_first(error)}") from None


def _trusting(node: Any, where: str = "") -> Iterator[str]:
    """The keys of a tree by which code of a checkpoint would run."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        place = f"{where}.{key}" if where else str(key)
        if key == TRUST and str(value).lower() not in ("false", "none", "0", "no", "off", "f", "n"):
            yield place
        else:
            yield from _trusting(value, place)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds: plain values in dicts and lists; no tag of it makes any other object.

    Raises:
        ConfigError: it cannot be read, or is too large, too deep, or too large once its aliases are written out.
    """
    try:
        if path.stat().st_size > _BYTES:
            raise ConfigError(f"{path}: {path.stat().st_size} bytes are no recipe; at most {_BYTES} are read")
        text = path.read_text("utf-8")
        _measure(text, path)
        node = OmegaConf.to_container(OmegaConf.load(StringIO(text)))
        _check_references(node, path)
        return node
    except ConfigError:
        raise
    except Exception as error:  # PyYAML and OmegaConf have many: a tag that does not fit its value is an AttributeError
        raise ConfigError(f"{path}: not readable as YAML: {_first(error)}") from None


def _check_references(node: Any, path: Path) -> None:
    """`${key}` and `${oc.env:NAME}` are all that a file may have looked up: other resolvers write whole trees."""
    if isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            _check_references(value, path)
    elif isinstance(node, str) and (others := [name for name in _resolvers(node) if name != "oc.env"]):
        told = f"a recipe can use ${{key}} and ${{oc.env:NAME}}, not {brief(others[0], 100)}"
        raise ConfigError(f"{path}: {brief(node, 100)!r}: {told}")


def _resolvers(text: str) -> Iterator[str]:
    """The names before the colon of each `${name:...}`, which may themselves be made of others: `${oc.${x}:...}`."""
    opened: list[int | None] = []  # where the names begin that are open here; None once a name is over
    for at, character in enumerate(text):
        if text.startswith("${", at):
            opened.append(at + 2)
        elif character == "}" and opened:
            opened.pop()
        elif character == ":" and opened and (begin := opened[-1]) is not None:
            yield text[begin:at].strip()
            opened[-1] = None


def _measure(text: str, path: Path) -> None:
    """Count what a file would become, without making it: a few hundred bytes of aliases can stand for gigabytes."""
    sizes: dict[str, int] = {}  # of what an anchor stands for
    opened: list[tuple[str | None, int]] = []  # (anchor, nodes before it)
    nodes = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor:
                sizes[anchor] = nodes - before
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in opened):
                raise ConfigError(f"{path}: the alias *{event.anchor} stands within what it stands for")
            nodes += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            nodes += 1
            if isinstance(event, yaml.CollectionStartEvent):
                opened.append((event.anchor, nodes - 1))
            elif event.anchor:
                sizes[event.anchor] = 1
        if nodes > _NODES or len(opened) > _DEPTH:
            what = f"more than {_NODES} keys and values" if nodes > _NODES else f"more than {_DEPTH} levels"
            raise ConfigError(f"{path}: no recipe has {what}")


def merge(base: Any, child: Any) -> Any:
    """The child wins. Mappings merge, lists are replaced, a node that changes `type` starts afresh."""
    if not (isinstance(base, dict) and isinstance(child, dict)):
        return child
    if "type" in base and child.get("type", base["type"]) != base["type"]:
        return child
    return {**base, **{key: merge(base.get(key), value) for key, value in child.items()}}


class _Reader:
    """Reads one recipe and what it extends, and counts the files: a few that name each other often are very many."""

    def __init__(self) -> None:
        self.files = 0

    def read(self, path: Path, children: tuple[Path, ...]) -> Tree:
        asked = f" (extended by {children[-1]})" if children else ""
        try:
            there = path.is_file()
        except OSError:  # a name that no file can have
            there = False
        if not there:
            raise ConfigError(f"{path}: there is no such recipe{asked}")
        if path.resolve() in [child.resolve() for child in children]:
            raise ConfigError(f"{path} extends itself through {' -> '.join(child.name for child in children)}")
        self.files += 1
        if self.files > _FILES:
            raise ConfigError(f"{path}: no recipe extends more than {_FILES} files{asked}")
        child = _plain(read_yaml(path), path)
        parents = child.pop("extends", [])
        parents = [parents] if isinstance(parents, str) else parents
        if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
            raise ConfigError(f"{path}: extends: a file or a list of files is needed, found {brief(parents, 100)}")
        tree: Tree = {}
        for parent in parents:
            tree = merge(tree, self.read(path.parent / parent, (*children, path)))
        return cast(Tree, merge(tree, child))


def _plain(node: Any, path: Path | None = None) -> Tree:
    plain = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    where = f"{path}: " if path else ""
    if plain is None:
        return {}
    if not isinstance(plain, dict):
        raise ConfigError(f"{where}a recipe is a mapping of keys to values, this is a {type(plain).__name__}")
    if strange := [key for key in plain if not isinstance(key, str)]:
        raise ConfigError(f"{where}keys are text, found {brief(repr(strange[0]), 100)}")
    return cast(Tree, plain)


def _first(error: Exception) -> str:
    """What an error of another library says, on one line."""
    return brief(" ".join(str(error).split()) or type(error).__name__, 300)
