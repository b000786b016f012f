"""Config classes: pydantic dataclasses that a tree of plain values becomes, with every fault reported at once.

A config class stands beside the component that it configures. A fault is a `ConfigError` whose `where` is the path of
the key, such as `data.train[0].weight`.
"""

import math
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import Field as DataclassField
from dataclasses import asdict, fields, is_dataclass
from functools import cache, reduce
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from typing_extensions import Self, dataclass_transform

from sottovoce.config_tree import Tree, children, read_texts, read_tree, resolve_references
from sottovoce.errors import Code, ConfigError, brief, nearest
from sottovoce.paths import beside, resolve

T = TypeVar("T")
Node: TypeAlias = dict[str, Any]  # a component: `type` and its knobs

RENAMED = {
    "trains": "train", "checks": "validate", "draws": "tasks_per_utterance", "validations": "val_checks_per_epoch",
    "clip": "grad_clip", "batch": "batch_size", "decay": "lr_schedule", "workers": "num_workers",
    "runs": "output_dir", "init": "init_from", "knobs": "task_overrides", "adch": "auxiliary_head",
}  # fmt: skip
_VALUES = {"before": "eager", "during": "lazy"}  # of `checks`, now `validate`
_MOST = 1e15  # of any number: what is larger was not meant
_FAULTS = 100  # that one message lists


def _no_bool(value: object) -> object:
    """YAML's `yes` is no 1."""
    if isinstance(value, bool):
        raise ConfigError(f"must be a number, found {value}", code="bad-value")
    return value


_NUMBER = BeforeValidator(_no_bool)
Int: TypeAlias = Annotated[int, _NUMBER]
Float: TypeAlias = Annotated[float, _NUMBER]
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**32), _NUMBER]
Count: TypeAlias = Annotated[int, Field(ge=1, le=10**9), _NUMBER]
Share: TypeAlias = Annotated[float, Field(ge=0, lt=1), _NUMBER]
NonNegative: TypeAlias = Annotated[float, Field(ge=0), _NUMBER]
Weight: TypeAlias = Annotated[float, Field(ge=0, le=10_000), _NUMBER]  # times an epoch
Betas: TypeAlias = Annotated[list[Share], Field(min_length=2, max_length=2)]


def without_nulls(entry: Any) -> BeforeValidator:
    """A mapping of entries of a config class, whose nulls switch off those that a recipe has inherited."""
    return BeforeValidator(
        lambda value: {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value,
        json_schema_input_type=dict[str, entry | None],
    )


def with_defaults(defaults: Mapping[str, Any]) -> BeforeValidator:
    """A mapping that a recipe may give in part."""
    return BeforeValidator(lambda value: {**defaults, **value} if isinstance(value, dict) else value)


@dataclass_transform(kw_only_default=True, field_specifiers=(Field,))
def config_class(cls: type[T]) -> type[T]:
    """Class decorator: a dataclass whose values are validated and that has no other keys; built by keyword."""
    settings = ConfigDict(extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)
    return cast(type[T], dataclass(cls, config=settings))


@config_class
class BaseRecipe:
    """What every kind of recipe can do."""

    groups: ClassVar[tuple[str, ...]] = ()  # keys of mappings whose entries a null switches off

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = (), *, own: bool = True) -> Self:
        """Read a recipe with all that it extends, and overrides; a ConfigError tells of every fault of it.

        `own`: whether the user wrote it; of a bundle or a run, code that it names needs consent.

        A null on the command line must switch off something that is there.
        """
        known = cast(Any, cls).__pydantic_fields__
        defaults = {key: f.default for key, f in known.items() if isinstance(f.default, str | int | float)}
        overrides = list(overrides)
        tree = resolve_references(read_tree(Path(path), overrides, own=own), defaults, str(path))
        if places := [*_numbers_for_text(cls, tree)]:
            _take_texts(tree, places, *read_texts(Path(path), overrides), str(path))
        recipe = cls.parse(tree, str(path))
        recipe.locate(resolve(path).parent)
        for key in (text.removesuffix("=null") for text in overrides if text.endswith("=null")):
            group, _, name = key.rpartition(".")
            if group in cls.groups:
                node: Any = read_tree(Path(path), [other for other in overrides if other != f"{key}=null"])
                for part in group.split("."):
                    node = node.get(part) or {}
                for error in unknown(key, [name], node, f"entry of {group}"):
                    raise ConfigError.of(located(error, source=f"override {key}=null"))
        return recipe

    @classmethod
    def parse(cls, tree: Tree, source: str = "recipe") -> Self:
        """Check a tree without references and fill in every default; see `load`."""
        try:
            recipe = validated(cls, tree)
            if faults := list(recipe.conflicts()):
                raise ConfigError.of(faults)
            return recipe
        except ConfigError as error:
            raise ConfigError.of(located(error, source=source)) from None

    def conflicts(self) -> Iterator[ConfigError]:
        """What is wrong between keys; also fills in what hangs on several of them."""
        yield from ()

    def locate(self, folder: Path) -> None:
        """Find paths of data that are not in the working directory beside the recipe, whose folder this is."""

    def plain(self) -> Tree:
        """The whole recipe as nested dicts, to print, to save, and to put into checkpoints."""
        return asdict(self)


