#!/usr/bin/env bash
# torch 2.13.0+cpu, x86-64 with AMX: `torch.set_float32_matmul_precision("medium")`, which lets float32 products be
# computed in bfloat16, makes linear layers faster and scaled_dot_product_attention several times slower, forward and
# backward, so that a Transformer trains more slowly by it. Attention written out in two products and a softmax is not
# slowed down so.
# Seen, one thread, (rows, heads, tokens, dim) = (16, 8, 110, 24), forward and backward: SDPA 10 ms by "highest" and 71 by
# "medium", a linear layer 17 and 6. Exit 0: seen again; 1: it has changed, or this CPU has no AMX.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" numpy
"$folder/venv/bin/python" - <<'PY'
import sys
import time

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

torch.set_num_threads(1)
torch.manual_seed(0)
q, k, v = (torch.randn(16, 8, 110, 24, requires_grad=True) for _ in range(3))
x, weight = torch.randn(1760, 512, requires_grad=True), torch.randn(512, 512, requires_grad=True)


def written_out():
    return torch.softmax(q @ k.transpose(-1, -2) / 24**0.5, -1) @ v


def milliseconds(function):
    """The fastest of ten forward and backward passes, by the time of the process."""
    taken = []
    for _ in range(10):
        start = time.process_time()
        function().sum().backward()
        taken.append(1_000 * (time.process_time() - start))
    return min(taken)


took = {}
for precision in ("highest", "medium"):
    torch.set_float32_matmul_precision(precision)
    took["SDPA", precision] = milliseconds(lambda: scaled_dot_product_attention(q, k, v))
    took["written out", precision] = milliseconds(written_out)
    took["linear", precision] = milliseconds(lambda: linear(x, weight))
for (what, precision), each in took.items():
    print(f"{what}, {precision}: {each:.1f} ms")
slower = {what: took[what, "medium"] / took[what, "highest"] for what in ("SDPA", "written out", "linear")}
sys.exit(0 if slower["SDPA"] > 2 > slower["written out"] and slower["linear"] < 1 else 1)
PY
