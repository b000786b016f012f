#!/usr/bin/env bash
# torch 2.13.0+cpu: torch.nn.functional.linear of a slice hidden[:, -k:] with a frozen weight multiplies row by row. In
# bfloat16 it also copies the whole weight for each row of the batch: a hundred times slower than the same values,
# contiguous; in float32 several times. The slice is what `logits_to_keep=k` of transformers makes before a vocabulary;
# given as indices, `logits_to_keep=torch.arange(-k, 0)` makes a contiguous tensor. A weight that trains has no such cost.
# Exit 0: seen again; 1: it has changed.
# Seen on an x86-64 with AMX, one thread, (rows, tokens, dim) = (16, 12 of 45, 576), a vocabulary of 49,152: in bfloat16
# 6.0 s as a slice and 0.06 s by indices, in float32 0.96 and 0.17 s.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" numpy
"$folder/venv/bin/python" - <<'PY'
import sys
import time

import torch
from torch.nn.functional import linear

torch.set_num_threads(1)
torch.manual_seed(0)


def seconds(dtype, kept):
    """The faster of two forward passes, by the time of the process."""
    weight = torch.randn(49152, 576, dtype=dtype)
    hidden = torch.randn(16, 45, 576, dtype=dtype, requires_grad=True)
    taken = []
    for _ in range(2):
        start = time.process_time()
        linear(hidden[:, kept], weight)
        taken.append(time.process_time() - start)
    return min(taken)


slower = {}
for dtype in (torch.bfloat16, torch.float32):
    as_slice, by_indices = seconds(dtype, slice(-12, None)), seconds(dtype, torch.arange(-12, 0))
    slower[dtype] = as_slice / by_indices
    print(f"{dtype}: {as_slice:.3f} s as a slice, {by_indices:.3f} s by indices, {slower[dtype]:.1f} times slower")
sys.exit(not (slower[torch.bfloat16] > 10 and slower[torch.float32] > 2))
PY
