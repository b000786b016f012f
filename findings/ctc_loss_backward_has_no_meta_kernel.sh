#!/usr/bin/env bash
# torch 2.13.0: CTC loss has a forward pass on the meta device, and no backward pass (_ctc_loss_backward): a training
# step cannot be laid out without memory, as torch.device("meta"), FakeTensor or an estimate of memory do, though the
# loss itself can. Exit 0: seen again; 1: it has changed.
# Seen: "meta: forward gives () on meta", then NotImplementedError about aten::_ctc_loss_backward.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" numpy
"$folder/venv/bin/python" - <<'PY'
import sys

import torch

frames, rows, classes, letters = 12, 2, 5, 3
arguments = torch.full((rows,), frames), torch.full((rows,), letters)


def trained(device):
    log_p = torch.zeros(frames, rows, classes, device=device, requires_grad=True)
    targets = torch.ones(rows, letters, dtype=torch.long, device=device)
    loss = torch.nn.functional.ctc_loss(log_p.log_softmax(-1), targets, *arguments, zero_infinity=True)
    print(f"{device}: forward gives {tuple(loss.shape)} on {loss.device.type}")
    loss.backward()
    return tuple(log_p.grad.shape)


print("cpu: backward gives", trained("cpu"))
try:
    print("meta: backward gives", trained("meta"))
except NotImplementedError as error:
    print("meta: backward raises", str(error).split(":")[0], "...", "Meta tensors" in str(error))
    sys.exit(0)
sys.exit(1)
PY
