"""Checkpoints in miniature: random parts of the true classes, in folders that have the names of the published ones."""

from collections.abc import Callable
from pathlib import Path

import torch
import whisper
from transformers import RobertaConfig, RobertaModel
from whisper.model import ModelDimensions

from tests.helpers import audio_llms, kimi_audio
from tests.helpers.families import save_family, tokenizer_of

POSITIONS = 8192  # prompts are as long as they are, whatever the tokenizer


def save_whisper_128(file: Path) -> None:
    """A Whisper of 128 mel bins with windows of two seconds, in openai-whisper's own format."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dims = ModelDimensions(128, 100, 32, 4, 2, 100, 16, 32, 4, 1)
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


def _family(name: str) -> Callable[[Path], object]:
    return lambda folder: save_family(name, folder, ends=True, positions=POSITIONS)


PARTS: dict[str, Callable[[Path], object]] = {  # as recipes name them
    "large-v3.pt": save_whisper_128,
    "Qwen/Qwen2.5-7B-Instruct": _family("qwen2"),
    "Qwen/Qwen2.5-32B-Instruct": _family("qwen2"),
    "meta-llama/Llama-3.1-8B-Instruct": _family("llama3"),
    "meta-llama/Meta-Llama-3-8B-Instruct": _family("llama3"),
    "Qwen/Qwen2-Audio-7B-Instruct": lambda folder: audio_llms.save_qwen2_audio(folder, layers=32, positions=POSITIONS),
    "Qwen/Qwen2.5-Omni-7B": lambda folder: audio_llms.save_whole_omni(folder, layers=28, positions=POSITIONS),
    "moonshotai/Kimi-Audio-7B-Instruct": lambda folder: kimi_audio.save_kimi_audio(
        folder, layers=28, positions=POSITIONS
    ),
    "THUDM/glm-4-voice-tokenizer": kimi_audio.save_speech_tokenizer,
    "roberta-large": save_roberta,
}


def save_part(name: str, folder: Path) -> None:
    """Write the checkpoint of this name below `folder`, unless it is there."""
    place = folder / name
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        PARTS[name](place)