Place: TypeAlias = tuple[str | int, ...]  # the keys that lead to a node of a tree


def _numbers_for_text(hint: Any, node: Any, place: Place = ()) -> Iterator[Place]:
    """Where a config class wants text, and YAML has made a number or a boolean of it."""
    hint = _without_none(hint)
    if hint is str and isinstance(node, bool | int | float):
        yield place
    elif isinstance(node, dict | list):
        hints = get_type_hints(hint) if is_dataclass(hint) else {}
        inner = get_args(hint)[-1] if get_origin(hint) in (dict, list) else None
        for key, value in children(node):
            yield from _numbers_for_text(hints.get(key, inner), value, (*place, key))


def _take_texts(tree: Tree, places: Iterable[Place], texts: Tree, said: Tree, source: str) -> None:
    """Put the text that an override has there in place of a number; `ConfigError` for those of a file.

    A whole number of a file stays, where it is written as such: `name: 7`. Nobody means 750 by `12:30`.
    """
    faults = []
    for place in places:
        *above, key = place
        node, value, text = _at(tree, above), _at(tree, place), str(_at(texts, place))
        if _at(said, place) is not None:
            node[key] = text
        elif "${" not in text and abs(value) <= _MOST and (isinstance(value, bool | float) or text != str(value)):
            told = f"text is needed, and to YAML {text} is the {type(value).__name__} {value}; write '{text}' in quotes"
            faults.append(fault("bad-value", reduce(joined, place, ""), told))
    if faults:
        raise ConfigError.of(located(ConfigError.of(faults), source=source))


def _at(tree: Any, place: Iterable[str | int]) -> Any:
    """The node at a place; None where there is none."""
    for key in place:
        found = dict(children(tree))
        if key not in found:
            return None
        tree = found[key]
    return tree


def locate_paths(node: Any, folder: Path, *keys: str) -> None:
    """Set those keys of a config class that are paths, or lists of them, to where they are beside a recipe."""
    for key in keys:
        value = getattr(node, key)
        if isinstance(value, str | list):
            found = beside(value, folder) if isinstance(value, str) else [beside(text, folder) for text in value]
            setattr(node, key, found)


def fault(code: Code, where: str, text: str) -> ConfigError:
    return ConfigError(text, code=code, where=where)


def unknown(where: str, names: Iterable[str], known: Iterable[str], kind: str) -> Iterator[ConfigError]:
    """A fault for every name that matches nothing, with the nearest spelling."""
    for name in names:
        if name not in known:
            yield fault("unknown-name", where, f"there is no {kind} {brief(repr(name), 100)}.{nearest(name, known)}")


def located(error: ConfigError, where: str = "", source: str = "") -> Iterator[ConfigError]:
    """The faults of an error, each with its place in its message, below the key `where`."""
    for one in error.faults or (error,):
        place = joined(where, one.where)
        text = ": ".join(part for part in (source, place, str(one)) if part)
        yield ConfigError(text, code=one.code or "bad-value", where=place)


