"""Mean speech tokens of utterances: adapter outputs, pooled over time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sottovoce.data.audio import load_audio
from sottovoce.data.utterance import Utterance
from sottovoce.device import on_device
from sottovoce.frames import Frames
from sottovoce.lightning_modules.speech_llm import SpeechLLM

BATCH = 16  # clips that are encoded together


@torch.no_grad()
def pooled_tokens(module: SpeechLLM, utterances: Sequence[Utterance]) -> Tensor:
    """Mean over time of the adapters' outputs for each utterance: (utterances, slots * d_llm), in float32.

    Kang et al. (2024), section V-C: what linear probes and t-SNE look at. Slots stand side by side.
    """
    module.eval()
    means = []
    with on_device(module.encoder), on_device(module.adapters):  # the LLM is not asked
        device = next(module.adapters.parameters()).device
        for start in range(0, len(utterances), BATCH):
            clips = [load_audio(u.clip, module.encoder.sample_rate) for u in utterances[start : start + BATCH]]
            waveforms = Frames.pad([torch.from_numpy(clip) for clip in clips]).to(device)
            encoded = module.encoder.layer_frames(*waveforms, module.layers)
            tokens = [module.adapt(slot, encoded) for slot in module.slots]
            means.append(torch.cat([mean_over_time(frames) for frames in tokens], dim=1).float().cpu())
    return torch.cat(means)


def mean_over_time(frames: Frames) -> Tensor:
    """The mean of the real frames: (batch, frames, dim) to (batch, dim)."""
    total = frames.x.masked_fill(~frames.mask()[..., None], 0.0).sum(1)
    return total / frames.lengths[:, None]
