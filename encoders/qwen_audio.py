"""The ears of finished audio LLMs, out of their own checkpoints: Qwen2-Audio and Qwen2.5-Omni, 25 frames a second."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import Qwen2AudioEncoder, WhisperFeatureExtractor
from transformers.initialization import no_init_weights
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

from sottovoce.audio_llm_layouts import (
    LAYOUTS,
    PUBLISHED,
    SETTINGS,
    WEIGHTS,
    describe,
    listening,
    read_config,
    tensors,
    under,
)
from sottovoce.encoders import ENCODERS
from sottovoce.encoders.base import Encoder, fingerprint, precision
from sottovoce.encoders.log_mel import check_clips, zeroed
from sottovoce.errors import AudioError, ConfigError, nearest
from sottovoce.frames import Frames
from sottovoce.hub import Hub, first_line
from sottovoce.paths import resolve

_HUB = Hub("encoder", "config.json, preprocessor_config.json and *.safetensors", PUBLISHED)
_NOT_THE_MODEL = ("transformers_version", "_name_or_path", "_commit_hash", "dtype", "torch_dtype", "architectures")
_MELS_PER_FRAME = 4  # a convolution halves the log-mels, and pooling halves them again
_SHORTEST = 3  # log-mels that give a frame


class AudioTower(Encoder):
    """What both towers share: log-mels by the checkpoint's own numbers, weights by their prefix, 25 frames a second.

    It ends before the projector into the LLM's space, which is the adapter `checkpoint_projector`; so both models have
    the same seam, frames are the tower's own, and the cache keeps 1280 numbers a frame instead of 3584. It is born in
    eval mode, in which it computes in float32, autocast or not.
    """

    families: ClassVar[tuple[str, ...]]  # model types of the checkpoints that have such a tower
    seconds: ClassVar[int]  # longest clip of the published checkpoints

    def __init__(self, *, checkpoint: str) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        if checkpoint in PUBLISHED and not resolve(checkpoint).is_dir():
            self._take_on(
                describe(checkpoint, _HUB),
                WhisperFeatureExtractor(feature_size=128, chunk_length=self.seconds),  # type: ignore[no-untyped-call]
            )
        else:
            self._read(_HUB.snapshot(checkpoint, SETTINGS))
        self.encoder: Any = None  # the tower, once built

    def _read(self, folder: Path) -> None:
        """Take on what a folder's own files say."""
        config = read_config(folder, _HUB)
        try:
            extractor = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise _HUB.missing(self.checkpoint, first_line(error)) from None
        self._take_on(config, extractor)

    def _take_on(self, config: Any, extractor: Any) -> None:
        if config.model_type not in self.families:
            raise ConfigError(
                f"encoder.checkpoint: {self.checkpoint} is a {config.model_type!r}, which encoder.type does not fit."
                f"{nearest(config.model_type, ENCODERS.names())}"
            )
        self.config, self.extractor = listening(config).audio_config, extractor
        self.layout = LAYOUTS[config.model_type]
        if self.config.num_mel_bins != extractor.feature_size:
            raise ConfigError(
                f"encoder.checkpoint: {self.checkpoint}: the tower hears {self.config.num_mel_bins} mel bins, but the "
                f"feature extractor makes {extractor.feature_size}"
            )
        self.sample_rate = extractor.sampling_rate
        self.frame_rate = self.sample_rate / (extractor.hop_length * _MELS_PER_FRAME)
        self.dim = self.config.d_model

    def build(self) -> None:
        """Make the tower without its weights, on the current device (`meta` costs nothing). Idempotent."""
        if self.encoder is None:
            with no_init_weights():  # type: ignore[no-untyped-call]
                self.encoder = self._empty()
            self.eval()

    @abstractmethod
    def _empty(self) -> nn.Module:
        """The tower of the model's own class, without weights of worth."""

    def load(self) -> None:
        """Build the tower and give it its weights; of the files, nothing else is read. Idempotent.

        Raises:
            ConfigError: the checkpoint's own files are of another size than what is published under its name.
            MissingError: the weights cannot be reached or do not fit.
        """
        if self.loaded:
            return
        folder = _HUB.snapshot(self.checkpoint, (*SETTINGS, *WEIGHTS))
        self._settle(folder)
        weights = tensors(folder, under(self.layout.tower, without=self.layout.projector), _HUB)
        self.build()
        known = self.encoder.state_dict()
        try:
            self.encoder.load_state_dict({name: weights[name].to(torch.float32, copy=True) for name in known})
        except KeyError as error:
            raise _HUB.missing(self.checkpoint, f"{folder} lacks {self.layout.tower}{error.args[0]}") from None
        except RuntimeError as error:
            raise _HUB.missing(self.checkpoint, f"{folder}: {' '.join(str(error).split())}") from None
        self.loaded = True

    def load_trained(self, weights: dict[str, Tensor]) -> None:
        """Build the tower as the checkpoint's configuration says and give it these weights instead of its own."""
        self._settle(_HUB.snapshot(self.checkpoint, SETTINGS))
        super().load_trained(weights)

    def _settle(self, folder: Path) -> None:
        """Weights come: from here on, the checkpoint's own files say what it is, and no table."""
        dim = self.dim
        self._read(folder)
        if self.dim != dim:
            raise ConfigError(f"encoder.checkpoint: {folder} has frames of {self.dim}, but was published with {dim}")
        self.encoder = None

    def fingerprint(self) -> str:
        """SHA-256 of both configurations and every tensor; reads all weights each time, so that a change shows.

        Raises:
            RuntimeError: the weights are not loaded.
        """
        settings = {key: value for key, value in self.config.to_dict().items() if key not in _NOT_THE_MODEL}
        return fingerprint(self._ready(), type(self).__name__, settings, self.extractor.to_dict())

    def forward(self, waveform: Tensor, lengths: Tensor) -> Frames:
        """Map (batch, samples) at `sample_rate` in [-1, 1] to (batch, frames, dim).

        Raises:
            AudioError: a clip is too short for a frame, or longer than the model hears; the message names the row.
            RuntimeError: the weights are not loaded.
            ValueError: a clip is empty, or shapes do not fit; the message names the row.
        """
        self._ready()
        check_clips(waveform, lengths)
        self._check_lengths(lengths)
        mels = [self._log_mel(clip).to(waveform.device) for clip in Frames(waveform, lengths).rows()]
        counts = (lengths + self.extractor.hop_length - 1) // self.extractor.hop_length
        with precision(self, waveform.device):
            rows = self._listen(mels, counts.to(waveform.device))
        return zeroed(Frames.pad([row.float() for row in rows]).to(waveform.device))

    @abstractmethod
    def _listen(self, mels: list[Tensor], counts: Tensor) -> list[Tensor]:
        """Log-mels, each (bins, mel frames), of which `counts` are of the clip, to frames, each (frames, dim)."""

    def _check_lengths(self, lengths: Tensor) -> None:
        shortest, longest = (_SHORTEST - 1) * self.extractor.hop_length + 1, self.extractor.n_samples
        for row, length in enumerate(lengths.tolist()):
            if length < shortest:
                raise AudioError(f"row {row} has {length} samples; {self.checkpoint} needs {shortest}. Leave it out")
            if length > longest:
                raise AudioError(
                    f"row {row} has {length / self.sample_rate:.1f} s, and {self.checkpoint} hears "
                    f"{longest / self.sample_rate:g}: its own processor would cut the rest off. Set "
                    f"data.max_seconds={longest // self.sample_rate}, or cut the clip"
                )

    def _log_mel(self, clip: Tensor) -> Tensor:
        """The model's own log-mels of a clip (samples,) and of silence behind it, (bins, mel frames), on the CPU."""
        with torch.autocast("cpu", enabled=False):
            features = self.extractor(
                clip.detach().float().cpu().numpy(), sampling_rate=self.sample_rate,
                max_length=self._padded(len(clip)), return_tensors="pt",
            )  # fmt: skip
        return cast(Tensor, features["input_features"][0])

    @abstractmethod
    def _padded(self, samples: int) -> int:
        """How many samples a clip is padded to before its log-mels are made."""

    def _ready(self) -> Any:
        if self.loaded:
            return self.encoder
        raise RuntimeError(f"{self.checkpoint} has no weights yet: call load() first")


