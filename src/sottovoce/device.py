"""Devices: the one that models answer on, memory checks before weights are allocated, moving a module to a GPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sottovoce.errors import ConfigError

_chosen: torch.device | None = None  # by --device, see `use_device`


def check_fits(part: nn.Module, what: str) -> None:
    """A ConfigError for a module on the meta device whose weights are larger than the memory (RAM or GPU)."""
    needed = sum(weight.numel() * weight.element_size() for weight in (*part.parameters(), *part.buffers()))
    memory = total_memory()
    if torch.cuda.is_available():
        memory = max(memory, torch.cuda.get_device_properties(0).total_memory)
    if needed > memory:
        why = f"its weights take {needed / 1e9:,.0f} GB, this machine has {memory / 1e9:,.0f} GB"
        raise ConfigError.at(what, "bad-value", why)


def total_memory() -> int:
    """Bytes of RAM that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def best_device() -> torch.device:
    """The device that was asked for, see `use_device`; else this process's GPU; the CPU where there is none."""
    if _chosen is not None:
        return _chosen
    return torch.device("cuda", _local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def device_of(name: str | torch.device | None, where: str = "device") -> torch.device:
    """The device of a name such as `cpu`, `cuda`, `cuda:1` or `mps`; None: `best_device`.

    Raises:
        ConfigError: there is no such device; at `where`.
    """
    if name is None:
        return best_device()
    try:
        device = torch.device(name)
    except RuntimeError:
        why = f"there is no device {str(name)!r}: take cpu, cuda, cuda:0 or mps"
        raise ConfigError.at(where, "bad-value", why) from None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", _local_rank())
    try:
        if device.type == "meta":
            raise RuntimeError("it holds no weights")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # PyTorch has one for each kind
        why = f"{device} is not there: {str(error).strip().splitlines()[0]}"
        raise ConfigError.at(where, "unavailable", why) from None
    return device


@contextmanager
def use_device(name: str | None) -> Iterator[None]:
    """Within the block models answer on this device, as the commands' --device has it; None: the best there is."""
    global _chosen
    before = _chosen
    _chosen = None if name is None else device_of(name, "--device")
    try:
        yield
    finally:
        _chosen = before


@contextmanager
def on_device(module: nn.Module) -> Iterator[None]:
    """Move a module to the `best_device`, if that is no CPU, and back to the CPU when the block ends."""
    weight, device = next(module.parameters(), None), best_device()
    if device.type == "cpu" or weight is None or weight.device == device:
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.cpu()


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
