#!/usr/bin/env bash
# lightning 2.6.6: with `precision="bf16-mixed"` and gradient clipping, a fit whose optimizer is
# `torch.optim.AdamW(..., fused=True)` ends with a RuntimeError: such an optimizer would unscale gradients itself. In
# bfloat16 nothing is scaled (the plugin has no GradScaler, and PyTorch clips and steps without fault), so the reason is
# float16's alone. With `32-true` the same fit goes through.
# Exit 0: seen again; 1: it has changed.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "lightning==2.6.6" numpy
cd "$folder"
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import sys

import lightning as L
import torch


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.map = torch.nn.Linear(4, 1)

    def training_step(self, batch):
        return self.map(batch).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3, fused=True)


def fit(precision: str) -> str:
    trainer = L.Trainer(accelerator="cpu", precision=precision, gradient_clip_val=1.0, max_steps=2, logger=False,
                        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    try:
        trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=4))
    except RuntimeError as error:
        return f"scaler {scaler}, {type(error).__name__}: {error}"
    return f"scaler {scaler}, {trainer.global_step} steps"


def by_hand() -> str:
    module = Module()
    optimizer = module.configure_optimizers()
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.training_step(torch.randn(8, 4))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    return "1 step"


seen = {"32-true": fit("32-true"), "bf16-mixed": fit("bf16-mixed"), "bf16 by hand": by_hand()}
print(f"torch {torch.__version__}, lightning {L.__version__}:", *(f"{k}: {v}" for k, v in seen.items()), sep="\n  ")
wanted = "RuntimeError" in seen["bf16-mixed"] and "scaler None" in seen["bf16-mixed"]
sys.exit(0 if wanted and "2 steps" in seen["32-true"] else 1)
PY
