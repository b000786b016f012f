"""Tiny random LLMs of the true architectures, each with a tokenizer and the chat template that its family has."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

# Qwen2.5: a default system prompt where the dialogue has none. No BOS.
CHATML = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)

# Llama 3: every turn has a header; contents are trimmed.
HEADERS = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)

# Mistral v0.3: strict alternation, and the system prompt is written into the last turn, if that is the user's.
INST = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    "{{- bos_token }}{%- for message in loop_messages %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif %}"
    "{%- if message['role'] == 'user' %}{%- if loop.last and system_message is defined %}"
    "{{- '[INST] ' + system_message + '\n\n' + message['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + message['content'] | trim + eos_token }}{%- endif %}{%- endfor %}"
)

# Gemma: no system role, and the assistant is called model.
TURNS = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

# Phi-3: without a generation prompt it closes the text with EOS.
PHI = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """`specials` starts with BOS (or the pad token where there is none) and EOS; `end` closes a turn."""

    model_type: str
    template: str
    specials: tuple[str, ...]
    end: str
    bos: str | None
    options: dict[str, Any]


FAMILIES = {
    "qwen2": Family("qwen2", CHATML, ("<|endoftext|>", "<|im_end|>", "<|im_start|>"), "<|im_end|>", None, {}),
    "llama3": Family(
        "llama",
        HEADERS,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        "<|eot_id|>",
        "<|begin_of_text|>",
        {},
    ),
    "mistral": Family("mistral", INST, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "<s>", {"sliding_window": 16}),
    "gemma": Family(
        "gemma",
        TURNS,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        "<bos>",
        {"head_dim": 8, "tie_word_embeddings": True},
    ),
    "gemma2": Family(
        "gemma2",
        TURNS,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        "<bos>",
        {"head_dim": 8, "tie_word_embeddings": True, "sliding_window": 16, "query_pre_attn_scalar": 8},
    ),
    "phi3": Family(
        "phi3",
        PHI,
        ("<s>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
        "<|end|>",
        "<s>",
        {"sliding_window": 16},
    ),
}

LIVELY = 1.0  # standard deviation of the weights of the layers
_TEXT = ["The speaker sounds happy and talks fast.", "Repeat what you hear, please.", "A low, calm voice: yes, it is."]


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the family's special tokens; where the family has a BOS it is also added to plain text."""
    family = FAMILIES[name]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = list(family.specials)
    bpe.train_from_iterator(
        _TEXT,
        trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=specials, show_progress=False),
    )
    if family.bos:
        bpe.post_processor = processors.TemplateProcessing(f"{family.bos} $A", special_tokens=[(family.bos, 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=family.bos,
        eos_token=family.specials[1],
        pad_token=family.specials[0],
        additional_special_tokens=specials[2:],
    )
    tokenizer.chat_template = family.template
    return tokenizer


def save_family(name: str, folder: Path) -> Path:
    """A two-layer model on disk, random, but lively: it says different things after different prompts."""
    family = FAMILIES[name]
    tokenizer = tokenizer_of(name)
    config = AutoConfig.for_model(
        family.model_type,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
        pad_token_id=0,
        bos_token_id=0 if family.bos else None,
        eos_token_id=1,
        **family.options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for weight in model.get_decoder().layers.parameters():  # or tied embeddings repeat the last token for ever
            torch.nn.init.normal_(weight, std=LIVELY)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
