"""Checkpoints in miniature: random parts of the true classes, in folders that have the names of the published ones."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import whisper
from safetensors.torch import load_file, save_file
from transformers import RobertaConfig, RobertaModel
from whisper.model import ModelDimensions

from tests.helpers import audio_llms, kimi_audio
from tests.helpers.families import save_family, tokenizer_of

POSITIONS = 8192  # prompts are as long as they are, whatever the tokenizer


def save_whisper(file: Path, mels: int) -> None:
    """A Whisper with windows of two seconds, in openai-whisper's own format."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dims = ModelDimensions(mels, 100, 32, 4, 2, 100, 16, 32, 4, 1)
        torch.save({"dims": dims.__dict__, "model_state_dict": whisper.model.Whisper(dims).state_dict()}, file)


def save_roberta(folder: Path) -> None:
    """As many layers as roberta-large has."""
    tokenizer = tokenizer_of("llama3")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 24, "num_attention_heads": 2}
        config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, pad_token_id=1, **sizes)
        RobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _family(name: str, layers: int = 2) -> Callable[[Path], object]:
    return lambda folder: save_family(name, folder, ends=True, positions=POSITIONS, layers=layers)


def _in_bfloat16(save: Callable[..., Path], **sizes: Any) -> Callable[[Path], object]:
    """As these are published: what is loaded and written again must have the same bits."""

    def save_rounded(folder: Path) -> None:
        save(folder, positions=POSITIONS, **sizes)
        for file in folder.glob("*.safetensors"):
            weights = {name: w.bfloat16() if w.is_floating_point() else w for name, w in load_file(file).items()}
            save_file(weights, file, {"format": "pt"})
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"float32"', '"bfloat16"'))

    return save_rounded


PARTS: dict[str, Callable[[Path], object]] = {  # as recipes name them
    "large-v3.pt": partial(save_whisper, mels=128),
    "base.pt": partial(save_whisper, mels=80),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _family("llama3", layers=18),
    "Qwen/Qwen2.5-7B-Instruct": _family("qwen2"),
    "Qwen/Qwen2.5-32B-Instruct": _family("qwen2"),
    "meta-llama/Llama-3.1-8B-Instruct": _family("llama3"),
    "meta-llama/Meta-Llama-3-8B-Instruct": _family("llama3"),
    "Qwen/Qwen2-Audio-7B-Instruct": _in_bfloat16(audio_llms.save_qwen2_audio, layers=32, ends=True),
    "Qwen/Qwen2.5-Omni-7B": _in_bfloat16(audio_llms.save_whole_omni, layers=28),
    "moonshotai/Kimi-Audio-7B-Instruct": _in_bfloat16(kimi_audio.save_kimi_audio, layers=28),
    "THUDM/glm-4-voice-tokenizer": kimi_audio.save_speech_tokenizer,
    "roberta-large": save_roberta,
}


def save_part(name: str, folder: Path) -> None:
    """Write the checkpoint of this name below `folder`."""
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    PARTS[name](place)
