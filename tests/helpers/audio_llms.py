"""Tiny random audio LLMs of the true classes on disk, as their makers publish them: weights, tokenizer, extractor."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tests.helpers.families import chat_template, let_answers_end, tokenizer_of
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast, WhisperFeatureExtractor

from sottovoce.config.recipe import parse
from sottovoce.data.examples import Batch
from sottovoce.frames import Frames
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.chat_template import ChatTurn, Placeholder
from sottovoce.llms.row_batches import pad_left
from sottovoce.training.spoken_prompt import SpeechPlaceholder

SPECIALS = ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
SECONDS = 2  # of Qwen2-Audio's window, which is 30 s in the true model
MARKS = {
    "qwen2_audio": {"before": "Audio {number}: <|audio_bos|>", "after": "<|audio_eos|>\n"},
    "qwen2_5_omni": {"before": "<|audio_bos|>", "after": "<|audio_eos|>"},
}
_AUDIO = {
    "num_mel_bins": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 16,
    "max_source_positions": 50 * SECONDS, "initializer_range": 0.2,
}  # fmt: skip
_TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2, "eos_token_id": 1,
    "pad_token_id": 0,
}  # fmt: skip
_TALKER = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "embedding_size": 32, "vocab_size": 40, "head_dim": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
}  # fmt: skip
_SPEAKER = {
    "dit_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ff_mult": 1, "emb_dim": 8,
                   "head_dim": 8, "mel_dim": 8, "enc_dim": 8, "enc_emb_dim": 8, "enc_channels": [8, 8, 8, 8, 24],
                   "enc_attention_channels": 4, "enc_se_channels": 4, "enc_res2net_scale": 2, "num_embeds": 20},
    "bigvgan_config": {"mel_dim": 8, "upsample_initial_channel": 8, "upsample_rates": [2, 2],
                       "upsample_kernel_sizes": [4, 4]},
}  # fmt: skip


def save_qwen2_audio(folder: Path, layers: int = 3, positions: int = 512, ends: bool = False) -> Path:
    """`ends`: its answers have a few tokens."""
    tokenizer, text = _tokenizer(), _text(layers, positions)
    config = transformers.Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", **_AUDIO},
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer) + 3, "rms_norm_eps": 1e-5, **text},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    return _save(folder, transformers.Qwen2AudioForConditionalGeneration, config, tokenizer, SECONDS, ends)


def save_thinker(folder: Path, layers: int = 3) -> Path:
    tokenizer = _tokenizer()
    config = _thinker(tokenizer, _text(layers, 512))
    return _save(folder, transformers.Qwen2_5OmniThinkerForConditionalGeneration, config, tokenizer, 10)


def save_whole_omni(folder: Path, layers: int = 3, positions: int = 512) -> Path:
    """Thinker, talker and what turns codes into sound, in several files."""
    tokenizer = _tokenizer()
    config = transformers.Qwen2_5OmniConfig(
        thinker_config=_thinker(tokenizer, _text(layers, positions)).to_dict(),
        talker_config=_TALKER,
        token2wav_config=_SPEAKER,
    )
    return _save(folder, transformers.Qwen2_5OmniForConditionalGeneration, config, tokenizer, 10, max_shard_size="60KB")


def _text(layers: int, positions: int) -> dict[str, Any]:
    return {**_TEXT, "num_hidden_layers": layers, "max_position_embeddings": positions}


def _thinker(tokenizer: PreTrainedTokenizerFast, text: dict[str, Any] = _TEXT) -> transformers.Qwen2_5OmniThinkerConfig:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    return transformers.Qwen2_5OmniThinkerConfig(
        audio_config={**_AUDIO, "n_window": 25, "output_dim": 32},  # blocks of half a second
        text_config={**text, "vocab_size": len(tokenizer) + 3, "rope_parameters": rope},
        vision_config={**vision, "fullatt_block_indexes": [0]},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
        audio_start_token_id=tokenizer.convert_tokens_to_ids("<|audio_bos|>"),
        audio_end_token_id=tokenizer.convert_tokens_to_ids("<|audio_eos|>"),
        vision_start_token_id=len(tokenizer),
        vision_end_token_id=len(tokenizer) + 1,
        initializer_range=0.2,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tokenizer_of("qwen2")
    tokenizer.chat_template = None  # it lies with the processor
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS}, replace_extra_special_tokens=False)
    return tokenizer


def _save(
    folder: Path,
    kind: Any,
    config: Any,
    tokenizer: PreTrainedTokenizerFast,
    seconds: int,
    ends: bool = False,
    **how: Any,
) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)
        for weight in model.parameters():  # biases and norms start at 0 and 1, where a mistake would not show
            weight.data += 0.05 * torch.randn(weight.shape)
        if ends:
            let_answers_end(model, tokenizer)
        model.save_pretrained(folder, **how)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=seconds, return_attention_mask=True).save_pretrained(folder)
    template = chat_template(
        "qwen2_audio" if kind is transformers.Qwen2AudioForConditionalGeneration else "qwen2_5_omni"
    )
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1], "pad_token_id": 0}))
    return folder


KINDS = {
    "qwen2_audio": ("qwen2_audio", save_qwen2_audio, transformers.Qwen2AudioForConditionalGeneration),
    "thinker": ("qwen2_5_omni", save_thinker, transformers.Qwen2_5OmniThinkerForConditionalGeneration),
    "whole omni": ("qwen2_5_omni", save_whole_omni, transformers.Qwen2_5OmniThinkerForConditionalGeneration),
}
SAMPLES = (23_456, 8_000, 31_999, 640)  # the last two: nearly the whole window, and a single frame
QUESTIONS = ("What is it?", "Repeat what you hear, please.", "", "Who speaks? Say it in a low, calm voice.")


def clips(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(n, generator=generator).mul(0.1).cumsum(0).sin() * 0.3 for n in lengths]


def recipe(kind: str, folder: Path, **more: Any) -> dict[str, Any]:
    model, _, _ = KINDS[kind]
    projector = {"type": "checkpoint_projector", "checkpoint": str(folder)}
    return {
        "name": "audio-llm", "encoder": {"type": model, "checkpoint": str(folder)},
        "llm": {"checkpoint": str(folder), "dtype": "float32"}, "stages": {"sft": {"tasks": {"asr": 1}, "lr": 1e-4}},
        "slots": {"audio": {"adapter": projector, "text": "transcript", **MARKS[model]}}, **more,
    }  # fmt: skip


def ours(kind: str, folder: Path, **more: Any) -> SpeechLLM:
    module = SpeechLLM(parse(recipe(kind, folder, **more)))
    module.configure_model()
    return module.eval()


@cache
def ours_as_it_is(kind: str, folder: Path) -> SpeechLLM:
    """For tests that only look."""
    return ours(kind, folder)


def chat(question: int, clip: int | None = None) -> list[ChatTurn]:
    spot = SpeechPlaceholder("audio", Path(f"{question if clip is None else clip}.wav"), False)
    return [ChatTurn("user", (Placeholder(spot), QUESTIONS[question]))]


def batch(waves: list[Tensor]) -> Batch:
    return Batch([], {Path(f"{i}.wav"): i for i in range(len(waves))}, Frames.pad(waves))


@torch.no_grad()
def our_logits(module: SpeechLLM, waves: list[Tensor], chats: list[list[ChatTurn]]) -> list[Tensor]:
    prompts = module.embed(batch(waves), chats)
    x, real = pad_left(prompts)
    positions = (real.cumsum(1) - 1).clamp(min=0)
    logits = module.llm.model(inputs_embeds=x, attention_mask=real.long(), position_ids=positions).logits
    return [row[keep] for row, keep in zip(logits, real, strict=True)]


@cache
def native_of(kind: str, folder: Path) -> "Native":
    return Native(kind, folder)


class Native:
    """The model as transformers has it, with inputs as its processor makes them."""

    def __init__(self, kind: str, folder: Path) -> None:
        model, _, self.kind = KINDS[kind]
        self.model = self.kind.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.extractor, self.template = WhisperFeatureExtractor.from_pretrained(folder), chat_template(model)

    def inputs(self, waves: list[Tensor], chats: list[list[dict[str, Any]]]) -> dict[str, Tensor]:
        """After Qwen2AudioProcessor and Qwen2_5OmniProcessor: every <|AUDIO|> stands as often as there are frames."""
        heard = self.extractor([np.asarray(w) for w in waves], sampling_rate=16_000, return_attention_mask=True)
        mask = torch.from_numpy(np.asarray(heard["attention_mask"])).long()
        frames = iter(((((mask.sum(1) - 1) // 2 + 1) - 2) // 2 + 1).tolist())
        texts = []
        for one in chats:
            how = {"chat_template": self.template, "tokenize": False, "add_generation_prompt": True}
            text = self.tokenizer.apply_chat_template(one, **how)
            first, *rest = text.split("<|AUDIO|>")
            texts.append(first + "".join("<|AUDIO|>" * next(frames) + part for part in rest))
        ids = self.tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
        features = torch.from_numpy(np.asarray(heard["input_features"]))
        return {**ids, "input_features": features, "feature_attention_mask": mask}

    @torch.no_grad()
    def logits(self, waves: list[Tensor], chats: list[list[dict[str, Any]]]) -> list[Tensor]:
        made = self.inputs(waves, chats)
        logits = self.model(**made).logits
        return [row[keep] for row, keep in zip(logits, made["attention_mask"].bool(), strict=True)]


def native_chat(number: int) -> list[dict[str, Any]]:
    text = [{"type": "text", "text": QUESTIONS[number]}] if QUESTIONS[number] else []
    return [{"role": "user", "content": [{"type": "audio", "audio": "x"}, *text]}]


def close(found: list[Tensor], expected: list[Tensor], within: float = 1e-5) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=within, rtol=within)
