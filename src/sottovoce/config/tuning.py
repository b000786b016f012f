"""What a recipe says of unfreezing the LLM."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sottovoce.errors import SottovoceError


@dataclass
class TuningConfig:
    """What of the LLM is unfrozen, for stages that name `llm` in `train`. Full tuning is `layers: all`."""

    method: Literal["frozen", "lora", "weights"] = "frozen"
    layers: str = "all"  # 0-14, or 0-6,9; auto: the paralinguistic and semantic layers that an analysis has found
    targets: list[str] = field(default_factory=lambda: ["all"])  # linear maps of these layers, such as q_proj
    rank: int = 16  # of LoRA, as are the next two
    alpha: float = 32.0
    dropout: float = 0.0
    recompute: bool = False  # activations in the backward pass, which saves memory and costs a third more time
    analysis: str | None = None  # the layers.json of `sottovoce analyze`, for layers: auto


def check_tuning(recipe: Any, source: str) -> list[str]:
    """Whether what is unfrozen also learns, and `layers: auto` has an analysis to go by, which is read here."""
    faults, tuning, head = [], recipe.llm.tuning, recipe.auxiliary_head
    if recipe.trains_llm != (tuning.method != "frozen"):
        faults.append(
            f"{source}: llm.tuning.method is {tuning.method!r}, but "
            + ("a stage trains `llm`: say what of it learns" if recipe.trains_llm else "no stage has `llm` in `train`")
        )
    if tuning.layers == "auto" and tuning.analysis is None:
        faults.append(f"{source}: llm.tuning.layers: auto needs llm.tuning.analysis, a file of `sottovoce analyze`")
    elif tuning.layers == "auto" and tuning.method != "frozen":
        from sottovoce.evaluation.layers.split import read_split  # scikit-learn takes seconds to import

        try:
            first, last = read_split(Path(str(tuning.analysis)))
            tuning.layers = f"{first}-{last}"
        except SottovoceError as error:
            faults.append(f"{source}: llm.tuning.analysis: {error}")
    if head and not recipe.trains_llm:
        faults.append(f"{source}: auxiliary_head: no stage has `llm` in `train`, which its loss is for")
    if head and (not head.categories or not all(head.categories.values())):
        faults.append(f"{source}: adch.categories: name at least one category, each with its attribute values")
    return faults
