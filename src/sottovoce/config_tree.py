"""YAML files that may extend one another, and overrides from the command line: plain nested dicts come out.

A file may come from somebody else. It is measured before anything is made of it, nothing that it says is imported, and
it cannot grant what only the command line may grant: to run code that comes with a checkpoint.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any, cast

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sottovoce.errors import ConfigError, brief
from sottovoce.own_parts import BUNDLE_MARK, check_consent, located_in, name_by_user
from sottovoce.paths import resolve

Tree = dict[str, Any]
TRUST = "trust_remote_code"  # the key that a file may have, but not set to true

_BYTES = 1 << 20  # of a file; the largest recipe of ours has 6,000
_NODES = 100_000  # keys and values
_DEPTH = 50
_FILES = 100  # that one recipe extends, counted each time


def read_tree(path: Path, overrides: Iterable[str] = (), *, own: bool | None = None) -> Tree:
    """Read a YAML file with all that it extends, then apply `key.sub=value` overrides in order.

    `own`: whether the user wrote it, who may name code in it; if not, that needs consent. None: nothing of it will run.

    Raises:
        ConfigError: a file is missing, is not a mapping, is no recipe by its size, or extends itself; an override is
            not `key=value`; or a file asks for trust that no override gives.
    """
    overrides = _types_first(overrides)
    changes = [located_in(_change(override), Path.cwd()) for override in overrides]
    if own is not None:
        name_by_user(changes)
    tree = _read(resolve(path), (), count(1), own=own)
    asks = [*_trusting(tree)]
    for override, change in zip(overrides, changes, strict=True):
        asks = [key for key in asks if key not in _trusting(change)]
        try:
            tree = merge(tree, change)
        except ConfigError as error:
            told = f"override {override!r}: {error}"
            raise ConfigError(told, code="unknown-name", where=_key(override)[0]) from None
    if granted := [key for key in asks if key in _trusting(tree)]:
        raise ConfigError(
            f"{path}: {granted[0]}: the file asks to run code that comes with the checkpoint. If you trust that code, "
            f"say so on the command line: --trust-remote-code, or {granted[0]}=true",
            code="unsafe",
            where=granted[0],
        )
    return tree


def _types_first(overrides: Iterable[str]) -> list[str]:
    """As given, but `node.type=` stands before other keys of its node, which it would have start afresh."""
    ordered = list[str]()
    for override in overrides:
        key, _ = _key(override)
        node, _, last = key.rpartition(".")
        keys = [_key(other)[0] for other in ordered]
        above = [at for at, other in enumerate(keys) if other == key or f"{node}.".startswith(f"{other}.")]
        beside = [at for at, other in enumerate(keys) if at > max(above, default=-1) and other.startswith(f"{node}.")]
        ordered.insert(beside[0] if last == "type" and node and beside else len(ordered), override)
    return ordered


def read_overrides(overrides: Iterable[str]) -> Tree:
    """What `key.sub=value` arguments say; a ConfigError where one is not `key=value`, or its value not readable."""
    return reduce(merge, map(_change, overrides), cast(Tree, {}))


def read_texts(path: Path, overrides: Iterable[str] = ()) -> tuple[Tree, Tree]:
    """Like `read_tree`, with each scalar as it is written; and the same of the overrides alone."""
    said = reduce(merge, map(_change_as_written, overrides), cast(Tree, {}))
    return merge(_read(resolve(path), (), count(1), _as_written), said), said


def _as_written(path: Path) -> Any:
    return yaml.load(path.read_text("utf-8"), Loader=yaml.BaseLoader)


def _change_as_written(override: str) -> Tree:
    key, value = _key(override)
    leaf = yaml.load(value, Loader=yaml.BaseLoader)
    return cast(Tree, reduce(lambda node, part: {part: node}, reversed(key.split(".")), leaf))


def resolve_references(tree: Tree, defaults: Tree, source: str) -> Tree:
    """A tree whose `${key}` and `${oc.env:NAME}` are replaced; a ConfigError if one leads nowhere, or in a circle.

    `defaults` are values of top-level keys that the tree does not set, `source` is the recipe's file, for messages.
    """
    if "${" not in str(tree):
        return tree
    try:
        resolved = cast(Tree, OmegaConf.to_container(OmegaConf.create({**defaults, **tree}), resolve=True))
    except Exception as error:  # one in a circle is a RecursionError
        where = str(getattr(error, "full_key", None) or "")
        text = ": ".join(part for part in (source, where, _first(error)) if part)
        raise ConfigError(text, code="bad-value", where=where) from None
    return {key: resolved[key] for key in tree}


def _change(override: str) -> Tree:
    if "=" not in override:
        told = f"override {override!r}: write key=value without spaces, such as stages.joint.lr=1e-4"
        raise ConfigError(told, code="bad-value", where=override)
    try:
        return _plain(OmegaConf.from_dotlist(["=".join(_key(override))]))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, AttributeError, TypeError, RecursionError) as error:
        key = override.partition("=")[0]
        raise ConfigError(f"override {override!r}: {_first(error)}", code="bad-value", where=key) from None


def _key(override: str) -> tuple[str, str]:
    """Key and value of `data.train[0].name=x`, where an entry of a list is a key like others: `data.train.0.name`."""
    key, _, value = override.partition("=")
    return re.sub(r"\[(\d+)\]", r".\1", key), value


def children(node: Any) -> Iterable[tuple[Any, Any]]:
    """Key and value of all that a mapping or a list holds; a scalar holds nothing."""
    return node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()


def _trusting(node: Any, where: str = "") -> Iterator[str]:
    """The keys of a tree by which code of a checkpoint would run."""
    for key, value in children(node):
        place = f"{where}.{key}" if where else str(key)
        if key == TRUST and str(value).lower() not in ("false", "none", "0", "no", "off", "f", "n"):
            yield place
        else:
            yield from _trusting(value, place)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds: plain values in dicts and lists; no tag of it makes any other object.

    It is a ConfigError to be unreadable, too large or too deep, or to have anchors: a few bytes stand for many.
    """
    try:
        if (size := path.stat().st_size) > _BYTES:
            raise ConfigError.at(path, "unsafe", f"{size} bytes are no recipe; at most {_BYTES} are read")
        text = path.read_text("utf-8")
        _measure(text, path)
        node = OmegaConf.to_container(OmegaConf.load(StringIO(text)))
        _check_references(node, path)
        return node
    except ConfigError:
        raise
    except Exception as error:  # PyYAML and OmegaConf have many: a tag that does not fit its value is an AttributeError
        raise ConfigError.at(path, "damaged", f"not readable as YAML: {_first(error)}") from None


