"""Public Conformers in their Hugging Face format: w2v-BERT 2.0 and the encoders of Parakeet."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    ParakeetFeatureExtractor,
    PreTrainedConfig,
    SeamlessM4TFeatureExtractor,
)

from sottovoce.encoders import ENCODERS
from sottovoce.encoders.base import Encoder, fingerprint, precision
from sottovoce.encoders.log_mel import check_clips, zeroed
from sottovoce.errors import AudioError, ConfigError, nearest
from sottovoce.frames import Frames
from sottovoce.hub import Hub, first_line
from sottovoce.paths import resolve

# For dry runs; weights always come with their own configuration. Fields that are left out have transformers' default.
PUBLISHED: dict[str, dict[str, Any]] = {
    "facebook/w2v-bert-2.0": {"model_type": "wav2vec2-bert"},
    "nvidia/parakeet-ctc-1.1b": {"model_type": "parakeet_encoder", "num_hidden_layers": 42},
}
_HUB = Hub("encoder", "config.json, preprocessor_config.json and *.safetensors", PUBLISHED)
EXTRACTORS: dict[str, Any] = {
    "wav2vec2-bert": SeamlessM4TFeatureExtractor,
    "parakeet_encoder": ParakeetFeatureExtractor,
}
_OFF = {  # what only training has, and what comes behind the Conformer
    "wav2vec2-bert": {
        "apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0,
        "use_intermediate_ffn_before_adapter": False, "add_adapter": False,
    },
    "parakeet_encoder": {"layerdrop": 0.0},
}  # fmt: skip
_NOT_THE_MODEL = ("transformers_version", "_name_or_path", "_commit_hash", "dtype", "architectures")


class Description(NamedTuple):
    """What can be said of a checkpoint without its weights."""

    config: Any  # of the encoder alone
    extractor: Any  # waveforms -> input features

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Hz of waveforms, samples from one frame to the next, dim of a frame."""
        if self.config.model_type == "parakeet_encoder":
            hop = self.extractor.hop_length * self.config.subsampling_factor
        else:
            hop = 160 * self.extractor.stride  # SeamlessM4TFeatureExtractor knows no other hop
        return self.extractor.sampling_rate, hop, self.config.hidden_size

    @property
    def shortest(self) -> int:
        """Samples that give two mel frames: feature extractors divide by a clip's variance."""
        return int(2 * self.extractor.hop_length if self.config.model_type == "parakeet_encoder" else 400 + 160)


def describe(folder: Path) -> Description:
    """Read config.json and preprocessor_config.json.

    Raises:
        ConfigError: they are of no Conformer that is known here, or do not belong together.
        MissingError: they are missing or damaged.
    """
    try:
        whole = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config = getattr(whole, "encoder_config", whole)  # Parakeet's CTC model: encoder and head
        if config.model_type not in EXTRACTORS:
            raise ConfigError(f"it is a {config.model_type!r}.{nearest(config.model_type, EXTRACTORS)}")
        extractor = EXTRACTORS[config.model_type].from_pretrained(folder, local_files_only=True)
    except OSError as error:
        raise _HUB.missing(str(folder), first_line(error)) from None
    except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise ConfigError(f"encoder.checkpoint: {folder}: {first_line(error)}") from None
    _check_features(folder, config, extractor)
    return _described(config, extractor)


def _described(config: PreTrainedConfig, extractor: Any) -> Description:
    for name, value in _OFF[config.model_type].items():
        setattr(config, name, value)
    return Description(config, extractor)


def _check_features(folder: Path, config: Any, extractor: Any) -> None:
    if config.model_type == "parakeet_encoder":
        wanted, made = config.num_mel_bins, extractor.feature_size
    else:
        wanted, made = config.feature_projection_input_dim, extractor.num_mel_bins * extractor.stride
    if wanted != made:
        raise ConfigError(
            f"encoder.checkpoint: {folder}: the model in config.json hears {wanted} values a frame, but the feature "
            f"extractor in preprocessor_config.json makes {made}"
        )


