"""Every registered component, its knobs and their defaults; and every metric."""

import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from types import GenericAlias, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sottovoce.adapters import ADAPTERS
from sottovoce.data.corpora import CORPORA
from sottovoce.data.tasks import TASKS
from sottovoce.data.tts import SYNTHESIZERS
from sottovoce.encoders import ENCODERS
from sottovoce.evaluation import AWARENESS_JUDGES, JUDGES
from sottovoce.evaluation.reports.results import MEANING, METRICS
from sottovoce.llms import ENGINES
from sottovoce.registry import Registry

OURS: tuple[Registry[Any], ...] = ENCODERS, ADAPTERS, TASKS, CORPORA, SYNTHESIZERS, ENGINES, JUDGES, AWARENESS_JUDGES
METRIC = "metric"


class Component(NamedTuple):
    """A component: its `type` in a recipe, its knobs, and what it is; or why it cannot be loaded."""

    name: str
    knobs: list[dict[str, Any]]
    what: str
    error: str | None


def list_components(kind: str | None = None, as_json: bool = False) -> None:
    """Components of one kind, or of all; a plug-in that cannot be imported does not hide the others.

    Tables are as wide as the terminal; in a file as wide as they are. JSON maps kinds to lists of components.
    """
    registries = [registry for registry in OURS if kind in (None, registry.kind)]
    metrics = kind in (None, METRIC)
    if as_json:
        found: dict[str, Any] = {registry.kind: [*map(_plain, components(registry))] for registry in registries}
        named = [{"type": name, "in_reports": METRICS[name], "what": MEANING[name]} for name in MEANING]
        print(json.dumps({**found, METRIC: named} if metrics else found, indent=2, ensure_ascii=False))
        return
    console = Console(width=None if sys.stdout.isatty() else 10_000)
    for registry in registries:
        title = f"{registry.kind} (plug in by the entry point group {registry.group!r})"
        table = Table("type", "knobs", "what it is", title=title, title_justify="left")
        for one in components(registry):
            knobs = "\n".join(_knob(**knob) for knob in one.knobs)
            told = f"cannot be loaded: {one.error}" if one.error else one.what
            table.add_row(one.name, escape(knobs), escape(told), style="red" if one.error else None)
        console.print(table)
    if metrics:
        table = Table(METRIC, "in reports", "what it is", title=METRIC, title_justify="left")
        for name, meaning in MEANING.items():
            table.add_row(name, METRICS[name], escape(meaning))
        console.print(table)


def components(registry: Registry[Any]) -> Iterator[Component]:
    """Those of a registry, by name."""
    for name in registry.names():
        try:
            knobs = [_parts(knob) for knob in registry.knobs(name).values()]
            yield Component(name, knobs, (inspect.getdoc(registry.get(name)) or "").splitlines()[0], None)
        except Exception as error:  # a stranger's package may raise anything
            yield Component(name, [], "", f"{type(error).__name__}: {error}")


def _parts(knob: inspect.Parameter) -> dict[str, Any]:
    annotation = _without_limits(knob.annotation)
    needed: dict[str, Any] = {"required": True} if knob.default is knob.empty else {"default": knob.default}
    return {"name": knob.name, "type": inspect.formatannotation(annotation), **needed}


def _without_limits(hint: Any) -> Any:
    """A type without what pydantic reads of it, also inside a union or a list."""
    if get_origin(hint) is Annotated:
        return _without_limits(get_args(hint)[0])
    inner = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(map(_without_limits, inner))]  # noqa: UP007
    if inner and isinstance(hint, GenericAlias):
        return hint.__origin__[tuple(map(_without_limits, inner))]  # type: ignore[index]
    return hint


def _plain(one: Component) -> dict[str, Any]:
    knobs = [{key: _jsonable(value) for key, value in knob.items()} for knob in one.knobs]
    return {"type": one.name, "knobs": knobs, "what": one.what} | ({"error": one.error} if one.error else {})


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_jsonable(inner) for inner in value]
    return value if value is None or isinstance(value, str | int | float | bool) else repr(value)


def _knob(name: str, type: str, default: Any = None, required: bool = False) -> str:
    return f"{name}: {type}{' (required)' if required else f' = {default!r}'}"
