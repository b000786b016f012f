"""Components by short name: the one place where a YAML `type:` becomes an object."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import field, make_dataclass
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, cast, get_type_hints

from omegaconf import MISSING, OmegaConf

from sottovoce.errors import ConfigError, brief, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Short names for classes, open to third-party packages through entry points.

    A class's signature is its schema: positional parameters are wiring that the framework supplies, keyword-only
    parameters are the knobs that a YAML node may set. A package adds a component of kind `adapter` by the entry
    point group `sottovoce.adapter`; nothing is imported until a recipe names it.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.group = f"sottovoce.{kind}"
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator.

        Raises:
            ValueError: the name is taken.
        """

        def add(cls: type[T]) -> type[T]:
            if name in self._classes:
                raise ValueError(f"{self.kind} {name!r} is already {self._classes[name]}")
            self._classes[name] = cls
            return cls

        return add

    def names(self) -> list[str]:
        return sorted({*self._classes, *(plugin.name for plugin in entry_points(group=self.group))})

    def get(self, name: str) -> type[T]:
        """The class called `name`; a broken plug-in fails here, loudly, and only for those who named it.

        Raises:
            ConfigError: nothing has that name.
        """
        if name in self._classes:
            return self._classes[name]
        for plugin in entry_points(group=self.group, name=name):
            return cast(type[T], plugin.load())
        raise ConfigError(f"no {self.kind} is called {name!r}.{nearest(name, self.names())}")

    def knobs(self, name: str) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters of a component, by name."""
        parameters = inspect.signature(self.get(name)).parameters.values()
        return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}

    def check(self, node: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """Return `node` with every default filled in.

        Raises:
            ConfigError: `type` is missing or unknown, or a knob is; the message names it and what is accepted.
        """
        where = where or self.kind
        if not isinstance(node, Mapping) or not isinstance(node.get("type"), str):
            raise ConfigError(f"{where}: `type` is missing. Known: {', '.join(self.names())}")
        try:
            schema = OmegaConf.structured(self._schema(node["type"]))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        knobs = {key: value for key, value in node.items() if key != "type"}
        try:
            filled = OmegaConf.to_container(OmegaConf.merge(schema, knobs), throw_on_missing=True)
        except Exception as error:  # a value that fits nothing can be a TypeError of OmegaConf's own making
            told = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"{where}: {brief(told, 300)}") from None
        return {"type": node["type"], **cast(dict[str, Any], filled)}

    def build(self, node: Mapping[str, Any], *wiring: Any) -> T:
        """Construct the component that `node` describes."""
        knobs = self.check(node)
        return self.get(knobs.pop("type"))(*wiring, **knobs)

    def _schema(self, name: str) -> type:
        cls = self.get(name)
        hints = get_type_hints(cls.__init__)
        return make_dataclass(
            cls.__name__, [(p.name, hints.get(p.name, Any), _default(p)) for p in self.knobs(name).values()]
        )


def _default(knob: inspect.Parameter) -> Any:
    value = MISSING if knob.default is knob.empty else knob.default
    return field(default_factory=lambda: value)
