"""Components by short name: the one place where a YAML `type:` becomes an object."""

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, make_dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar, cast, get_type_hints

from pydantic import Field, GetCoreSchemaHandler, TypeAdapter
from pydantic_core.core_schema import CoreSchema, no_info_after_validator_function

from sottovoce.config_model import Count, Float, Int, Node, Share, config_class, fault, located, validated
from sottovoce.errors import ConfigError, nearest
from sottovoce.own_parts import entry_points, is_own, load_part, told

T = TypeVar("T")
Knob: TypeAlias = tuple[str, Any, Any]  # name, type and default
_NONE = inspect.Parameter.empty  # a default that is not there
_ROOT = Path(__file__).parents[1]
_NAMES = {  # that annotations of knobs may use
    "Literal": Literal, "Any": Any, "Annotated": Annotated, "Field": Field, "Count": Count, "Share": Share, "int": Int,
    "float": Float,
}  # fmt: skip


class Registry(Generic[T]):
    """Short names for classes, open to third-party packages through entry points, such as `sottovoce.adapter`.

    Any `type` may also name a class of one's own: `./file.py:Class` or `package.module:Class`.

    A class's signature is its schema: positional parameters are wiring that the framework supplies, keyword-only
    parameters are the knobs that a YAML node may set. Nothing is imported until a component is built, or a plug-in is
    named: a recipe is checked by reading the sources of ours, since importing PyTorch takes seconds.

    A config class declares a component by `Annotated[Node, ADAPTERS]`: pydantic then checks the node, fills in the
    defaults of its knobs, and writes its JSON Schema.

    Args:
        kind: of the components, for messages.
        modules: name -> module of ours that registers it.
    """

    def __init__(self, kind: str, modules: Mapping[str, str] | None = None) -> None:
        self.kind, self.group, self._modules = kind, f"sottovoce.{kind}", dict(modules or {})
        self._classes: dict[str, type[T]] = {}
        self._schemas: dict[str, type] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator; a name that is taken is a ValueError."""

        def add(cls: type[T]) -> type[T]:
            if name in self._classes:
                raise ValueError(f"{self.kind} {name!r} is already {self._classes[name]}")
            self._classes[name] = cls
            self._schemas.pop(name, None)
            return cls

        return add

    def __contains__(self, name: object) -> bool:
        ours = name in self._classes or name in self._modules
        return ours or bool(entry_points(group=self.group, name=str(name)))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> list[str]:
        return sorted({*self._classes, *self._modules, *(plugin.name for plugin in entry_points(group=self.group))})

    def get(self, name: str) -> type[T]:
        """The class called `name`, by short name, file or import path; a ConfigError, also where somebody's is broken.

        A plug-in is imported here, so that a broken one fails only for those who named it.
        """
        if is_own(name):
            return cast(type[T], load_part(name, self.kind))
        if name in self._modules:
            import_module(self._modules[name])
        if name in self._classes:
            return self._classes[name]
        for plugin in entry_points(group=self.group, name=name):
            try:
                return cast(type[T], plugin.load())
            except Exception as error:  # a stranger's package may raise anything
                why = f"the {self.kind} {name} of {plugin.value} cannot be loaded: {told(error)}"
                raise fault("unavailable", "type", why) from error
        more = " Or a class of yours: ./file.py:Class or package.module:Class" if "." in name or "/" in name else ""
        raise fault("unknown-name", "type", f"no {self.kind} is called {name!r}.{nearest(name, self.names())}{more}")

    def plugins(self) -> list[str]:
        """Names of plug-ins, which may not have been imported."""
        taken = {*self._classes, *self._modules}
        return sorted({plugin.name for plugin in entry_points(group=self.group)} - taken)

    def knobs(self, name: str) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters of a component, by name."""
        parameters = inspect.signature(self.get(name)).parameters.values()
        return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}

    def check(self, node: Any, where: str = "") -> Node:
        """A node with every default filled in, or a ConfigError that names what is wrong and what is accepted."""
        try:
            return self.filled(node)
        except ConfigError as error:
            raise ConfigError.of(located(error, where or self.kind)) from None

    def build(self, node: Mapping[str, Any], *wiring: Any) -> T:
        """Construct the component that `node` describes."""
        knobs = self.check(node)
        return self.get(knobs.pop("type"))(*wiring, **knobs)

    def filled(self, node: Any) -> Node:
        """Like `check`, for config classes: the places of faults are relative to the node."""
        if not isinstance(node, Mapping) or not isinstance(name := node.get("type"), str):
            raise fault("missing-key", "type", f"`type` is missing. Known: {', '.join(self.names())}")
        knobs: Any = validated(self._schema(name), {key: value for key, value in node.items() if key != "type"})
        return {"type": name, **asdict(knobs)}

    def _schema(self, name: str) -> type:
        """The config class of a component's knobs."""
        if name not in self._schemas:
            knobs = self._written(name)
            if knobs is None:
                hints = get_type_hints(self.get(name).__init__, include_extras=True)
                knobs = [(p.name, hints.get(p.name, Any), p.default) for p in self.knobs(name).values()]
            fields = [(k, hint, Field() if value is _NONE else Field(default=value)) for k, hint, value in knobs]
            self._schemas[name] = config_class(make_dataclass(name, fields))
        return self._schemas[name]

    def _written(self, name: str) -> list[Knob] | None:
        known = name in self._modules and name not in self._classes
        return _written_knobs(self._modules[name], name) if known else None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self.filled, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: Any) -> dict[str, Any]:
        rules = []
        for name in self.names():
            if name in self._classes or self._written(name) is not None:  # the rest needs imports that take seconds
                knobs = TypeAdapter(self._schema(name)).json_schema()["properties"]
                named = {"properties": {"type": {"const": name}}, "required": ["type"]}
                then = {"properties": {"type": {}, **knobs}, "additionalProperties": False}
                rules.append({"if": named, "then": then})  # which demands no knob, since `extends` may bring any
        ours = [{"enum": names}] if (names := self.names()) else []
        known = {"anyOf": [*ours, {"type": "string", "pattern": ":"}]}  # or a class of one's own
        return {"type": "object", "properties": {"type": known}} | ({"allOf": rules} if rules else {})


def _written_knobs(module: str, name: str) -> list[Knob] | None:
    """Knobs of the class that registers `name` in a module of ours, by its source; None where that does not say."""
    tree = ast.parse(_ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text("utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    own = [node for node in classes if any(f".register('{name}')" in ast.unparse(d) for d in node.decorator_list)]
    parts = own[0].body if own else []
    made = [node for node in parts if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    if not made:
        return None
    knobs = made[0].args
    annotations = {arg.arg: ast.unparse(arg.annotation or ast.Name("Any")) for arg in knobs.kwonlyargs}
    try:
        hints = get_type_hints(SimpleNamespace(__annotations__=annotations), dict(_NAMES), include_extras=True)
        return [
            (arg.arg, hints[arg.arg], _NONE if value is None else ast.literal_eval(value))
            for arg, value in zip(knobs.kwonlyargs, knobs.kw_defaults, strict=True)
        ]
    except (NameError, ValueError, AttributeError):  # a type or a default with a name of its own
        return None


def lazy_attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562): names such as `Adapter`, from modules such as `base`."""

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return get
