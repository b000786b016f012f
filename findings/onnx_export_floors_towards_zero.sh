#!/usr/bin/env bash
# torch 2.13.0 with onnxscript 0.7.2: torch.onnx.export (dynamo=True, opset chosen by it) writes `//` of a symbolic size as ONNX's
# Div, which rounds towards zero, where Python and PyTorch round down. `-(-n // 4)`, the usual way to round up, so gives
# n // 4 in the exported graph: a length that is one too short for three sizes in four, without error or warning.
# The same by `(n + 3) // 4` is right, and so is the remainder. Exit 0: seen again; 1: it has changed.
# Seen, n = 8 to 12: PyTorch and torch.export [2, 3, 3, 3, 3], the ONNX graph in onnxruntime 1.32.0 [2, 2, 2, 2, 3].
set -eu -o pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "onnx==1.23.2" "onnxscript==0.7.2" "onnxruntime==1.32.0" numpy
cd "$folder"
"$folder/venv/bin/python" - <<'PY' 2>&1 | grep -v torchvision
import sys

import onnxruntime
import torch

SIZES = [8, 9, 10, 11, 12]


class RoundsUp(torch.nn.Module):
    def __init__(self, negative):
        super().__init__()
        self.negative = negative

    def forward(self, x):
        n = x.shape[1]
        return x.new_ones(-(-n // 4) if self.negative else (n + 3) // 4)


seen = {}
for negative in (True, False):
    model = RoundsUp(negative)
    dynamic = ({1: torch.export.Dim("n", min=5, max=4096)},)
    program = torch.export.export(model, (torch.ones(1, 9),), dynamic_shapes=dynamic)
    torch.onnx.export(model, (torch.ones(1, 9),), "model.onnx", dynamic_shapes=dynamic, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession("model.onnx")
    name = session.get_inputs()[0].name
    inputs = [torch.ones(1, n) for n in SIZES]
    seen[negative] = (
        [len(model(x)) for x in inputs],
        [len(program.module()(x)) for x in inputs],
        [len(session.run(None, {name: x.numpy()})[0]) for x in inputs],
    )
    print("-(-n // 4)" if negative else "(n + 3) // 4", "torch, export, onnx:", *seen[negative])
up, wrong = [2, 3, 3, 3, 3], [2, 2, 2, 2, 3]
sys.exit(0 if seen == {True: (up, up, wrong), False: (up, up, up)} else 1)
PY
exit "${PIPESTATUS[0]}"
