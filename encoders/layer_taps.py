"""Taps on a Transformer stack: several of its layers come out of it side by side, and none above them is computed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sottovoce.encoders.layer_choice import INPUT


def side_by_side(states: Mapping[int, Tensor], layers: Sequence[int]) -> Tensor:
    """Some of the states, each (..., dim), by number: (..., len(layers) * dim)."""
    return states[layers[0]] if len(layers) == 1 else torch.cat([states[number] for number in layers], -1)


@contextmanager
def tapped(stack: nn.Module, norm: str | None, layers: Sequence[int]) -> Iterator[None]:
    """Meanwhile, `stack` returns the outputs of some of its `layers` side by side, as `side_by_side` has them.

    What it does to them after the last layer, such as pooling over time, it does to all alike. Its final norm, the
    submodule called `norm`, is applied to the last layer alone.
    """
    whole: Any = stack.layers
    running = list(whole)[: max(*layers, 1)]  # the layers that have to be computed
    kept: dict[int, Tensor] = {}
    handles = [running[0].register_forward_pre_hook(_keep_input(kept), with_kwargs=True)] if INPUT in layers else []
    handles += [
        layer.register_forward_hook(_keep_output(kept, number, layers, number == len(running)))
        for number, layer in enumerate(running, 1)
        if number in layers or number == len(running)
    ]
    final = getattr(stack, norm) if norm else None
    stack.layers = nn.ModuleList(running)
    if norm and final is not None:
        setattr(stack, norm, _NormOfOne(final, [number == len(whole) for number in layers]))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        stack.layers = whole
        if norm:
            setattr(stack, norm, final)


class _NormOfOne(nn.Module):
    """A norm that sees only some of the layers that stand side by side."""

    def __init__(self, norm: nn.Module, seen: list[bool]) -> None:
        super().__init__()
        self.norm, self.seen = norm, seen

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self.seen), -1)
        return torch.cat([self.norm(part) if seen else part for part, seen in zip(parts, self.seen, strict=True)], -1)


def _keep_input(kept: dict[int, Tensor]) -> Callable[..., None]:
    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept[INPUT] = args[0] if args else kwargs["hidden_states"]

    return keep


def _keep_output(kept: dict[int, Tensor], number: int, layers: Sequence[int], last: bool) -> Callable[..., Any]:
    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        kept[number] = output[0] if isinstance(output, tuple) else output
        if not last:
            return None
        wide = side_by_side(kept, layers)
        return (wide, *output[1:]) if isinstance(output, tuple) else wide

    return keep
