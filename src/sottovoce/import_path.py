"""Objects by import path, `module:Name` or `./file.py:Name`: code of the user's own, which a recipe names."""

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from sottovoce.errors import Code, ConfigError, first_line


def load_object(path: str, where: str) -> Any:
    """The object of that name. Modules are looked for in the working folder, too; files are imported once.

    Raises:
        ConfigError: about the key `where`: there is no such file, module or name, or importing it fails.
    """
    source, _, name = path.rpartition(":")
    try:
        module = _of_file(Path(source)) if source.endswith(".py") else _of_name(source)
    except ConfigError as error:
        raise ConfigError.at(where, error.code, error) from None
    except Exception as error:  # the user's code may raise anything
        kind = type(error).__name__
        missing = isinstance(error, ModuleNotFoundError) and source.startswith(str(error.name))
        code: Code = "not-found" if missing else "bad-value"
        raise ConfigError.at(where, code, f"{source} cannot be imported: {kind}: {first_line(error)}") from error
    if not hasattr(module, name):
        raise ConfigError.at(where, "unknown-name", f"{source} has no {name!r}")
    return getattr(module, name)


def _of_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise ConfigError(f"there is no file {file}", code="not-found")
    key = f"sottovoce_file_{file.resolve()}"
    if key not in sys.modules:
        spec = spec_from_file_location(key, file)
        assert spec is not None and spec.loader is not None
        module = sys.modules[key] = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[key]
            raise
    return sys.modules[key]


def _of_name(name: str) -> ModuleType:
    here = str(Path.cwd())
    sys.path.append(here)  # a command's own path begins with the folder of the program
    try:
        return import_module(name)
    finally:
        sys.path.remove(here)
