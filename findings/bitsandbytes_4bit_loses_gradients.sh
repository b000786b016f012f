#!/usr/bin/env bash
# bitsandbytes 0.50.2, on a CPU with AVX512-BF16: a Linear4bit in eval mode repacks its weights when it is first given an
# input that needs no gradient, for a kernel without backward pass. From then on an input that needs a gradient gets
# none, with no more than a warning; with a bias there is a RuntimeError about an in-place operation. A frozen LLM under
# adapters or LoRA is in eval mode, and answers before it is trained on. `layer.support_avx512bf16_for_cpu = False`
# prevents it.
# Exit 0: seen again; 1: it has changed, or this CPU has no AVX512-BF16.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "bitsandbytes==0.50.2" numpy
"$folder/venv/bin/python" - <<'PY'
import sys

import torch
from bitsandbytes.nn import Linear4bit

torch.manual_seed(0)
layer = Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to("cpu").eval()
for weight in layer.parameters():
    weight.requires_grad_(False)


def gradient():
    x = torch.ones(3, 64, requires_grad=True)
    layer(x).sum().backward()
    return x.grad


before = gradient()
with torch.no_grad():
    layer(torch.randn(3, 64))
after = gradient()
print(f"norm of the gradient: {before.norm():.3f}, after a use without one: {'none' if after is None else after.norm()}")
sys.exit(0 if after is None else 1)
PY
