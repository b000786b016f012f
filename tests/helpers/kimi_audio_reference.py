"""A plain reading of Kimi-Audio's published forward pass, on plain tensors, for answers in text.

After the authors' prompt manager, their model file, and GLM-4-Voice's tokenizer: two streams of ids, whose embeddings
are added.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.helpers.audio_llms import QUESTIONS
from tests.helpers.kimi_audio import BASE, CONFIG, ID, OFFSET, WINDOW, ranks
from torch import Tensor
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

TOKEN = 1_280  # samples
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Message = dict[str, Any]  # role, and either text or audio


def heard(question: int, wave: Tensor) -> list[Message]:
    """What `audio_llms.chat` says, as the authors' code takes it: the clip, and then the question."""
    said = [{"role": "user", "text": QUESTIONS[question]}] if QUESTIONS[question] else []
    return [{"role": "user", "audio": wave}, *said]


class Reference:
    """Kimi-Audio's answer in text, position by position."""

    def __init__(self, folder: Path, tokenizer: Path | None) -> None:
        self.w = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
        self.whisper = load_file(folder / "whisper-large-v3" / "model.safetensors")
        self.vq = tokenizer and load_file(tokenizer / "model.safetensors")
        self.extractor = tokenizer and WhisperFeatureExtractor.from_pretrained(tokenizer)
        self.words = tiktoken.Encoding("kimi", pat_str=_PATTERN, mergeable_ranks=ranks(), special_tokens=ID)

    @torch.no_grad()
    def logits(self, messages: list[Message], answer: list[int] | None = None) -> Tensor:
        """Of every position of the prompt and of what is answered, (tokens, vocabulary)."""
        audio, text, continuous, features = self._prompt(messages)
        audio += [ID["<|im_kimia_text_blank|>"]] * len(answer or [])
        text, continuous = text + (answer or []), continuous + [False] * len(answer or [])
        table = self.w["model.embed_tokens.weight"]
        stream = table[torch.tensor(audio)]
        at = torch.tensor(continuous)
        if features:
            projected = self._adaptor(torch.cat(features))
            stream[at] = (stream[at] + projected) * math.sqrt(2.0)
        x = stream + table[torch.tensor(text)]
        for layer in range(CONFIG["num_hidden_layers"]):
            x = self._layer(x, f"model.layers.{layer}")
        return self._norm(x, "model.norm.weight") @ self.w["lm_head.weight"].T

    def generate(self, messages: list[Message], most: int) -> str:
        answer: list[int] = []
        while len(answer) < most:
            token = int(self.logits(messages, answer)[-1].argmax())
            if token == ID["<|im_kimia_text_eos|>"]:
                break
            answer.append(token)
        return self.words.decode([token for token in answer if token < BASE], errors="replace").strip()

    def _prompt(self, messages: list[Message]) -> tuple[list[int], list[int], list[bool], list[Tensor]]:
        blank = ID["<|im_kimia_text_blank|>"]
        audio: list[int] = []
        text: list[int] = []
        continuous: list[bool] = []
        features: list[Tensor] = []

        def put(audio_ids: list[int], text_ids: list[int], is_continuous: bool = False) -> None:
            length = max(len(audio_ids), len(text_ids))
            audio.extend(audio_ids or [blank] * length)
            text.extend(text_ids or [blank] * length)
            continuous.extend([is_continuous] * length)

        for i, message in enumerate(messages):
            role = message["role"]
            if i == 0 or messages[i - 1]["role"] != role:
                put([ID[f"<|im_kimia_{role}_msg_start|>"]], [])
            last = i == len(messages) - 1 or messages[i + 1]["role"] != role
            if "text" in message:
                put([], self.words.encode(message["text"]))
                if role == "assistant":
                    put([], [ID["<|im_kimia_text_eos|>"]])
            else:
                features.append(self._whisper(message["audio"]))
                ids = self._tokens(message["audio"]) if self.vq else [blank] * len(features[-1])
                put([ID["<|im_media_begin|>"]], [])
                put(ids, [], True)
                put([ID["<|im_media_end|>"]], [])
                if last:
                    put([ID["<|im_kimia_speech_ct_id|>"]], [])
            if last:
                put([ID["<|im_msg_end|>"]], [])
        put([ID["<|im_kimia_assistant_msg_start|>"]], [])
        return audio, text, continuous, features

    def _adaptor(self, x: Tensor) -> Tensor:
        w, part = self.w, "model.vq_adaptor.layers"
        x = F.silu(x @ w[f"{part}.0.weight"].T + w[f"{part}.0.bias"])
        x = x @ w[f"{part}.3.weight"].T + w[f"{part}.3.bias"]
        centred = x - x.mean(-1, keepdim=True)
        x = centred / (centred.square().mean(-1, keepdim=True) + CONFIG["rms_norm_eps"]).sqrt()
        return x * w[f"{part}.4.weight"] + w[f"{part}.4.bias"]

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + CONFIG["rms_norm_eps"]).sqrt() * self.w[name]

    def _layer(self, x: Tensor, part: str) -> Tensor:
        w, heads, size = self.w, CONFIG["num_attention_heads"], 8
        y = self._norm(x, f"{part}.input_layernorm.weight")
        q, k, v = (
            (y @ w[f"{part}.self_attn.{n}_proj.weight"].T + w[f"{part}.self_attn.{n}_proj.bias"]).unflatten(
                1, (-1, size)
            )
            for n in "qkv"
        )
        frequency = CONFIG["rope_theta"] ** (-torch.arange(0, size, 2) / size)
        turns = torch.polar(torch.ones(len(x), size // 2), torch.arange(len(x))[:, None] * frequency)[:, None]

        def rotated(z: Tensor) -> Tensor:  # the first and the second half of a head are the two parts of a number
            spun = torch.complex(z[..., : size // 2], z[..., size // 2 :]) * turns
            return torch.cat([spun.real, spun.imag], -1)

        group = heads // CONFIG["num_key_value_heads"]
        q, k, v = rotated(q), rotated(k).repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(size)
        scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), float("-inf"))
        mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).flatten(1)
        x = x + mixed @ w[f"{part}.self_attn.o_proj.weight"].T
        y = self._norm(x, f"{part}.post_attention_layernorm.weight")
        gate = F.silu(y @ w[f"{part}.mlp.gate_proj.weight"].T) * (y @ w[f"{part}.mlp.up_proj.weight"].T)
        return x + gate @ w[f"{part}.mlp.down_proj.weight"].T

    def _whisper(self, wave: Tensor) -> Tensor:
        """Four frames stacked, (tokens, 32), window by window."""
        stacked = []
        for window in wave.split(WINDOW):
            x = _log_mel(F.pad(window, (0, WINDOW - len(window))))
            x = F.gelu(F.conv1d(x, *_pair(self.whisper, "model.encoder.conv1"), padding=1))
            x = F.gelu(F.conv1d(x, *_pair(self.whisper, "model.encoder.conv2"), padding=1, stride=2)).T
            x = x + self.whisper["model.encoder.embed_positions.weight"]
            for layer in range(2):
                x = _whisper_layer(x, self.whisper, f"model.encoder.layers.{layer}", torch.ones(len(x), len(x)).bool())
            x = F.layer_norm(x, (8,), *_pair(self.whisper, "model.encoder.layer_norm"))
            count = (len(window) - 1) // TOKEN + 1
            stacked.append(x[: 4 * count].reshape(count, 32))
        return torch.cat(stacked)

    def _tokens(self, wave: Tensor) -> list[int]:
        assert self.vq and self.extractor
        ids: list[int] = []
        for window in wave.split(WINDOW):
            made = self.extractor(
                np.asarray(window), sampling_rate=16_000, return_attention_mask=True, return_tensors="pt",
                padding="longest", pad_to_multiple_of=TOKEN,
            )  # fmt: skip
            x = F.pad(made["input_features"][0], (2, 0))
            x = F.gelu(F.conv1d(x, *_pair(self.vq, "model.encoder.conv1")))
            x = F.gelu(F.conv1d(F.pad(x, (2, 0)), *_pair(self.vq, "model.encoder.conv2"), stride=2)).T
            x = x + self.vq["model.encoder.embed_positions.weight"][: len(x)]
            seen = torch.ones(len(x), len(x)).tril().bool()
            for start in range(0, len(x), 20):
                seen[start : start + 20, start : start + 20] = True
            seen &= made["attention_mask"][0, ::2].bool()
            for layer in range(3):
                x = _whisper_layer(x, self.vq, f"model.encoder.layers.{layer}", seen)
            pooled = x.reshape(-1, 4, 8).mean(1)
            nearest = torch.cdist(pooled, self.vq["model.encoder.codebook.weight"]).argmin(1)
            ids += nearest[made["attention_mask"][0, ::8].bool()].tolist()
        return [OFFSET + token for token in ids]


def _pair(weights: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _whisper_layer(x: Tensor, weights: dict[str, Tensor], part: str, seen: Tensor) -> Tensor:
    y = F.layer_norm(x, (8,), *_pair(weights, f"{part}.self_attn_layer_norm"))
    q = F.linear(y, *_pair(weights, f"{part}.self_attn.q_proj")).unflatten(1, (2, 4))
    k = F.linear(y, weights[f"{part}.self_attn.k_proj.weight"]).unflatten(1, (2, 4))
    v = F.linear(y, *_pair(weights, f"{part}.self_attn.v_proj")).unflatten(1, (2, 4))
    scores = (torch.einsum("ihd,jhd->hij", q, k) / 2).masked_fill(~seen, float("-inf"))
    mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).flatten(1)
    x = x + F.linear(mixed, *_pair(weights, f"{part}.self_attn.out_proj"))
    y = F.layer_norm(x, (8,), *_pair(weights, f"{part}.final_layer_norm"))
    y = F.gelu(F.linear(y, *_pair(weights, f"{part}.fc1")))
    return x + F.linear(y, *_pair(weights, f"{part}.fc2"))


def _log_mel(samples: Tensor) -> Tensor:
    """Whisper's, (mels, mel frames)."""
    bank = mel_filter_bank(201, 16, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    power = torch.stft(samples, 400, 160, window=torch.hann_window(400), return_complex=True)[:, :-1].abs() ** 2
    mel = (torch.from_numpy(bank).float().T @ power).clamp(min=1e-10).log10()
    return (mel.maximum(mel.max() - 8.0) + 4.0) / 4.0