@ENCODERS.register("qwen2_audio")
class Qwen2AudioTower(AudioTower):
    """The tower of Qwen2-Audio: Whisper large-v3's encoder, trained on, with pooling; 25 frames per second of 1280.

    Chu et al. (2024), section 2. Every clip is heard in a window of 30 s whose silence is hidden from attention.

    Args:
        checkpoint: hub id (`Qwen/Qwen2-Audio-7B-Instruct`) or local folder of the whole model in its native format.

    Raises:
        ConfigError: `checkpoint` is another model.
        MissingError: `checkpoint` cannot be reached or is damaged.
    """

    families = ("qwen2_audio",)
    seconds = 30

    def _take_on(self, config: Any, extractor: Any) -> None:
        super()._take_on(config, extractor)
        if 2 * self.config.max_source_positions != extractor.nb_max_frames:
            raise ConfigError(
                f"encoder.checkpoint: {self.checkpoint}: the tower hears {2 * self.config.max_source_positions} "
                f"log-mels, but the feature extractor makes {extractor.nb_max_frames}"
            )

    def _empty(self) -> nn.Module:
        return cast(nn.Module, Qwen2AudioEncoder(self.config))

    def _padded(self, samples: int) -> int:
        return int(self.extractor.n_samples)

    def _listen(self, mels: list[Tensor], counts: Tensor) -> list[Tensor]:
        x = torch.stack(mels)
        seen, frames = self.encoder._get_feat_extract_output_lengths(counts)
        real = torch.arange(x.shape[2] // 2, device=x.device) < seen[:, None]
        mask = create_bidirectional_mask(
            config=self.encoder.config, inputs_embeds=x.new_zeros(*real.shape, 1), attention_mask=real.long()
        )
        return Frames(self.encoder(x, attention_mask=mask).last_hidden_state, frames).rows()


@ENCODERS.register("qwen2_5_omni")
class Qwen25OmniTower(AudioTower):
    """The tower of Qwen2.5-Omni's thinker, up to its projector; 25 frames per second of 1280, blocks of two seconds.

    Xu et al. (2025), section 2.2.

    Args:
        checkpoint: hub id (`Qwen/Qwen2.5-Omni-7B`) or local folder of the whole model, or of its thinker alone, in
            native format.

    Raises:
        ConfigError: `checkpoint` is another model.
        MissingError: `checkpoint` cannot be reached or is damaged.
    """

    families = ("qwen2_5_omni", "qwen2_5_omni_thinker")
    seconds = 300

    def _empty(self) -> nn.Module:
        tower: Any = Qwen2_5OmniAudioEncoder(self.config)
        tower.proj = nn.Identity()  # the seam: see AudioTower
        del tower.audio_bos_eos_token  # used nowhere
        return cast(nn.Module, tower)

    def _padded(self, samples: int) -> int:
        """Far enough for every window that holds some of the clip; more silence would change nothing."""
        hop = int(self.extractor.hop_length)
        return min(int(self.extractor.n_samples), -(-(samples + int(self.extractor.n_fft)) // hop) * hop)

    def _listen(self, mels: list[Tensor], counts: Tensor) -> list[Tensor]:
        x = torch.cat([mel[:, :count] for mel, count in zip(mels, counts.tolist(), strict=True)], 1)
        seen, frames = self.encoder._get_feat_extract_output_lengths(counts)
        out = self.encoder(x, feature_lens=counts, aftercnn_lens=seen).last_hidden_state
        return list(out.split(frames.tolist()))
