"""Decoder layers through `torch.compile`: one graph, compiled once, that all layers of a kind share."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CACHES = ("cache", "past_key_values")  # arguments of a layer; since transformers 5.24 the first


class LayerPrefix(NamedTuple):
    """Keys and values of one layer, (rows, heads, tokens, dim), in place of a cache of all layers.

    Which layer asks is then no part of the graph, and nothing is kept, as a graph that changes a cache would be
    compiled for each layer anew.
    """

    keys: Tensor
    values: Tensor

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What comes after the prefix, behind it."""
        return torch.cat([self.keys, keys], -2), torch.cat([self.values, values], -2)


def compile_layers(layers: Iterable[nn.Module]) -> None:
    """Let layers run compiled where there are gradients; those that are compiled already are left alone.

    Not the whole model: one graph of all layers takes minutes to compile, and comes out slower on CPUs. Without
    gradients, as in generation, shapes change with every token, and layers run as they are.
    """
    for number, layer in enumerate(layers):
        if "forward" not in vars(layer):
            layer.forward = _Forward(layer.forward, number)


class _Forward:
    """The forward pass of one layer. Hooks on the layer run outside of the graph."""

    def __init__(self, forward: Any, number: int) -> None:
        self.forward, self.number = forward, number
        self.compiled: Any = torch.compile(forward, dynamic=True)  # type: ignore[no-untyped-call]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        for name in CACHES:
            if (past := kwargs.get(name)) is not None:
                known = past.layers[self.number]
                kwargs[name] = LayerPrefix(known.keys, known.values)
        return self.compiled(*args, **kwargs)
