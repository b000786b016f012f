"""Whether weights fit into this machine's memory, before they are made."""

import os

import torch
from torch import nn

from undertone.errors import ConfigError


def check_fits(part: nn.Module, what: str) -> None:
    """Refuse a part, built on the meta device, whose weights are larger than the whole memory of the machine.

    Raises:
        ConfigError: they are; `what` names the part.
    """
    weights = [*part.parameters(), *part.buffers()]
    taken = sum(weight.numel() * weight.element_size() for weight in weights)
    there = installed()
    if torch.cuda.is_available():
        there = max(there, torch.cuda.get_device_properties(0).total_memory)
    if taken > there:
        raise ConfigError(f"{what}: its weights take {taken / 1e9:,.0f} GB, this machine has {there / 1e9:,.0f} GB")


def installed() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
