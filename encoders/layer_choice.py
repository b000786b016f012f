"""Layers of an encoder, as a recipe names them: `last`, `2`, `1-4`, `2,5-6` or `all`."""

import re

from sottovoce.config_model import fault
from sottovoce.errors import ConfigError

LAST, ALL = "last", "all"
INPUT = 0  # the first layer's input; layers count from 1
_RANGE = re.compile(r"(\d{1,9})(?:\s*-\s*(\d{1,9}))?")


def readable(layers: str) -> str:
    """The text as it is; `ConfigError` where it names no layers. How many there are is not known yet."""
    if layers not in (LAST, ALL):
        _ranges(layers)
    return layers


def chosen_layers(layers: str, depth: int, where: str) -> tuple[int, ...]:
    """The layers by number, in rising order, of an encoder with 1 to `depth`; `last` is `depth`, also where that is 0.

    Raises:
        ConfigError: about `where`: the encoder has no such layer.
    """
    if layers == LAST:
        return (depth,)
    ranges = [(1, depth)] if layers == ALL else _ranges(layers)
    highest = max(last for _, last in ranges)
    if highest > depth:
        why = f"{highest} is not there; the encoder has layers 1-{depth}, and {INPUT} is the first one's input"
        raise ConfigError.at(where, "bad-value", why)
    return tuple(sorted({number for first, last in ranges for number in range(first, last + 1)}))


def _ranges(layers: str) -> list[tuple[int, int]]:
    matches = [_RANGE.fullmatch(part.strip()) for part in layers.split(",")]
    ranges = [(int(match[1]), int(match[2] or match[1])) for match in matches if match]
    if len(ranges) < len(matches) or any(first > last for first, last in ranges):
        raise fault("bad-value", "", f"{layers!r} names no layers; write {LAST}, 2, 1-4, 2,5-6 or {ALL}")
    return ranges
