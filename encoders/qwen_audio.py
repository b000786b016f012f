"""The audio encoders ("towers") of Qwen2-Audio and Qwen2.5-Omni, from the checkpoints of the whole models."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sottovoce.audio_llm_layouts import LAYOUTS, PUBLISHED, audio_and_text, read_config, read_shards, without_prefix
from sottovoce.encoders import ENCODERS
from sottovoce.encoders.base import float32_in_eval
from sottovoce.encoders.hub_encoder import HubEncoder
from sottovoce.encoders.log_mel import check_waveforms
from sottovoce.errors import AudioError, ConfigError, first_line, nearest
from sottovoce.frames import Frames
from sottovoce.hub import Hub

_KEY = "encoder.checkpoint"
_MELS_PER_FRAME = 4  # a convolution halves the log-mels, and pooling halves them again
_SHORTEST = 3  # log-mels that give a frame


class AudioTower(HubEncoder):
    """What the encoders of audio LLMs share: the checkpoint's own log-mels, and weights by their prefix.

    It ends before the projector into the LLM's space, which is an adapter; so all models are divided at the same place.
    """

    hub = Hub("encoder", "config.json, preprocessor_config.json and *.safetensors", PUBLISHED)
    families: ClassVar[tuple[str, ...]]  # model types of the checkpoints that have such a tower
    seconds: ClassVar[int]  # longest clip of the published checkpoints

    def _published_extractor(self, config: Any) -> Any:
        from transformers import WhisperFeatureExtractor

        return WhisperFeatureExtractor(feature_size=128, chunk_length=self.seconds)  # type: ignore[no-untyped-call]

    def _read_settings(self, folder: Path) -> tuple[Any, Any]:
        from transformers import WhisperFeatureExtractor

        config = self._of_a_family(read_config(folder, self.hub))
        try:
            return config, WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise self.hub.missing(self.checkpoint, first_line(error)) from None

    def _of_a_family(self, config: Any) -> Any:
        if config.model_type not in self.families:
            why = f"{self.checkpoint} is a {config.model_type!r}, which encoder.type does not fit."
            raise ConfigError.at(_KEY, "mismatch", why + nearest(config.model_type, ENCODERS.names()))
        return config

    def _describe(self, config: Any, extractor: Any) -> None:
        self._of_a_family(config)
        self.config, self.extractor = audio_and_text(config).audio_config, extractor
        self.layout = LAYOUTS[config.model_type]
        self._check_features("mel bins", self.config.num_mel_bins, extractor.feature_size)
        self.sample_rate = extractor.sampling_rate
        self.frame_rate = self.sample_rate / (extractor.hop_length * _MELS_PER_FRAME)
        self.dim, self.depth = self.config.d_model, self.config.encoder_layers

    def _check_features(self, what: str, expected: int, made: int) -> None:
        if expected != made:
            why = f"{self.checkpoint}: the tower takes {expected} {what}, but the feature extractor makes {made}"
            raise ConfigError.at(_KEY, "mismatch", why)

    def _network(self) -> Any:
        from transformers.initialization import no_init_weights

        with no_init_weights():  # type: ignore[no-untyped-call]
            return self._tower()

    @abstractmethod
    def _tower(self) -> nn.Module:
        """The tower of the model's own class."""

    def _with_weights(self, folder: Path) -> Any:
        """Of the files, only the tower's tensors are read."""
        weights = read_shards(folder, without_prefix(self.layout.tower, but=self.layout.projector), self.hub)
        network = self._network()
        try:
            wanted = network.state_dict()
            network.load_state_dict({name: weights[name].to(torch.float32, copy=True) for name in wanted})
        except KeyError as error:
            raise self.hub.missing(self.checkpoint, f"{folder} lacks {self.layout.tower}{error.args[0]}") from None
        except RuntimeError as error:
            raise self.hub.missing(self.checkpoint, f"{folder}: {' '.join(str(error).split())}") from None
        return network

    def native_weights(self) -> dict[str, Tensor]:
        """The tower's weights by the names that they have in the checkpoint's files."""
        return {self.layout.tower + name: weight for name, weight in self.encoder.state_dict().items()}

    def _log_mel(self, clip: Tensor) -> Tensor:
        """The model's own log-mels of a clip (samples,) and of silence behind it, (bins, mel frames), on the CPU."""
        with torch.autocast("cpu", enabled=False):
            features = self.extractor(
                clip.detach().float().cpu().numpy(), sampling_rate=self.sample_rate,
                max_length=self._padded(len(clip)), return_tensors="pt",
            )  # fmt: skip
        return cast(Tensor, features["input_features"][0])

    def _padded(self, samples: int) -> int:
        """How many samples a clip is padded to before its log-mels are made."""
        return int(self.extractor.n_samples)


