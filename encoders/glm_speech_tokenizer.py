"""The speech tokenizer of GLM-4-Voice, which Kimi-Audio hears with beside Whisper: 12.5 discrete tokens a second."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sottovoce.audio_llm_layouts import read_shards
from sottovoce.errors import ConfigError, first_line
from sottovoce.hub import WEIGHTS, Hub

_SHAPE = {  # fields of config.json beside Whisper's own
    "quantize_vocab_size": 16384, "quantize_position": 16, "pooling_position": 16, "pooling_kernel_size": 4,
    "pooling_type": "avg", "quantize_causal_block_size": 200, "encoder_causal_convolution": True,
}  # fmt: skip
_WHISPER = {
    "model_type": "whisper", "num_mel_bins": 128, "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120, "max_source_positions": 1500,
}  # fmt: skip
_IDS = ("THUDM/glm-4-voice-tokenizer", "zai-org/glm-4-voice-tokenizer")  # the organisation has been renamed
HUB = Hub(
    "encoder", "config.json, preprocessor_config.json and *.safetensors",
    {name: {**_WHISPER, **_SHAPE} for name in _IDS}, "speech_tokenizer",
)  # fmt: skip
_PREFIX = "model.encoder."


class GLMSpeechTokenizer(nn.Module):
    """The first 16 layers of a Whisper encoder trained on, average pooling by 4, and the nearest row of a codebook.

    Zeng et al. (2024), "GLM-4-Voice", section 3.1. Convolutions are causal; a frame attends to all before it and to
    its own block of two seconds. Of the checkpoint, which is a whole Whisper, only these layers are read.

    Args:
        checkpoint: hub id (`THUDM/glm-4-voice-tokenizer`) or local folder.

    Attributes:
        samples: of audio in a token.

    Raises:
        ConfigError: `checkpoint` is another model.
        MissingError: `checkpoint` cannot be reached.
    """

    def __init__(self, checkpoint: str) -> None:
        super().__init__()
        from transformers import WhisperConfig, WhisperFeatureExtractor
        from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

        make: Any = WhisperFeatureExtractor
        config = HUB.published_config(checkpoint)
        if config is not None:
            extractor = make(feature_size=config.num_mel_bins)
        else:
            folder = HUB.snapshot(checkpoint, ("*.json",))
            try:
                config = WhisperConfig.from_pretrained(folder, local_files_only=True)
                extractor = make.from_pretrained(folder, local_files_only=True)
            except (OSError, ValueError) as error:
                raise HUB.missing(checkpoint, first_line(error)) from None
        _check(checkpoint, config)
        config._attn_implementation = "sdpa"
        self.checkpoint, self.config, self.extractor = checkpoint, config, extractor
        width, positions = config.d_model, config.max_source_positions
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, 3)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2)
        self.embed_positions = nn.Embedding(positions, width)
        self.layers = nn.ModuleList(WhisperEncoderLayer(config) for _ in range(config.quantize_position))
        self.codebook = nn.Embedding(config.quantize_vocab_size, width)
        self.samples: int = 2 * config.pooling_kernel_size * extractor.hop_length
        self.train(False)

    def load(self) -> None:
        """Read the weights, as float32; `MissingError` where one is not there."""
        folder = HUB.snapshot(self.checkpoint, ("*.json", *WEIGHTS))
        wanted = set(self.state_dict())
        found = read_shards(folder, lambda name: _wanted(name, wanted), HUB)
        if absent := sorted(wanted - set(found)):
            raise HUB.missing(self.checkpoint, f"{folder} lacks {_PREFIX}{absent[0]}")
        try:
            self.load_state_dict({name: value.to(torch.float32, copy=True) for name, value in found.items()})
        except RuntimeError as error:
            raise HUB.missing(self.checkpoint, f"{folder}: {' '.join(str(error).split())}") from None

    def train(self, mode: bool = True) -> "GLMSpeechTokenizer":
        """It never trains: its tokens are whole numbers, which have no gradient."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, clip: Tensor) -> Tensor:
        """The tokens of a clip (samples,) that its window holds, (ceil(samples / `samples`),)."""
        with torch.autocast("cpu", enabled=False), torch.autocast(clip.device.type, enabled=False):
            return self._tokens(clip)

    def _tokens(self, clip: Tensor) -> Tensor:
        heard = self.extractor(
            clip.detach().float().cpu().numpy(), sampling_rate=self.extractor.sampling_rate, padding="longest",
            pad_to_multiple_of=self.samples, return_attention_mask=True, return_tensors="pt",
        )  # fmt: skip
        real = heard["attention_mask"][:, ::2].bool().to(clip.device)  # (1, frames)
        x = F.gelu(self.conv1(F.pad(heard["input_features"].to(clip.device), (2, 0))))
        x = F.gelu(self.conv2(F.pad(x, (2, 0)))).transpose(1, 2)
        x = x + self.embed_positions.weight[: x.shape[1]]
        block = torch.arange(x.shape[1], device=clip.device) // self.config.quantize_causal_block_size
        visible = (block[:, None] >= block[None]) & real  # those before are in an earlier block, or in the same
        mask = torch.zeros(visible.shape, device=clip.device).masked_fill(~visible, torch.finfo(torch.float32).min)
        for layer in self.layers:
            x = layer(x, mask[None, None])
        pooled = F.avg_pool1d(x.transpose(1, 2), self.config.pooling_kernel_size)[0].T  # (tokens, width)
        codes = self.codebook.weight
        nearest = (codes.square().sum(1) - 2 * pooled @ codes.T).argmin(1)
        return nearest[: -(-len(clip) // self.samples)]


def _check(checkpoint: str, config: Any) -> None:
    """`ConfigError` where a checkpoint is another kind of tokenizer than the one that was published."""
    free = ("quantize_vocab_size", "quantize_position", "pooling_position", "quantize_causal_block_size")
    absent = [name for name in _SHAPE if getattr(config, name, None) is None]
    other = [name for name, value in _SHAPE.items() if name not in free and getattr(config, name, value) != value]
    if absent or other or config.pooling_position != config.quantize_position:
        named = ", ".join(absent or other or ["pooling_position"])
        why = f"{checkpoint} is no speech tokenizer of GLM-4-Voice: see {named} in its config.json"
        raise ConfigError.at(HUB.key, "mismatch", why)


def _wanted(name: str, wanted: set[str]) -> str | None:
    short = name.removeprefix(_PREFIX)
    return short if short in wanted else None
