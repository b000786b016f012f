"""Selective tuning of an LLM: LoRA on, or the weights of, the linear maps and experts of some of its layers.

PE-FT (Yang et al., 2026, section 5) trains LoRA on layers 0 to 14 of 28 and leaves everything else as it is.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from sottovoce.errors import ConfigError, nearest
from sottovoce.llms.tuning_config import ALL, Tuning, layer_ranges

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decoder_layers(model: "PreTrainedModel") -> nn.ModuleList:
    """The decoder layers of a causal LM, in their order; `ConfigError` where there is not one such list."""
    count = model.config.get_text_config().num_hidden_layers
    parts = {name: part for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    lists = {name: part for name, part in parts.items() if len(part) == count}
    if len(lists) != 1:
        why = f"{type(model).__name__} has {len(lists)} lists of {count} layers ({', '.join(lists) or 'none'}), "
        why += "so its decoder layers are not known; take another architecture"
        raise ConfigError.at("llm.tuning", "mismatch", why)
    return next(iter(lists.values()))


def layer_numbers(layers: str, count: int) -> list[int]:
    """The numbers that `0-14`, `0-6,9` or `all` stand for, of an LLM of `count` layers; or `ConfigError`."""
    if layers.strip() == ALL:
        return list(range(count))
    numbers: set[int] = set()
    for first, last in layer_ranges(layers):
        if not first <= last < count:
            why = f"{first}-{last} is not there; the LLM has layers 0-{count - 1}"
            raise ConfigError.at("llm.tuning.layers", "bad-value", why)
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def target_names(model: "PreTrainedModel", tuning: Tuning) -> list[str]:
    """Full names of what `layers` and `targets` select, in the model's order: linear maps, and weights of experts.

    Since transformers 5 the experts of a layer are one weight of three dimensions. `all` means them where weights train
    themselves; LoRA takes them where they are named. `ConfigError` where nothing is selected.
    """
    parts = _parts(model, tuning.layers)
    within = sorted({inner for inner, _ in parts.values()})
    if list(tuning.targets) == [ALL]:
        maps = {inner for inner, stacked in parts.values() if not stacked}
        wanted = set(within) if tuning.method == "weights" else maps
    else:
        wanted = {name for target in tuning.targets for name in _matching(target, within)}
    if not (chosen := [full for full, (inner, _) in parts.items() if inner in wanted]):
        why = f"the layers {tuning.layers} of {type(model).__name__} have no linear maps: nothing would train"
        raise ConfigError.at("llm.tuning.targets", "empty", why)
    return chosen


def _parts(model: "PreTrainedModel", layers: str) -> dict[str, tuple[str, bool]]:
    """Full name -> name within its layer, and whether it stacks experts, of what can be tuned."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear map

    stack = decoder_layers(model)
    chosen = {id(stack[number]) for number in layer_numbers(layers, len(stack))}
    parts: dict[str, tuple[str, bool]] = {}
    for name, layer in model.named_modules():
        for inner, module in layer.named_modules() if id(layer) in chosen else ():
            if isinstance(module, nn.Linear | Conv1D):
                parts[f"{name}.{inner}"] = (inner, False)
            elif not isinstance(module, nn.Conv1d | nn.Conv2d):
                for key, weight in module.named_parameters(recurse=False):
                    if len(_shape(weight)) == 3:
                        parts[f"{name}.{inner}.{key}"] = (f"{inner}.{key}", True)
    return parts


def _shape(weight: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(weight, "ds_shape", weight.shape))  # ZeRO's stage 3 leaves no other trace of it


def _matching(target: str, within: Sequence[str]) -> list[str]:
    names = [name for name in within if name == target or name.endswith(f".{target}")]
    if not names:
        known = nearest(target, {name.rsplit(".", 1)[-1] for name in within})
        why = f"no linear map of these layers is called {target!r}.{known}"
        raise ConfigError.at("llm.tuning.targets", "unknown-name", why)
    return names