def joined(where: str, key: object) -> str:
    """The path of a key below another one."""
    if isinstance(key, int):
        return f"{where}[{key}]"
    key = brief(key, 100)
    return f"{where}.{key}" if where and key and key[0] != "[" else f"{where}{key}"


def validated(schema: type[T], tree: Any) -> T:
    """Make a config class of a tree, or a ConfigError whose faults say `where`; their messages do not repeat it."""
    wild = {one.where: one for one in _wild_numbers(tree)}
    faults = [*wild.values()]
    try:
        made: T = _adapter(cast(Hashable, schema)).validate_python(tree)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            faults += (found for found in _faults(schema, cast(dict[str, Any], one)) if found.where not in wild)
    except ValueError:  # pydantic writes no integer of more than 4,300 digits
        if not wild:
            raise
    if len(faults) > _FAULTS:
        faults = [*faults[:_FAULTS], fault("bad-value", "", f"and {len(faults) - _FAULTS} more faults")]
    if faults:
        raise ConfigError.of(faults)
    return made


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def _wild_numbers(node: Any, where: str = "") -> Iterator[ConfigError]:
    """Numbers that are not finite or of an absurd size, also where a component may have any value."""
    for key, value in children(node):
        yield from _wild_numbers(value, joined(where, key))
    if isinstance(node, float) and not math.isfinite(node):
        yield fault("bad-value", where, f"must be a finite number, found {node}")
    elif isinstance(node, int | float) and abs(node) > _MOST:
        yield fault("bad-value", where, f"must be from -{_MOST:g} to {_MOST:g}, found {_shown(node)}")


def _faults(schema: type[Any], error: dict[str, Any]) -> Iterator[ConfigError]:
    """An error of pydantic's in our words."""
    *above, key = error["loc"] or ("",)
    where = reduce(joined, error["loc"], "")
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        for one in cause.faults or [cause]:
            yield fault(one.code or "bad-value", joined(where, one.where), str(one))
    elif error["type"] == "missing":
        yield fault("missing-key", where, "this key is required")
    elif error["type"] == "unexpected_keyword_argument":
        yield fault("unknown-key", where, _hint(str(key), [f.name for f in _fields(schema, above)], error["input"]))
    else:
        text = str(error["msg"]).replace("Input should be ", "must be ").replace("a valid ", "a ", 1)
        text = text.replace("a integer", "an integer", 1)
        text = "must be a mapping" if error["type"] == "dataclass_type" else text
        if error["type"] == "too_short":
            text = f"needs at least {error['ctx']['min_length']} of them"
        yield fault("bad-value", where, f"{text}, found {_shown(error['input'])}{if_several(error['input'])}")


def if_several(value: Any) -> str:
    """What takes several numbers in place of one."""
    several = isinstance(value, str) and re.fullmatch(r"[\d.eE+-]+(,[\d.eE+-]+)+", value)
    return "; `sottovoce sweep` tries several values of a key" if several else ""


def _hint(key: str, known: list[str], value: Any) -> str:
    if (new := RENAMED.get(key)) not in known:
        return f"unknown key {brief(repr(key), 100)}.{nearest(key, known)}"
    now = _VALUES.get(value) if new == "validate" and isinstance(value, str) else None
    return f"`{key}` is now `{new}`" + (f", and {value} is {now}" if now else "")


def _fields(hint: Any, path: Iterable[str | int]) -> "tuple[DataclassField[Any], ...]":
    """The fields of the config class that stands at a path below another one."""
    for part in path:
        hint = _without_none(hint)
        hint = get_type_hints(hint)[str(part)] if is_dataclass(hint) else get_args(hint)[-1]
    return fields(_without_none(hint))


def _without_none(hint: Any) -> Any:
    union = get_origin(hint) in (Union, UnionType)
    return next(one for one in get_args(hint) if one is not NoneType) if union else hint


def _shown(value: Any) -> str:
    try:
        return brief(repr(value), 100)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of very many digits"