@ENCODERS.register("hf_conformer")
class HFConformerEncoder(Encoder):
    """A public Conformer with its own feature extractor: w2v-BERT 2.0 (50 frames per second) or Parakeet (12.5).

    Seamless Communication (2023), section 3.2.1; Rekesh et al. (2023). Both feature extractors normalise every mel bin
    over the clip, so that how loud the whole clip is, is gone before the Conformer hears it.

    Layer drop and SpecAugment are off, batch norms keep their statistics even in training, and an adapter or CTC head
    behind the Conformer is left out. Its weights learn unless `requires_grad_(False)` forbids; it is born in eval
    mode, in which it computes in float32, autocast or not, since a fingerprint cannot tell in what it ran.

    Args:
        checkpoint: hub id (`facebook/w2v-bert-2.0`) or local folder with config.json, preprocessor_config.json and
            *.safetensors, of model type wav2vec2-bert, parakeet_encoder or one that has a parakeet_encoder.

    Raises:
        ConfigError: `checkpoint` is something else.
        MissingError: `checkpoint` cannot be reached or is damaged.
    """

    def __init__(self, *, checkpoint: str) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        if checkpoint in PUBLISHED and not resolve(checkpoint).is_dir():
            fields = dict(PUBLISHED[checkpoint])
            config = AutoConfig.for_model(fields.pop("model_type"), **fields)
            self.described = _described(config, EXTRACTORS[config.model_type]())
        else:
            self.described = describe(_reach(checkpoint, weights=False))
        self.sample_rate, hop, self.dim = self.described.sizes
        self.frame_rate = self.sample_rate / hop
        self.encoder: Any = None  # a Wav2Vec2BertModel or ParakeetEncoder, once built

    def build(self) -> None:
        """Build the network without its weights, on the current device (`meta` costs nothing). Idempotent."""
        if self.encoder is None:
            config = self.described.config
            self.encoder = AutoModel.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
            self.eval()

    def load(self) -> None:
        """Build the network and give it its weights. Idempotent.

        Raises:
            ConfigError: the checkpoint's own files differ from what is published under its name.
            MissingError: the weights cannot be reached or do not fit.
        """
        if self.loaded:
            return
        folder = _reach(self.checkpoint, weights=True)
        self._settle(folder)
        self.encoder = _weights(self.checkpoint, folder, self.described.config)
        self.loaded = True
        self.eval()

    def load_trained(self, weights: dict[str, Tensor]) -> None:
        """Build the network as the checkpoint's configuration says and give it these weights instead of its own.

        Raises:
            ConfigError, MissingError: as in `load`, but only the checkpoint's JSON files are needed.
            RuntimeError: a weight is missing, unknown, or of another shape.
        """
        self._settle(_reach(self.checkpoint, weights=False))
        self.encoder = None
        super().load_trained(weights)

    def _settle(self, folder: Path) -> None:
        """Weights come: from here on, the checkpoint's own files say what it is, and no table."""
        found = describe(folder)
        if found.sizes != self.described.sizes:
            raise ConfigError(
                f"encoder.checkpoint: {folder} has (Hz, samples a frame, dim) {found.sizes}, but {self.checkpoint} was "
                f"published with {self.described.sizes}"
            )
        self.described = found

    def train(self, mode: bool = True) -> "HFConformerEncoder":
        """As ever, but batch norms keep to their statistics: a clip must not depend on its batch."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self

    def fingerprint(self) -> str:
        """SHA-256 of both configurations and every tensor; reads all weights each time, so that a change shows.

        Raises:
            RuntimeError: the weights are not loaded.
        """
        config, extractor = (part.to_dict() for part in self.described)
        settings = {key: value for key, value in config.items() if key not in _NOT_THE_MODEL}
        return fingerprint(self._ready(), "hf_conformer", settings, extractor)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Frames:
        """Map (batch, samples) at `sample_rate` in [-1, 1] to (batch, frames, dim).

        Raises:
            AudioError: a clip is too short for the feature extractor; the message names the row.
            RuntimeError: the weights are not loaded.
            ValueError: a clip is empty, or shapes do not fit; the message names the row.
        """
        encoder = self._ready()
        check_clips(waveform, lengths)
        features, mask = self._features(waveform, lengths)
        with precision(self, waveform.device):
            out = encoder(features, attention_mask=mask)
        if self.described.config.model_type == "parakeet_encoder":
            mask = out.attention_mask  # the convolutions in front have made it shorter
        counts = mask.sum(-1)
        return zeroed(Frames(out.last_hidden_state[:, : int(counts.max())].float(), counts))

    def _features(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The checkpoint's own features (batch, feature frames, dim) and their mask, 1 where a frame is real."""
        for row, length in enumerate(lengths.tolist()):
            if length < self.described.shortest:
                raise AudioError(
                    f"row {row} has {length} samples; {self.checkpoint} needs at least {self.described.shortest} "
                    f"({self.described.shortest / self.sample_rate * 1000:g} ms). Leave the clip out"
                )
        clips = [clip.detach().float().cpu().numpy() for clip in Frames(waveform, lengths).rows()]
        with torch.autocast("cpu", enabled=False):
            made = self.described.extractor(clips, sampling_rate=self.sample_rate, return_tensors="pt")
        return made["input_features"].float().to(waveform.device), made["attention_mask"].to(waveform.device)

    def _ready(self) -> Any:
        if self.loaded:
            return self.encoder
        raise RuntimeError(f"{self.checkpoint} has no weights yet: call load() first")


def _weights(checkpoint: str, folder: Path, config: Any) -> Any:
    """The encoder with its weights, float32; a tensor that the files lack is an error, not a random number."""
    try:
        model, told = AutoModel.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True,
            trust_remote_code=False, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # transformers and safetensors have many errors for a file that is not as expected
        raise _HUB.missing(checkpoint, f"{folder}: {first_line(error)}") from error
    if told["missing_keys"]:
        raise _HUB.missing(checkpoint, f"{folder} lacks {', '.join(sorted(told['missing_keys'])[:3])} …")
    return model


def _reach(checkpoint: str, weights: bool) -> Path:
    """The folder of a checkpoint: a local one comes first, then the Hugging Face cache, then the hub."""
    return _HUB.snapshot(checkpoint, ["*.json", *(["*.safetensors"] if weights else [])])
