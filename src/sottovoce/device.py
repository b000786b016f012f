"""Devices: memory checks before weights are allocated, and moving a module to this process's GPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sottovoce.errors import ConfigError


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


@contextmanager
def on_device(module: nn.Module) -> Iterator[None]:
    """Move a module to this process's GPU, if there is one, and back to the CPU when the block ends."""
    number = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    weight, gpu = next(module.parameters(), None), torch.device("cuda", number)
    if not torch.cuda.is_available() or weight is None or weight.device == gpu:
        yield
        return
    module.to(gpu)
    try:
        yield
    finally:
        module.cpu()
