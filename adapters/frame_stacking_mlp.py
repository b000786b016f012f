"""The linguistic adapter (what was said): stacked frames through an MLP, in time order."""

from torch import nn

from sottovoce.adapters import ADAPTERS, Adapter, init_small
from sottovoce.adapters.base import stack_frames
from sottovoce.config_model import Count
from sottovoce.frames import Frames


@ADAPTERS.register("frame_stacking_mlp")
class FrameStackingMLP(Adapter):
    """E = Linear(ReLU(Linear(H))), H the concatenation of every `stack` adjacent frames.

    Wang et al. (ICME 2025), section III-A, equation 5; the sizes are those of SLAM-ASR (Ma et al., 2024). At 50
    frames per second, `stack=5` gives the LLM 10 embeddings per second. Frames that do not fill a stack are dropped.

    Args:
        stack: how many frames become one embedding.
        hidden: width of the hidden layer.
    """

    def __init__(self, d_audio: int, d_llm: int, *, stack: Count = 5, hidden: Count = 2048) -> None:
        super().__init__()
        self.stack = stack
        self.mlp = nn.Sequential(nn.Linear(d_audio * stack, hidden), nn.ReLU(), init_small(nn.Linear(hidden, d_llm)))

    def output_length(self, frames: int) -> int:
        return frames // self.stack

    def forward(self, frames: Frames) -> Frames:
        """Map (batch, frames, d_audio) to (batch, frames // stack, d_llm)."""
        return Frames(self.mlp(stack_frames(frames.x, self.stack)), frames.lengths // self.stack)
