#!/usr/bin/env bash
# lightning 2.6.6 with deepspeed 0.19.8: with accumulate_grad_batches=N both divide the loss by N, so that gradients are
# 1/N of what they are without DeepSpeed. Adam hides it; SGD, weight decay's balance and clipping by norm do not.
# Exit 0: seen again; 1: it has changed.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch>=2.6,<2.14" lightning==2.6.6 deepspeed==0.19.8
cd "$folder"
DS_ACCELERATOR=cpu "$folder/venv/bin/python" -W ignore - <<'PY'
import sys

import deepspeed.ops
import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch.utils.data import DataLoader

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or it compiles a reduction that one process needs not


class OnCPU(DeepSpeedStrategy):
    """Lightning wants a GPU here, DeepSpeed does not."""

    root_device = property(lambda self: torch.device("cpu", 0))

    def setup_environment(self):
        DDPStrategy.setup_environment(self)

    def setup_distributed(self):
        self.set_world_ranks()
        self._init_deepspeed_distributed()


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, number):
        return self.weight.sum()  # a gradient of 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def step(strategy, batches):
    """How far one step moves the weight."""
    model = Model()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, strategy=strategy, max_epochs=1, accumulate_grad_batches=batches, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(model, DataLoader([0.0] * batches))
    return -model.weight.item()


config = {
    "zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
    "train_micro_batch_size_per_gpu": 1,
}
seen = {n: (step("auto", n), step(OnCPU(stage=2, logging_batch_size_per_gpu=1, config=dict(config)), n)) for n in (1, 2, 4)}
for n, (plain, zero) in seen.items():
    print(f"{n} batches a step: the weight moves by {plain:g} without DeepSpeed, by {zero:g} with it")
sys.exit(seen != {1: (1.0, 1.0), 2: (1.0, 0.5), 4: (1.0, 0.25)})
PY
