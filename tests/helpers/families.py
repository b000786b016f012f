"""Tiny random LLMs of the true architectures, each with a tokenizer and the chat template that its family has."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast


def chat_template(name: str) -> str:
    """The template in `chat_templates/`, whose lines are joined; its first line is a comment."""
    lines = (Path(__file__).parent / "chat_templates" / f"{name}.jinja").read_text("utf-8").splitlines()
    return "".join(lines[1:]).replace("\\n", "\n")


@dataclass(frozen=True)
class Family:
    """`specials` starts with BOS (or the pad token where there is none) and EOS; `end` closes a turn."""

    model_type: str
    template: str
    specials: tuple[str, ...]
    end: str
    bos: bool
    options: dict[str, Any] = field(default_factory=dict)


_GEMMA = {"head_dim": 8, "tie_word_embeddings": True}
_GEMMA_TOKENS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
_LLAMA_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
_PHI_TOKENS = ("<s>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
_WINDOW = {"sliding_window": 16}
FAMILIES = {
    "qwen2": Family("qwen2", "qwen2", ("<|endoftext|>", "<|im_end|>", "<|im_start|>"), "<|im_end|>", bos=False),
    "llama3": Family("llama", "llama3", _LLAMA_TOKENS, "<|eot_id|>", bos=True),
    "mistral": Family("mistral", "mistral", ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", True, _WINDOW),
    "gemma": Family("gemma", "gemma", _GEMMA_TOKENS, "<end_of_turn>", True, _GEMMA),
    "gemma2": Family(
        "gemma2", "gemma", _GEMMA_TOKENS, "<end_of_turn>", True, {**_GEMMA, **_WINDOW, "query_pre_attn_scalar": 8}
    ),
    "phi3": Family("phi3", "phi3", _PHI_TOKENS, "<|end|>", True, _WINDOW),
}

LIVELY = 1.0  # standard deviation of the weights of two layers
_TEXT = ["The speaker sounds happy and talks fast.", "Repeat what you hear, please.", "A low, calm voice: yes, it is."]


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the family's special tokens; where the family has a BOS it is also added to plain text."""
    family = FAMILIES[name]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = list(family.specials)
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    bpe.train_from_iterator(_TEXT, trainer)
    bos = specials[0] if family.bos else None
    if bos:
        bpe.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, 0)])
    named = {"bos_token": bos, "eos_token": specials[1], "pad_token": specials[0]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **named, additional_special_tokens=specials[2:])
    tokenizer.chat_template = chat_template(family.template)
    return tokenizer


def save_family(name: str, folder: Path, *, ends: bool = False, positions: int = 512, layers: int = 2) -> Path:
    """A small model on disk, random, but lively: it says different things after different prompts.

    With `ends` its answers have a few tokens, where they otherwise never end.
    """
    family = FAMILIES[name]
    tokenizer = tokenizer_of(name)
    config = AutoConfig.for_model(
        family.model_type, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=positions, initializer_range=0.1,
        pad_token_id=0, bos_token_id=0 if family.bos else None, eos_token_id=1, **family.options,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for weight in model.get_decoder().layers.parameters():  # or tied embeddings repeat the last token for ever
            torch.nn.init.normal_(weight, std=LIVELY * (2 / layers) ** 0.5)  # so that deep ones end, too
        if ends:
            let_answers_end(model, tokenizer)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def let_answers_end(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Three tokens of five are followed by the end of the turn: dimension 0 says which, and no layer writes to it."""
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    words = [bool(tokenizer.decode([token], skip_special_tokens=True).strip()) for token in range(len(table))]
    last = torch.tensor(words) & (torch.arange(len(table)) % 5 < 3)  # and never white space: a prompt ends with it
    table[:, 0] = torch.where(last, 1.0, -1.0)
    for layer in model.get_decoder().layers:
        layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0.0
    head[:, 0] = 0.0
    head[tokenizer.eos_token_id] = 0.0
    head[tokenizer.eos_token_id, 0] = 600.0
