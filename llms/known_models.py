"""Architecture numbers of well-known chat LLMs, as published: enough to build one without a network."""

from typing import Any

from sottovoce.audio_llm_layouts import PUBLISHED as AUDIO_LLMS

_QWEN = {"model_type": "qwen2", "max_position_embeddings": 32768, "rms_norm_eps": 1e-6}
_QWEN |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
_LLAMA = {"model_type": "llama", "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "vocab_size": 128256}
_LLAMA |= {"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009]}


def _llama_rope(factor: float) -> dict[str, Any]:
    """Llama 3's stretched rotary embeddings (Llama team, 2024, section 3.4.2)."""
    stretch = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {"rope_type": "llama3", "rope_theta": 5e5, "original_max_position_embeddings": 8192, **stretch}


def _sizes(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
    }


# Fields that are left out have the published value as their default in transformers.
PUBLISHED: dict[str, dict[str, Any]] = {
    **AUDIO_LLMS,
    "Qwen/Qwen2.5-0.5B-Instruct": {
        **_QWEN,
        **_sizes(896, 24, 14, 2, 4864),
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-1.5B-Instruct": {
        **_QWEN,
        **_sizes(1536, 28, 12, 2, 8960),
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        **_QWEN,
        **_sizes(3584, 28, 28, 4, 18944),
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen2.5-32B-Instruct": {
        **_QWEN,
        **_sizes(5120, 64, 40, 8, 27648),
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "meta-llama/Meta-Llama-3-8B-Instruct": {
        **_LLAMA,
        **_sizes(4096, 32, 32, 8, 14336),
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        "tie_word_embeddings": False,
    },
    "meta-llama/Llama-3.1-8B-Instruct": {
        **_LLAMA,
        **_sizes(4096, 32, 32, 8, 14336),
        "rope_parameters": _llama_rope(8.0),
        "tie_word_embeddings": False,
    },
    "meta-llama/Llama-3.2-1B-Instruct": {
        **_LLAMA,
        **_sizes(2048, 16, 32, 8, 8192),
        "head_dim": 64,
        "rope_parameters": _llama_rope(32.0),
        "tie_word_embeddings": True,
    },
    "mistralai/Mistral-7B-Instruct-v0.3": {
        "model_type": "mistral",
        **_sizes(4096, 32, 32, 8, 14336),
        "vocab_size": 32768,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
    "google/gemma-2-2b-it": {
        "model_type": "gemma2",
        **_sizes(2304, 26, 8, 4, 9216),
        "head_dim": 256,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "tie_word_embeddings": True,
    },
    "microsoft/Phi-3-mini-4k-instruct": {
        "model_type": "phi3",
        **_sizes(3072, 32, 32, 32, 8192),
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
        "sliding_window": 2047,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
}
