"""Strided 1-D convolution and an MLP, for comparison."""

import torch.nn.functional as F
from torch import nn

from sottovoce.adapters import ADAPTERS, Adapter, init_small
from sottovoce.config_model import Count
from sottovoce.errors import ConfigError
from sottovoce.frames import Frames


@ADAPTERS.register("conv1d")
class Conv1dProjection(Adapter):
    """E = Linear(ReLU(Linear(ReLU(Convolution(H))))), ceil(frames / stride) embeddings.

    SLAM-LLM's `cov1d-linear` (Ma et al., 2024): kernel and stride are the downsampling rate, the convolution keeps the
    encoder's dim. A kernel may be larger, to overlap; beyond a clip's ends are zeros, so that no frame is dropped.

    Args:
        stride: how many frames become one embedding.
        kernel: frames that the convolution sees; `stride` if absent.
        hidden: width of the hidden layer.

    Raises:
        ConfigError: `kernel` is below `stride`.
    """

    def __init__(
        self, d_audio: int, d_llm: int, *, stride: Count = 5, kernel: Count | None = None, hidden: Count = 2048
    ) -> None:
        super().__init__()
        if (size := kernel or stride) < stride:
            raise ConfigError.at(
                "adapter.kernel", "bad-value", f"{size} is below stride={stride}: it would skip frames"
            )
        self.stride, self.kernel = stride, size
        self.convolve = nn.Conv1d(d_audio, d_audio, size, stride)
        self.mlp = nn.Sequential(nn.ReLU(), nn.Linear(d_audio, hidden), nn.ReLU(), init_small(nn.Linear(hidden, d_llm)))

    def output_length(self, frames: int) -> int:
        return (frames + self.stride - 1) // self.stride

    def forward(self, frames: Frames) -> Frames:
        """Map (batch, frames, d_audio) to (batch, ceil(frames / stride), d_llm)."""
        x = frames.zero_padding().x.transpose(1, 2)  # (batch, d_audio, frames)
        count, before = x.shape[2], (self.kernel - self.stride) // 2
        needed = (self.output_length(count) - 1) * self.stride + self.kernel
        x = self.convolve(F.pad(x, (before, needed - before - count)))
        return Frames(self.mlp(x.transpose(1, 2)), (frames.lengths + self.stride - 1) // self.stride)