class QwenTower(AudioTower):
    """What both of Qwen's towers share: 25 frames a second of 1280, of clips that are not longer than the model's."""

    def forward(self, waveform: Tensor, lengths: Tensor) -> Frames:
        """See `Encoder.forward`; `AudioError` where a clip is too short for a frame, or too long for the model."""
        self.loaded_network()
        check_waveforms(waveform, lengths)
        self._check_lengths(lengths)
        mels = [self._log_mel(clip).to(waveform.device) for clip in Frames(waveform, lengths).rows()]
        counts = (lengths + self.extractor.hop_length - 1) // self.extractor.hop_length
        with float32_in_eval(self, waveform.device):
            rows = self._encode(mels, counts.to(waveform.device))
        return Frames.pad([row.float() for row in rows]).to(waveform.device).zero_padding()

    def output_length(self, samples: int) -> int:
        counts = torch.tensor([-(-samples // self.extractor.hop_length)])
        return int(self.loaded_network()._get_feat_extract_output_lengths(counts)[1])

    @abstractmethod
    def _encode(self, mels: list[Tensor], counts: Tensor) -> list[Tensor]:
        """Log-mels, each (bins, mel frames), of which `counts` are of the clip, to frames, each (frames, dim)."""

    def _check_lengths(self, lengths: Tensor) -> None:
        shortest, longest = (_SHORTEST - 1) * self.extractor.hop_length + 1, self.extractor.n_samples
        for row, length in enumerate(lengths.tolist()):
            if length < shortest:
                why = f"has {length} samples; {self.checkpoint} needs {shortest}. Leave it out"
                raise AudioError.at(f"row {row}", "bad-value", why)
            if length > longest:
                why = f"has {length / self.sample_rate:.1f} s, and {self.checkpoint} takes "
                why += f"{longest / self.sample_rate:g}: its own processor would cut the rest off. Set "
                why += f"data.max_seconds={longest // self.sample_rate}, or cut the clip"
                raise AudioError.at(f"row {row}", "bad-value", why)


@ENCODERS.register("qwen2_audio")
class Qwen2AudioTower(QwenTower):
    """The tower of Qwen2-Audio: Whisper large-v3's encoder, trained on, with pooling; 25 frames per second of 1280.

    Chu et al. (2024), section 2. Every clip is padded to a window of 30 s whose silence is masked in attention.

    Args:
        checkpoint: hub id (`Qwen/Qwen2-Audio-7B-Instruct`) or local folder of the whole model in its native format.

    Raises:
        ConfigError: `checkpoint` is another model.
        MissingError: `checkpoint` cannot be reached or is damaged.
    """

    kind, families, seconds, norm = "Qwen2AudioTower", ("qwen2_audio",), 30, "layer_norm"

    def __init__(self, *, checkpoint: str) -> None:
        super().__init__(checkpoint=checkpoint)

    def _describe(self, config: Any, extractor: Any) -> None:
        super()._describe(config, extractor)
        self._check_features("log-mels", 2 * self.config.max_source_positions, extractor.nb_max_frames)

    def _tower(self) -> nn.Module:
        from transformers import Qwen2AudioEncoder

        return cast(nn.Module, Qwen2AudioEncoder(self.config))

    def _encode(self, mels: list[Tensor], counts: Tensor) -> list[Tensor]:
        from transformers.masking_utils import create_bidirectional_mask

        x = torch.stack(mels)
        positions, frames = self.encoder._get_feat_extract_output_lengths(counts)
        real = torch.arange(x.shape[2] // 2, device=x.device) < positions[:, None]
        mask = create_bidirectional_mask(
            config=self.encoder.config, inputs_embeds=x.new_zeros(*real.shape, 1), attention_mask=real.long()
        )
        return Frames(self.encoder(x, attention_mask=mask).last_hidden_state, frames).rows()


@ENCODERS.register("qwen2_5_omni")
class Qwen25OmniTower(QwenTower):
    """The tower of Qwen2.5-Omni's thinker, up to its projector; 25 frames per second of 1280, blocks of two seconds.

    Xu et al. (2025), section 2.2.

    Args:
        checkpoint: hub id (`Qwen/Qwen2.5-Omni-7B`) or local folder of the whole model, or of its thinker alone, in
            native format.

    Raises:
        ConfigError: `checkpoint` is another model.
        MissingError: `checkpoint` cannot be reached or is damaged.
    """

    kind, families, seconds = "Qwen25OmniTower", ("qwen2_5_omni", "qwen2_5_omni_thinker"), 300
    norm = "ln_post"

    def __init__(self, *, checkpoint: str) -> None:
        super().__init__(checkpoint=checkpoint)

    def _tower(self) -> nn.Module:
        from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

        tower: Any = Qwen2_5OmniAudioEncoder(self.config)
        tower.proj = nn.Identity()  # see AudioTower
        del tower.audio_bos_eos_token  # used nowhere
        return cast(nn.Module, tower)

    def _padded(self, samples: int) -> int:
        """Far enough for every window that holds some of the clip; more silence would change nothing."""
        hop = int(self.extractor.hop_length)
        return min(int(self.extractor.n_samples), -(-(samples + int(self.extractor.n_fft)) // hop) * hop)

    def _encode(self, mels: list[Tensor], counts: Tensor) -> list[Tensor]:
        x = torch.cat([mel[:, :count] for mel, count in zip(mels, counts.tolist(), strict=True)], 1)
        positions, frames = self.encoder._get_feat_extract_output_lengths(counts)
        out = self.encoder(x, feature_lens=counts, aftercnn_lens=positions).last_hidden_state
        return list(out.split(frames.tolist()))
