"""MetaTensor: shapes without values, with which a training step runs to count its operations and its peak memory."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# Not public in PyTorch, so that a new version may break them: all of them stand here, and a test names each.
# isort: off
from torch.utils._pytree import tree_flatten, tree_leaves as tree_leaves, tree_map, tree_unflatten
from torch._C import _DisableTorchDispatch as no_dispatch  # type: ignore[attr-defined]

make_wrapper = Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
_aten = torch.ops.aten
INDEXING = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._unsafe_index.Tensor)
CHOOSE_ATTENTION = _aten._fused_sdp_choice.default
CTC_BACKWARD = (_aten._ctc_loss_backward.default, _aten._ctc_loss_backward.Tensor)
CPU_ATTENTION = {  # of what argument on queries, keys and values stand, and how many products are computed of them
    _aten._scaled_dot_product_flash_attention_for_cpu: (0, 2),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (1, 5),
}


def storage_key(storage: torch.UntypedStorage) -> int:
    """What is the same for all tensors that share memory."""
    return int(storage._cdata)


def is_in_place(function: Any) -> bool:
    """Whether an operation changes one of its arguments."""
    return bool(function._schema.is_mutable)


def returns_view(function: Any) -> bool:
    """Whether something that an operation returns shares memory with an argument."""
    return any(one.alias_info for one in function._schema.returns)


# isort: on
_META = torch.device("meta")


class Observer(Protocol):
    """Records each operation that a MetaTensor takes part in; all tensors in it are on the meta device."""

    def record(self, function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], result: Any) -> None: ...


_observers: list[Observer] = []


@contextmanager
def observed(by: Observer) -> Iterator[None]:
    """Let an observer record the operations of the block."""
    _observers.append(by)
    try:
        yield
    finally:
        _observers.remove(by)


class MetaTensor(Tensor):
    """A tensor of the meta device that claims to be on the CPU.

    So code that is written for values runs as it is: tensors that it makes itself, such as lengths and masks, are real
    and have values; whatever is computed from a MetaTensor is one, and raises RuntimeError where somebody asks for its
    values. PyTorch's `FakeTensor` makes all tensors fake, and code that asks for a length then stops.
    """

    wrapped: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> "MetaTensor":
        tensor: MetaTensor = make_wrapper(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device("cpu"), requires_grad=requires_grad,
        )  # fmt: skip
        return tensor

    def __init__(self, inner: Tensor, requires_grad: bool = False) -> None:
        self.wrapped = inner

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"MetaTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is CHOOSE_ATTENTION:
            return 1  # an attention that does not write all scores down, as every device has today
        leaves, spec = tree_flatten((_without_masks(func, args), kwargs or {}))
        arguments, keywords = tree_unflatten([_unwrap(leaf) for leaf in leaves], spec)
        result = _compute(func, arguments, keywords)
        if torch.Tag.inplace_view in func.tags:  # such as `squeeze_`: the wrapper must change its shape, too
            with no_dispatch():
                func(*args, **(kwargs or {}))
        for observer in _observers:
            observer.record(func, arguments, keywords, result)
        known = {id(leaf.wrapped): leaf for leaf in leaves if isinstance(leaf, MetaTensor)}
        return tree_map(lambda one: _wrap(one, known), result)


_layouts: dict[Any, tuple[Any, ...]] = {}  # of the results of operations that return one new tensor


def _compute(function: Any, arguments: Any, keywords: Any) -> Any:
    """An operation's result on the meta device. The second time only memory is laid out, which is much faster."""
    key = (function, *map(layout, tree_leaves((arguments, keywords))))
    if key in _layouts:
        shape, stride, dtype = _layouts[key]
        return torch.empty_strided(shape, stride, dtype=dtype, device=_META)
    if function in CTC_BACKWARD:  # which the meta device lacks: a gradient of (frames, rows, classes)
        return torch.empty_like(arguments[1])
    result = function(*arguments, **keywords)
    if isinstance(result, Tensor) and not returns_view(function):
        _layouts[key] = layout(result)
    return result


def layout(one: Any) -> Any:
    """A tensor's shape, strides and dtype; anything else is itself."""
    return (one.shape, one.stride(), one.dtype) if isinstance(one, Tensor) else one


def _without_masks(function: Any, arguments: Sequence[Any]) -> Sequence[Any]:
    """Boolean masks as indices: the meta device cannot count what a mask selects."""
    if function not in INDEXING:
        return arguments
    indices: list[Any] = []
    for index in arguments[1]:
        is_mask = index is not None and index.dtype == torch.bool and not isinstance(index, MetaTensor)
        indices += index.nonzero().unbind(1) if is_mask else [index]
    return (arguments[0], indices, *arguments[2:])


def _unwrap(one: Any) -> Any:
    if isinstance(one, MetaTensor):
        return one.wrapped
    if isinstance(one, Tensor):
        return one.to(_META)
    return _META if isinstance(one, torch.device) else one


def _wrap(one: Any, known: dict[int, MetaTensor]) -> Any:
    """A result as a MetaTensor; a tensor that an operation has changed in place is the one that it was."""
    if not isinstance(one, Tensor) or not one.is_meta:
        return one
    return known[id(one)] if id(one) in known else MetaTensor(one)


def to_meta_tensors(module: nn.Module) -> None:
    """Replace every weight and buffer of a module by a MetaTensor; tied weights stay tied."""
    replaced: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                empty = MetaTensor(weight.detach().to(_META))
                replaced.setdefault(id(weight), nn.Parameter(empty, requires_grad=weight.requires_grad))
                part._parameters[name] = replaced[id(weight)]
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else MetaTensor(buffer.detach().to(_META))


class PeakMemory:
    """Bytes of the MetaTensors that are in use, and the most that were at once. An observer."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}

    def record(self, function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], result: Any) -> None:
        for storage in (one.untyped_storage() for one in tree_leaves(result) if isinstance(one, Tensor)):
            key = storage_key(storage)
            if key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
