"""Audio encoders of transformers, by hub name or folder: Whisper, wav2vec 2.0 and its kin, w2v-BERT 2.0, Parakeet."""

from collections.abc import Iterator, Sequence
from functools import reduce
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sottovoce.encoders import ENCODERS
from sottovoce.encoders.base import float32_in_eval
from sottovoce.encoders.hub_encoder import HubEncoder
from sottovoce.encoders.log_mel import check_waveforms
from sottovoce.encoders.whisper import HUB_PREFIX
from sottovoce.encoders.whisper import PUBLISHED as WHISPERS
from sottovoce.errors import AudioError, ConfigError, first_line, nearest
from sottovoce.frames import Frames
from sottovoce.hub import Hub

_KEY = "encoder.checkpoint"
_LARGE: dict[str, Any] = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "feat_extract_norm": "layer", "do_stable_layer_norm": True,
}  # fmt: skip
# Fields that are left out have transformers' default
PUBLISHED: dict[str, dict[str, Any]] = {
    "facebook/w2v-bert-2.0": {"model_type": "wav2vec2-bert"},
    "nvidia/parakeet-ctc-1.1b": {"model_type": "parakeet_encoder", "num_hidden_layers": 42},
    "microsoft/wavlm-base-plus": {"model_type": "wavlm"},
    "microsoft/wavlm-large": {"model_type": "wavlm", **_LARGE},
    "facebook/hubert-base-ls960": {"model_type": "hubert"},
    "facebook/hubert-large-ll60k": {"model_type": "hubert", "conv_bias": True, **_LARGE},
    "facebook/wav2vec2-base": {"model_type": "wav2vec2"},
    "facebook/wav2vec2-large-lv60": {"model_type": "wav2vec2", "conv_bias": True, **_LARGE},
}
PUBLISHED |= {
    f"{HUB_PREFIX}{name}": {
        "model_type": "whisper", "num_mel_bins": dims.n_mels, "max_source_positions": dims.n_audio_ctx,
        "d_model": dims.n_audio_state, "encoder_attention_heads": dims.n_audio_head,
        "encoder_layers": dims.n_audio_layer, "encoder_ffn_dim": 4 * dims.n_audio_state,
    }
    for name, dims in WHISPERS.items()
}  # fmt: skip
WAVEFORMS = (  # wav2vec 2.0 and its kin, whose convolutions read waveforms
    "wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "data2vec-audio", "wav2vec2-conformer", "sew", "sew-d"
)  # fmt: skip
_MASKED = WAVEFORMS[:5]  # what their masks do not hide from other clips, nothing else in them mixes over time
_EXTRACTORS = {
    "wav2vec2-bert": "SeamlessM4TFeatureExtractor", "parakeet_encoder": "ParakeetFeatureExtractor",
    "whisper": "WhisperFeatureExtractor", **dict.fromkeys(WAVEFORMS, "Wav2Vec2FeatureExtractor"),
}  # fmt: skip
_OFF = {  # what is for training alone, and what comes behind the Transformer
    "apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0,
    "encoder_layerdrop": 0.0, "use_intermediate_ffn_before_adapter": False, "add_adapter": False,
}  # fmt: skip
_FILES = "config.json, preprocessor_config.json and *.safetensors or pytorch_model.bin"
_PICKLES = "pytorch_model*.bin"  # which are read as tensors alone


