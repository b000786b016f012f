"""YAML files that may extend one another, and overrides from the command line: plain nested dicts come out."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from undertone.errors import ConfigError

Tree = dict[str, Any]


def read_tree(path: Path, overrides: Iterable[str] = ()) -> Tree:
    """Read a YAML file with all that it extends, then apply `key.sub=value` overrides in order.

    Raises:
        ConfigError: a file is missing or is not a mapping, extends itself, or an override is not `key=value`.
    """
    tree = _read(path, ())
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override {override!r}: write key=value, such as stages.joint.lr=1e-4")
        try:
            tree = merge(tree, _plain(OmegaConf.from_dotlist([override])))
        except (OmegaConfBaseException, YAMLError) as error:
            raise ConfigError(f"override {override!r}: {str(error).splitlines()[0]}") from None
    return tree


def merge(base: Any, child: Any) -> Any:
    """The child wins. Mappings merge, lists are replaced, a node that changes `type` starts afresh."""
    if not (isinstance(base, dict) and isinstance(child, dict)):
        return child
    if "type" in base and child.get("type", base["type"]) != base["type"]:
        return child
    return {**base, **{key: merge(base.get(key), value) for key, value in child.items()}}


def _read(path: Path, children: tuple[Path, ...]) -> Tree:
    if not path.is_file():
        asked = f" (extended by {children[-1]})" if children else ""
        raise ConfigError(f"{path}: there is no such recipe{asked}")
    if path.resolve() in [child.resolve() for child in children]:
        raise ConfigError(f"{path} extends itself through {' -> '.join(child.name for child in children)}")
    try:
        node = OmegaConf.load(path)
        child = _plain(node)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    parents = child.pop("extends", [])
    tree: Tree = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        tree = merge(tree, _read(path.parent / parent, (*children, path)))
    return cast(Tree, merge(tree, child))


def _plain(node: Any) -> Tree:
    plain = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    if not isinstance(plain, dict):
        raise ConfigError(f"a recipe is a mapping of keys to values, this is a {type(plain).__name__}")
    return cast(Tree, plain)
