"""The audio encoder of Kimi-Audio: Whisper's, from its checkpoint, and beside it a speech tokenizer."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sottovoce.audio_llm_layouts import KIMI, read_config, read_shards, without_prefix
from sottovoce.encoders import ENCODERS
from sottovoce.encoders.base import float32_in_eval
from sottovoce.encoders.glm_speech_tokenizer import GLMSpeechTokenizer
from sottovoce.encoders.log_mel import check_waveforms
from sottovoce.encoders.qwen_audio import AudioTower
from sottovoce.errors import ConfigError
from sottovoce.frames import Frames
from sottovoce.speech_token_ids import DIGITS, split_ids

_STACK = 4  # Whisper's frames in one of ours


class KimiAudioNetwork(nn.Module):
    """What has weights: Whisper's encoder, and the speech tokenizer where there is one."""

    def __init__(self, whisper: nn.Module, tokenizer: GLMSpeechTokenizer | None) -> None:
        super().__init__()
        self.whisper, self.tokenizer = whisper, tokenizer


@ENCODERS.register("kimi_audio")
class KimiAudioEncoder(AudioTower):
    """Whisper large-v3's encoder, trained on, with four frames stacked in one: 12.5 frames per second of 5120.

    Kimi team (2025), section 2.1. A clip is heard in windows of 30 s, the last one padded with silence that is
    attended to, as in the authors' code. With a speech tokenizer each frame also has the id of its discrete token, in
    two numbers that half precision holds exactly (`speech_token_ids`): the model was trained with both.

    Args:
        checkpoint: hub id (`moonshotai/Kimi-Audio-7B-Instruct`) or local folder of the whole model.
        speech_tokenizer: hub id (`THUDM/glm-4-voice-tokenizer`) or local folder; without it, `kimi_audio_projector`
            puts the blank in the place of discrete tokens.

    Raises:
        ConfigError: `checkpoint` or `speech_tokenizer` is another model, or they do not fit each other.
        MissingError: one of them cannot be reached or is damaged.
    """

    kind, families, seconds, norm = "KimiAudioEncoder", (KIMI,), 30, "layer_norm"
    hides_layers = "its frames have ids of discrete tokens, of which layers have none: leave out speech_tokenizer"

    def __init__(self, *, checkpoint: str, speech_tokenizer: str | None = None) -> None:
        self.speech_tokenizer = speech_tokenizer
        super().__init__(checkpoint=checkpoint)

    def _published_extractor(self, config: Any) -> Any:
        from transformers import WhisperFeatureExtractor

        make: Any = WhisperFeatureExtractor  # the authors' code has its settings built in
        audio = config.audio_config
        return make(feature_size=audio.num_mel_bins, chunk_length=audio.max_source_positions // 50)

    def _read_settings(self, folder: Path) -> tuple[Any, Any]:
        config = self._of_a_family(read_config(folder, self.hub))
        return config, self._published_extractor(config)

    def _describe(self, config: Any, extractor: Any) -> None:
        super()._describe(config, extractor)
        if config.kimia_adaptor_input_dim != _STACK * self.config.d_model:
            why = f"{self.checkpoint} takes {config.kimia_adaptor_input_dim} numbers a frame, and its Whisper makes "
            why += f"{_STACK} times {self.config.d_model}"
            raise ConfigError.at(self.hub.key, "mismatch", why)
        self._speech_ids = config.speech_tokens
        self.frame_rate = self.sample_rate / self._samples
        self.dim = config.kimia_adaptor_input_dim + (DIGITS if self.speech_tokenizer else 0)
        self.depth = 0 if self.speech_tokenizer else self.depth

    @property
    def _samples(self) -> int:
        """Of audio in a frame."""
        return int(2 * _STACK * self.extractor.hop_length)

    def _tower(self) -> nn.Module:
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        return KimiAudioNetwork(WhisperEncoder(self.config), self._tokenizer())

    def _stack(self) -> nn.Module:
        return cast(nn.Module, self.loaded_network().whisper)

    def _tokenizer(self) -> GLMSpeechTokenizer | None:
        if self.speech_tokenizer is None:
            return None
        tokenizer = GLMSpeechTokenizer(self.speech_tokenizer)
        if (found := tokenizer.config.quantize_vocab_size) != self._speech_ids or tokenizer.samples != self._samples:
            why = f"{self.speech_tokenizer} has {found} tokens of {tokenizer.samples} samples, and {self.checkpoint} "
            why += f"knows {self._speech_ids} of {self._samples}"
            raise ConfigError.at("encoder.speech_tokenizer", "mismatch", why)
        return tokenizer

    def _with_weights(self, folder: Path) -> Any:
        network: KimiAudioNetwork = self._network()
        if network.tokenizer is not None:
            network.tokenizer.load()
        files = folder / self.layout.tower_folder
        weights = read_shards(files, without_prefix(self.layout.tower), self.hub)
        if not weights:  # the authors' fine-tuning writes them so
            self.layout = self.layout._replace(tower="encoder.")
            weights = read_shards(files, without_prefix(self.layout.tower), self.hub)
        wanted = network.whisper.state_dict()
        try:
            network.whisper.load_state_dict({name: weights[name].to(torch.float32, copy=True) for name in wanted})
        except KeyError as error:
            raise self.hub.missing(self.checkpoint, f"{files} lacks {self.layout.tower}{error.args[0]}") from None
        except RuntimeError as error:
            raise self.hub.missing(self.checkpoint, f"{files}: {' '.join(str(error).split())}") from None
        return network

    def requires_grad_(self, requires_grad: bool = True) -> "KimiAudioEncoder":
        """As in `nn.Module`, of Whisper's weights: those of the speech tokenizer have no gradient."""
        super().requires_grad_(requires_grad)
        if self.encoder is not None and self.encoder.tokenizer is not None:
            self.encoder.tokenizer.requires_grad_(False)
        return self

    def native_weights(self) -> dict[str, Tensor]:
        """See `AudioTower.native_weights`; the speech tokenizer is another checkpoint's."""
        return {self.layout.tower + name: weight for name, weight in self.encoder.whisper.state_dict().items()}

    def forward(self, waveform: Tensor, lengths: Tensor) -> Frames:
        """See `Encoder.forward`; clips of any length are heard window by window."""
        self.loaded_network()
        check_waveforms(waveform, lengths)
        clips = Frames(waveform, lengths).rows()
        windows = [torch.split(clip, self.extractor.n_samples) for clip in clips]
        flat = [window for clip in windows for window in clip]
        with float32_in_eval(self, waveform.device):
            mels = torch.stack([self._log_mel(window) for window in flat]).to(waveform.device)
            heard = self.encoder.whisper(mels).last_hidden_state.unflatten(1, (-1, _STACK))
            heard = heard.unflatten(-1, (-1, self.config.d_model)).transpose(2, 3).flatten(2)  # layer by layer
            made = iter(zip(heard, flat, strict=True))
            rows = [torch.cat([self._frames(*next(made)) for _ in clip]) for clip in windows]
        return Frames.pad([row.float() for row in rows]).to(waveform.device).zero_padding()

    def output_length(self, samples: int) -> int:
        """See `Encoder.output_length`: of each window, the frames that hold some of the clip."""
        window = int(self.extractor.n_samples)
        whole, rest = divmod(samples, window)
        return whole * -(-window // self._samples) + -(-rest // self._samples)

    def _frames(self, heard: Tensor, window: Tensor) -> Tensor:
        """Of a window's stacked frames those that hold some of the clip, (frames, dim), with their discrete tokens."""
        frames = heard[: -(-len(window) // self._samples)]
        if self.encoder.tokenizer is None:
            return frames
        return torch.cat([frames, split_ids(self.encoder.tokenizer(window)).to(frames)], 1)
