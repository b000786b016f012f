"""Hardware that estimates are for: a GPU known by its data sheet, or this machine; and what operations cost it."""

from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from sottovoce.device import total_memory
from sottovoce.errors import ConfigError, nearest
from sottovoce.estimation.meta_tensor import CPU_ATTENTION, is_in_place, layout, storage_key, tree_leaves


class Kind(NamedTuple):
    """Operations that cost the same: one function, tensors of the same shapes."""

    name: str  # of the function
    dtype: torch.dtype  # of its first tensor
    flops: int
    moved: int  # bytes read and written


class OpCounter:
    """Counts operations by kind. An observer of MetaTensors."""

    def __init__(self) -> None:
        self.times: dict[Any, int] = {}
        self.kinds: dict[Any, Kind] = {}
        self.views = 0  # which move nothing

    def record(self, function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], result: Any) -> None:
        leaves = tree_leaves((arguments, keywords))
        inputs = {storage_key(one.untyped_storage()) for one in leaves if isinstance(one, Tensor)}
        outputs = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        shared = bool(outputs) and all(storage_key(one.untyped_storage()) in inputs for one in outputs)
        if shared and not is_in_place(function):
            self.views += 1
            return
        key = (function, *map(layout, leaves))
        self.times[key] = self.times.get(key, 0) + 1
        if key not in self.kinds:
            tensors = [one for one in [*leaves, *outputs] if isinstance(one, Tensor)]
            flops, moved = _flops(function, arguments, keywords, result), sum(one.nbytes for one in tensors)
            self.kinds[key] = Kind(function._overloadpacket.__name__, tensors[0].dtype, flops, moved)

    @property
    def flops(self) -> int:
        return sum(self.kinds[key].flops * times for key, times in self.times.items())

    @property
    def operations(self) -> int:
        return sum(self.times.values())


def _flops(function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], result: Any) -> int:
    packet = function._overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*arguments, **keywords, out_val=result))
    if packet not in CPU_ATTENTION:
        return 0
    at, products = CPU_ATTENTION[packet]
    query, key, value = arguments[at : at + 3]
    return int(products * prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


@dataclass(frozen=True)
class GPU:
    """By its data sheet. A step takes as long as its kernels, or as the host needs to launch them if that is longer."""

    name: str
    memory: int  # bytes that PyTorch sees
    half: float  # FLOP/s of dense matrix products in bfloat16 or float16
    single: float  # in float32, without TF32, which PyTorch does not take by itself
    bandwidth: float  # bytes/s of its memory
    products: float = 0.65  # the share of the sheet's FLOP/s that large kernels usually reach; we have not measured it
    rest: float = 0.8  # and of its bandwidth
    per_kernel: float = 4e-6
    per_launch: float = 8e-6

    def seconds(self, work: OpCounter) -> float:
        kernels = sum(self._kernel(work.kinds[key]) * times for key, times in work.times.items())
        return max(kernels, (work.operations + work.views / 2) * self.per_launch)

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
class LocalDevice:
    """This machine. Its times are not looked up but measured: `step_simulator.StepTimer`."""

    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def __post_init__(self) -> None:
        cuda = self.device.type == "cuda"
        self.name = torch.cuda.get_device_name() if cuda else f"this machine, {torch.get_num_threads()} threads"
        self.memory = torch.cuda.get_device_properties(0).total_memory if cuda else total_memory()


Hardware: TypeAlias = GPU | LocalDevice


def hardware_of(name: str | None, accelerator: str) -> Hardware:
    """A GPU of the list, or this machine; an H100 where no name is given and the recipe's GPU is not here."""
    if name in GPUS:
        return GPUS[name]
    if name not in (None, "here"):
        raise ConfigError.at("--gpu", "unknown-name", f"{name!r} is not known.{nearest(str(name), [*GPUS, 'here'])}")
    absent = name is None and accelerator in ("gpu", "cuda") and not torch.cuda.is_available()
    return GPUS["h100"] if absent else LocalDevice()
