"""Pre-train the demo's deeper LLM, a Qwen2 chat model of seven layers, grown from the one of three.

    python -m sottovoce.demo pretrain-llm-deep

It starts from the demo's LLM of three layers (which `pretrain-llm` makes, and which has to lie in the same folder) and
grows: narrower feed-forward maps first, and more layers later. From `paired_lessons` it learns to answer words by what
is known of their speaker, and by their content alone where nothing is; what it knew it is asked again. It never
sees speech, and no sentence of the validation or test split. Beside it stands `retention.jsonl`: what it knows in text,
to be asked after it has been tuned.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from sottovoce.demo.lessons import Phase
from sottovoce.demo.paired_lessons import KINDS, PairedLessons
from sottovoce.demo.pretrain_llm import save, train
from sottovoce.io import atomic_write

LAYERS, FEEDFORWARD = 7, 224  # of the grown model; its width is the seedling's
PHASES = (  # the first is the seedling's, at a third of the cost of a step
    Phase(steps=700, batch=24, lr=1.5e-3, context=0.0, copying=0.2, attributes=0.2, loose=0.3, noise=0.5),
    Phase(steps=600, batch=24, lr=1.0e-3, context=0.0, copying=0.2, attributes=0.15, loose=0.5, noise=1.0),
)
SEED, ASKED = 17, 20  # prompts of each kind in the retention file


def pretrain(out: Path, phases: tuple[Phase, ...] = PHASES) -> dict[str, float]:
    """Train; write `llm_deep`, `llm_deep.json` and `retention.jsonl` into `out`; returns what `pretrain_llm` does."""
    torch.manual_seed(SEED)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "llm")
    llm: Any = Qwen2ForCausalLM.from_pretrained(out / "llm", dtype=torch.float32)
    narrow(llm, FEEDFORWARD)
    scores: dict[str, float] = {}
    for number, phase in enumerate(phases):
        if number == len(phases) - 1:
            llm = grown(llm, LAYERS)
        scores = train(llm, tokenizer, PairedLessons(SEED + number, "train", phase), SEED)
    save(out, "llm_deep", llm, tokenizer, {"seed": SEED, "phases": [asdict(p) for p in phases], "validation": scores})
    lessons = PairedLessons(SEED + 100, "validation", PHASES[-1])
    chats = (lessons.lesson(kind) for kind in KINDS for _ in range(ASKED))
    lines = (json.dumps({"messages": messages, "response": response}) + "\n" for messages, response in chats)
    atomic_write(out / "retention.jsonl", "".join(lines))
    return scores


@torch.no_grad()
def narrow(llm: Any, feedforward: int) -> None:
    """Leave the `feedforward` hidden units with the largest weights in every feed-forward map, in place."""
    for layer in llm.model.layers:
        mlp = layer.mlp
        weight = mlp.gate_proj.weight.norm(dim=1) * mlp.up_proj.weight.norm(dim=1) * mlp.down_proj.weight.norm(dim=0)
        kept = weight.topk(feedforward).indices.sort().values
        for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            linear = getattr(mlp, name)
            linear.weight = nn.Parameter(linear.weight.index_select(dim, kept))
            linear.out_features, linear.in_features = linear.weight.shape
    llm.config.intermediate_size = feedforward


def grown(seedling: Any, layers: int) -> Any:
    """A model of `layers` layers that says what `seedling` says: its layers, among new ones that add nothing yet.

    Function-preserving growth in depth, after Chen et al. (Net2Net, 2016).
    """
    known = {key: value for key, value in seedling.config.to_dict().items() if key != "layer_types"}
    llm = Qwen2ForCausalLM(type(seedling.config)(**{**known, "num_hidden_layers": layers}))
    few = len(seedling.model.layers)
    places = [round((i + 0.5) * layers / few - 0.5) for i in range(few)]
    for name in ("embed_tokens", "norm"):
        getattr(llm.model, name).load_state_dict(getattr(seedling.model, name).state_dict())
    llm.lm_head.load_state_dict(seedling.lm_head.state_dict())
    for place, layer in enumerate(llm.model.layers):
        if place in places:
            layer.load_state_dict(seedling.model.layers[places.index(place)].state_dict())
        else:
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.down_proj.weight)
    return llm
