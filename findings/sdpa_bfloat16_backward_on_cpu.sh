#!/usr/bin/env bash
# torch 2.13.0+cpu: the backward pass of scaled_dot_product_attention is several times slower in bfloat16 than in float32
# on a CPU, though its forward pass and all matrix products are as fast or faster. Attention written out in two products
# and a softmax ("eager" of transformers) has no such cost. Exit 0: seen again; 1: it has changed.
# Seen on an x86-64 with AMX, one thread, (rows, heads, tokens, dim) = (32, 9, 60, 64): 109 ms in bfloat16 and 26 in float32;
# eager 18 and 21.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" numpy
"$folder/venv/bin/python" - <<'PY'
import sys
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

torch.set_num_threads(1)
torch.manual_seed(0)


def eager(q, k, v, is_causal):
    hidden = torch.full(q.shape[-2:-1] * 2, float("-inf"), dtype=q.dtype).triu(1)
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + hidden, -1, torch.float32).to(q.dtype) @ v


def milliseconds(attention, dtype):
    """The fastest of five backward passes, by the time of the process."""
    inputs = [torch.randn(32, 9, 60, 64, dtype=dtype, requires_grad=True) for _ in range(3)]
    taken = []
    for _ in range(5):
        loss = attention(*inputs, is_causal=True).sum()
        start = time.process_time()
        loss.backward()
        taken.append(1000 * (time.process_time() - start))
    return min(taken)


seen = {
    (name, dtype): milliseconds(attention, dtype)
    for name, attention in (("sdpa", scaled_dot_product_attention), ("eager", eager))
    for dtype in (torch.float32, torch.bfloat16)
}
for (name, dtype), taken in seen.items():
    print(f"backward of {name} in {dtype}: {taken:.1f} ms")
slower = seen["sdpa", torch.bfloat16] / seen["sdpa", torch.float32]
print(f"sdpa: {slower:.1f} times slower in bfloat16; eager: {seen['eager', torch.bfloat16] / seen['eager', torch.float32]:.1f}")
sys.exit(not (slower > 3 and seen["sdpa", torch.bfloat16] > 2 * seen["eager", torch.bfloat16]))
PY
