"""What of an LLM is unfrozen, as a recipe says it; apart from `tuning`, since importing that takes seconds."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sottovoce.config_model import Float, Int, config_class, fault
from sottovoce.errors import ConfigError

ALL = "all"  # every layer, or every linear map of a layer
AUTO = "auto"  # the layers that an analysis names

_RANGE = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


def layer_ranges(layers: str) -> list[tuple[int, int]]:
    """The first and the last layer of each part of `0-14` or `0-6,9`; `ConfigError` if it cannot be read."""
    ranges = []
    for part in layers.split(","):
        if not (match := _RANGE.fullmatch(part.strip())):
            raise ConfigError.at("llm.tuning.layers", "bad-value", f"{layers!r} is no range; write 0-14, 0-6,9 or all")
        ranges.append((int(match[1]), int(match[2] or match[1])))
    return ranges


def _readable(layers: str) -> str:
    if layers.strip() not in (ALL, AUTO):
        try:
            layer_ranges(layers)
        except ConfigError:
            raise fault("bad-value", "", f"{layers!r} is no range; write 0-14, 0-6,9, all or auto") from None
    return layers


@config_class
class Tuning:
    """What of the LLM is unfrozen, for stages that name `llm` in `train`. Full tuning is `layers: all`."""

    method: Literal["frozen", "lora", "weights"] = Field(
        default="frozen", description="low-rank maps, or the weights themselves"
    )
    layers: Annotated[str, AfterValidator(_readable)] = Field(
        default=ALL, description="0-14, or 0-6,9; auto: those of `analysis`"
    )
    targets: list[str] = Field(default=[ALL], description="linear maps, such as q_proj or self_attn.q_proj")
    rank: Int = Field(default=16, ge=1, le=100_000, description="of LoRA, as are the next two")
    alpha: Float = Field(default=32.0, gt=0, description="LoRA's maps are scaled by alpha / rank")
    dropout: Float = Field(default=0.0, ge=0, lt=1, description="before LoRA's maps, in training")
    recompute: bool = Field(
        default=False, description="activations in the backward pass: less memory, a third more time"
    )
    analysis: str | None = Field(default=None, description="the layers.json of `sottovoce analyze`, for layers: auto")
