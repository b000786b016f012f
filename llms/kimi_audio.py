"""Kimi-Audio's LLM as a causal LM of text: its input embeddings, its tokenizer, its chat template.

Kimi team (2025), section 2: at each position it reads a token of an audio stream and a token of a text stream, and adds
their embeddings. Words lie in the text stream, marks such as `<|im_media_begin|>` in the audio stream, and the other
stream has the blank: for text and marks that is one token and the blank, in whatever order. Where speech is heard, the
adapter `kimi_audio_projector` makes the whole sum. Text is answered from the last layer by `lm_head`; the six layers
and the head that speak branch off after layer 21, and nothing that they make is read again in a reply in text.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2ForCausalLM
from transformers.convert_slow_tokenizer import TikTokenConverter

from sottovoce.errors import ConfigError
from sottovoce.kimi_audio_config import SPECIALS, KimiAudioConfig

_WORDS = (  # how text is cut before it is tokenised
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# After the authors' prompt manager: turns of one role in a row are one message; after speech that ends a message the
# model is told that text is wanted; an answer ends its text before its message.
_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role not in ['user', 'assistant'] -%}"
    "{{ raise_exception('only user and assistant have turns, not ' + message.role) }}"
    "{%- endif -%}"
    "{%- if loop.first or loop.previtem.role != message.role -%}"
    "{{ '<|im_kimia_' + message.role + '_msg_start|>' }}"
    "{%- endif -%}"
    "{{ message.content }}"
    "{%- if message.role == 'assistant' -%}{{ '<|im_kimia_text_eos|>' }}{%- endif -%}"
    "{%- if loop.last or loop.nextitem.role != message.role -%}"
    "{%- if message.content.endswith('<|im_media_end|>') -%}{{ '<|im_kimia_speech_ct_id|>' }}{%- endif -%}"
    "{{ '<|im_msg_end|>' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_kimia_assistant_msg_start|>' }}{%- endif -%}"
)


class BlankedEmbedding(nn.Embedding):
    """An embedding table that adds the blank's row to every token's: what the other stream has."""

    blank: int

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.weight[self.blank]


class KimiAudioForCausalLM(Qwen2ForCausalLM):
    """The 28 layers and the text head of Kimi-Audio, named as in its checkpoint."""

    config_class = KimiAudioConfig

    def __init__(self, config: KimiAudioConfig) -> None:
        super().__init__(config)
        table = BlankedEmbedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        table.blank = config.blank_id
        self.model.embed_tokens = table
        self.post_init()  # type: ignore[no-untyped-call]


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a folder's tiktoken.model, with the chat template.

    Raises:
        ConfigError: it has another number of words than config.json says.
        OSError: there is none.
    """
    from sottovoce.audio_llm_layouts import load_config

    file = folder / "tiktoken.model"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no tiktoken.model")
    bpe: Any = TikTokenConverter(str(file), pattern=_WORDS).converted()
    words, expected = bpe.get_vocab_size(), load_config(folder).num_base_tokens
    if words != expected:
        why = f"{file} has {words} tokens, and config.json has num_base_tokens={expected}"
        raise ConfigError.at("llm.checkpoint", "mismatch", why)
    bpe.add_special_tokens(list(SPECIALS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, name_or_path=str(folder), eos_token="<|im_kimia_text_eos|>", pad_token=SPECIALS[-1]
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


AutoModelForCausalLM.register(KimiAudioConfig, KimiAudioForCausalLM)
