"""Components by short name: the one place where a YAML `type:` becomes an object."""

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import field, make_dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Generic, Literal, TypeVar, cast, get_type_hints

from omegaconf import MISSING, OmegaConf

from sottovoce.errors import Code, ConfigError, brief, nearest

T = TypeVar("T")
_ROOT = Path(__file__).parents[1]


class Registry(Generic[T]):
    """Short names for classes, open to third-party packages through entry points.

    A class's signature is its schema: positional parameters are wiring that the framework supplies, keyword-only
    parameters are the knobs that a YAML node may set. A package adds a component of kind `adapter` by the entry
    point group `sottovoce.adapter`. Nothing is imported until a component is built, or until a plug-in is named: a
    recipe is checked by reading the sources of ours, since importing PyTorch takes seconds.

    Args:
        kind: of the components, for messages.
        modules: name -> module of ours that registers it.
    """

    def __init__(self, kind: str, modules: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self.group = f"sottovoce.{kind}"
        self._modules = dict(modules or {})
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
        return sorted({*self._classes, *self._modules, *(plugin.name for plugin in entry_points(group=self.group))})

    def get(self, name: str) -> type[T]:
        """The class called `name`; a broken plug-in fails here, loudly, and only for those who named it.

        Raises:
            ConfigError: nothing has that name.
        """
        if name in self._modules:
            import_module(self._modules[name])
        if name in self._classes:
            return self._classes[name]
        for plugin in entry_points(group=self.group, name=name):
            return cast(type[T], plugin.load())
        raise ConfigError(f"no {self.kind} is called {name!r}.{nearest(name, self.names())}", code="unknown-name")

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
            told = f"{where}: `type` is missing. Known: {', '.join(self.names())}"
            raise ConfigError(told, code="missing-key", where=f"{where}.type")
        try:
            schema = OmegaConf.structured(self._schema(node["type"]))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}", code=error.code, where=f"{where}.type") from None
        knobs = {key: value for key, value in node.items() if key != "type"}
        try:
            filled = OmegaConf.to_container(OmegaConf.merge(schema, knobs), throw_on_missing=True)
        except Exception as error:  # a value that fits nothing can be a TypeError of OmegaConf's own making
            told = (str(error).splitlines() or [type(error).__name__])[0]
            key = str(getattr(error, "full_key", None) or "")
            code: Code = "unknown-key" if "not in" in told else "missing-key" if "missing" in told else "bad-value"
            raise ConfigError(f"{where}: {brief(told, 300)}", code=code, where=f"{where}.{key}") from None
        return {"type": node["type"], **cast(dict[str, Any], filled)}

    def build(self, node: Mapping[str, Any], *wiring: Any) -> T:
        """Construct the component that `node` describes."""
        knobs = self.check(node)
        return self.get(knobs.pop("type"))(*wiring, **knobs)

    def _schema(self, name: str) -> type:
        knobs = _written(self._modules[name], name) if name in self._modules and name not in self._classes else None
        if knobs is None:
            hints = get_type_hints(self.get(name).__init__)
            knobs = [(p.name, hints.get(p.name, Any), p.default) for p in self.knobs(name).values()]
        return make_dataclass(name, [(knob, hint, _default(value)) for knob, hint, value in knobs])


def _written(module: str, name: str) -> list[tuple[str, Any, Any]] | None:
    """Knobs of the class that registers `name` in a module of ours, by its source; None where that does not say."""
    tree = ast.parse(_ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text("utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    own = next(
        (node for node in classes if any(f".register('{name}')" in ast.unparse(d) for d in node.decorator_list)), None
    )
    made = [node for node in own.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"] if own else []
    if not made:
        return None
    knobs = made[0].args
    annotations = {arg.arg: ast.unparse(arg.annotation or ast.Name("Any")) for arg in knobs.kwonlyargs}
    try:
        hints = get_type_hints(SimpleNamespace(__annotations__=annotations), {"Literal": Literal, "Any": Any})
        return [
            (arg.arg, hints[arg.arg], inspect.Parameter.empty if value is None else ast.literal_eval(value))
            for arg, value in zip(knobs.kwonlyargs, knobs.kw_defaults, strict=True)
        ]
    except (NameError, ValueError, AttributeError):  # a type or a default with a name of its own
        return None


def _default(value: Any) -> Any:
    value = MISSING if value is inspect.Parameter.empty else value
    return field(default_factory=lambda: value)


def lazy_attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562): names such as `Adapter`, from modules such as `base`."""

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return get