def _check_references(node: Any, path: Path) -> None:
    """`${key}` and `${oc.env:NAME}` are all that a file may have looked up: other resolvers write whole trees."""
    for _, value in children(node):
        _check_references(value, path)
    if isinstance(node, str) and (others := [name for name in _resolvers(node) if name != "oc.env"]):
        told = f"a recipe can use ${{key}} and ${{oc.env:NAME}}, not {brief(others[0], 100)}"
        raise ConfigError.at(path, "unsafe", f"{brief(node, 100)!r}: {told}")


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
    """Refuse a file that no recipe is, before anything is made of it."""
    nodes = depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.NodeEvent) and event.anchor:
            told = f"a recipe has no anchors and aliases (&{event.anchor}); write the values out"
            raise ConfigError.at(f"{path}:{event.start_mark.line + 1}", "unsafe", told)
        nodes += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if nodes > _NODES or depth > _DEPTH:
            what = f"more than {_NODES} keys and values" if nodes > _NODES else f"more than {_DEPTH} levels"
            raise ConfigError.at(path, "unsafe", f"no recipe has {what}")


def merge(base: Any, child: Any) -> Any:
    """The child wins. Mappings merge, a node that changes `type` starts afresh, lists are replaced.

    A mapping of numbers, from 0, changes entries of a list; `ConfigError` where the list has no such entry.
    """
    if isinstance(base, list) and isinstance(child, dict) and child and all(str(key).isdigit() for key in child):
        if (last := max(map(int, child))) >= len(base):
            told = f"there is no entry {last}; the list has {len(base)}, counted from 0"
            raise ConfigError(told, code="unknown-name", where=last)
        changed = {int(key): value for key, value in child.items()}
        return [merge(entry, changed[at]) if at in changed else entry for at, entry in enumerate(base)]
    if not (isinstance(base, dict) and isinstance(child, dict)):
        return child
    if "type" in base and child.get("type", base["type"]) != base["type"]:
        return child
    return {**base, **{key: merge(base.get(key), value) for key, value in child.items()}}


def _packaged(stem: str) -> str:
    """A hint at the recipes of the package that have this name."""
    conf = resolve("sottovoce:conf")
    found = sorted(file.relative_to(conf).as_posix() for file in conf.rglob("*.yaml") if file.stem == stem)
    return f"; the package has {', '.join(f'sottovoce:conf/{name}' for name in found)}" if found else ""


def _read(
    path: Path, above: tuple[Path, ...], files: Iterator[int], read: Callable[[Path], Any] = read_yaml,
    own: bool | None = None,
) -> Tree:  # fmt: skip
    """One recipe and what it extends; the files are counted, since a few that name each other often are very many."""
    asked = f" (extended by {above[-1]})" if above else ""
    if not os.path.isfile(path):  # which does not fail for a name that no file can have
        raise ConfigError.at(path, "not-found", f"there is no such recipe{asked}{_packaged(path.stem)}")
    if path.resolve() in [other.resolve() for other in above]:
        told = f"{path} extends itself through {' -> '.join(other.name for other in above)}"
        raise ConfigError(told, code="conflict", where=path)
    if next(files) > _FILES:
        raise ConfigError.at(path, "unsafe", f"no recipe extends more than {_FILES} files{asked}")
    child = located_in(_plain(read(path), path), path.parent)
    if own is not None:
        own = own and not (above and (path.parent / BUNDLE_MARK).is_file())  # to extend a bundle is to open it
        name_by_user(child) if own else check_consent(child, path)
    parents = child.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        told = f"{path}: extends: a file or a list of files is needed, found {brief(parents, 100)}"
        raise ConfigError(told, code="bad-value", where="extends")
    trees = [_read(path.parent / resolve(parent), (*above, path), files, read, own) for parent in parents]
    return cast(Tree, reduce(merge, [*trees, child], {}))


def _plain(node: Any, path: Path | None = None) -> Tree:
    plain = {} if node is None else OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    if not isinstance(plain, dict):
        told = f"a recipe is a mapping of keys to values, this is a {type(plain).__name__}"
    elif strange := [key for key in plain if not isinstance(key, str)]:
        told = f"keys are text, found {brief(repr(strange[0]), 100)}"
    else:
        return cast(Tree, plain)
    raise ConfigError(f"{path}: {told}" if path else told, code="bad-value", where=path or "")


def _first(error: Exception) -> str:
    """What an error of another library says, on one line."""
    return brief(" ".join(str(error).split()) or type(error).__name__, 300)
