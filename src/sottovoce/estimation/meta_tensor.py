"""Tensors that have shapes and no values: a whole training step can be made of them, and what it would cost is seen."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

_aten = torch.ops.aten
_META = torch.device("meta")
_INDEXED = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._unsafe_index.Tensor)


class Observer(Protocol):
    """Sees each operation that a hollow tensor takes part in; all tensors in it are on the meta device."""

    def saw(self, function: Any, arguments: tuple[Any, ...], knobs: dict[str, Any], result: Any) -> None: ...


_observers: list[Observer] = []


@contextmanager
def observed(by: Observer) -> Iterator[None]:
    """While operations are made."""
    _observers.append(by)
    try:
        yield
    finally:
        _observers.remove(by)


class MetaTensor(Tensor):
    """A tensor of the meta device that says it were on the CPU.

    So code that is written for values runs as it is: tensors that it makes itself, such as lengths and masks, are real
    and have values; whatever comes of a hollow one is hollow. PyTorch's `FakeTensor` makes all tensors fake, and code
    that asks for a length then stops.

    Args:
        inner: on the meta device.
        requires_grad: as of any leaf.

    Raises:
        RuntimeError: later, where somebody asks for a value, or picks by a hollow mask.
    """

    within: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> "MetaTensor":
        hollow: MetaTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device("cpu"), requires_grad=requires_grad,
        )  # fmt: skip
        return hollow

    def __init__(self, inner: Tensor, requires_grad: bool = False) -> None:
        self.within = inner

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"MetaTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is _aten._fused_sdp_choice.default:
            return 1  # an attention that does not write all scores down, as every device has today
        leaves, spec = tree_flatten((_picked(func, args), kwargs or {}))
        arguments, knobs = tree_unflatten([_inside(leaf) for leaf in leaves], spec)
        result = _made(func, arguments, knobs)
        if torch.Tag.inplace_view in func.tags:  # such as `squeeze_`: the outside must change its shape, too
            with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
                func(*args, **(kwargs or {}))
        for observer in _observers:
            observer.saw(func, arguments, knobs, result)
        known = {id(leaf.within): leaf for leaf in leaves if isinstance(leaf, MetaTensor)}
        if isinstance(result, Tensor):
            return _outside(result, known)
        return tree_map(lambda one: _outside(one, known), result)


_layouts: dict[Any, tuple[Any, ...]] = {}  # of what operations return that return one new tensor


def _made(function: Any, arguments: Any, knobs: Any) -> Any:
    """What an operation returns, on the meta device. The second time only memory is laid out, which is much faster."""
    key = (function, *map(layout, tree_leaves((arguments, knobs))))
    if key in _layouts:
        shape, stride, dtype = _layouts[key]
        return torch.empty_strided(shape, stride, dtype=dtype, device=_META)
    result = function(*arguments, **knobs)
    if isinstance(result, Tensor) and not any(one.alias_info for one in function._schema.returns):
        _layouts[key] = layout(result)
    return result


def layout(one: Any) -> Any:
    """A tensor's shape, strides and dtype; anything else is itself."""
    return (one.shape, one.stride(), one.dtype) if isinstance(one, Tensor) else one


def _picked(function: Any, arguments: Sequence[Any]) -> Sequence[Any]:
    """A mask that picks is put as the numbers that it picks: the meta device cannot count them."""
    if function not in _INDEXED:
        return arguments
    places: list[Any] = []
    for index in arguments[1]:
        if index is not None and index.dtype == torch.bool and not isinstance(index, MetaTensor):
            places += index.nonzero().unbind(1)
        else:
            places.append(index)
    return (arguments[0], places, *arguments[2:])


def _inside(one: Any) -> Any:
    if isinstance(one, MetaTensor):
        return one.within
    if isinstance(one, Tensor):
        return one.to(_META)
    return _META if isinstance(one, torch.device) else one


def _outside(one: Any, known: dict[int, MetaTensor]) -> Any:
    """What comes out is hollow; what an operation has changed in place is the tensor that it was."""
    if not isinstance(one, Tensor) or not one.is_meta:
        return one
    return known[id(one)] if id(one) in known else MetaTensor(one)


def hollow(module: nn.Module) -> None:
    """Make every weight and buffer of a module hollow; what shared a weight shares it still."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                empty = MetaTensor(weight.detach().to(_META))
                made.setdefault(id(weight), nn.Parameter(empty, requires_grad=weight.requires_grad))
                part._parameters[name] = made[id(weight)]
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else MetaTensor(buffer.detach().to(_META))


class PeakMemory:
    """Bytes of the hollow tensors that are in use, and the most that were at once. An observer."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}

    def saw(self, function: Any, arguments: tuple[Any, ...], knobs: dict[str, Any], result: Any) -> None:
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                self._add(one.untyped_storage())

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
