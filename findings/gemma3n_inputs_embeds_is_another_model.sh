#!/usr/bin/env bash
# transformers 5.24.0: Gemma 3n has embeddings of tokens for every layer. Given `inputs_embeds` in the place of
# `input_ids`, as every speech LLM does, the model leaves them out without an error or a warning: other logits for the
# very same tokens. Exit 0: seen again; 1: it has changed.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch>=2.6,<2.14" transformers==5.24.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import sys

import torch
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

torch.manual_seed(0)
config = Gemma3nTextConfig(
    vocab_size=64, vocab_size_per_layer_input=64, hidden_size=32, hidden_size_per_layer_input=8, intermediate_size=64,
    num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_kv_shared_layers=1,
    laurel_rank=4, sliding_window=16, max_position_embeddings=64, activation_sparsity_pattern=[0.0, 0.0, 0.0],
    layer_types=["sliding_attention", "full_attention", "full_attention"],
)
model = Gemma3nForCausalLM(config).eval()
with torch.no_grad():
    for weight in model.parameters():  # as trained ones: some are zero in a new model, and hide it
        weight.normal_(std=0.2)
    ids = torch.arange(2, 10)[None]
    by_ids = model(input_ids=ids).logits
    by_embeddings = model(inputs_embeds=model.get_input_embeddings()(ids)).logits
difference, scale = (by_ids - by_embeddings).abs().max().item(), by_ids.abs().mean().item()
print(f"the same tokens as ids and as embeddings: logits differ by up to {difference:.2f}, where their mean size is {scale:.2f}")
sys.exit(difference < 0.1 * scale)
PY
