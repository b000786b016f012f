"""Safetensors files, written atomically and read in part; digests of tensors."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sottovoce.io import atomic_open


class Digest(Protocol):
    """What `hashlib` returns."""

    def update(self, data: bytes | memoryview, /) -> None: ...


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file by `io.atomic_open`; the tensors may lie on any device."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_open(path) as draft:
        save_file(content, draft.name, dict(metadata or {}) or None)
        with open(draft.name, "rb") as written:  # `draft` is another file since a rename, and its sync does not count
            os.fsync(written.fileno())


def read_tensors(
    path: Path, rename: Callable[[str], str | None] = lambda name: name, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Tensors of a safetensors file; those for which `rename` returns None are never read.

    Without `dtype` they are views of the mapped file, and change when somebody writes over it; with it, copies.

    Raises:
        OSError, SafetensorError: there is no such file, or it is damaged.
    """
    with safe_open(path, "pt") as file:
        found = {new: file.get_tensor(name) for name in file.keys() if (new := rename(name)) is not None}
    return found if dtype is None else {name: tensor.to(dtype, copy=True) for name, tensor in found.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; errors as in `read_tensors`."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def update_digest(digest: Digest, tensor: Tensor, label: str = "") -> None:
    """Feed a label and a tensor's dtype, shape and bytes to a digest."""
    digest.update(f"{label}{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
