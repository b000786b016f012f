"""A tree from YAML becomes a dataclass: every default filled in, or every fault told at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf

from sottovoce.config_tree import Tree
from sottovoce.errors import ConfigError, brief, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def checked(schema: type[T], tree: Tree, source: str) -> T:
    """Make a `schema` of a tree. A field whose default is MISSING is required.

    Raises:
        ConfigError: with every fault, each with source, key, what was found and what is accepted.
    """
    required = [f.name for f in fields(schema) if f.default == MISSING]
    faults = [f"{name}: this key is required" for name in required if tree.get(name, MISSING) == MISSING]
    try:
        whole = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), tree))
        faults += _nested(whole, schema, "")
        if not faults:
            return cast(T, whole)
    except Exception as error:  # a value that fits nothing can be a TypeError of OmegaConf's own making
        told = [fault for key, value in tree.items() for fault in _faults(schema, key, value)]
        if not told and not faults:
            told = [f"{getattr(error, 'full_key', None) or 'recipe'}: {_first(error)}"]
        faults = told + faults
    raise ConfigError("\n".join(f"{source}: {fault}" for fault in faults))


def _faults(schema: type[DataclassInstance], key: str, value: Any) -> Iterator[str]:
    """What is wrong with one top-level key, entry by entry, so that one fault does not hide the next."""
    known = [f.name for f in fields(schema)]
    if key not in known:
        yield f"unknown key {brief(repr(key), 100)}.{nearest(str(key), known)}"
        return
    entries = {f"{key}.{name}": {key: {name: node}} for name, node in value.items()} if isinstance(value, dict) else {}
    for where, piece in (entries or {key: {key: value}}).items():
        try:
            OmegaConf.merge(OmegaConf.structured(schema), piece)
        except Exception as error:  # see above
            yield f"{getattr(error, 'full_key', None) or brief(where, 100)}: {_first(error)}"


def _nested(value: Any, hint: Any, where: str) -> Iterator[str]:
    """Lists and mappings where a single value belongs. OmegaConf lets them through where that stands in another one."""
    if get_origin(hint) in (Union, UnionType):  # of one type and None
        hint = next(one for one in get_args(hint) if one is not NoneType)
    if is_dataclass(value):
        hints = get_type_hints(type(value))
        for one in fields(value):
            yield from _nested(getattr(value, one.name), hints[one.name], f"{where}.{one.name}".lstrip("."))
    elif get_origin(hint) is list and isinstance(value, list):
        for i, entry in enumerate(value):
            yield from _nested(entry, get_args(hint)[0], f"{where}[{i}]")
    elif get_origin(hint) is dict and isinstance(value, dict):
        for key, entry in value.items():
            yield from _nested(entry, get_args(hint)[1], f"{where}.{key}")
    elif hint is not Any and isinstance(value, (list, dict)):
        yield f"{brief(where, 100)}: one value is needed, found {brief(repr(value), 100)}"


def _first(error: Exception) -> str:
    return brief((str(error).splitlines() or [type(error).__name__])[0], 300)
