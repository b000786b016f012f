#!/usr/bin/env bash
# transformers 5.24.0: Wav2Vec2Conformer, Data2VecAudio, SEW and SEW-D take an attention mask and still hear the padding
# behind a clip: their convolutions over time (the Conformer's depthwise one, the positional ones) are not masked, so
# that the last frames of a clip, and by attention all others, depend on what it was batched with. wav2vec 2.0, HuBERT,
# WavLM and UniSpeech-SAT with layer norms in front do not: the same clip alone and padded to twice its length is the
# same to rounding.
# Exit 0: seen again; 1: it has changed.
# Seen, small random models, frames of size 0.8 (SEW 0.05): largest difference 2e-6 for the latter; 2.1 for
# Wav2Vec2Conformer, 1.3 for Data2VecAudio, 0.12 for SEW and 0.13 for SEW-D.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "transformers==5.24.0" numpy
"$folder/venv/bin/python" - <<'PY' 2>"$folder/log" || { tail -20 "$folder/log"; exit 1; }
import sys

import torch
from transformers import AutoConfig, AutoModel

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer",
    "conv_dim": (32, 32, 32), "conv_kernel": (10, 8, 4), "conv_stride": (5, 4, 4), "num_feat_extract_layers": 3,
}
SEW = {"squeeze_factor": 2}
KINDS = {
    "wav2vec2": {}, "hubert": {}, "wavlm": {}, "unispeech-sat": {},
    "wav2vec2-conformer": {"conv_depthwise_kernel_size": 5},
    "data2vec-audio": {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 3},
    "sew": SEW, "sew-d": {**SEW, "max_position_embeddings": 64, "position_buckets": 32},
}
torch.manual_seed(0)
clip = torch.randn(1, 8000)
padded = torch.cat([clip, torch.zeros(1, 8000)], 1)
mask = torch.cat([torch.ones(1, 8000, dtype=torch.long), torch.zeros(1, 8000, dtype=torch.long)], 1)
hears = {}
for kind, more in KINDS.items():
    model = AutoModel.from_config(AutoConfig.for_model(kind, **{**SMALL, **more})).eval()
    with torch.no_grad():
        alone = model(clip).last_hidden_state
        batched = model(padded, attention_mask=mask).last_hidden_state[:, : alone.shape[1]]
    difference, size = float((alone - batched).abs().max()), float(alone.abs().mean())
    hears[kind] = difference > 0.01 * size
    print(f"{kind}: largest difference {difference:.2g}, frames are of size {size:.2g}")
expected = {kind: kind in ("wav2vec2-conformer", "data2vec-audio", "sew", "sew-d") for kind in KINDS}
sys.exit(0 if hears == expected else 1)
PY
