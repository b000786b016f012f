"""Public Conformer encoders in Hugging Face's format: w2v-BERT 2.0 and those of Parakeet."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sottovoce.encoders import ENCODERS
from sottovoce.encoders.base import float32_in_eval
from sottovoce.encoders.hub_encoder import HubEncoder
from sottovoce.encoders.log_mel import check_waveforms
from sottovoce.errors import AudioError, ConfigError, first_line, nearest
from sottovoce.frames import Frames
from sottovoce.hub import Hub

_KEY = "encoder.checkpoint"
# Fields that are left out have transformers' default
PUBLISHED: dict[str, dict[str, Any]] = {
    "facebook/w2v-bert-2.0": {"model_type": "wav2vec2-bert"},
    "nvidia/parakeet-ctc-1.1b": {"model_type": "parakeet_encoder", "num_hidden_layers": 42},
}
_EXTRACTORS = {"wav2vec2-bert": "SeamlessM4TFeatureExtractor", "parakeet_encoder": "ParakeetFeatureExtractor"}
_OFF = {  # what is for training alone, and what comes behind the Conformer
    "wav2vec2-bert": {
        "apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0,
        "use_intermediate_ffn_before_adapter": False, "add_adapter": False,
    },
    "parakeet_encoder": {"layerdrop": 0.0},
}  # fmt: skip


@ENCODERS.register("hf_conformer")
class HFConformerEncoder(HubEncoder):
    """w2v-BERT 2.0 (50 frames per second) or Parakeet (12.5), with its own feature extractor.

    Seamless Communication (2023), section 3.2.1; Rekesh et al. (2023). Both feature extractors normalise every mel bin
    over the clip, so that how loud the whole clip is, is gone before the Conformer.

    Layer drop and SpecAugment are off, batch norms keep their statistics even in training, and an adapter or CTC head
    behind the Conformer is left out. Its weights train unless `requires_grad_(False)` forbids.

    Args:
        checkpoint: hub id (`facebook/w2v-bert-2.0`) or local folder with config.json, preprocessor_config.json and
            *.safetensors, of model type wav2vec2-bert, parakeet_encoder or one that has a parakeet_encoder.

    Raises:
        ConfigError: `checkpoint` is something else.
        MissingError: `checkpoint` cannot be reached or is damaged.
    """

    hub = Hub("encoder", "config.json, preprocessor_config.json and *.safetensors", PUBLISHED)
    kind = "hf_conformer"

    def __init__(self, *, checkpoint: str) -> None:
        super().__init__(checkpoint=checkpoint)

    def _published_extractor(self, config: Any) -> Any:
        return _extractor(config.model_type)()

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
        if config.model_type == "parakeet_encoder":
            expected, made = config.num_mel_bins, extractor.feature_size
        else:
            expected, made = config.feature_projection_input_dim, extractor.num_mel_bins * extractor.stride
        if expected != made:
            why = f"{folder}: the model in config.json takes {expected} values a frame, but the feature "
            raise ConfigError.at(_KEY, "mismatch", f"{why}extractor in preprocessor_config.json makes {made}")
        return config, extractor

    def _describe(self, config: Any, extractor: Any) -> None:
        for name, value in _OFF[config.model_type].items():
            setattr(config, name, value)
        self.config, self.extractor = config, extractor
        if config.model_type == "parakeet_encoder":
            hop = extractor.hop_length * config.subsampling_factor
            self.shortest = int(2 * extractor.hop_length)
        else:
            hop = 160 * extractor.stride  # SeamlessM4TFeatureExtractor knows no other hop
            self.shortest = 400 + 160
        # `shortest` samples give two mel frames: feature extractors divide by a clip's variance
        self.sample_rate, self.frame_rate = extractor.sampling_rate, extractor.sampling_rate / hop
        self.dim, self.depth = config.hidden_size, config.num_hidden_layers

    def _network(self) -> Any:
        from transformers import AutoModel

        return AutoModel.from_config(self.config, dtype=torch.float32)  # type: ignore[no-untyped-call]

    def _with_weights(self, folder: Path) -> Any:
        from transformers import AutoModel

        try:
            network, report = AutoModel.from_pretrained(
                folder, config=self.config, dtype=torch.float32, use_safetensors=True, local_files_only=True,
                trust_remote_code=False, output_loading_info=True,
            )  # fmt: skip
        except Exception as error:  # transformers and safetensors have many errors for a file that is not as expected
            raise self.hub.missing(self.checkpoint, f"{folder}: {first_line(error)}") from error
        if absent := sorted(report["missing_keys"]):  # transformers would go on with random numbers
            raise self.hub.missing(self.checkpoint, f"{folder} lacks {', '.join(absent[:3])} …")
        return network

    def _stack(self) -> nn.Module:
        network = self.loaded_network()
        return cast(nn.Module, network if self.config.model_type == "parakeet_encoder" else network.encoder)

    def train(self, mode: bool = True) -> "HFConformerEncoder":
        """As in `nn.Module`, but batch norms keep their statistics: a clip must not depend on its batch."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self

    def forward(self, waveform: Tensor, lengths: Tensor) -> Frames:
        """See `Encoder.forward`; `AudioError` where a clip is too short for the feature extractor."""
        network = self.loaded_network()
        check_waveforms(waveform, lengths)
        features, mask = self._features(waveform, lengths)
        with float32_in_eval(self, waveform.device):
            out = network(features, attention_mask=mask)
        if self.config.model_type == "parakeet_encoder":
            mask = out.attention_mask  # the convolutions in front have made it shorter
        counts = mask.sum(-1)
        return Frames(out.last_hidden_state[:, : int(counts.max())].float(), counts).zero_padding()

    def output_length(self, samples: int) -> int:
        """See `Encoder.output_length`: the mel frames of the feature extractor, stacked or subsampled."""
        if self.config.model_type != "parakeet_encoder":
            return (1 + (samples - 400) // 160) // int(self.extractor.stride)
        fft, hop = self.extractor.n_fft, self.extractor.hop_length
        mels = torch.tensor([(samples + fft // 2 * 2 - fft) // hop])
        return int(self.loaded_network()._get_subsampling_output_length(mels))

    def _features(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features (batch, feature frames, dim) and their mask, (batch, feature frames), 1 where a frame is real."""
        for row, length in enumerate(lengths.tolist()):
            if length < self.shortest:
                why = f"has {length} samples; {self.checkpoint} needs at least {self.shortest} "
                why += f"({self.shortest / self.sample_rate * 1000:g} ms). Leave the clip out"
                raise AudioError.at(f"row {row}", "bad-value", why)
        clips = [clip.detach().float().cpu().numpy() for clip in Frames(waveform, lengths).rows()]
        with torch.autocast("cpu", enabled=False):
            out = self.extractor(clips, sampling_rate=self.sample_rate, return_tensors="pt")
        return out["input_features"].float().to(waveform.device), out["attention_mask"].to(waveform.device)


def _extractor(model_type: str) -> Any:
    import transformers

    return getattr(transformers, _EXTRACTORS[model_type])
