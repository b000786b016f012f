"""A tiny random Kimi-Audio and its speech tokenizer on disk, laid out as their makers publish them."""

import base64
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from sottovoce.config.recipe import parse
from sottovoce.encoders import ENCODERS, Encoder
from sottovoce.lightning_modules.speech_llm import SpeechLLM

WINDOW = 32_000  # samples: 2 s, which are 30 s in the true model
BASE, OFFSET, VOCABULARY = 290, 736, 800
NAMED = {  # by place behind the words of the vocabulary
    "[BOS]": 0, "[EOS]": 1, "<|im_msg_end|>": 2, "<|im_user_msg_start|>": 3, "<|im_assistant_msg_start|>": 4,
    "[EOT]": 9, "<|im_media_begin|>": 18, "<|im_media_end|>": 20, "<|im_kimia_text_blank|>": 23,
    "<|im_kimia_text_eos|>": 24, "<|im_kimia_user_msg_start|>": 27, "<|im_kimia_assistant_msg_start|>": 28,
    "<|im_kimia_speech_ct_id|>": 32, "<|im_kimia_speech_ctd_id|>": 33,
}  # fmt: skip
ID = {name: BASE + place for name, place in NAMED.items()}
_WORDS = ("the", "speaker", " sounds", " happy", " hear", "What", " is", " it", "you", " a", " low", " voice", "repeat")
CONFIG: dict[str, Any] = {
    "architectures": ["MoonshotKimiaForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_moonshot_kimia.KimiAudioConfig",
                 "AutoModelForCausalLM": "modeling_moonshot_kimia.MoonshotKimiaForCausalLM"},
    "bos_token_id": ID["[BOS]"], "eos_token_ids": [ID["[EOS]"], ID["<|im_msg_end|>"]], "pad_token_id": BASE + 420,
    "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "rope_scaling": None, "tie_word_embeddings": False, "vocab_size": VOCABULARY, "torch_dtype": "float32",
    "kimia_adaptor_input_dim": 32, "kimia_audio_output_vocab": 80, "kimia_text_output_vocab": OFFSET,
    "kimia_token_offset": OFFSET, "kimia_media_begin": ID["<|im_media_begin|>"],
    "kimia_media_end": ID["<|im_media_end|>"], "kimia_mimo_audiodelaytokens": 6, "kimia_mimo_layers": 2,
    "kimia_mimo_transformer_from_layer_index": 1, "num_audio_special_tokens": 512, "num_base_tokens": BASE,
    "use_whisper_feature": True,
}  # fmt: skip
_WHISPER = {
    "num_mel_bins": 16, "d_model": 8, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "max_source_positions": 100,
    "max_target_positions": 8, "vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
    "decoder_start_token_id": 1,
}  # fmt: skip
_QUANTIZER = {
    "quantize_vocab_size": VOCABULARY - OFFSET, "quantize_position": 3, "pooling_position": 3, "pooling_kernel_size": 4,
    "pooling_type": "avg", "quantize_causal_block_size": 20, "encoder_causal_convolution": True,
    "encoder_causal_attention": False, "quantize_causal_encoder": False,
}  # fmt: skip


