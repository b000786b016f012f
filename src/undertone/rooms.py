"""One copy of every room: `import adapters` in a checkout is `undertone.adapters`, never a second set of classes.

The rooms lie at the root of the repository and are imported as `undertone.<room>`. Whoever works in the checkout can
also reach them by their folder's name, and would get a second module, a second registry and classes that are not
instances of each other.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import CodeType, ModuleType
from typing import cast


def one_copy(name: str) -> None:
    """First line of a room's `__init__`: if it was imported by its folder's name, stand aside for the real one."""
    if name.startswith("undertone."):
        return
    sys.modules[name] = import_module(f"undertone.{name}")
    sys.meta_path.insert(0, _Rooms(name))


class _Rooms(MetaPathFinder):
    def __init__(self, room: str) -> None:
        self.room = room

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{self.room}."):
            return None
        real = find_spec(f"undertone.{fullname}")
        return spec_from_loader(fullname, _Same(real), origin=real.origin) if real else None


class _Same(InspectLoader):
    """Loads a module by handing out the one that exists under its full name."""

    def __init__(self, real: ModuleSpec) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return import_module(self.real.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.real  # importlib has just written the short name's over it

    def get_code(self, fullname: str) -> CodeType | None:  # for python -m lightning_modules.fit
        return cast(InspectLoader, self.real.loader).get_code(self.real.name)

    def get_source(self, fullname: str) -> str | None:
        return cast(InspectLoader, self.real.loader).get_source(self.real.name)
