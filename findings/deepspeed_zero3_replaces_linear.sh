#!/usr/bin/env bash
# deepspeed 0.19.8: once a model was trained under ZeRO's stage 3, torch.nn.functional.linear is DeepSpeed's own for the
# rest of the process, also for models that never saw DeepSpeed, and after `destroy()`. Under autocast to bfloat16 it
# gives a layer with a bias other numbers. Exit 0: seen again; 1: it has changed.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch>=2.6,<2.14" deepspeed==0.19.8
cd "$folder"
DS_ACCELERATOR=cpu RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29777 \
  "$folder/venv/bin/python" -W ignore - <<'PY'
import sys

import deepspeed
import deepspeed.ops
import torch

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or it compiles a reduction that one process needs not
deepspeed.init_distributed("gloo")
own = torch.nn.functional.linear
torch.manual_seed(0)
plain, x = torch.nn.Linear(32, 48), torch.randn(3, 7, 32)  # a layer that DeepSpeed never sees


def answer():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return plain(x).float()


before, seen = answer(), {}
for stage in (2, 3):
    model = torch.nn.Linear(4, 4)
    config = {
        "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(model=model, config=config, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    engine.destroy()
    seen[stage] = torch.nn.functional.linear is own, (answer() - before).abs().max().item()
    print(f"after stage {stage}: PyTorch's own linear {seen[stage][0]}, another layer's output moved by {seen[stage][1]:.1e}")
sys.exit(not (seen[2] == (True, 0.0) and not seen[3][0] and seen[3][1] > 0))
PY
