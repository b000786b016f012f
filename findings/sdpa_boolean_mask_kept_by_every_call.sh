#!/usr/bin/env bash
# torch 2.13.0+cpu: scaled_dot_product_attention makes numbers of a boolean `attn_mask` in every call, and keeps them for
# the backward pass: a network of 30 layers that hands one mask of bytes to each keeps 30 masks of four bytes an element.
# The same mask handed over as numbers (0 and -inf, in the dtype of the queries) is kept once.
# Seen for 30 calls with a mask of (2, 1, 64, 64): 30 masks, 983,040 bytes; as numbers 1 and 32,768.
# Exit 0: seen again; 1: it has changed.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" numpy
"$folder/venv/bin/python" - <<'PY'
import sys

import torch
from torch.nn.functional import scaled_dot_product_attention

LAYERS = 30


def kept(mask: torch.Tensor) -> tuple[int, int]:
    """How many tensors of the mask's shape are saved for the backward pass, and their bytes."""
    found = {}

    def saved(x: torch.Tensor) -> torch.Tensor:
        if x.shape == mask.shape:
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    x = torch.randn(2, 4, 64, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(saved, lambda x: x):
        for _ in range(LAYERS):
            x = scaled_dot_product_attention(x, x, x, attn_mask=mask)
    return len(found), sum(found.values())


boolean = torch.ones(64, 64, dtype=torch.bool).tril().expand(2, 1, 64, 64).contiguous()
numbers = torch.zeros(2, 1, 64, 64).masked_fill(~boolean, float("-inf"))
print("boolean", kept(boolean), "numbers", kept(numbers))
sys.exit(0 if kept(boolean)[0] == LAYERS and kept(numbers)[0] == 1 else 1)
PY