@ENCODERS.register("hf")
@ENCODERS.register("hf_conformer")
class HFEncoder(HubEncoder):
    """An audio encoder of transformers, with its own feature extractor.

    50 frames per second, but for Parakeet's 12.5. Whisper (Radford et al., 2022) hears windows of 30 s with silence
    behind a clip; wav2vec 2.0 (Baevski et al., 2020), HuBERT, WavLM, UniSpeech, data2vec and SEW read the waveform,
    w2v-BERT 2.0 (Seamless Communication, 2023) and Parakeet (Rekesh et al., 2023) log-mels. Feature extractors
    normalise as the checkpoint says: most of them over the clip, so that how loud the whole clip is, is gone.

    A clip's frames do not depend on its batch: clips of several lengths go together where the model masks padding
    everywhere, and else those of one length (group norm over time, as in wav2vec 2.0 base and HuBERT base,
    convolutions over padding, as in data2vec and SEW).

    Layer drop and SpecAugment are off, batch norms keep their statistics even in training, and an adapter or CTC head
    behind the Transformer is left out. Its weights train unless `requires_grad_(False)` forbids.

    Args:
        checkpoint: hub id (`microsoft/wavlm-large`) or local folder with config.json, preprocessor_config.json and
            *.safetensors; or pytorch_model.bin, of which tensors alone are read.

    Raises:
        ConfigError: `checkpoint` is something else.
        MissingError: `checkpoint` cannot be reached or is damaged.
    """

    hub = Hub("encoder", _FILES, PUBLISHED)

    def __init__(self, *, checkpoint: str) -> None:
        super().__init__(checkpoint=checkpoint)

    def _published_extractor(self, config: Any) -> Any:
        made = _extractor(config.model_type)
        return made(feature_size=config.num_mel_bins) if config.model_type == "whisper" else made()

    def _read_settings(self, folder: Path) -> tuple[Any, Any]:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig

        try:
            whole = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            config = getattr(whole, "encoder_config", whole)  # Parakeet's CTC model: encoder and head
            if config.model_type not in _EXTRACTORS:
                raise ConfigError(f"it is a {config.model_type!r}.{nearest(config.model_type, _EXTRACTORS)}")
            extractor = _extractor(config.model_type).from_pretrained(folder, local_files_only=True)
        except OSError as error:
            raise self.hub.missing(str(folder), first_line(error)) from None
        except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
            raise ConfigError.at(_KEY, "mismatch", f"{folder}: {first_line(error)}") from None
        expected, made = _sizes(config, extractor)
        if expected != made:
            why = f"{folder}: the model in config.json takes {expected}, but the feature extractor in "
            raise ConfigError.at(_KEY, "mismatch", f"{why}preprocessor_config.json makes {made}")
        return config, extractor

    def _describe(self, config: Any, extractor: Any) -> None:
        for name in _OFF.keys() & config.to_dict().keys():
            setattr(config, name, _OFF[name])
        self.config, self.extractor, kind = config, extractor, config.model_type
        self.dim, self.depth, self.norm = config.hidden_size, config.num_hidden_layers, None
        if kind == "parakeet_encoder":
            hop = extractor.hop_length * config.subsampling_factor
            self.shortest = int(2 * extractor.hop_length)
        elif kind == "whisper":
            hop, self.shortest, self.norm = 2 * extractor.hop_length, 1, "layer_norm"
            self.depth = config.encoder_layers
        elif kind == "wav2vec2-bert":
            hop = 160 * extractor.stride  # SeamlessM4TFeatureExtractor knows no other hop
            self.shortest = 400 + 160
        else:
            hop = prod(config.conv_stride)
            layers = [*zip(config.conv_kernel, config.conv_stride, strict=True)][::-1]
            frames = getattr(config, "squeeze_factor", 1)  # that SEW's encoder makes one of
            self.shortest = reduce(lambda count, layer: (count - 1) * layer[1] + layer[0], layers, frames)
            self.norm = "layer_norm" if _ends_with_norm(config) else None
        # `shortest` samples give two mel frames: feature extractors divide by a clip's variance
        self.sample_rate, self.frame_rate = extractor.sampling_rate, extractor.sampling_rate / hop
        if kind in ("sew", "sew-d"):
            self.depth, self.hides_layers = 0, "SEW's layers have half the rate of its frames"
        # Two families have caches from when they were all
        self.kind = "hf" if kind == "whisper" or kind in WAVEFORMS else "hf_conformer"
        self.masks = kind not in WAVEFORMS or (kind in _MASKED and config.feat_extract_norm == "layer")
        self.masks &= not getattr(config, "conv_pos_batch_norm", False)

    def _network(self) -> Any:
        from transformers import AutoModel

        if self.config.model_type == "whisper":
            return _whisper()(self.config)
        return AutoModel.from_config(self.config, dtype=torch.float32)  # type: ignore[no-untyped-call]

    def _with_weights(self, folder: Path) -> Any:
        from transformers import AutoModel

        whisper = self.config.model_type == "whisper"  # of which the decoder is not read
        more = {"key_mapping": {r"^(model\.)?encoder\.": ""}} if whisper else {}
        try:
            network, report = (_whisper() if whisper else AutoModel).from_pretrained(
                folder, config=self.config, dtype=torch.float32, use_safetensors=_has_safetensors(folder),
                local_files_only=True, trust_remote_code=False, output_loading_info=True, weights_only=True, **more,
            )  # fmt: skip
        except Exception as error:  # transformers and safetensors have many errors for a file that is not as expected
            raise self.hub.missing(self.checkpoint, f"{folder}: {first_line(error)}") from error
        if absent := sorted(report["missing_keys"]):  # transformers would go on with random numbers
            raise self.hub.missing(self.checkpoint, f"{folder} lacks {', '.join(absent[:3])} …")
        return network

    def _weights_pattern(self) -> tuple[str, ...]:
        return (*super()._weights_pattern(), _PICKLES)

    def _stack(self) -> nn.Module:
        network = self.loaded_network()
        bare = self.config.model_type in ("parakeet_encoder", "whisper")
        return cast(nn.Module, network if bare else network.encoder)

    def train(self, mode: bool = True) -> "HFEncoder":
        """As in `nn.Module`, but batch norms keep their statistics: a clip must not depend on its batch."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self

    def forward(self, waveform: Tensor, lengths: Tensor) -> Frames:
        """See `Encoder.forward`; `AudioError` where a clip is too short for the feature extractor."""
        self.loaded_network()
        check_waveforms(waveform, lengths)
        for row, length in enumerate(lengths.tolist()):
            if length < self.shortest:
                why = f"has {length} samples; {self.checkpoint} needs at least {self.shortest} "
                why += f"({self.shortest / self.sample_rate * 1000:g} ms). Leave the clip out"
                raise AudioError.at(f"row {row}", "bad-value", why)
        clips = [torch.split(clip, self._window(len(clip))) for clip in Frames(waveform, lengths).rows()]
        pieces = [piece for clip in clips for piece in clip]
        heard: dict[int, Tensor] = {}
        for numbers in self._batches([len(piece) for piece in pieces]):
            heard |= zip(numbers, self._hear([pieces[n] for n in numbers]), strict=True)
        rows = iter([heard[n].float() for n in range(len(pieces))])
        return Frames.pad([torch.cat([next(rows) for _ in clip]) for clip in clips]).to(waveform.device)

    def output_length(self, samples: int) -> int:
        """See `Encoder.output_length`: by the formula of the model's convolutions, or its feature extractor's."""
        kind = self.config.model_type
        if kind == "whisper":
            return -(-samples // (2 * int(self.extractor.hop_length)))
        if kind == "wav2vec2-bert":
            return (1 + (samples - 400) // 160) // int(self.extractor.stride)
        if kind == "parakeet_encoder":
            fft, hop = self.extractor.n_fft, self.extractor.hop_length
            mels = torch.tensor([(samples + fft // 2 * 2 - fft) // hop])
            return int(self.loaded_network()._get_subsampling_output_length(mels))
        layers = zip(self.config.conv_kernel, self.config.conv_stride, strict=True)
        return reduce(lambda count, layer: (count - layer[0]) // layer[1] + 1, layers, samples)

    def _window(self, samples: int) -> int:
        """The samples that are heard at once: Whisper has windows."""
        return int(self.extractor.n_samples) if self.config.model_type == "whisper" else samples

    def _batches(self, samples: Sequence[int]) -> Iterator[list[int]]:
        """Numbers of the clips that are heard together."""
        if self.masks:
            yield [*range(len(samples))]
        else:
            for length in sorted(set(samples)):
                yield [number for number, count in enumerate(samples) if count == length]

    def _hear(self, clips: Sequence[Tensor]) -> Iterator[Tensor]:
        """The frames of each clip, (frames, dim)."""
        kind, network, device = self.config.model_type, self.loaded_network(), clips[0].device
        samples = [clip.detach().float().cpu().numpy() for clip in clips]
        more = {"padding": True, "return_attention_mask": True} if kind in WAVEFORMS else {}
        with torch.autocast("cpu", enabled=False):
            made = self.extractor(samples, sampling_rate=self.sample_rate, return_tensors="pt", **more)
        inputs = made["input_values" if kind in WAVEFORMS else "input_features"].float().to(device)
        mask = made["attention_mask"].to(device) if self.masks and kind != "whisper" else None
        with float32_in_eval(self, device):
            out = network(inputs, attention_mask=mask)
        if kind == "parakeet_encoder":
            mask = out.attention_mask  # the convolutions in front have made it shorter
        if mask is None or kind in WAVEFORMS:
            counts = [self.output_length(len(clip)) for clip in clips]
        else:
            counts = mask.sum(-1).tolist()
        return (row[:count] for row, count in zip(out.last_hidden_state, counts, strict=True))


def _extractor(model_type: str) -> Any:
    import transformers

    return getattr(transformers, _EXTRACTORS[model_type])


def _whisper() -> Any:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder


def _has_safetensors(folder: Path) -> bool:
    """Also where there are no weights at all: then safetensors are missed."""
    return any(folder.glob("*.safetensors")) or not any(folder.glob(_PICKLES))


def _sizes(config: Any, extractor: Any) -> tuple[str, str]:
    """What the model takes and what the feature extractor makes, in words."""
    if config.model_type == "whisper":
        taken = config.num_mel_bins, 2 * config.max_source_positions
        made = extractor.feature_size, extractor.n_samples // extractor.hop_length
        return f"{taken[0]} mel bins and {taken[1]} frames", f"{made[0]} mel bins and {made[1]} frames"
    if config.model_type == "parakeet_encoder":
        return f"{config.num_mel_bins} values a frame", f"{extractor.feature_size} values a frame"
    if config.model_type == "wav2vec2-bert":
        made = extractor.num_mel_bins * extractor.stride
        return f"{config.feature_projection_input_dim} values a frame", f"{made} values a frame"
    return "1 value a sample", f"{extractor.feature_size} value a sample"


def _ends_with_norm(config: Any) -> bool:
    """Whether the stack of a model that reads waveforms has a norm after its last layer."""
    return config.model_type == "wav2vec2-conformer" or getattr(config, "do_stable_layer_norm", False)