def passed_over(model: "PreTrainedModel", tuning: Tuning) -> str | None:
    """What `targets: [all]` leaves frozen in the tuned layers of a bare model, but for norms and biases, in words."""
    if tuning.method == "frozen" or list(tuning.targets) != [ALL]:
        return None
    chosen, stack = set(target_names(model, tuning)), decoder_layers(model)
    layers = [stack[number] for number in layer_numbers(tuning.layers, len(stack))]
    names = {id(module): name for name, module in model.named_modules()}
    sizes: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for layer in layers:
        for inner, weight in layer.named_parameters():
            full = f"{names[id(layer)]}.{inner}"
            if len(_shape(weight)) > 1:
                sizes[inner] += math.prod(_shape(weight))
                left[inner] += math.prod(_shape(weight)) * chosen.isdisjoint((full, full.rpartition(".")[0]))
    if not (count := left.total()):
        return None
    kept = ", ".join(name for name, size in left.most_common(4) if size)
    stacked = any(expert for _, expert in _parts(model, tuning.layers).values())
    advice = "; LoRA takes experts that llm.tuning.targets names" if stacked and tuning.method == "lora" else ""
    told = f"{count:,} of {sizes.total():,} weights of the LLM's tuned layers are no linear maps and stay frozen"
    return f"{told}: {kept}{advice}"


def tune(model: "PreTrainedModel", tuning: Tuning) -> list[str]:
    """Add LoRA maps, or choose weights, in place; returns the names of the weights that are to train.

    New LoRA maps change no output: the second starts at 0, the first is drawn from torch's global generator. Errors as
    in `target_names`.
    """
    if tuning.method == "frozen":
        return []
    names = target_names(model, tuning)
    if tuning.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call, operator]
    if tuning.method == "weights":
        wanted = tuple(f"{name}." for name in names)
        return [name for name, _ in model.named_parameters() if name.startswith(wanted) or name in names]
    from peft import LoraConfig, inject_adapter_in_model  # late: it brings transformers' models along
    from peft.tuners.lora import LoraLayer
    from transformers.pytorch_utils import Conv1D

    modules = {name: module for name, module in model.named_modules() if name in names}
    experts = [name for name in names if name not in modules]
    if experts and tuning.dropout:
        why = f"peft has no dropout before maps of experts ({experts[0]}); set it to 0"
        raise ConfigError.at("llm.tuning.dropout", "conflict", why)
    config = LoraConfig(
        r=tuning.rank, lora_alpha=tuning.alpha, lora_dropout=tuning.dropout, target_modules=list(modules), bias="none",  # type: ignore[arg-type]
        target_parameters=experts or None, fan_in_fan_out=any(isinstance(one, Conv1D) for one in modules.values()),
    )  # fmt: skip
    inject_adapter_in_model(config, model)
    wrapped = sum(isinstance(module, LoraLayer) for module in model.modules())
    if wrapped != len(names):
        why = f"peft wrapped {wrapped} linear maps where {len(names)} were meant"
        raise ConfigError.at("llm.tuning", "mismatch", why)
    for name, weight in model.named_parameters():
        if _is_lora(name):
            weight.data = weight.data.float()  # in bfloat16, small steps would be rounded away
    return [name for name, _ in model.named_parameters() if _is_lora(name)]


def _is_lora(name: str) -> bool:
    return ".lora_" in name


def base_name(name: str) -> str | None:
    """The name of a weight in the LLM's checkpoint; None for LoRA's own."""
    return None if _is_lora(name) else re.sub(r"(\.base_layer)+\.", ".", name)


def lora_layers(modules: Iterable[nn.Module]) -> list[Any]:
    """The linear maps with LoRA (`peft.tuners.lora.LoraLayer`)."""
    from peft.tuners.lora import LoraLayer

    return [module for module in modules if isinstance(module, LoraLayer)]
