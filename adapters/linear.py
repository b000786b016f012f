"""Linear projection of stacked frames, for comparison."""

from torch import nn

from sottovoce.adapters import ADAPTERS, Adapter, init_small
from sottovoce.adapters.base import stack_frames
from sottovoce.config_model import Count
from sottovoce.frames import Frames


@ADAPTERS.register("linear")
class LinearProjection(Adapter):
    """E = Linear(H), H the concatenation of every `stack` adjacent frames, and nothing between.

    Fathullah et al. (ICASSP 2024), section 2.2; SLAM-LLM's `linear` has a hidden layer, which is `frame_stacking_mlp`.
    Frames that do not fill a stack are dropped.

    Args:
        stack: how many frames become one embedding.
    """

    def __init__(self, d_audio: int, d_llm: int, *, stack: Count = 5) -> None:
        super().__init__()
        self.stack = stack
        self.project = init_small(nn.Linear(d_audio * stack, d_llm))

    def output_length(self, frames: int) -> int:
        return frames // self.stack

    def forward(self, frames: Frames) -> Frames:
        """Map (batch, frames, d_audio) to (batch, frames // stack, d_llm)."""
        return Frames(self.project(stack_frames(frames.x, self.stack)), frames.lengths // self.stack)
