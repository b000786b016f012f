"""Callbacks of the user's own, which a recipe names by import path."""

from collections.abc import Callable

from lightning.pytorch.callbacks import Callback

from sottovoce.config.recipe import Recipe
from sottovoce.errors import ConfigError, first_line
from sottovoce.import_path import load_object


def own_callbacks(recipe: Recipe) -> list[Callback]:
    """The callbacks that a recipe names by import path, with their arguments.

    Raises:
        ConfigError: about `callbacks[i]`: there is no such class, it is no callback of Lightning, or it takes no such
            arguments.
    """
    made = []
    for i, node in enumerate(recipe.callbacks):
        where, arguments = f"callbacks[{i}]", {key: value for key, value in node.items() if key != "type"}
        kind: Callable[..., Callback] = load_object(node["type"], where)
        if not (isinstance(kind, type) and issubclass(kind, Callback)):
            why = f"{node['type']} is no subclass of lightning.pytorch.callbacks.Callback"
            raise ConfigError.at(where, "bad-value", why)
        try:
            made.append(kind(**arguments))
        except Exception as error:  # of the user's code
            why = f"{node['type']} refuses its arguments: {type(error).__name__}: {first_line(error)}"
            raise ConfigError.at(where, "bad-value", why) from error
    return made
