#!/usr/bin/env bash
# transformers 5.24.0 beside peft 0.21.2 and bitsandbytes 0.50.2: `from transformers import get_scheduler`, which makes a
# learning rate schedule of a few lines, imports PEFT, bitsandbytes and with it PyTorch's compiler (torch._dynamo,
# torch._inductor): some 2,000 modules and two seconds of the CPU, whether or not a model is ever adapted, quantized or
# compiled. Without the two packages it imports neither of them.
# Exit 0: seen again; 1: it has changed.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "transformers==5.24.0" "peft==0.21.2" "bitsandbytes==0.50.2" numpy
"$folder/venv/bin/python" - <<'PY'
import sys
import time

import torch
import transformers

had, began = set(sys.modules), time.process_time()
from transformers import get_scheduler

took, new = time.process_time() - began, set(sys.modules) - had
names = ("peft", "bitsandbytes", "torch._inductor.compile_fx")
print(f"torch {torch.__version__}, transformers {transformers.__version__}: {get_scheduler.__name__} brought {len(new)}")
print(f"modules in {took:.1f} s of the CPU, among them: {', '.join(name for name in names if name in new)}")
sys.exit(0 if new.issuperset(names) else 1)
PY