def save_kimi_audio(folder: Path, layers: int = 3, positions: int = 512) -> Path:
    """Config without a model type, shards with an index, the branch that speaks, tiktoken.model, a whole Whisper."""
    generator = torch.Generator().manual_seed(7)
    hidden, inner, keys = CONFIG["hidden_size"], CONFIG["intermediate_size"], 16
    shapes = {"model.embed_tokens.weight": (VOCABULARY, hidden), "model.norm.weight": (hidden,)}
    shapes |= {"lm_head.weight": (VOCABULARY, hidden), "mimo_output.weight": (VOCABULARY, hidden)}
    shapes |= {"model.mimo_norm.weight": (hidden,), "model.vq_adaptor.layers.4.bias": (hidden,)}
    shapes |= {f"model.vq_adaptor.layers.{n}.weight": (hidden, hidden) for n in (0, 3)}
    shapes |= {f"model.vq_adaptor.layers.{n}.bias": (hidden,) for n in (0, 3)}
    shapes |= {"model.vq_adaptor.layers.4.weight": (hidden,)}
    for layer in (*(f"layers.{n}" for n in range(layers)), "mimo_layers.0", "mimo_layers.1"):
        part = f"model.{layer}"
        for name, width in (("q", hidden), ("k", keys), ("v", keys)):
            shapes[f"{part}.self_attn.{name}_proj.weight"] = (width, hidden)
            shapes[f"{part}.self_attn.{name}_proj.bias"] = (width,)
        shapes[f"{part}.self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{part}.self_attn.rotary_emb.inv_freq"] = (4,)
        shapes |= {f"{part}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes[f"{part}.mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{part}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    weights = {name: _random(name, shape, generator) for name, shape in shapes.items()}
    names = sorted(weights)
    files = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    folder.mkdir(exist_ok=True)
    for file, inside in files.items():
        save_file({name: weights[name] for name in inside}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, inside in files.items() for name in inside}}
    _write(folder / "model.safetensors.index.json", index)
    _write(folder / "config.json", {**CONFIG, "num_hidden_layers": layers, "max_position_embeddings": positions})
    _write(folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokenization_kimia.TikTokenTokenizer"]}})
    (folder / "tiktoken.model").write_bytes(ranks_file())
    save_whisper(folder / "whisper-large-v3", {"model_type": "whisper", **_WHISPER}, {})
    return folder


def save_speech_tokenizer(folder: Path) -> Path:
    """As GLM-4-Voice's: a whole Whisper with more layers than are read, and a codebook."""
    config = {"model_type": "whisper", **_WHISPER, "encoder_layers": 4, **_QUANTIZER}
    generator = torch.Generator().manual_seed(8)
    more = {"codebook.weight": (VOCABULARY - OFFSET, 8), "embed_positions2.weight": (25, 8), "ema_count": (64,)}
    extra = {f"model.encoder.{name}": torch.randn(shape, generator=generator) for name, shape in more.items()}
    save_whisper(folder, config, extra)
    WhisperFeatureExtractor(feature_size=16, chunk_length=WINDOW // 16_000).save_pretrained(folder)
    return folder


def save_whisper(folder: Path, config: dict[str, Any], extra: dict[str, Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(len(extra))
        weights = WhisperForConditionalGeneration(WhisperConfig(**config)).state_dict()
        weights = {name: weight + 0.2 * torch.randn(weight.shape) for name, weight in weights.items()}
    weights.pop("proj_out.weight")  # tied
    save_file({**weights, **extra}, folder / "model.safetensors", {"format": "pt"})
    _write(folder / "config.json", config)


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    scale = 0.05 if len(shape) == 1 else 0.3
    return scale * torch.randn(shape, generator=generator) + float("norm" in name or "layers.4.weight" in name)


def ranks() -> dict[bytes, int]:
    tokens = [bytes([i]) for i in range(256)]
    for word in _WORDS:
        tokens += [word[:n].encode() for n in range(2, len(word) + 1)]
    distinct = list(dict.fromkeys(tokens))[:BASE]
    assert len(distinct) == BASE
    return {token: rank for rank, token in enumerate(distinct)}


def ranks_file() -> bytes:
    return b"".join(base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks().items())


def _write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content))


def recipe(folder: Path, tokenizer: Path | None, **more: Any) -> dict[str, Any]:
    projector = {"type": "kimi_audio_projector", "checkpoint": str(folder)}
    encoder = {"type": "kimi_audio", "checkpoint": str(folder), "speech_tokenizer": tokenizer and str(tokenizer)}
    marks = {"before": "<|im_media_begin|>", "after": "<|im_media_end|>"}
    return {
        "name": "kimi", "encoder": encoder, "llm": {"checkpoint": str(folder), "dtype": "float32"},
        "stages": {"sft": {"tasks": {"asr": 1}, "lr": 1e-4}},
        "slots": {"audio": {"adapter": projector, "text": "transcript", **marks}}, **more,
    }  # fmt: skip


def ours(folder: Path, tokenizer: Path | None, **more: Any) -> SpeechLLM:
    module = SpeechLLM(parse(recipe(folder, tokenizer, **more)))
    module.configure_model()
    return module.eval()


def encoder_of(saved: tuple[Path, Path | None]) -> Encoder:
    encoder = ENCODERS.build(recipe(*saved)["encoder"])
    encoder.load()
    return encoder
