"""How long operations take: on a GPU that is only known by its data sheet, and on the machine at hand."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from undertone.errors import ConfigError, nearest
from undertone.lightning_modules.hollow import layout
from undertone.memory import installed

_aten = torch.ops.aten
_BRIEF = 2e-3  # seconds that an operation is tried for


class Kind(NamedTuple):
    """Operations that cost the same: one function, its tensors of the same shapes. Tensors are on the meta device."""

    function: Any
    arguments: tuple[Any, ...]
    knobs: dict[str, Any]
    flops: int
    moved: int  # bytes read and written

    @property
    def dtype(self) -> torch.dtype:
        """That of the first tensor."""
        return next(one.dtype for one in tree_leaves((self.arguments, self.knobs)) if isinstance(one, Tensor))


class Work:
    """Which operations were made, and how often. An observer of hollow tensors."""

    def __init__(self) -> None:
        self.times: dict[Any, int] = {}
        self.kinds: dict[Any, Kind] = {}
        self.looks = 0  # other views of a tensor, which move nothing

    def saw(self, function: Any, arguments: tuple[Any, ...], knobs: dict[str, Any], result: Any) -> None:
        leaves = tree_leaves((arguments, knobs))
        given = {one.untyped_storage()._cdata for one in leaves if isinstance(one, Tensor)}
        come = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        changes = function._schema.is_mutable
        if not changes and come and all(one.untyped_storage()._cdata in given for one in come):
            self.looks += 1
            return
        key = (function, *map(layout, leaves))
        self.times[key] = self.times.get(key, 0) + 1
        if key not in self.kinds:
            moved = sum(_bytes(one) for one in [*leaves, *come] if isinstance(one, Tensor))
            flops = _flops(function, arguments, knobs, result)
            given_again, knobs_again = tree_map(_without_storage, (arguments, knobs))
            self.kinds[key] = Kind(function, given_again, knobs_again, flops, moved)

    @property
    def flops(self) -> int:
        return sum(self.kinds[key].flops * times for key, times in self.times.items())

    @property
    def operations(self) -> int:
        return sum(self.times.values())


def _without_storage(one: Any) -> Any:
    """A tensor of the same layout that keeps nothing in use."""
    return (
        torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device="meta") if isinstance(one, Tensor) else one
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _flops(function: Any, arguments: tuple[Any, ...], knobs: dict[str, Any], result: Any) -> int:
    packet = function._overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*arguments, **knobs, out_val=result))
    if packet is _aten._scaled_dot_product_flash_attention_for_cpu:
        return _attention(*arguments[:3])
    if packet is _aten._scaled_dot_product_flash_attention_for_cpu_backward:  # 5 products, where forward has 2
        return _attention(*arguments[1:4]) * 5 // 2
    return 0


def _attention(query: Tensor, key: Tensor, value: Tensor) -> int:
    return 2 * prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


class Hardware(ABC):
    """What runs a step."""

    name: str
    memory: int  # bytes

    @abstractmethod
    def seconds(self, work: Work) -> float:
        """How long this work takes."""


@dataclass(frozen=True)
class GPU(Hardware):
    """By its data sheet. A step takes as long as its kernels, or as the host needs to launch them, if that is longer.

    Args:
        name: for people.
        memory: bytes that PyTorch sees.
        half: FLOP/s of dense matrix products in bfloat16 or float16.
        single: in float32, without TF32, which PyTorch does not take by itself.
        bandwidth: bytes/s of its memory.

    Of the sheet's numbers products get the share `products`, and all else `rest`: what large kernels usually reach. We
    have not measured either.
    """

    name: str
    memory: int
    half: float
    single: float
    bandwidth: float
    products: float = 0.65
    rest: float = 0.8
    per_kernel: float = 4e-6
    per_launch: float = 8e-6

    def seconds(self, work: Work) -> float:
        kernels = sum(self._kernel(work.kinds[key]) * times for key, times in work.times.items())
        return max(kernels, (work.operations + work.looks / 2) * self.per_launch)

    def _kernel(self, kind: Kind) -> float:
        rate = self.single if kind.dtype == torch.float32 else self.half
        return self.per_kernel + max(kind.flops / rate / self.products, kind.moved / self.bandwidth / self.rest)


# NVIDIA's data sheets, dense, SXM where there is a choice
GPUS = {
    "h200": GPU("H200", 150 * 10**9, 989e12, 67e12, 4.8e12),
    "h100": GPU("H100 80 GB", 85 * 10**9, 989e12, 67e12, 3.35e12),
    "a100": GPU("A100 80 GB", 85 * 10**9, 312e12, 19.5e12, 2.04e12),
    "l40s": GPU("L40S", 47 * 10**9, 362e12, 91.6e12, 0.864e12),
    "rtx4090": GPU("RTX 4090", 25 * 10**9, 165e12, 82.6e12, 1.008e12),
}


@dataclass
class Here(Hardware):
    """The machine at hand: each kind of operation is made a few times with numbers, and timed."""

    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def __post_init__(self) -> None:
        cuda = self.device.type == "cuda"
        self.name = torch.cuda.get_device_name() if cuda else f"this machine, {torch.get_num_threads()} threads"
        self.memory = torch.cuda.get_device_properties(0).total_memory if cuda else installed()
        self._known: dict[Any, float] = {}
        small = torch.zeros(8, 8, device=self.device)
        self._look = self._timed(lambda: small.view(64))

    def seconds(self, work: Work) -> float:
        for key, kind in work.kinds.items():
            if key not in self._known:
                self._known[key] = self._try(kind)
        return sum(self._known[key] * times for key, times in work.times.items()) + work.looks * self._look

    def _try(self, kind: Kind) -> float:
        arguments, knobs = tree_map(self._filled, (kind.arguments, kind.knobs))
        return self._timed(lambda: kind.function(*arguments, **knobs))

    def _filled(self, one: Any) -> Any:
        """A tensor with numbers: small ones, or zeros where they may pick something."""
        if isinstance(one, torch.device):
            return self.device
        if not isinstance(one, Tensor):
            return one
        extent = 1 + sum((size - 1) * stride for size, stride in zip(one.shape, one.stride(), strict=True) if size)
        flat = torch.zeros(extent, dtype=one.dtype, device=self.device)
        return (flat.uniform_(0.1, 0.9) if flat.is_floating_point() else flat).as_strided(one.shape, one.stride())

    def _timed(self, call: Callable[[], Any]) -> float:
        """Seconds that it takes, the median of a few after the first."""
        with torch.no_grad():
            call()
            taken: list[float] = []
            while sum(taken) < _BRIEF or len(taken) < 3:
                begun = time.perf_counter()
                call()
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                taken.append(time.perf_counter() - begun)
                if taken[0] > 1:
                    break
        return sorted(taken)[len(taken) // 2]


def chosen(name: str | None, accelerator: str) -> Hardware:
    """A GPU of the list, or the machine at hand; an H100 where nothing is said, and the GPU that is wanted is not here.

    Raises:
        ConfigError: no such GPU.
    """
    if name in GPUS:
        return GPUS[name]
    if name not in (None, "here"):
        raise ConfigError(f"--gpu: {name!r} is not known.{nearest(str(name), [*GPUS, 'here'])}")
    return GPUS["h100"] if name is None and accelerator in ("gpu", "cuda") and not torch.cuda.is_available() else Here()
